"""Runs become pairs: the same bytes however events are divided over runs, and however little memory there is."""

import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import pairs
from models.pairs import DAY_US, MICRO, Events, Folding, fold, stamp_of, strengths
from tasks.ingest import merge
from tasks.ingest.merge import COLUMNS, Merged, merge_runs

FROM_US, UNTIL_US = 10 * DAY_US, 15 * DAY_US
FOLDING = Folding(FROM_US, UNTIL_US)
WEIGHTED = Folding(FROM_US, UNTIL_US, strengths(np.array([200_000, MICRO]), half_life_days=2.0), MICRO)
NUM_ITEMS = 50


def events_in_time(count: int, *, users: int, seed: int) -> pl.DataFrame:
    """Rows of a run, in no order: few users have many, some times lie outside, some rows are there twice."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user_row": (users * rng.random(count) ** 3).astype(np.int32),
            "item_row": rng.integers(0, NUM_ITEMS, count).astype(np.int32),
            "timestamp_us": rng.integers(FROM_US - DAY_US, UNTIL_US + DAY_US, count),
            "kind": rng.integers(0, 2, count).astype(np.uint8),
        }
    )
    return pl.concat([frame, frame.sample(fraction=0.1, seed=seed)])


def write_runs(rows: pl.DataFrame, folder: Path, *, parts: int, rows_per_group: int, seed: int) -> list[Path]:
    """The rows dealt out to so many runs, each sorted and distinct as a digested day's is."""
    folder.mkdir(parents=True, exist_ok=True)
    dealt = np.random.default_rng(seed).integers(0, parts, len(rows))
    paths = []
    for part in range(parts):
        mine = rows.filter(pl.Series(dealt == part)).unique().sort(rows.columns)
        if len(mine):
            paths.append(folder / f"run-{part}.parquet")
            mine.write_parquet(paths[-1], row_group_size=rows_per_group, statistics=True)
    return paths


def merged(runs: list[Path], folder: Path, folding: Folding = FOLDING, *, memory_mib: int = 256) -> Merged:
    folder.mkdir(parents=True)
    return merge_runs(runs, folder, folding, num_items=NUM_ITEMS, memory_mib=memory_mib)


def arrays_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("folding", [FOLDING, WEIGHTED], ids=["ratings", "weights"])
def test_how_events_are_divided_changes_no_byte(
    folding: Folding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = events_in_time(20_000, users=800, seed=1).unique()
    whole = merged(write_runs(rows, tmp_path / "one", parts=1, rows_per_group=1 << 17, seed=0), tmp_path / "0", folding)
    expected = arrays_in(tmp_path / "0")
    assert set(expected) == {f"{name}.npy" for name in (*COLUMNS, "indptr")}
    monkeypatch.setattr(merge, "EVENTS_AT_ONCE", 4096)  # many groups of neighbours, of a few hundred users
    for number, (parts, rows_per_group) in enumerate([(2, 1000), (7, 333), (30, 100), (30, 1 << 17)], start=1):
        runs = write_runs(rows, tmp_path / f"runs-{number}", parts=parts, rows_per_group=rows_per_group, seed=number)
        found = merged(runs[::-1], tmp_path / str(number), folding)
        assert arrays_in(tmp_path / str(number)) == expected
        assert counts_of(found) == counts_of(whole)


def counts_of(found: Merged) -> dict[str, object]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(found).items()}


