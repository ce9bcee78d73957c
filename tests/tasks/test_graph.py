"""From what the business calls things to rows, and from pairs to arrays."""

from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.graph import load_adjacency, load_csr
from tasks.config import GraphConfig
from tasks.contracts import Graph
from tasks.errors import GraphTooSmall, InputTooLarge
from tasks.graph.edges import write_adjacencies
from tasks.graph.pairs import open_pairs, save_ids, write_pairs
from tasks.graph.selection import smallest
from tasks.graph.task import graph_of
from tasks.run import read_ids
from tests.worlds import build_graph_of, met_once, numbered, split_by_time, two_taste_world


def pairs_of(users: list[object], items: list[object]) -> pl.DataFrame:
    count = len(users)
    return met_once(
        pl.DataFrame(
            {"user_id": users, "item_id": items, "timestamp_us": list(range(count)), "liked": [True] * count},
            schema_overrides={"timestamp_us": pl.Int64},
        )
    )


def rows_in(folder: Path) -> list[tuple[int, int, int]]:
    """Every pair as the graph room reads it: user row, item row, time."""
    blocks = [block for _, block in open_pairs(folder).blocks()]
    return pl.concat(blocks).select("user_index", "item_index", "timestamp_us").rows()


def test_rows_are_numbered_in_the_order_of_ids(tmp_path: Path) -> None:
    folder = write_pairs(pairs_of([30, 10, 20, 10], [7, 9, 7, 7]), tmp_path)
    pairs = open_pairs(folder)
    assert pairs.user_ids.to_list() == [10, 20, 30]
    assert pairs.item_ids.to_list() == [7, 9]
    assert rows_in(folder) == [(0, 0, 3), (0, 1, 1), (1, 0, 2), (2, 0, 0)]


def test_known_users_keep_their_order_when_new_users_arrive(tmp_path: Path) -> None:
    before = open_pairs(write_pairs(pairs_of(["ann", "cy", "eve"], ["x"] * 3), tmp_path / "a")).user_ids.to_list()
    six = pairs_of(["eve", "bob", "ann", "dan", "cy", "zoe"], ["x"] * 6)
    after = open_pairs(write_pairs(six, tmp_path / "b")).user_ids
    assert [user for user in after if user in set(before)] == before


def test_strings_sort_by_bytes_whatever_the_language(tmp_path: Path) -> None:
    ids = ["b", "B", "é", "e", "z", "日本", "", "a b", "a", "ß", "😀", "e\u0301", "10", "9"]
    pairs = open_pairs(write_pairs(pairs_of(list(ids), ["x"] * len(ids)), tmp_path))
    assert pairs.user_ids.to_list() == sorted(ids, key=lambda text: text.encode())


@pytest.mark.parametrize("ids", [[-(2**63), -1, 0, 2**63 - 1], ["", "a\nb", "日本", "😀"]])
def test_ids_come_back_as_they_came(ids: list[object], tmp_path: Path) -> None:
    seen = pairs_of(ids, list(reversed(ids)))
    pairs = open_pairs(write_pairs(seen, tmp_path))
    save_ids(tmp_path, pairs)
    users, items = read_ids(tmp_path)
    assert users.dtype == seen["user_id"].dtype
    by_time = sorted((when, users[user], items[item]) for user, item, when in rows_in(tmp_path))
    assert [found[1:] for found in by_time] == list(zip(ids, reversed(ids), strict=True))


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_the_same_events_in_any_order_are_the_same_graph(split: str, tmp_path: Path) -> None:
    seen = two_taste_world().seen
    first = build_graph_of(seen, tmp_path / "a", split=split)
    second = build_graph_of(seen.sample(fraction=1.0, shuffle=True, seed=1), tmp_path / "b", split=split)
    assert first.fingerprint == second.fingerprint


