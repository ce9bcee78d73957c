"""A unit's files become runs: distinct valid events as registry rows, sorted; and its refused rows as they came.

Two steps, because new ids are numbered once, for all units of a night together:

1. `read_unit`   files -> on local disk, piece by piece as memory allows: each event as numbers (its user's and item's
                 place among the piece's distinct ids, its moment and kind, its file), those ids, the refused rows
2. `write_runs`  the same with registry rows in place of places: sorted, each distinct event once, one Parquet a piece

A run's bytes depend on the rows of its piece alone: not on their order, on threads or on what else the night reads.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.pairs import DAY_US, KIND_BITS, Events, in_order, is_repeat
from tasks.config import IngestConfig
from tasks.errors import CountsDisagree, InputCorrupt
from tasks.ingest.events import naming_read_errors, with_text_as_bytes
from tasks.ingest.inspection import EventFile, EventSchema
from tasks.ingest.scan import as_they_came, scan_file
from tasks.registry import FORGOTTEN, KINDS, UNKNOWN, Kind, Registry

# What a row takes at its widest moment, while its piece is read: ids, raw columns, and their copies.
BYTES_A_ROW = 160
# A larger piece is read no faster, and what reading takes would grow with the day.
PIECE_ROWS_AT_MOST = 1 << 21
PIECES_AT_ONCE = 4
SUSPECTS_AT_ONCE = PIECE_ROWS_AT_MOST  # events of users who may be bots
# Row groups have a fixed size, or the bytes would follow the engine's threads; the merge reads them by user.
ROWS_PER_GROUP = 1 << 17
ROWS_PER_GROUP_REFUSED = 100_000

# Whole numbers as ids: up to this many times as wide as there are rows, a table of all of them is the fastest way.
WIDEST_TABLE = 8


@dataclass
class FileCounts:
    """What became of one file's rows: rows == valid + set aside + quarantined. `valid` stand in the runs."""

    rows: int
    valid: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    last_us: int | None = None  # the latest event that the rules let through, set aside or not


@dataclass(frozen=True)
class Slice:
    number: int  # of the file, among the unit's
    file: EventFile
    offset: int
    rows: int


def pieces_of(files: tuple[EventFile, ...], rows_at_most: int) -> Iterator[list[Slice]]:
    """The rows of all files in order, cut where memory ends: a part of a large file, or several small ones."""
    piece: list[Slice] = []
    for number, file in enumerate(files):
        offset = 0
        while offset < file.num_rows:
            room = rows_at_most - sum(part.rows for part in piece)
            rows = min(room, file.num_rows - offset)
            piece.append(Slice(number, file, offset, rows))
            offset += rows
            if rows == room:
                yield piece
                piece = []
    if piece:
        yield piece


# ---- step 1


def read_unit(schema: EventSchema, folder: Path, *, settings: IngestConfig) -> list[FileCounts]:
    """Write every piece below `folder`; the counts of each file, in which `valid` is what the rules let through.

    `schema` is the unit's own, so that nothing else that the night reads changes a byte. Where text of a file is not
    UTF-8, the unit is read once more by way of its bytes, which refuses those rows instead of the file.

    Raises InputCorrupt, InputUnstable, StoreUnavailable, CountsDisagree.
    """
    try:
        return _read_files(schema, folder, settings)
    except InputCorrupt as error:
        by_bytes = with_text_as_bytes(schema.files, error)
        if by_bytes is None:
            raise
    shutil.rmtree(folder, ignore_errors=True)
    return _read_files(replace(schema, files=by_bytes), folder, settings)


