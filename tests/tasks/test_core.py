"""What settings keep out of the graph stays met, stays popular and stays judged; the rest is the largest core."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.graph import Csr, interactions_by_user, load_csr, load_likes
from tasks.config import EvaluateConfig, GraphConfig, RecommendConfig
from tasks.contracts import Graph
from tasks.errors import GraphTooSmall
from tasks.evaluate.judging import evaluate_fit
from tasks.graph.core import likes_to_learn
from tasks.recommend.everyone import recommend_everyone
from tests.worlds import build_graph_of, fit_here, met_once, two_taste_world


def core_of(cells: set[tuple[int, int]], user_core: int, item_core: int) -> set[tuple[int, int]]:
    """As the definition has it, one node at a time."""
    while True:
        for side, least in ((0, user_core), (1, item_core)):
            for node in {cell[side] for cell in cells}:
                own = {cell for cell in cells if cell[side] == node}
                if len(own) < least:
                    cells = cells - own
                    break
            else:
                continue
            break
        else:
            return cells


def csr_of(cells: list[tuple[int, int]], num_users: int) -> Csr:
    user, item = (np.array([cell[side] for cell in cells], dtype=np.int64) for side in (0, 1))
    return interactions_by_user(user, item, num_users)


def cells_of(likes: Csr, is_kept_E: np.ndarray | None = None) -> list[tuple[int, int]]:
    rows = np.repeat(np.arange(likes.num_rows), likes.counts())
    kept = np.ones(len(rows), np.bool_) if is_kept_E is None else is_kept_E
    return list(zip(rows[kept].tolist(), likes.indices[kept].tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=50, unique=True),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_what_is_left_is_the_largest_core(cells: list[tuple[int, int]], user_core: int, item_core: int) -> None:
    likes = csr_of(cells, 8)
    config = GraphConfig(user_core=user_core, item_core=item_core)
    is_kept_E, left_out = likes_to_learn(likes, np.zeros(len(cells), np.int64), 10, config)
    expected = core_of(set(cells), user_core, item_core)
    assert cells_of(likes, is_kept_E) == sorted(expected)
    for side, count in ((0, left_out.users), (1, left_out.items)):
        assert count == len({cell[side] for cell in cells}) - len({cell[side] for cell in expected})
    assert left_out.likes == len(cells) - len(expected)


def test_a_users_latest_likes_are_kept_and_of_one_instant_those_of_smaller_ids() -> None:
    likes = csr_of([(0, item) for item in range(30)] + [(1, item) for item in range(10)] + [(2, 3)], 3)
    at_E = np.concatenate([[item // 4 for item in range(30)], np.arange(11)])
    is_kept_E, left_out = likes_to_learn(likes, at_E, 30, GraphConfig(likes_per_user_at_most=10))
    kept = cells_of(likes, is_kept_E)
    # Instants 7 (28, 29), 6 (24 to 27) and 5 (20 to 23).
    assert [item for user, item in kept if user == 0] == list(range(20, 30))
    assert [cell for cell in kept if cell[0] > 0] == [(1, item) for item in range(10)] + [(2, 3)]
    assert (left_out.over_cap, left_out.capped_users, left_out.likes, left_out.users) == (20, 1, 20, 0)
    at_E[:30] = 7
    is_kept_E, _ = likes_to_learn(likes, at_E, 30, GraphConfig(likes_per_user_at_most=10))
    assert [item for user, item in cells_of(likes, is_kept_E) if user == 0] == list(range(10))


@pytest.fixture(scope="module")
def rare() -> pl.DataFrame:
    """The two tastes, and someone who likes one thing that nobody else does, and one that all like."""
    seen = two_taste_world().seen
    first = seen["timestamp_us"].min()
    assert isinstance(first, int)
    more = pl.DataFrame(
        {
            "user_id": ["u_rare", "u_rare"],
            "item_id": ["i_rare", "i000"],
            "timestamp_us": [first, first + 1],
            "liked": [True, True],
        }
    )
    return pl.concat([seen, met_once(more).select(seen.columns)]).sort("user_id", "item_id")


@pytest.fixture(scope="module")
def whole(rare: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(rare, tmp_path_factory.mktemp("whole"))


def test_likes_that_the_graph_leaves_out_stay_seen_and_popular_and_are_judged(
    rare: pl.DataFrame, whole: Graph, tmp_path: Path
) -> None:
    core = build_graph_of(rare, tmp_path / "core", user_core=3, item_core=2)
    item = core.num_items - 1  # i_rare, the last of ids
    user = core.num_users - 1
    for fit in ("train", "all"):
        learned = load_csr(core.folder, f"liked_{fit}")
        assert item not in learned.indices
        assert learned.counts()[user] == 0
        every_like, at_E = load_likes(core.folder, fit)
        before, before_at_E = load_likes(whole.folder, fit)
        assert cells_of(every_like) == cells_of(before)
        np.testing.assert_array_equal(at_E, before_at_E)
        assert core.left_out[fit]["users"] == 1
        assert core.left_out[fit]["items"] == 1
        assert core.left_out[fit]["likes"] == 2 == len(every_like.indices) - len(learned.indices)
        degree = np.diff(np.load(Path(core.folder) / f"adjacency_{fit}.indptr.npy"))
        assert degree[user] == degree[core.num_users + item] == 0
        assert degree.sum() == 2 * len(learned.indices)
    for name in ("seen_all", "seen_before_validation", "seen_before_test", "liked_validation", "liked_test"):
        assert cells_of(load_csr(core.folder, name)) == cells_of(load_csr(whole.folder, name)), name
    assert (core.num_likes, core.num_train, core.num_test) == (whole.num_likes, whole.num_train, whole.num_test)


def test_a_graph_that_has_every_like_has_no_second_copy_of_them(whole: Graph) -> None:
    assert not list(Path(whole.folder).glob("popular_*"))
    assert {fit: counts["likes"] for fit, counts in whole.left_out.items()} == {"train": 0, "all": 0}


def test_a_core_with_nothing_in_it_is_a_graph_too_small(rare: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(GraphTooSmall, match=r"none is left.*Lower graph\.user_core or graph\.item_core"):
        build_graph_of(rare, tmp_path / "none", user_core=500)


def test_who_and_what_comes_only_after_the_cut_is_counted_as_cold(rare: pl.DataFrame, tmp_path: Path) -> None:
    """Two newcomers: one likes something that is new itself, the other something known."""
    last = rare["timestamp_us"].max()
    assert isinstance(last, int)
    late = pl.DataFrame(
        {
            "user_id": ["new_a", "new_b"],
            "item_id": ["new_thing", "i000"],
            "timestamp_us": [last + 1, last + 2],
            "liked": [True, True],
        }
    )
    before = build_graph_of(rare, tmp_path / "before")
    after = build_graph_of(pl.concat([rare, met_once(late).select(rare.columns)]), tmp_path / "after")
    assert (after.cold_users - before.cold_users, after.cold_items - before.cold_items) == (2, 1)


def test_who_and_what_comes_between_the_cuts_alone_is_cold_too(
    rare: pl.DataFrame, whole: Graph, tmp_path: Path
) -> None:
    """Their like is of validation, and no like of theirs is in the test."""
    assert whole.validation_from_us < whole.test_from_us
    between = pl.DataFrame(
        {"user_id": ["new_a"], "item_id": ["new_thing"], "timestamp_us": [whole.test_from_us - 1], "liked": [True]}
    )
    after = build_graph_of(pl.concat([rare, met_once(between).select(rare.columns)]), tmp_path / "after")
    assert after.validation_from_us <= whole.test_from_us - 1 < after.test_from_us
    assert (after.cold_users - whole.cold_users, after.cold_items - whole.cold_items) == (1, 1)


def test_who_is_kept_out_is_folded_in_and_what_is_kept_out_comes_from_the_popular_list_alone(
    rare: pl.DataFrame, tmp_path: Path
) -> None:
    graph = build_graph_of(rare, tmp_path / "core", user_core=3, item_core=2)
    fitted = fit_here(graph, tmp_path / "fit")
    everything = RecommendConfig(k=60, popular_half_life_days=0)
    (tmp_path / "lists").mkdir()
    lists = recommend_everyone(graph, fitted, everything, tmp_path / "lists")
    rows = pl.concat([pl.read_parquet(part.path) for part in lists.parts])
    own = rows.filter(pl.col("user_id") == "u_rare")
    assert own["tier"][0] == "fold_in"
    assert set(own["item_id"]).isdisjoint({"i_rare", "i000"}), "both were met"
    tiers_of_rare = set(rows.filter(pl.col("item_id") == "i_rare")["tier"])
    assert tiers_of_rare == {"popular"}
    evaluation = evaluate_fit(graph, fitted, EvaluateConfig(), block_bytes=1 << 24)
    assert {score.model for score in evaluation.scores} >= {"lightgcn", "popularity", "item_knn"}