def test_one_other_event_is_another_graph(tmp_path: Path) -> None:
    seen = two_taste_world().seen
    first = build_graph_of(seen, tmp_path / "a")
    second = build_graph_of(seen.head(len(seen) - 1), tmp_path / "b")
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_the_arrays_hold_each_like_once_and_everything_that_was_seen(split: str, tmp_path: Path) -> None:
    seen = two_taste_world().seen
    graph = build_graph_of(seen, tmp_path, split=split)
    likes = [len(load_csr(tmp_path, f"liked_{part}").indices) for part in ("train", "validation", "test")]
    assert sum(likes) == len(load_csr(tmp_path, "liked_all").indices) == graph.num_likes == seen["liked"].sum()
    assert len(load_csr(tmp_path, "seen_all").indices) == len(seen)
    assert load_adjacency(tmp_path, "adjacency_train").num_nodes == graph.num_users + graph.num_items
    assert len(load_adjacency(tmp_path, "adjacency_train").indices) == 2 * likes[0]
    assert len(load_adjacency(tmp_path, "adjacency_all").indices) == 2 * sum(likes)
    np.testing.assert_array_equal(np.load(tmp_path / "item_rank.npy"), np.arange(graph.num_items))


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_the_arrays_say_who_liked_what_when(split: str, tmp_path: Path) -> None:
    """Read back by hand, array by array, against the split pairs."""
    seen = two_taste_world().seen
    build_graph_of(seen, tmp_path, split=split)
    parted = split_by_time(numbered(seen), split=split, validation_share=0.1, test_share=0.1)
    conditions = {f"liked_{part}": pl.col("part") == part for part in ("train", "validation", "test")}
    conditions |= {name: pl.col(name) for name in ("seen_before_validation", "seen_before_test")}
    for name, condition in conditions.items():
        array = load_csr(tmp_path, name)
        rows = np.repeat(np.arange(array.num_rows), array.counts()).tolist()
        expected = parted.filter(condition).sort("user_index", "item_index").select("user_index", "item_index").rows()
        assert list(zip(rows, array.indices.tolist(), strict=True)) == expected, name


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
@pytest.mark.parametrize(("users", "items"), [(1, 12), (12, 1), (5, 8)])
def test_where_everybody_likes_everything_every_edge_weighs_the_same(
    users: int, items: int, split: str, tmp_path: Path
) -> None:
    """Complete graphs, a single user's and a single item's among them: 1 / sqrt(degree x degree), LightGCN eq. 3."""
    pairs = [(f"u{user:02d}", f"i{item:02d}") for item in range(items) for user in range(users)]
    seen = pairs_of([user for user, _ in pairs], [item for _, item in pairs])
    if items == 1 and split == "per_user_time":
        with pytest.raises(GraphTooSmall, match="Only a user with three likes or more is judged"):
            build_graph_of(seen, tmp_path, split=split)
        return
    graph = build_graph_of(seen, tmp_path, split=split)
    assert (graph.num_users, graph.num_items, graph.num_likes) == (users, items, users * items)
    adjacency = load_adjacency(tmp_path, "adjacency_all")
    np.testing.assert_array_equal(np.diff(adjacency.indptr), [items] * users + [users] * items)
    np.testing.assert_allclose(adjacency.values, 1 / np.sqrt(users * items), rtol=1e-6)
    of_users = np.asarray(adjacency.indices)[: users * items].reshape(users, items)
    np.testing.assert_array_equal(of_users, np.tile(users + np.arange(items), (users, 1)))


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_the_moments_of_train_likes_know_nothing_of_after_the_cut(split: str, tmp_path: Path) -> None:
    """Everything is met again ten years later, and liked as before: what is measured has the moments of first likes."""
    seen = two_taste_world().seen
    ten_years_us = 3_650 * 86_400_000_000
    again = seen.with_columns(pl.col("timestamp_us") + ten_years_us)
    for folder, events in ((tmp_path / "once", seen), (tmp_path / "again", again)):
        build_graph_of(events, folder, split=split)
    assert np.load(tmp_path / "again" / "liked_at.npy").min() >= ten_years_us
    moments = np.load(tmp_path / "again" / "liked_train_at.npy")
    np.testing.assert_array_equal(moments, np.load(tmp_path / "once" / "liked_train_at.npy"))
    parted = split_by_time(numbered(again), split=split, validation_share=0.1, test_share=0.1)
    in_train = parted.filter(pl.col("part") == "train").sort("user_index", "item_index")
    assert moments.tolist() == in_train["first_liked_us"].to_list(), "in the order of liked_train"
    if split == "global_time":
        assert moments.max() < parted.filter(pl.col("part") == "validation")["first_liked_us"].min()


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_how_many_users_are_read_at_once_changes_no_byte(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = two_taste_world().seen
    whole = build_graph_of(seen, tmp_path / "whole", split=split)
    for at_once in (1, 37):
        monkeypatch.setattr("tasks.graph.pairs.Pairs.blocks.__defaults__", (at_once,))
        monkeypatch.setattr("models.graph.adjacency_pieces.__defaults__", (at_once,))
        monkeypatch.setattr("models.graph.by_users.__defaults__", (at_once,))
        monkeypatch.setattr("tasks.graph.selection.FEW", 2)
        parts = build_graph_of(seen, tmp_path / f"by-{at_once}", split=split)
        assert bytes_of(parts) == bytes_of(whole)
        assert parts.fingerprint == whole.fingerprint


def bytes_of(graph: Graph) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(graph.folder).iterdir())}