def _read_files(schema: EventSchema, folder: Path, settings: IngestConfig) -> list[FileCounts]:
    files = schema.files
    counts = [FileCounts(file.num_rows) for file in files]
    rows_at_most = max(1, min(PIECE_ROWS_AT_MOST, (settings.memory_mib << 20) // BYTES_A_ROW))
    with naming_read_errors(files):
        for number, piece in enumerate(pieces_of(files, rows_at_most)):
            _read_piece(piece, schema, folder / f"piece-{number:05d}", counts, settings)
    for file, counted in zip(files, counts, strict=True):
        if counted.rows != counted.valid + sum(counted.quarantined.values()):
            raise CountsDisagree(
                f"{file.uri} has {counted.rows:,} rows by its footer; {counted.valid:,} of them are valid and "
                f"{sum(counted.quarantined.values()):,} are not. Nothing was published. This is a bug: please report "
                "it with these counts."
            )
    return counts


def _read_piece(
    piece: list[Slice], schema: EventSchema, folder: Path, counts: list[FileCounts], settings: IngestConfig
) -> None:
    folder.mkdir(parents=True)
    stamp = (pl.col("timestamp_us") * (1 << KIND_BITS) + pl.col("kind")).alias("stamp")
    is_valid = pl.col("rule").is_null()
    of_valid, of_refused = [], []
    for part in piece:
        rows = scan_file(part.file, schema, settings).slice(part.offset, part.rows)
        number = pl.lit(part.number, dtype=pl.Int32).alias("number")
        of_valid.append(rows.filter(is_valid).select("user_id", "item_id", stamp, number))
        as_it_came = as_they_came(rows.filter(~is_valid), schema.files)
        of_refused.append(as_it_came.with_columns(pl.lit(part.file.key).alias("file"), number))
    valid, refused = pl.collect_all([pl.concat(of_valid), pl.concat(of_refused)], engine="streaming")
    of_file = valid.group_by("number").agg(pl.len(), last=pl.col("stamp").max()).sort("number")
    for at, count, stamp in of_file.iter_rows():
        counts[at].valid += count
        last_us = stamp >> KIND_BITS
        counts[at].last_us = max(last_us, last_us if counts[at].last_us is None else counts[at].last_us)
    for at, rule, count in refused.group_by("number", "rule").len().sort("number", "rule").iter_rows():
        counts[at].quarantined[rule] = counts[at].quarantined.get(rule, 0) + count
    for kind, column in zip(KINDS, ("user_id", "item_id"), strict=True):
        place_N, ids = _places(valid[column])
        np.save(folder / f"{kind}.npy", place_N)
        ids.alias("id").to_frame().write_parquet(folder / f"{kind}.parquet", compression="uncompressed")
    np.save(folder / "stamp.npy", valid["stamp"].to_numpy())
    np.save(folder / "file.npy", valid["number"].to_numpy())
    if len(refused):
        as_they_were = refused.drop("number")
        as_they_were.sort(as_they_were.columns).write_parquet(
            folder / "refused.parquet", compression="zstd", row_group_size=ROWS_PER_GROUP_REFUSED
        )


def _places(ids: pl.Series) -> tuple[npt.NDArray[np.int32], pl.Series]:
    """Each row's place among the distinct ids, and those; whole numbers as the registry has them."""
    if ids.dtype.is_integer() and ids.dtype != pl.UInt64:
        ids = ids.cast(pl.Int64)
    if len(ids) and ids.dtype != pl.String:
        low, high = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
        if high - low < WIDEST_TABLE * len(ids):
            offset_N = (ids - low).to_numpy()
            known = np.zeros(high - low + 1, np.bool_)
            known[offset_N] = True
            place = np.cumsum(known, dtype=np.int32) - np.int32(1)
            return place[offset_N], pl.Series(np.flatnonzero(known)).cast(ids.dtype) + low
    distinct = ids.unique().alias("id")
    places = pl.DataFrame({"id": distinct, "place": np.arange(len(distinct), dtype=np.int32)})
    found = ids.alias("id").to_frame().join(places, on="id", how="left", maintain_order="left")
    return found["place"].to_numpy(), distinct


def ids_in(folders: list[Path], kind: Kind) -> pl.Series:
    """The distinct ids of all pieces of these units.

    A few pieces at a time: together they hold most ids once for each day.
    """
    files = [path for folder in folders for path in sorted(folder.glob(f"piece-*/{kind}.parquet"))]
    distinct = pl.read_parquet(files[0])["id"]
    for start in range(1, len(files), PIECES_AT_ONCE):
        some = [pl.read_parquet(path)["id"] for path in files[start : start + PIECES_AT_ONCE]]
        distinct = pl.concat([distinct, *some]).unique()
    return distinct


# ---- step 2


def write_runs(folder: Path, counts: list[FileCounts], registry: Registry, *, settings: IngestConfig) -> list[Path]:
    """A run for each piece that has events. Moves from `valid` to `set_aside` what does not stand in them."""
    pieces = sorted(folder.glob("piece-*"))
    bots = _bots(pieces, registry, settings)
    runs: list[Path] = []
    for piece in pieces:
        events, file_N = _with_rows(piece, registry, counts)
        events, position_N = in_order(events)
        repeat_N = is_repeat(events)
        is_bot_N = ~repeat_N & bots.has(events)
        for reason, away_N in (("duplicate", repeat_N), ("bot", is_bot_N)):
            _set_aside(counts, reason, file_N[position_N[away_N]])
        kept_N = ~(repeat_N | is_bot_N)
        if kept_N.any():
            runs.append(_write_run(events, kept_N, folder / f"run-{len(runs):05d}.parquet"))
    return runs


def _with_rows(
    piece: Path, registry: Registry, counts: list[FileCounts] | None
) -> tuple[Events, npt.NDArray[np.int32]]:
    """A piece's events by registry rows, and each one's file; without those of people who asked to be forgotten."""
    columns = []
    for kind in KINDS:
        rows = registry.rows_of(kind, pl.read_parquet(piece / f"{kind}.parquet")["id"])
        if (rows == UNKNOWN).any():
            raise CountsDisagree(
                f"{int((rows == UNKNOWN).sum()):,} {kind} of tonight's events have no row in the registry. Nothing was "
                "published. This is a bug: please report it."
            )
        columns.append(rows[np.load(piece / f"{kind}.npy")])
    stamp_N, file_N = np.load(piece / "stamp.npy"), np.load(piece / "file.npy")
    forgotten_N = (columns[0] == FORGOTTEN) | (columns[1] == FORGOTTEN)
    if forgotten_N.any():
        if counts is not None:
            _set_aside(counts, "forgotten", file_N[forgotten_N])
        columns = [column[~forgotten_N] for column in columns]
        stamp_N, file_N = stamp_N[~forgotten_N], file_N[~forgotten_N]
    return Events(columns[0], columns[1], stamp_N), file_N


def _set_aside(counts: list[FileCounts], reason: str, file_N: npt.NDArray[np.int32]) -> None:
    for at, count in enumerate(np.bincount(file_N, minlength=len(counts)).tolist()):
        if count:
            counts[at].valid -= count
            counts[at].set_aside[reason] = counts[at].set_aside.get(reason, 0) + count


@dataclass(frozen=True)
class _Bots:
    """Users and days (UTC) with more distinct events than any person has."""

    user_day_B: npt.NDArray[np.int64]  # sorted

    def has(self, events: Events) -> npt.NDArray[np.bool_]:
        if not len(self.user_day_B):
            return np.zeros(len(events), np.bool_)
        return np.isin(_user_day(events), self.user_day_B)


def _user_day(events: Events) -> npt.NDArray[np.int64]:
    return events.user_N.astype(np.int64) << 32 | (events.stamp_N >> KIND_BITS) // DAY_US


def _bots(pieces: list[Path], registry: Registry, settings: IngestConfig) -> _Bots:
    """Counted over the whole unit, each distinct event once: a day that was delivered twice makes nobody a bot."""
    total = np.zeros(0, np.int64)
    for piece in pieces:
        rows = registry.rows_of("users", pl.read_parquet(piece / "users.parquet")["id"])
        count = np.bincount(np.load(piece / "users.npy"), minlength=len(rows))
        total = np.pad(total, (0, max(0, int(rows.max(initial=-1)) + 1 - len(total))))
        total[rows[rows >= 0]] += count[rows >= 0]
    suspects = np.flatnonzero(total > settings.bot_events_per_day)
    parts = (np.cumsum(total[suspects]) - 1) // SUSPECTS_AT_ONCE
    found = [
        _days_of_bots(pieces, registry, suspects[parts == part], settings.bot_events_per_day)
        for part in np.unique(parts)
    ]
    return _Bots(np.concatenate([np.zeros(0, np.int64), *found]))


def _days_of_bots(
    pieces: list[Path], registry: Registry, suspects: npt.NDArray[np.int64], events_per_day: int
) -> npt.NDArray[np.int64]:
    """Users (ascending) and days with more distinct events than that, among some users."""
    found = []
    for piece in pieces:
        events, _ = _with_rows(piece, registry, None)
        found.append(events.take(np.isin(events.user_N, suspects)))
    together, _ = in_order(
        Events(
            np.concatenate([events.user_N for events in found]),
            np.concatenate([events.item_N for events in found]),
            np.concatenate([events.stamp_N for events in found]),
        )
    )
    days, count = np.unique(_user_day(together)[~is_repeat(together)], return_counts=True)
    return days[count > events_per_day]


def _write_run(events: Events, kept_N: npt.NDArray[np.bool_], path: Path) -> Path:
    stamp_N = events.stamp_N[kept_N]
    pl.DataFrame(
        {
            "user_row": events.user_N[kept_N],
            "item_row": events.item_N[kept_N],
            "timestamp_us": stamp_N >> KIND_BITS,
            "kind": (stamp_N & ((1 << KIND_BITS) - 1)).astype(np.uint8),
        }
    ).write_parquet(path, compression="zstd", compression_level=1, row_group_size=ROWS_PER_GROUP, statistics=True)
    return path
