"""Everybody's list as it lands on the disk: K distinct unseen items, best first, in format 2."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.fold_in import HALF_AT
from models.graph import load_csr
from tasks.config import RecommendConfig
from tasks.contracts import TIERS, Fitted, Graph, Recommendations
from tasks.recommend.everyone import recommend_everyone
from tasks.run import file_sha256
from tests.worlds import World, build_graph_of, fit_here, met_once, name, two_taste_world

TOP_10 = RecommendConfig(k=10, popular_half_life_days=0)


@pytest.fixture(scope="module", params=[False, True], ids=["strings", "integers"])
def integer_ids(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def world(integer_ids: bool) -> World:
    """Two tastes, and four unusual users.

    30 and 31 never liked anything of what they met, 32 has met everything, 33 everything but four.
    """
    world = two_taste_world(integer_ids=integer_ids)
    user = {number: name("u", number, integer_ids) for number in (30, 31, 32, 33)}
    item = {number: name("i", number, integer_ids) for number in range(60)}
    likes_nothing = pl.col("user_id").is_in([user[30], user[31]])
    seen = world.seen.with_columns(liked=pl.col("liked") & ~likes_nothing)
    rows = [(user[32], item[i]) for i in range(60)] + [(user[33], item[i]) for i in range(56)]
    met = met_once(
        pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(
            timestamp_us=pl.lit(0, pl.Int64), liked=pl.lit(False)
        )
    )
    met = met.join(seen, on=["user_id", "item_id"], how="anti").select(seen.columns)
    return replace(world, seen=pl.concat([seen, met]).sort("user_id", "item_id"))


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(world.seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def fitted(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_here(graph, tmp_path_factory.mktemp("fit"))


def rows_of(recommendations: Recommendations) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(part.path) for part in recommendations.parts])


@pytest.fixture(scope="module")
def recommendations(graph: Graph, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Recommendations:
    return recommend_everyone(graph, fitted, TOP_10, tmp_path_factory.mktemp("lists"))


def test_everyone_gets_exactly_k_distinct_unseen_items_where_there_are_so_many(
    recommendations: Recommendations, world: World
) -> None:
    rows = rows_of(recommendations)
    left = 60 - world.seen.group_by("user_id").len().sort("user_id")["len"]
    expected = {
        user: min(10, unseen)
        for user, unseen in zip(sorted(world.taste_of_user), left, strict=True)  # type: ignore[type-var]
        if unseen
    }
    assert dict(rows.group_by("user_id").agg(pl.col("item_id").n_unique()).rows()) == expected
    assert dict(rows.group_by("user_id").len().rows()) == expected
    assert rows.join(world.seen, on=["user_id", "item_id"], how="semi").is_empty()
    assert sorted(expected.values()) == [4] + [10] * 38


def test_ranks_count_from_one_and_scores_fall_within_a_tier(recommendations: Recommendations) -> None:
    for (_,), own in rows_of(recommendations).group_by("user_id", maintain_order=True):
        assert own["rank"].to_list() == list(range(1, len(own) + 1))
        assert own["tier"].to_list() == sorted(own["tier"], key=TIERS.index), "graph before popular"
        for (_,), tier in own.group_by("tier"):
            assert tier["score"].is_sorted(descending=True)


def test_rows_are_sorted_by_user_and_rank_through_all_parts(recommendations: Recommendations) -> None:
    rows = rows_of(recommendations)
    assert rows.equals(rows.sort("user_id", "rank"))


def test_the_columns_are_those_of_format_2(recommendations: Recommendations, integer_ids: bool) -> None:
    ids = "int64" if integer_ids else "large_string"
    schema = pq.read_schema(recommendations.parts[0].path)
    types = {field.name: str(field.type) for field in schema}
    assert list(types) == ["user_id", "rank", "item_id", "score", "tier", "reasons"]
    assert types["user_id"] in (ids, "string")
    assert types["item_id"] == types["user_id"]
    assert (types["user_id"] == "int64") == integer_ids
    assert types["rank"] == "int32"
    assert types["score"] == "float"
    assert types["tier"] in ("string", "large_string")
    assert rows_of(recommendations).null_count().sum_horizontal().item() == 0


def test_the_lists_are_of_their_users_taste(recommendations: Recommendations, world: World) -> None:
    graph_rows = rows_of(recommendations).filter((pl.col("tier") == "graph") & (pl.col("rank") <= 10))
    own = [
        world.taste_of_user[user] == world.taste_of_item[item]
        for user, item in graph_rows.select("user_id", "item_id").iter_rows()
    ]
    assert np.mean(own) > 0.95


def test_users_without_likes_are_folded_in_from_what_they_met(
    recommendations: Recommendations, world: World, integer_ids: bool
) -> None:
    """They met mostly things of their own taste."""
    rows = rows_of(recommendations)
    for number in (30, 31):
        user = name("u", number, integer_ids)
        met = set(world.seen.filter(pl.col("user_id") == user)["item_id"])
        own = rows.filter(pl.col("user_id") == user)
        assert own["tier"].to_list() == ["fold_in"] * 10
        assert np.mean([world.taste_of_item[item] == number % 2 for item in own["item_id"]]) >= 0.9
        because = own.explode("reasons").unnest("reasons", separator=".")
        assert set(because["reasons.kind"]) == {"met"}
        assert set(because["reasons.item_id"]) <= met
    assert recommendations.users_without_a_trained_row == 2
    assert recommendations.users_by_tier["fold_in"] == 2


def shares_again(graph: Graph, tables: dict[str, np.ndarray], rows: pl.DataFrame, *, at_most: int = 3) -> None:
    """Holds every score and reason of tiers graph and fold_in against the served tables, in float64, row by row.

    What of a trained row its likes do not say is the own term; a folded row has none.
    """
    folder = Path(graph.folder)
    user_ids, item_ids = (pl.read_parquet(folder / f"{kind}_ids.parquet").to_series() for kind in ("user", "item"))
    user_of, item_of = ({id_: row for row, id_ in enumerate(ids.to_list())} for ids in (user_ids, item_ids))
    events = {"graph": load_csr(graph.folder, "liked_all"), "fold_in": load_csr(graph.folder, "seen_all")}
    for user_id, item_id, score, tier, because in rows.select(
        "user_id", "item_id", "score", "tier", "reasons"
    ).iter_rows():
        user, item_D = user_of[user_id], tables["item_ID"][item_of[item_id]]
        own = events[tier].indices[slice(*events[tier].indptr[user : user + 2])]
        if tier == "graph":
            hop_ED = tables["hop_ID"][own] * tables["scale_U"][user] / np.sqrt(len(own))
            own_D = tables["user_UD"][user, :-1] - hop_ED.sum(axis=0)
        else:
            own = own[(tables["fold_ID"][own] != 0).any(axis=1)]
            sum_D = tables["fold_ID"][own].sum(axis=0)
            length = tables["fold_length"][0] * len(own) / (len(own) + HALF_AT)
            hop_ED = tables["fold_ID"][own] * length / np.linalg.norm(sum_D)
            own_D = np.zeros(len(sum_D))
        part_E, own_term, bias = hop_ED @ item_D[:-1], own_D @ item_D[:-1], item_D[-1]
        assert score == pytest.approx(part_E.sum() + own_term + bias, abs=2e-5), "history + own + bias"
        share_E = part_E / (part_E[part_E > 0].sum() + max(own_term, 0.0) + max(bias, 0.0))
        positive = np.sort(share_E[share_E > 0])[::-1][:at_most]
        assert [reason["share"] for reason in because] == pytest.approx(positive, rel=1e-3, abs=1e-7)
        share_of = dict(zip(own.tolist(), share_E, strict=True))
        for reason in because:
            assert reason["kind"] == ("liked" if tier == "graph" else "met")
            assert reason["share"] == pytest.approx(share_of[item_of[reason["item_id"]]], rel=1e-3, abs=1e-7)


def in_float64(served_path: str) -> dict[str, np.ndarray]:
    return {name: table.double().numpy() for name, table in load_file(served_path).items()}


def test_scores_and_shares_are_those_that_the_served_tables_give_in_float64(
    recommendations: Recommendations, graph: Graph, fitted: Fitted
) -> None:
    rows = rows_of(recommendations).filter(pl.col("tier").is_in(["graph", "fold_in"]))
    assert dict(rows.group_by("tier").len().rows()) == {"graph": 364, "fold_in": 20}
    shares_again(graph, in_float64(fitted.served_path), rows)
    assert rows["reasons"].list.len().mean() > 2.5


def test_what_a_fit_exports_as_the_first_hop_is_no_items_own_row(fitted: Fitted) -> None:
    """Or the test above would take the one for the other."""
    tables = in_float64(fitted.served_path)
    assert not np.allclose(tables["hop_ID"], tables["item_ID"][:, :-1], rtol=0.1)


MANY = 100_000


def test_a_hundred_thousand_likes_leave_a_whole_list_and_liking_everything_none(fitted: Fitted, tmp_path: Path) -> None:
    """Of 100,004 items: 0 likes all but 4, 1 likes all, 2 likes two of them."""
    likes = [np.arange(MANY), np.arange(MANY + 4), np.array([5, MANY + 1])]
    user, item = np.repeat(np.arange(3), list(map(len, likes))), np.concatenate(likes)
    seen = pl.DataFrame({"user_id": user, "item_id": item}).with_columns(
        timestamp_us=pl.int_range(pl.len()) * 1_000_000, liked=pl.lit(True)
    )
    graph = build_graph_of(met_once(seen), tmp_path / "graph")
    generator = torch.Generator().manual_seed(3)
    hop_ID, item_ID = (torch.randn(MANY + 4, width, generator=generator) for width in (4, 5))
    liked, scale_U = load_csr(graph.folder, "liked_all"), torch.rand(3, generator=generator)
    own_UD = torch.randn(3, 4, generator=generator)
    hops = [hop_ID.double().numpy()[liked.indices[slice(*liked.indptr[row : row + 2])]] for row in range(3)]
    history_UD = torch.tensor(np.array([hop_ED.sum(axis=0) / np.sqrt(len(hop_ED)) for hop_ED in hops])).float()
    tables = {
        "user_UD": torch.cat([scale_U[:, None] * (own_UD + history_UD), torch.ones(3, 1)], dim=1),
        "item_ID": item_ID,
        "hop_ID": hop_ID,
        "scale_U": scale_U,
    }
    save_file(tables, tmp_path / "served.safetensors")
    (tmp_path / "lists").mkdir()
    of_random_rows = replace(fitted, served_path=str(tmp_path / "served.safetensors"))
    night = recommend_everyone(graph, of_random_rows, RecommendConfig(k=4, similar_items=0), tmp_path / "lists")
    rows = rows_of(night)
    assert dict(rows.group_by("user_id").len().rows()) == {0: 4, 2: 4}
    assert set(rows.filter(pl.col("user_id") == 0)["item_id"]) == set(range(MANY, MANY + 4))
    assert (night.people, night.users, night.short_by_reason) == (3, 2, {"seen": 1})
    assert rows["tier"].to_list() == ["graph"] * 8
    shares_again(graph, in_float64(of_random_rows.served_path), rows)


def test_who_has_met_everything_gets_no_list_and_is_counted(
    recommendations: Recommendations, integer_ids: bool
) -> None:
    users = rows_of(recommendations)["user_id"]
    assert name("u", 32, integer_ids) not in users.to_list()
    assert users.n_unique() == recommendations.users == 39
    assert recommendations.short_lists == 2, "one has four items left, one none"


def test_the_counts_add_up_and_the_hashes_are_those_of_the_files(recommendations: Recommendations) -> None:
    rows = rows_of(recommendations)
    assert recommendations.rows == len(rows) == sum(part.rows for part in recommendations.parts) == 38 * 10 + 4
    assert recommendations.rows_by_tier == dict.fromkeys(TIERS, 0) | dict(rows.group_by("tier").len().rows())
    for part in recommendations.parts:
        assert part.sha256 == file_sha256(part.path)
        assert part.num_bytes == Path(part.path).stat().st_size


def test_the_same_fit_gives_the_same_bytes(
    graph: Graph, fitted: Fitted, recommendations: Recommendations, tmp_path: Path
) -> None:
    again = recommend_everyone(graph, fitted, TOP_10, tmp_path)
    assert again.fingerprint == recommendations.fingerprint
    assert [part.sha256 for part in again.parts] == [part.sha256 for part in recommendations.parts]


def test_the_parts_are_cut_by_users_and_hold_the_same_lists(
    graph: Graph, fitted: Fitted, recommendations: Recommendations, tmp_path: Path
) -> None:
    """Config does not allow so small parts and blocks; the function does."""
    small = RecommendConfig.model_construct(k=10, users_per_shard=7, popular_half_life_days=0)
    cut = recommend_everyone(graph, fitted, small, tmp_path)
    assert len(cut.parts) == 6
    assert [part.users for part in cut.parts] == [7, 7, 7, 7, 6, 5], "user 32 has no rows"
    assert rows_of(cut).equals(rows_of(recommendations)), "to the last bit of a score"


def test_more_than_the_catalogue_gives_all_of_it(graph: Graph, fitted: Fitted, world: World, tmp_path: Path) -> None:
    everything = recommend_everyone(graph, fitted, RecommendConfig(k=1000), tmp_path)
    assert everything.rows == 40 * 60 - len(world.seen)
    assert everything.short_lists == 40
    rows = rows_of(everything)
    assert rows.select("user_id", "item_id").is_unique().all()
    assert rows.join(world.seen, on=["user_id", "item_id"], how="semi").is_empty()
