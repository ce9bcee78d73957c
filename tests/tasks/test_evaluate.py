"""The judged fit beside its rivals, on a world where the best possible list is known."""

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.graph import Csr, interactions_by_user, load_csr, save_arrays
from models.metrics import PER_USER, hits
from models.selection import NO_ITEM
from tasks.config import EvaluateConfig, NightlyConfig, RecommendConfig
from tasks.contracts import Evaluation, Fitted, Graph, Measured, ModelScore, Run, Tables, TierScore
from tasks.evaluate.allowed import read_segments
from tasks.evaluate.judging import evaluate_fit
from tasks.evaluate.measuring import _recall_among
from tasks.evaluate.quality import check_popularity
from tasks.evaluate.task import evaluate, warn_of_tiers
from tasks.evaluate.tiers import _shortened
from tasks.report.markdown import tiers_in_words
from tasks.run import read_ids
from tests.worlds import build_graph_of, fit_here, met_once, two_taste_world

SETTINGS = EvaluateConfig(k=10, resamples=200, knn_neighbours=20)
FIRST_PLACE = EvaluateConfig(k=1, resamples=100)
BLOCK_BYTES = 2**20
DAY_US = 86_400_000_000


@pytest.fixture(scope="module", params=["global_time", "per_user_time"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(two_taste_world().seen, tmp_path_factory.mktemp("graph"), split=request.param)


@pytest.fixture(scope="module")
def fitted(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_here(graph, tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def evaluation(graph: Graph, fitted: Fitted) -> Evaluation:
    return evaluate_fit(graph, fitted, SETTINGS, block_bytes=BLOCK_BYTES)


def score(evaluation: Evaluation, model: str, part: str = "test") -> ModelScore:
    (found,) = (s for s in evaluation.scores if (s.model, s.part) == (model, part))
    return found


def test_who_knows_the_tastes_beats_popularity_clearly(evaluation: Evaluation) -> None:
    assert evaluation.over_popularity["recall"].low > 0
    assert evaluation.over_popularity["ndcg"].low > 0
    assert score(evaluation, "item_knn").recall.mean > score(evaluation, "popularity").recall.mean
    assert check_popularity("recall", evaluation).passed


def test_the_difference_is_that_of_the_means(evaluation: Evaluation) -> None:
    for metric in ("recall", "ndcg"):
        means = [getattr(score(evaluation, model), metric).mean for model in ("lightgcn", "popularity")]
        assert evaluation.over_popularity[metric].mean == pytest.approx(means[0] - means[1])


def test_a_rival_that_would_cost_too_much_is_left_out(graph: Graph, fitted: Fitted) -> None:
    few = SETTINGS.model_copy(update={"ease_items_at_most": graph.num_items - 1, "filter_likes_at_most": 0})
    evaluation = evaluate_fit(graph, fitted, few, block_bytes=BLOCK_BYTES)
    assert {s.model for s in evaluation.scores} == {"lightgcn", "popularity", "item_knn"}


def test_every_user_with_a_like_in_the_part_counts_for_every_model(evaluation: Evaluation, graph: Graph) -> None:
    assert {s.model for s in evaluation.scores} == {"lightgcn", "popularity", "item_knn", "ease", "graph_filter"}
    for each in evaluation.scores:
        assert each.num_users == {"validation": graph.num_validation_users, "test": graph.num_test_users}[each.part]
        assert 0 <= each.recall.low <= each.recall.mean <= each.recall.high <= 1
        assert 0 < each.coverage <= 1
    assert sum(evaluation.users_by_history.values()) == graph.num_test_users


def test_lists_of_several_lengths_are_judged_by_every_metric_and_longer_ones_find_more(evaluation: Evaluation) -> None:
    for each in evaluation.scores:
        assert each.at.keys() == PER_USER.keys()
        for by_length in each.at.values():
            assert sorted(by_length) == [5, 10, 50]
        assert each.at["recall"][10] == each.recall
        assert each.at["ndcg"][10] == each.ndcg
        for metric in ("recall", "hit_rate", "mrr"):
            means = [each.at[metric][length].mean for length in (5, 10, 50)]
            assert means == sorted(means)


def test_what_is_popular_is_less_new_and_less_evenly_shown_than_what_fits_a_taste(evaluation: Evaluation) -> None:
    ours, popularity = (score(evaluation, model) for model in ("lightgcn", "popularity"))
    assert ours.novelty > popularity.novelty > 0
    assert 0 < ours.gini < popularity.gini < 1
    assert ours.popular_share < popularity.popular_share <= 1


def test_slices_are_of_all_test_users_and_their_means_are_the_whole(evaluation: Evaluation, graph: Graph) -> None:
    by_name = {found.name: found for found in evaluation.slices}
    of_users = [found for name, found in by_name.items() if name.startswith("users: ")]
    assert sum(found.num_users for found in of_users) == graph.num_test_users
    whole = sum(found.num_users * found.recall.mean for found in of_users) / graph.num_test_users
    assert whole == pytest.approx(score(evaluation, "lightgcn").recall.mean)
    over = sum(found.num_users * found.over_popularity.mean for found in of_users) / graph.num_test_users
    assert over == pytest.approx(evaluation.over_popularity["recall"].mean)
    assert {"items: head", "items: tail"} <= by_name.keys()
    assert by_name["items: tail"].over_popularity.mean > by_name["items: head"].over_popularity.mean


def test_recall_of_head_and_tail_is_that_of_their_targets_alone() -> None:
    target = interactions_by_user(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]), num_users=2)
    item_BK = np.array([[2, 5, 0], [NO_ITEM, 3, 4]], dtype=np.int32)
    users = np.array([0, 1])
    hit_BK = hits(item_BK, users, target, 6)
    head_I = np.array([True, True, False, False, False, False])
    head, tail = (_recall_among(which, item_BK, hit_BK, target, users) for which in (head_I, ~head_I))
    np.testing.assert_array_equal(head, [0.5, np.nan])
    np.testing.assert_array_equal(tail, [1.0, 1.0])


def test_the_same_fit_is_judged_the_same_whatever_the_block_size(
    evaluation: Evaluation, graph: Graph, fitted: Fitted
) -> None:
    assert evaluate_fit(graph, fitted, SETTINGS, block_bytes=BLOCK_BYTES) == evaluation
    by_user = evaluate_fit(graph, fitted, SETTINGS, block_bytes=1)
    assert score(by_user, "lightgcn").recall == score(evaluation, "lightgcn").recall


def test_the_tiers_are_measured_on_validation_beside_the_popular_list_for_the_same_people(
    evaluation: Evaluation, graph: Graph, fitted: Fitted
) -> None:
    liked, target = (load_csr(graph.folder, f"liked_{part}") for part in ("train", "validation"))
    judged = target.counts() > 0
    by_tier = {(tier.tier, tier.events): tier for tier in evaluation.tiers}
    graph_tier = by_tier["graph", ""]
    assert graph_tier.num_users == int((judged & (liked.counts() > 0)).sum())
    if graph_tier.num_users == graph.num_validation_users:
        means = [score(evaluation, model, "validation").recall.mean for model in ("lightgcn", "popularity")]
        assert graph_tier.recall.mean == means[0]
        all_alike = evaluate_fit(graph, fitted, SETTINGS, block_bytes=BLOCK_BYTES, half_life_days=0.0)
        assert all_alike.tiers[0].recall_over_popular.mean == pytest.approx(means[0] - means[1])
    for events in ("1", "2-4", "5-9", "10+"):
        if events == "10+" and (liked.counts()[judged] < 10).all():
            continue
        tier = by_tier["fold_in", events]
        assert 0 < tier.num_users <= graph_tier.num_users
        assert tier.num_shortened <= tier.num_users
        difference = tier.recall_over_popular
        assert difference.low <= difference.mean <= difference.high
        assert difference.mean <= tier.recall.mean, "popular finds nothing less than nothing"
    assert by_tier["fold_in", "1"].num_shortened == by_tier["fold_in", "1"].num_users, "all like more than one item"
    assert by_tier["fold_in", "5-9"].beats_popular, "five items of a taste say which taste it is"


def test_who_has_only_met_things_and_who_is_new_have_tiers_of_their_own(
    graph: Graph, fitted: Fitted, tmp_path: Path
) -> None:
    """Of four judged people: one likes and one has met items of their taste, two have done nothing."""
    folder = shutil.copytree(graph.folder, tmp_path / "graph")
    items = np.arange(0, graph.num_items, 2)
    rows = {"liked_train": [0] * 12, "seen_before_validation": [0] * 12 + [2] * 3, "liked_validation": [0, 2, 4, 6]}
    for name, users in rows.items():
        item_E = items[-len(users) :] if name == "liked_validation" else np.concatenate([items[:12], items[:3]])
        save_arrays(folder, name, interactions_by_user(np.array(users), item_E[: len(users)], graph.num_users))
    np.save(folder / "liked_train_at.npy", np.arange(12))
    evaluation = evaluate_fit(replace(graph, folder=str(folder)), fitted, SETTINGS, block_bytes=BLOCK_BYTES)
    people = {(tier.tier, tier.events): tier.num_users for tier in evaluation.tiers}
    assert people == {("graph", ""): 1, ("popular", ""): 2} | {
        ("fold_in", events): 1 for events in ("1", "2-4", "5-9", "10+", "met")
    }
    (popular,) = (tier for tier in evaluation.tiers if tier.tier == "popular")
    assert popular.recall_over_popular.mean == popular.ndcg_over_popular.mean == 0.0


# ---- popular and segment, as they are served: a world of three items


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Graph, Fitted]:
    """a (8 likes) and b (5) were liked long ago, c (3) lately; at validation u00, who likes a, and a newcomer like c.

    The fit knows nothing: it puts a before b before c.
    """
    rows = [(f"u{user:02d}", "a", user) for user in range(8)]
    rows += [(f"u{user:02d}", "b", user) for user in range(1, 6)]
    rows += [(f"u{user:02d}", "c", 100 * DAY_US + user) for user in range(8, 11)]
    rows += [(user, "c", 200 * DAY_US) for user in ("u00", "new")]
    rows += [(user, "c", 201 * DAY_US) for user in ("u01", "zed")]
    columns = {"user_id": pl.String, "item_id": pl.String, "timestamp_us": pl.Int64}
    seen = pl.DataFrame(rows, schema=columns, orient="row").with_columns(liked=pl.lit(True))
    graph = build_graph_of(met_once(seen.sort("user_id", "item_id")), tmp_path / "graph")
    assert (graph.num_train, graph.num_validation) == (16, 2)
    path = tmp_path / "judged.safetensors"
    save_tables(torch.zeros(graph.num_users, 2), torch.zeros(3, 2), path)
    return graph, Fitted(str(tmp_path), str(path), "", "f", 1, 1.0, 0.0, 0.0, 1, 1, "cpu", "data", 0.01, 0, "", 0)


def tiers_of(graph: Graph, fitted: Fitted, **served: Any) -> dict[str, TierScore]:
    names = ["one", "two"]
    evaluation = evaluate_fit(graph, fitted, FIRST_PLACE, block_bytes=BLOCK_BYTES, segment_names=names, **served)
    assert score(evaluation, "popularity", "validation").recall.mean == 0.0, "the models' table counts all likes alike"
    return {tier.tier: tier for tier in evaluation.tiers}


def test_popular_is_measured_as_it_is_served(old_and_new: tuple[Graph, Fitted]) -> None:
    decayed = tiers_of(*old_and_new, half_life_days=7.0)
    assert (decayed["popular"].num_users, decayed["popular"].recall.mean) == (1, 1.0), "c is what is liked lately"
    assert decayed["popular"].recall_over_popular.mean == 0.0
    assert decayed["graph"].recall_over_popular.mean == -1.0, "it gives b to u00, and popular gives c"
    all_alike = tiers_of(*old_and_new, half_life_days=0.0)
    assert all_alike["popular"].recall.mean == 0.0
    assert all_alike["graph"].recall_over_popular.mean == 0.0


def test_what_is_liked_after_the_cut_does_not_make_popular(tmp_path: Path, old_and_new: tuple[Graph, Fitted]) -> None:
    """a is liked again by everybody while others are judged: the popular list of before knows nothing of it."""
    graph, fitted = old_and_new
    folder = tmp_path / "again"
    build_graph_of(pairs_again(graph, "a", 202 * DAY_US), folder)
    assert np.load(folder / "liked_at.npy").max() == 202 * DAY_US
    assert tiers_of(replace(graph, folder=str(folder)), fitted, half_life_days=7.0) == tiers_of(
        graph, fitted, half_life_days=7.0
    )


def test_a_segment_gets_what_is_popular_in_it_and_then_what_is_popular(old_and_new: tuple[Graph, Fitted]) -> None:
    """The newcomer's segment likes c; in that of u00 only u00 likes anything, and popular fills the list."""
    graph, fitted = old_and_new
    segment = {"u00": 0, "u08": 1, "new": 1, "zed": 1}
    tier = tiers_of(graph, fitted, half_life_days=0.0, segment_U=numbers_of(graph, segment))["segment"]
    assert (tier.num_users, tier.recall.mean, tier.recall_over_popular.mean) == (2, 0.5, 0.5)
    evaluation = evaluate_fit(
        graph,
        fitted,
        FIRST_PLACE,
        block_bytes=BLOCK_BYTES,
        segment_U=numbers_of(graph, segment),
        segment_names=["one", "two"],
    )
    of_segments = [(found.name, found.num_users) for found in evaluation.slices if found.name.startswith("segment")]
    assert of_segments == [("segment: two", 1)], "of those who are judged on test, u01 and zed"
    words = tiers_in_words(evaluation)
    assert "| segment | 2 |" in words
    assert "the gate stand beside popularity, which counts all likes alike" in words


def test_likes_in_a_segment_age_as_all_do(old_and_new: tuple[Graph, Fitted]) -> None:
    graph, fitted = old_and_new
    segment = numbers_of(graph, {"u06": 0, "u07": 0, "u08": 0, "new": 0})
    recalls = [
        tiers_of(graph, fitted, half_life_days=half_life, segment_U=segment)["segment"].recall.mean
        for half_life in (0.0, 7.0)
    ]
    assert recalls == [0.0, 1.0], "two liked a long ago, one likes c now"


@pytest.mark.parametrize("segment", [{}, {"new": 0}, {"u08": 0, "u09": 1}])
def test_without_somebody_to_judge_whose_segment_likes_something_there_is_no_such_tier(
    segment: dict[str, int], old_and_new: tuple[Graph, Fitted]
) -> None:
    graph, fitted = old_and_new
    assert "segment" not in tiers_of(graph, fitted, segment_U=numbers_of(graph, segment))
    assert "segment" not in tiers_of(graph, fitted)


def numbers_of(graph: Graph, segment: dict[str, int]) -> np.ndarray:
    return np.array([segment.get(user, -1) for user in read_ids(Path(graph.folder))[0]])


def pairs_again(graph: Graph, item: str, when_us: int) -> pl.DataFrame:
    """The world's pairs, those of one item met again, and liked again, at a later moment."""
    user_ids, item_ids = read_ids(Path(graph.folder))
    liked, when = load_csr(graph.folder, "liked_all"), np.load(Path(graph.folder) / "liked_at.npy")
    rows = pl.DataFrame(
        {
            "user_id": user_ids.gather(np.repeat(np.arange(graph.num_users), liked.counts())),
            "item_id": item_ids.gather(np.array(liked.indices)),
            "timestamp_us": when,
            "liked": True,
        }
    )
    later = pl.when(pl.col("item_id") == item).then(pl.lit(when_us)).otherwise("timestamp_us")
    return met_once(rows).with_columns(timestamp_us=later)


def test_segments_are_read_by_the_graphs_rows(old_and_new: tuple[Graph, Fitted], tmp_path: Path) -> None:
    """A stranger's segment has no number; numbers follow the names."""
    graph, _ = old_and_new
    told = segments(tmp_path, {"new": "z", "nobody": "c", "u00": "b", "u01": "z"})
    segment_U, names = read_segments(graph.folder, told)
    assert segment_U is not None
    assert names == ["b", "z"]
    np.testing.assert_array_equal(segment_U, numbers_of(graph, {"new": 1, "u00": 0, "u01": 1}))
    assert read_segments(graph.folder, replace(told, rows={})) == (None, [])
    strangers, _ = read_segments(graph.folder, segments(tmp_path, {"nobody": "c"}))
    assert strangers is not None
    assert (strangers == -1).all()


def segments(folder: Path, segment: dict[str, str]) -> Tables:
    """As ingest leaves them; a fingerprint of what they say."""
    rows = pl.DataFrame({"user_id": list(segment), "segment": list(segment.values())})
    rows.write_parquet(folder / "segments.parquet")
    return Tables(str(folder), str(segment), {"segments": len(rows)}, {})


def test_a_night_measures_its_tiers_by_its_own_half_life_and_segments(
    old_and_new: tuple[Graph, Fitted], tmp_path: Path
) -> None:
    """And does not take over what an earlier try of the same night found out by others."""
    graph, fitted = old_and_new
    nothing = Tables(str(tmp_path), "", {}, {})

    def recalls(half_life: float, tables: Tables) -> dict[str, float]:
        lists = RecommendConfig(popular_half_life_days=half_life)
        config = NightlyConfig(evaluate=FIRST_PLACE, recommend=lists)
        run = Run("", date(1970, 8, 1), "", "", "code", config, False, str(tmp_path), "", 0, 0)
        return {tier.tier: tier.recall.mean for tier in evaluate.fn(run, graph, fitted, tables).tiers}

    assert recalls(0.0, nothing) == {"graph": 0.0, "popular": 0.0}
    assert recalls(7.0, nothing) == {"graph": 0.0, "popular": 1.0}
    assert recalls(7.0, segments(tmp_path, {"new": "s", "u08": "s"})) == {"graph": 0.0, "segment": 1.0, "popular": 1.0}
    assert recalls(7.0, segments(tmp_path, {"new": "s", "u07": "s"})) == {"graph": 0.0, "segment": 0.0, "popular": 1.0}


def test_a_night_whose_fold_in_does_not_beat_popularity_says_so(
    graph: Graph, fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = load_file(fitted.judged_path)
    tables["fold_ID"] = -tables["fold_ID"]  # everybody is sent to the other taste
    path = tmp_path / "judged.safetensors"
    save_file(tables, path)
    evaluation = evaluate_fit(graph, replace(fitted, judged_path=str(path)), SETTINGS, block_bytes=BLOCK_BYTES)
    failing = [tier.events for tier in evaluation.not_above_popular("fold_in")]
    assert "5-9" in failing
    warn_of_tiers(evaluation)
    (said,) = caplog.messages
    assert said.startswith("fold_in does not beat popular beyond noise, in recall@10 on validation, for people with ")
    assert said.count(" people)") == len(failing)
    assert "5-9 events (" in said
    words = tiers_in_words(evaluation)
    assert f"does not beat popular beyond noise for people with these events: {', '.join(failing)}." in words
    assert "| fold_in, 5-9 | " in words


def test_a_night_whose_graph_does_not_beat_the_popular_list_says_so(
    evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    """An interval that touches nothing is noise."""
    level = Measured(0.01, 0.0, 0.02)
    tiers = (replace(evaluation.tiers[0], num_users=1234, recall_over_popular=level),)
    told = replace(evaluation, tiers=tiers)
    assert tiers[0].tier == "graph"
    warn_of_tiers(told)
    assert caplog.messages == [
        "graph does not beat popular beyond noise, in recall@10 on validation, for people with likes "
        "(+0.0000 to +0.0200, 1,234 people)"
    ]
    assert tiers_in_words(told).endswith("\n\n**graph does not beat popular beyond noise.**")


def test_a_night_whose_tiers_beat_the_popular_list_warns_of_nothing(
    evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    good = replace(evaluation, tiers=tuple(tier for tier in evaluation.tiers if tier.beats_popular))
    warn_of_tiers(good)
    assert not caplog.text
    assert "graph beats popular for people with likes. fold_in beats popular for" in tiers_in_words(good)
    assert tiers_in_words(replace(evaluation, tiers=())) == ""


def test_a_shortened_history_is_a_draw_of_it() -> None:
    events = Csr(np.array([0, 3, 3, 13]), np.concatenate([[4, 6, 9], np.arange(10)]).astype(np.int32))
    short = _shortened(np.random.default_rng(0), events, np.array([0, 1, 2]), np.array([2, 5, 4]))
    assert short.counts().tolist() == [2, 0, 4]
    assert set(short.indices[:2]) < {4, 6, 9}
    assert (np.diff(short.indices[2:]) > 0).all()


def save_tables(user_UD: torch.Tensor, item_ID: torch.Tensor, path: Path) -> None:
    """Of a fit that folds nobody in."""
    fold = {"fold_ID": torch.zeros(len(item_ID), item_ID.shape[1] - 1), "fold_length": torch.ones(1)}
    save_file({"user_UD": user_UD.contiguous(), "item_ID": item_ID.contiguous()} | fold, path)


def tables_that_know_the_future(graph: Graph, folder: Path, part: str) -> Fitted:
    """One dimension an item: a user's score of an item is 1 where the part holds it as their like."""
    target = load_csr(graph.folder, f"liked_{part}")
    user_UI = torch.zeros(graph.num_users, graph.num_items)
    user_UI[
        np.repeat(np.arange(graph.num_users), target.counts()), torch.from_numpy(np.array(target.indices)).long()
    ] = 1
    path = folder / "judged.safetensors"
    save_tables(user_UI, torch.eye(graph.num_items), path)
    return Fitted(str(folder), str(path), str(path), "f", 1, 1.0, 0.0, 0.0, 1, 1, "cpu", "data", 0.01, 0, "", 0)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_who_knows_the_future_has_a_perfect_score(part: str, graph: Graph, tmp_path: Path) -> None:
    oracle = tables_that_know_the_future(graph, tmp_path, part)
    perfect = score(evaluate_fit(graph, oracle, SETTINGS, block_bytes=BLOCK_BYTES), "lightgcn", part)
    # Targets that the train part has never seen have no row, and no model can list them first.
    assert perfect.recall.mean > 0.99
    assert perfect.ndcg.mean > 0.99


def test_who_lists_only_the_other_taste_is_clearly_worse_than_popularity(graph: Graph, tmp_path: Path) -> None:
    taste_U = torch.arange(graph.num_users) % 2  # rows are in the order of ids
    taste_I = torch.arange(graph.num_items) % 2
    other_UD, item_ID = torch.eye(2)[1 - taste_U], torch.eye(2)[taste_I]
    path = tmp_path / "judged.safetensors"
    save_tables(other_UD, item_ID, path)
    fitted = Fitted(str(tmp_path), str(path), str(path), "f", 1, 1.0, 0.0, 0.0, 1, 1, "cpu", "data", 0.01, 0, "", 0)
    evaluation = evaluate_fit(graph, fitted, SETTINGS, block_bytes=BLOCK_BYTES)
    assert score(evaluation, "lightgcn").recall.mean == 0.0
    assert evaluation.over_popularity["recall"].high < 0
    assert not check_popularity("recall", evaluation).passed


def test_users_without_a_history_get_the_popular_list_from_every_model(tmp_path: Path) -> None:
    """Five newcomers appear in the last hours, and like what most people like."""
    seen = two_taste_world().seen
    latest = seen["timestamp_us"].max()
    assert isinstance(latest, int)
    favourite = seen.filter("liked").group_by("item_id").len().sort("len", "item_id")["item_id"][-1]
    newcomers = pl.DataFrame(
        {
            "user_id": [f"v{number}" for number in range(5)],
            "item_id": [favourite] * 5,
            "timestamp_us": [latest + 1 + number for number in range(5)],
            "liked": [True] * 5,
        }
    )
    graph = build_graph_of(pl.concat([seen, met_once(newcomers)]).sort("user_id", "item_id"), tmp_path / "graph")
    fitted = fit_here(graph, tmp_path / "fit", max_epochs=2)
    evaluation = evaluate_fit(graph, fitted, SETTINGS, block_bytes=BLOCK_BYTES)
    assert evaluation.users_by_history["without_history"] == 5
    assert {recall["without_history"] for recall in evaluation.recall_by_history.values()} == {1.0}


def test_the_fingerprint_is_another_for_another_result(evaluation: Evaluation, graph: Graph, fitted: Fitted) -> None:
    other = evaluate_fit(graph, fitted, EvaluateConfig(k=5, resamples=200), block_bytes=BLOCK_BYTES)
    assert other.k == 5
    assert other.fingerprint != evaluation.fingerprint


def test_coverage_is_the_share_of_the_catalogue_in_at_least_one_list(graph: Graph, tmp_path: Path) -> None:
    """Counted by hand for popularity: everybody's ten most liked items that they had not met before test."""
    evaluation = evaluate_fit(graph, fit_here(graph, tmp_path, max_epochs=1), SETTINGS, block_bytes=BLOCK_BYTES)
    train, met, target = (load_csr(graph.folder, name) for name in ("liked_train", "seen_before_test", "liked_test"))
    likes = np.bincount(train.indices, minlength=graph.num_items)
    listed: set[int] = set()
    for user in np.flatnonzero(target.counts()):
        known = set(met.indices[met.indptr[user] : met.indptr[user + 1]])
        order = sorted(set(range(graph.num_items)) - known, key=lambda item: (-likes[item], item))
        listed |= set(order[:10])
    assert 10 < len(listed) < graph.num_items
    assert score(evaluation, "popularity").coverage == len(listed) / graph.num_items


@pytest.mark.parametrize("change", [{"knn_shrink": 500.0}, {"knn_neighbours": 1}])
def test_the_rivals_settings_reach_the_rival(change: dict[str, float], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [(user, int(item), True) for user in range(60) for item in rng.zipf(1.3, 25) % 40]
    users, items, liked = zip(*dict.fromkeys(rows), strict=True)
    when = pl.Series(rng.permutation(len(users)) * 1_000_000, dtype=pl.Int64)
    seen = pl.DataFrame({"user_id": users, "item_id": items, "timestamp_us": when, "liked": liked})
    graph = build_graph_of(met_once(seen.sort("user_id", "item_id")), tmp_path / "graph", split="per_user_time")
    fitted = fit_here(graph, tmp_path / "fit", max_epochs=1)
    plain, changed = (
        evaluate_fit(graph, fitted, SETTINGS.model_copy(update=update), block_bytes=BLOCK_BYTES)
        for update in ({"knn_shrink": 0.0}, {"knn_shrink": 0.0} | change)
    )
    assert score(plain, "item_knn") != score(changed, "item_knn")
    assert score(plain, "lightgcn") == score(changed, "lightgcn")


@pytest.mark.parametrize(("k", "share"), [(1, 2 / 7), (2, 3 / 7), (3, 4 / 7)])
def test_coverage_by_hand(k: int, share: float, tmp_path: Path) -> None:
    """Seven items; two likes of each reader train, the third validates, the fourth tests; ann has only met g.

    In the train part a is liked three times, b twice, e once. What is left, most popular first, then by id (A first):

             before validation    before test
        ann  e A d (f)            e d f
        bob  e A d (f g)          e A f (g)
        cy   b A d (f g)          A d f (g)
    """
    reads = {"ann": "abAd", "bob": "abdA", "cy": "aebf"}
    rows = [(user, item, hour, True) for user, items in reads.items() for hour, item in enumerate(items, start=1)]
    seen = pl.DataFrame(
        [*rows, ("ann", "g", 0, False)], schema=["user_id", "item_id", "timestamp_us", "liked"], orient="row"
    ).sort("user_id", "item_id")
    graph = build_graph_of(met_once(seen), tmp_path / "graph", split="per_user_time")
    knows_nothing = tmp_path / "judged.safetensors"
    save_tables(torch.zeros(3, 1), torch.zeros(7, 1), knows_nothing)
    fitted = Fitted(str(tmp_path), str(knows_nothing), "", "f", 1, 1.0, 0.0, 0.0, 1, 1, "cpu", "data", 0.01, 0, "", 0)
    evaluation = evaluate_fit(graph, fitted, EvaluateConfig(k=k, resamples=100), block_bytes=BLOCK_BYTES)
    assert score(evaluation, "popularity", "validation").coverage == pytest.approx(share)
    assert score(evaluation, "popularity", "test").coverage == pytest.approx(share)