def test_little_memory_changes_no_byte_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events_in_time(60_000, users=3_000, seed=2)
    runs = write_runs(rows, tmp_path / "runs", parts=4, rows_per_group=200, seed=0)
    merged(runs, tmp_path / "much")
    expected = arrays_in(tmp_path / "much")
    read: list[int] = []
    read_range = merge._Index.read

    def counting(index: merge._Index, low: int, high: int) -> Events | None:
        part = read_range(index, low, high)
        read.append(0 if part is None else len(part))
        return part

    monkeypatch.setattr(merge._Index, "read", counting)
    monkeypatch.setattr(merge, "BYTES_AN_EVENT", (1 << 20) // 4_000)  # a MiB holds four thousand
    merged(runs, tmp_path / "little", memory_mib=1)
    assert arrays_in(tmp_path / "little") == expected
    assert len(read) >= len(runs) * len(rows) // 4_000, "range by range"
    ranges = [sum(read[at : at + len(runs)]) for at in range(0, len(read), len(runs))]
    assert sum(ranges) == sum(len(pl.read_parquet(path)) for path in runs), "each event once"
    largest = rows["user_row"].value_counts()["count"].max()
    assert max(ranges) <= 4_000 + largest  # type: ignore[operator]


def test_many_runs_with_everybody_in_one_row_group_are_read_in_ranges_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many small files leave them: a row group can be no range of its own."""
    rows = events_in_time(40_000, users=3_000, seed=5)
    rows = rows.with_columns(user_row=pl.int_range(len(rows), dtype=pl.Int32) % 3_000)
    runs = write_runs(rows, tmp_path / "runs", parts=40, rows_per_group=1 << 17, seed=0)
    merged(runs, tmp_path / "much")
    held: list[int] = []
    read = merge._read

    def watched(*arguments: Any) -> list[Events]:
        parts = read(*arguments)
        held.append(sum(len(part) for part in parts))
        for part in parts:
            assert all(column.base is None for column in (part.user_N, part.item_N)), "no view of a whole row group"
        return parts

    monkeypatch.setattr(merge, "_read", watched)
    monkeypatch.setattr(merge, "SAMPLED", 16)
    monkeypatch.setattr(merge, "BYTES_AN_EVENT", (1 << 20) // 4_000)  # a MiB holds four thousand
    merged(runs, tmp_path / "little", memory_mib=1)
    assert arrays_in(tmp_path / "little") == arrays_in(tmp_path / "much")
    assert sum(held) == sum(len(pl.read_parquet(path)) for path in runs), "each event once"
    assert max(held) <= 1.3 * 4_000


def test_four_times_the_events_of_the_same_people_need_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What range after range leaves behind, numpy's arrays, which are all that a merge holds but for decoded files."""
    monkeypatch.setattr(merge, "BYTES_AN_EVENT", (1 << 20) // 20_000)  # a MiB holds twenty thousand
    monkeypatch.setattr(merge, "EVENTS_AT_ONCE", 4096)
    peaks = []
    for name, count in (("warm", 20_000), ("once", 100_000), ("four times", 400_000)):
        rows = events_in_time(count, users=2_000, seed=3)
        # Nobody has many: one user's events are always read together.
        rows = rows.with_columns(user_row=pl.int_range(len(rows), dtype=pl.Int32) % 2_000)
        runs = write_runs(rows, tmp_path / f"runs {name}", parts=4, rows_per_group=200, seed=0)
        tracemalloc.start()
        merged(runs, tmp_path / name, memory_mib=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


def test_what_a_range_of_users_held_is_gone_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "BYTES_AN_EVENT", (1 << 20) // 20_000)
    runs = write_runs(
        events_in_time(60_000, users=3_000, seed=2), tmp_path / "runs", parts=4, rows_per_group=200, seed=0
    )
    earlier: dict[int, list[weakref.ref[Events]]] = {}
    read_range = merge._Index.read

    def watched(index: merge._Index, low: int, high: int) -> Events | None:
        before = [one for start, of_range in earlier.items() if start < low for one in of_range]
        give_up_at = time.monotonic() + 5
        while any(one() is not None for one in before):  # a thread may be about to let go of its last work
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        part = read_range(index, low, high)
        if part is not None:
            earlier.setdefault(low, []).append(weakref.ref(part))
        return part

    monkeypatch.setattr(merge._Index, "read", watched)
    merged(runs, tmp_path / "merged", memory_mib=1)
    assert len(earlier) > 2


def test_pairs_are_those_of_all_events_folded_at_once(tmp_path: Path) -> None:
    rows = events_in_time(5_000, users=200, seed=3)
    runs = write_runs(rows, tmp_path / "runs", parts=5, rows_per_group=100, seed=1)
    found = merged(runs, tmp_path / "night")
    together = pl.concat([pl.read_parquet(path) for path in runs])
    stamp_N = stamp_of(together["timestamp_us"].to_numpy(), together["kind"].to_numpy())
    expected = fold(Events(together["user_row"].to_numpy(), together["item_row"].to_numpy(), stamp_N), FOLDING)
    arrays = {path.stem: np.load(path) for path in (tmp_path / "night").iterdir()}
    np.testing.assert_array_equal(arrays["user_rows"], expected.user_U)
    np.testing.assert_array_equal(np.diff(arrays["indptr"]), expected.count_U)
    for name, column in (
        ("item_row", expected.item_P),
        ("timestamp_us", expected.time_P),
        ("liked", expected.liked_P),
        ("first_seen_us", expected.first_seen_P),
        ("first_liked_us", expected.first_liked_P),
    ):
        np.testing.assert_array_equal(arrays[name], column)
    assert (found.later, found.before, found.repeats) == (
        expected.num_later,
        expected.num_before,
        expected.num_repeats,
    )
    assert min(found.later, found.before, found.repeats) > 0
    assert (found.events, found.pairs, found.likes) == (len(together), len(expected.item_P), expected.liked_P.sum())
    assert (found.users, found.first_us, found.last_us) == (
        len(expected.user_U),
        expected.first_seen_P.min(),
        expected.time_P.max(),
    )
    assert np.flatnonzero(found.items).tolist() == np.unique(expected.item_P).tolist()
    assert np.flatnonzero(found.liked_items).tolist() == np.unique(expected.item_P[expected.liked_P]).tolist()
    of_pair = np.repeat(expected.user_U, expected.count_U)
    assert found.liking_users == len(np.unique(of_pair[expected.liked_P]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(FROM_US - 2, FROM_US + 3), st.integers(0, 1)),
        max_size=60,
    ),
    parts=st.integers(1, 5),
    rows_per_group=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_no_division_of_a_few_events_changes_a_byte(
    rows: list[tuple[int, int, int, int]],
    parts: int,
    rows_per_group: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    types = {"user_row": pl.Int32, "item_row": pl.Int32, "timestamp_us": pl.Int64, "kind": pl.UInt8}
    frame = pl.DataFrame(rows, schema=types, orient="row")
    folder = tmp_path_factory.mktemp("few")
    alone = merged(write_runs(frame, folder / "one", parts=1, rows_per_group=100, seed=0), folder / "a")
    divided = write_runs(frame, folder / "many", parts=parts, rows_per_group=rows_per_group, seed=seed)
    found = merged(divided, folder / "b")
    assert arrays_in(folder / "b") == arrays_in(folder / "a")
    assert (found.pairs, found.users, found.likes) == (alone.pairs, alone.users, alone.likes)
    # What stands in several runs is one event, and is counted.
    assert found.events - found.later - found.before - found.repeats == alone.events - alone.later - alone.before


def test_the_same_event_in_several_runs_counts_once(tmp_path: Path) -> None:
    rows = events_in_time(2_000, users=100, seed=4).unique()
    [run] = write_runs(rows, tmp_path / "runs", parts=1, rows_per_group=300, seed=0)
    once, twice = merged([run], tmp_path / "once", WEIGHTED), merged([run, run], tmp_path / "twice", WEIGHTED)
    assert arrays_in(tmp_path / "twice") == arrays_in(tmp_path / "once")
    inside = once.events - once.later - once.before
    assert (once.repeats, twice.repeats) == (0, inside)


def test_forgotten_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = events_in_time(2_000, users=100, seed=5).unique()
    gone = np.array([0, 3, 99], np.int64)
    runs = write_runs(rows, tmp_path / "runs", parts=3, rows_per_group=100, seed=0)
    left = write_runs(
        rows.filter(~pl.col("user_row").is_in(gone.tolist())), tmp_path / "left", parts=1, rows_per_group=100, seed=0
    )
    (tmp_path / "a").mkdir()
    found = merge_runs(runs, tmp_path / "a", FOLDING, num_items=NUM_ITEMS, memory_mib=256, forgotten=gone)
    expected = merged(left, tmp_path / "b")
    assert arrays_in(tmp_path / "a") == arrays_in(tmp_path / "b")
    assert found.forgotten == rows["user_row"].is_in(gone.tolist()).sum() > 0
    assert counts_of(found) == counts_of(expected) | {"forgotten": found.forgotten}


def test_nothing_at_all_gives_arrays_of_nobody(tmp_path: Path) -> None:
    found = merged([], tmp_path / "none")
    arrays = {path.stem: np.load(path) for path in (tmp_path / "none").iterdir()}
    assert {name: len(array) for name, array in arrays.items()} == {**dict.fromkeys(COLUMNS, 0), "indptr": 1}
    assert {name: arrays[name].dtype for name in COLUMNS} == {name: np.dtype(kind) for name, kind in COLUMNS.items()}
    assert (found.pairs, found.events, found.last_us) == (0, 0, -1)


@pytest.mark.skipif(not pairs.AVAILABLE, reason="numba is not installed")
def test_compiled_functions_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events_in_time(10_000, users=300, seed=6)
    runs = write_runs(rows, tmp_path / "runs", parts=3, rows_per_group=500, seed=0)
    merged(runs, tmp_path / "compiled", WEIGHTED)
    monkeypatch.setattr(pairs, "AVAILABLE", False)
    merged(runs, tmp_path / "plain", WEIGHTED)
    assert arrays_in(tmp_path / "plain") == arrays_in(tmp_path / "compiled")