@pytest.mark.parametrize("split", ["global_time", "per_user_time"])
def test_the_history_of_the_registry_changes_no_graph(split: str, tmp_path: Path) -> None:
    """The same pairs under other rows of the registry: some nights' ids came in another order, many people left."""
    folder = write_pairs(two_taste_world().seen, tmp_path / "pairs")
    first = graph_of(folder, made(tmp_path / "first"), GraphConfig(split=split))  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    pairs = open_pairs(folder)
    rows = {"user": rng.permutation(10_000)[: pairs.num_users], "item": rng.permutation(900)[: pairs.num_items]}
    number_anew(folder, rows)
    second = graph_of(folder, made(tmp_path / "second"), GraphConfig(split=split))  # type: ignore[arg-type]
    assert second.fingerprint == first.fingerprint
    for kind, of_registry in rows.items():
        np.testing.assert_array_equal(np.load(tmp_path / "second" / f"{kind}_registry_rows.npy"), of_registry)
    names = {name: content for name, content in bytes_of(first).items() if "registry" not in name}
    assert {name: content for name, content in bytes_of(second).items() if "registry" not in name} == names


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def number_anew(folder: Path, rows: dict[str, np.ndarray]) -> None:
    """contracts.Interactions once more, by other rows of the registry."""
    frame = pl.concat([block for _, block in open_pairs(folder).blocks()])
    for kind, of_registry in rows.items():
        row = of_registry.astype(np.int32)[frame[f"{kind}_index"].to_numpy()]
        frame = frame.with_columns(pl.Series(f"{kind}_row", row))
    frame = frame.sort("user_row", "item_row")
    user_rows, counts = np.unique(frame["user_row"].to_numpy(), return_counts=True)
    np.save(folder / "user_rows.npy", user_rows)
    np.save(folder / "indptr.npy", np.append(0, np.cumsum(counts)))
    np.save(folder / "item_row.npy", frame["item_row"].to_numpy())
    for name in ("timestamp_us", "liked", "first_seen_us", "first_liked_us"):
        filled = frame[name].fill_null(-1) if name == "first_liked_us" else frame[name]
        np.save(folder / f"{name}.npy", filled.to_numpy())
    for kind, of_registry in rows.items():
        ids = pl.read_parquet(folder / f"{kind}s.parquet")[f"{kind}_id"]
        numbered = pl.DataFrame({f"{kind}_row": of_registry.astype(np.int32), f"{kind}_id": ids})
        numbered.sort(f"{kind}_row").write_parquet(folder / f"{kind}s.parquet")


@settings(max_examples=200, deadline=None)
@example([[-(2**63), 2**63 - 1, 5, 2**62]], Random(1))
@given(
    st.lists(
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), max_size=30), min_size=1, max_size=5
    ).filter(any),
    st.randoms(use_true_random=False),
)
def test_the_kth_smallest_of_pieces_is_that_of_all_together(pieces: list[list[int]], random: Random) -> None:
    arrays = [np.array(piece, np.int64) for piece in pieces]
    together = sorted(time for piece in pieces for time in piece)
    k = random.randrange(len(together))
    with pytest.MonkeyPatch.context() as few:
        few.setattr("tasks.graph.selection.FEW", 3)
        few.setattr("tasks.graph.selection.BUCKETS", 4)
        assert smallest(lambda: iter(arrays), k) == together[k]


def test_more_likes_than_row_pointers_can_count_are_refused_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = build_graph_of(two_taste_world().seen, tmp_path / "graph")

    class TooMany:
        max = 100

    monkeypatch.setattr("models.graph.np.iinfo", lambda _: TooMany)
    with pytest.raises(InputTooLarge, match=r"row pointers hold.*window_days lower, or graph\.user_core"):
        write_adjacencies(Path(graph.folder), graph.num_items)
