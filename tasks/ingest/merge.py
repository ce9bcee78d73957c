"""All runs of a night become pairs: arrays on disk, by user, in memory that does not grow with the events.

Runs are sorted by user, so what one range of users has stands together in each of them: range by range is read, as much
as memory allows, and within a range many small groups of users are folded at once (models/pairs.py).
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from models.arrays import GrowingArrays
from models.pairs import EVENTS_AT_ONCE, Events, Folding, Pairs, fold, stamp_of

# An event of the range that is in memory: decoded, as columns, and the pair that it may become.
BYTES_AN_EVENT = 64
NOBODY = np.empty(0, np.int64)
SAMPLED = 256  # each so-manieth event says where the users are
COLUMNS: dict[str, type[np.generic]] = {
    "user_rows": np.int32,
    "item_row": np.int32,
    "timestamp_us": np.int64,
    "liked": np.bool_,
    "first_seen_us": np.int64,
    "first_liked_us": np.int64,
}


@dataclass
class Merged:
    """Measured on the way."""

    items: npt.NDArray[np.bool_]  # by registry row: whether there is a pair
    liked_items: npt.NDArray[np.bool_]
    users: int = 0
    liking_users: int = 0
    pairs: int = 0
    likes: int = 0
    later: int = 0
    before: int = 0
    repeats: int = 0
    forgotten: int = 0  # of people who are nobody in the registry by now
    events: int = 0  # that were read, without these
    first_us: int = np.iinfo(np.int64).max
    last_us: int = -1

    def without(self, part: Events, forgotten: npt.NDArray[np.int64]) -> Events:
        if not len(forgotten):
            return part
        is_theirs_N = np.isin(part.user_N, forgotten)
        self.forgotten += (count := int(np.count_nonzero(is_theirs_N)))
        return part.take(~is_theirs_N) if count else part

    def add(self, pairs: Pairs, num_events: int) -> None:
        self.events += num_events
        self.later += pairs.num_later
        self.before += pairs.num_before
        self.repeats += pairs.num_repeats
        if not len(pairs.item_P):
            return
        self.users += len(pairs.user_U)
        self.pairs += len(pairs.item_P)
        self.likes += int(np.count_nonzero(pairs.liked_P))
        starts = np.cumsum(pairs.count_U) - pairs.count_U
        self.liking_users += int(np.count_nonzero(np.logical_or.reduceat(pairs.liked_P, starts)))
        self.items[pairs.item_P] = True
        self.liked_items[pairs.item_P[pairs.liked_P]] = True
        self.first_us = min(self.first_us, int(pairs.first_seen_P.min()))
        self.last_us = max(self.last_us, int(pairs.time_P.max()))


def merge_runs(
    runs: list[Path],
    folder: Path,
    folding: Folding,
    *,
    num_items: int,
    memory_mib: int,
    forgotten: npt.NDArray[np.int64] = NOBODY,
) -> Merged:
    """Write user_rows, indptr and the columns of pairs as .npy into `folder` (contracts.Interactions says what).

    `forgotten`, rows of users, are left out: a day that was digested before they were forgotten may still have them.
    The bytes depend on the set of events alone, not on how they are divided over runs, on their order or on memory.
    """
    merged = Merged(np.zeros(num_items, np.bool_), np.zeros(num_items, np.bool_))
    indexes = [_Index.of(path) for path in runs]
    events_at_most = (memory_mib << 20) // BYTES_AN_EVENT
    num_threads = len(os.sched_getaffinity(0))
    counts_U = []
    with GrowingArrays(folder, COLUMNS) as arrays, ThreadPoolExecutor(num_threads) as threads:
        for low, high in _ranges_that_fit(indexes, events_at_most):
            # No name for a range's events here: they are gone before those of the next are read.
            for pairs, num_events in _folded(
                _read(indexes, low, high, merged, forgotten), folding, threads, 2 * num_threads
            ):
                arrays.append("user_rows", pairs.user_U)
                # Of a view the group's own array would stay, which is as long as its events.
                counts_U.append(pairs.count_U.copy())
                arrays.append("item_row", pairs.item_P)
                arrays.append("timestamp_us", pairs.time_P)
                arrays.append("liked", pairs.liked_P)
                arrays.append("first_seen_us", pairs.first_seen_P)
                arrays.append("first_liked_us", pairs.first_liked_P)
                merged.add(pairs, num_events)
    indptr = np.zeros(merged.users + 1, np.int64)
    np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts_U]), out=indptr[1:])
    np.save(folder / "indptr.npy", indptr)
    return merged


def _read(
    indexes: "list[_Index]", low: int, high: int, merged: Merged, forgotten: npt.NDArray[np.int64]
) -> list[Events]:
    """Of users low..high-1, from each run that has some, without those of people who are forgotten."""
    read = (part for index in indexes if (part := index.read(low, high)) is not None)
    return [part for part in (merged.without(part, forgotten) for part in read) if len(part)]


def _folded(
    parts: list[Events], folding: Folding, threads: ThreadPoolExecutor, waiting_at_most: int
) -> Iterator[tuple[Pairs, int]]:
    """The pairs of each group, and of how many events they are, in order.

    A few groups wait at most: all pairs of a range would be twice its events in memory.
    """
    waiting: deque[Future[tuple[Pairs, int]]] = deque()
    for group in _groups(parts):
        waiting.append(threads.submit(_fold, parts, folding, group))
        if len(waiting) > waiting_at_most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _fold(parts: list[Events], folding: Folding, group: list[slice]) -> tuple[Pairs, int]:
    some = [part.take(rows) for part, rows in zip(parts, group, strict=True)]
    events = Events(
        np.concatenate([part.user_N for part in some]),
        np.concatenate([part.item_N for part in some]),
        np.concatenate([part.stamp_N for part in some]),
    )
    return fold(events, folding), len(events)


# ---- reading runs by range of users


@dataclass(frozen=True)
class _Index:
    """Where users stand in a run: the first and last one of each row group, and where the group starts."""

    path: Path
    first_G: npt.NDArray[np.int64]
    last_G: npt.NDArray[np.int64]
    rows_G: npt.NDArray[np.int64]

    @classmethod
    def of(cls, path: Path) -> "_Index":
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        users = [group.column(0).statistics for group in groups]
        return cls(
            path,
            np.array([stats.min for stats in users], np.int64),
            np.array([stats.max for stats in users], np.int64),
            np.array([group.num_rows for group in groups], np.int64),
        )

    def read(self, low: int, high: int) -> Events | None:
        """The events of users low..high-1, in the run's order."""
        start, end = np.searchsorted(self.last_G, low), np.searchsorted(self.first_G, high)
        if end <= start:
            return None
        offset, rows = int(self.rows_G[:start].sum()), int(self.rows_G[start:end].sum())
        frame = pl.scan_parquet(self.path, glob=False).slice(offset, rows).collect()
        user_N = frame["user_row"].to_numpy()
        inside = slice(*np.searchsorted(user_N, [low, high]))
        stamp_N = stamp_of(frame["timestamp_us"].to_numpy()[inside], frame["kind"].to_numpy()[inside])
        own_N, item_N = user_N[inside], frame["item_row"].to_numpy()[inside]
        if 2 * len(own_N) < rows:  # of views the whole row groups would stay
            own_N, item_N = own_N.copy(), item_N.copy()
        return Events(own_N, item_N, stamp_N)

    def rows_between(self, low: int, high: int) -> int:
        """Of the row groups that have to be read for users low..high-1."""
        return int(self.rows_G[np.searchsorted(self.last_G, low) : np.searchsorted(self.first_G, high)].sum())

    def sample(self, low: int, high: int) -> npt.NDArray[np.int32]:
        """Each so-manieth of these users' events: whose it is."""
        start, end = np.searchsorted(self.last_G, low), np.searchsorted(self.first_G, high)
        if end <= start:
            return np.zeros(0, np.int32)
        offset, rows = int(self.rows_G[:start].sum()), int(self.rows_G[start:end].sum())
        users = pl.scan_parquet(self.path, glob=False).select("user_row").slice(offset, rows).collect()["user_row"]
        some_N = users.gather_every(SAMPLED).to_numpy()
        return some_N[(some_N >= low) & (some_N < high)]


