"""Everybody's list as it lands on the disk: K distinct unseen items, best first, in format 2."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

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