def _ranges_that_fit(indexes: list[_Index], events_at_most: int) -> Iterator[tuple[int, int]]:
    """Ranges of users with no more events than that; of a single user there may be more.

    Where each of many runs has all users in one row group (many small files), a row group is read once for each range
    that it has a part in, and what is not asked for is let go at once.
    """
    for low, high in _ranges(indexes, events_at_most):
        if sum(index.rows_between(low, high) for index in indexes) <= events_at_most:
            yield low, high
            continue
        sample = np.sort(np.concatenate([index.sample(low, high) for index in indexes]))
        cuts = np.unique([low, *sample[:: max(1, events_at_most // SAMPLED)][1:].tolist(), high])
        yield from zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)


def _ranges(indexes: list[_Index], events_at_most: int) -> Iterator[tuple[int, int]]:
    """Ranges of users, of which no more events have to be read at a time; a single row group of each run at least."""
    if not indexes:
        return
    first, last, rows = (
        np.concatenate([getattr(i, name) for i in indexes]) for name in ("first_G", "last_G", "rows_G")
    )
    cuts = np.append(np.unique(first), last.max() + 1)
    by_first, by_last = np.argsort(first), np.argsort(last)
    started = np.append(0, np.cumsum(rows[by_first]))[np.searchsorted(first[by_first], cuts)]  # before each cut
    ended = np.append(0, np.cumsum(rows[by_last]))[np.searchsorted(last[by_last], cuts)]
    at = 0
    while at < len(cuts) - 1:
        upto = int(np.searchsorted(started, ended[at] + events_at_most, side="right")) - 1
        upto = min(max(upto, at + 1), len(cuts) - 1)
        yield int(cuts[at]), int(cuts[upto])
        at = upto


def _groups(parts: list[Events]) -> Iterator[list[slice]]:
    """Neighbouring users together, about as many events as are best sorted at once: where they stand in each part."""
    if not parts:
        return
    sample = np.sort(np.concatenate([part.user_N[::SAMPLED] for part in parts]))
    cuts = np.unique(sample[:: max(1, EVENTS_AT_ONCE // SAMPLED)])[1:]
    edges = [[0, *np.searchsorted(part.user_N, cuts).tolist(), len(part)] for part in parts]
    for group in range(len(cuts) + 1):
        yield [slice(of_part[group], of_part[group + 1]) for of_part in edges]
