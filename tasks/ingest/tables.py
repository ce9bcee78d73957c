"""The optional tables beside the events, from hostile files to four small Parquet files with the events' ids.

    items       item_id; and, as far as any file has them: available, categories (else genres), segments, published_at
    users       user_id: they get a list, events or not
    blocked     user_id, item_id: never recommended
    segments    user_id, segment

A table's files are one table together. An item may stand in several of them, each with other facts (titles here,
availability there); where two say different things about one item, or two segments about one user, nobody can know
which is meant, and the night ends before it starts to train. What merely cannot be used is counted and left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks.config import IngestConfig
from tasks.contracts import Tables
from tasks.errors import NothingAllowed, TableInvalid
from tasks.ingest.events import naming_read_errors
from tasks.ingest.inspection import (
    NOTHING_KNOWN,
    EventFile,
    EventSchema,
    Inspected,
    id_type_of_all,
    inspect_each,
    readable,
)
from tasks.ingest.rules import is_malformed
from tasks.ingest.scan import microseconds, scan_columns
from tasks.ingest.sources import ITEM_FACTS, TABLES, table_of
from tasks.ingest.wanted import drift
from tasks.registry import Registry
from tasks.run import file_sha256, fingerprint_of
from tasks.store import Store, StoredObject

LIST_FACTS = ("categories", "segments")
NO_GENRES = "(no genres listed)"  # GroupLens's words
MOST_SEGMENTS = 1_000  # each has its own list of popular items, with a number for every item
ROWS_PER_GROUP = 100_000
SEPARATOR = "\x1f"


@dataclass(frozen=True)
class TableFiles:
    """Checked footers by table, and the id types that the tables' ids are brought to."""

    files: dict[str, tuple[EventFile, ...]]
    user_id: pl.DataType
    item_id: pl.DataType


@dataclass
class _Counted:
    """What was left out, by table and reason, in the order of being found."""

    ignored: dict[str, int] = field(default_factory=dict)

    def keep(self, frame: pl.DataFrame, good: pl.Expr, why: str) -> pl.DataFrame:
        kept = frame.filter(good)
        if len(kept) < len(frame):
            self.ignored[why] = self.ignored.get(why, 0) + len(frame) - len(kept)
        return kept


def inspect_tables(
    store: Store,
    objects: list[StoredObject],
    events: EventSchema,
    *,
    settings: IngestConfig,
    known: Mapping[str, Inspected] = NOTHING_KNOWN,
) -> TableFiles:
    """Every table file's footer; those that are `known`, by key, are not opened.

    Raises InputCorrupt, InputTooLarge, InputUnstable, and SchemaDrift for ids unlike the events'.
    """
    of_tables = [pinned for pinned in objects if table_of(pinned.key) in TABLES]
    unknown = [pinned for pinned in of_tables if pinned.key not in known]
    by_key = {**known, **inspect_each(store, unknown, settings)}
    files = [readable(by_key[pinned.key]) for pinned in of_tables]
    for file in files:
        for column, kind in (("user_id", events.user_id), ("item_id", events.item_id)):
            _expect_kind(file, column, kind)
    by_table = {table: tuple(file for file in files if table_of(file.key) == table) for table in TABLES}
    users = (*events.files, *by_table["users"])  # a user without events goes out too, so the type must hold both
    return TableFiles(
        files={table: of_table for table, of_table in by_table.items() if of_table},
        user_id=id_type_of_all(users, "user_id"),
        item_id=events.item_id,
    )


def _expect_kind(file: EventFile, column: str, kind: pl.DataType) -> None:
    if column not in file.columns or file.columns[column].is_integer() == kind.is_integer():
        return
    found, wanted = ("a number", "text") if kind == pl.String else ("text", "a number")
    raise drift(file.uri, column, found, f"{wanted}, as in the events: the two would never meet")


def digest_tables(tables: TableFiles, events_folder: Path, folder: Path, registry: Registry) -> Tables:
    """Write each table that there is under `folder`, in order of its ids. `events_folder` says who and what
    has events: users.parquet and items.parquet (contracts.Interactions). Nobody of `registry` who was forgotten gets
    a list for standing in users/.

    Raises TableInvalid, NothingAllowed, InputCorrupt.
    """
    counted = _Counted()
    read = {"items": _items, "users": _users, "blocked": _blocked, "segments": _segments}
    frames: dict[str, pl.DataFrame] = {}
    for table, files in tables.files.items():
        with naming_read_errors(files):
            frames[table] = read[table](files, tables, counted)
    items = pl.read_parquet(events_folder / "items.parquet").select(pl.col("item_id").sort().cast(tables.item_id))
    users = pl.read_parquet(events_folder / "users.parquet").select(pl.col("user_id").sort().cast(tables.user_id))
    if "users" in frames:
        is_theirs = pl.lit(registry.is_forgotten("users", frames["users"]["user_id"]))
        frames["users"] = counted.keep(frames["users"], ~is_theirs, "users: forgotten")
        users = pl.concat([users, frames["users"]]).unique().sort("user_id")
    frames = _of_known(frames, users, items, counted)
    _expect_something_available(frames.get("items"), items)
    for table, frame in frames.items():
        frame.write_parquet(folder / f"{table}.parquet", compression="zstd", row_group_size=ROWS_PER_GROUP)
    return Tables(
        folder=str(folder),
        fingerprint=fingerprint_of({table: file_sha256(folder / f"{table}.parquet") for table in frames}),
        rows={table: len(frame) for table, frame in frames.items()},
        ignored=counted.ignored,
    )


def is_listed(tables: TableFiles, user_id: int | str) -> bool:
    """Whether the users table has this id, in the form that the events have it. Raises InputCorrupt."""
    files = tables.files.get("users", ())
    with naming_read_errors(files):
        return bool(files) and user_id in _users(files, tables, _Counted())["user_id"]


def no_tables(folder: Path) -> Tables:
    """What a store without tables says: nothing."""
    return Tables(str(folder), fingerprint_of({}), {}, {})


def _of_known(
    frames: dict[str, pl.DataFrame], users: pl.DataFrame, items: pl.DataFrame, counted: _Counted
) -> dict[str, pl.DataFrame]:
    """Without rows about users who get no list, and items that nobody has met and nothing can recommend."""
    known = {"user_id": users.to_series().implode(), "item_id": items.to_series().implode()}
    why = {"user_id": "unknown user", "item_id": "item without events"}
    for table, column in (
        ("items", "item_id"),
        ("blocked", "user_id"),
        ("blocked", "item_id"),
        ("segments", "user_id"),
    ):
        if table in frames:
            is_known = pl.col(column).is_in(known[column])
            frames[table] = counted.keep(frames[table], is_known, f"{table}: {why[column]}")
    return frames


def _expect_something_available(items: pl.DataFrame | None, with_events: pl.DataFrame) -> None:
    if items is None or "available" not in items.columns or items["available"].any():
        return
    raise NothingAllowed(
        f"items/ has a column 'available', and it is true for none of the {len(with_events):,} items that have events: "
        f"{len(items):,} of them stand there, all unavailable, and {len(with_events) - len(items):,} do not. Nothing "
        "was published, for nobody could be given anything. Check the table's ids and what writes 'available'; "
        "without that column every item is available."
    )


# ---- one table each


def _id(name: str, kind: pl.DataType) -> pl.Expr:
    """As the events have it; null where it does not fit, so that it is nobody's."""
    return pl.col(name).cast(kind, strict=False)


def _items(files: tuple[EventFile, ...], tables: TableFiles, counted: _Counted) -> pl.DataFrame:
    """item_id, and the facts that any file has; null where none says it. Lists are sorted, each entry once."""
    frames = [_item_facts(file, tables.item_id, counted) for file in files]
    together = pl.concat(frames, how="diagonal")
    facts = [name for name in ITEM_FACTS if name in together.columns]
    if not facts:
        return together.unique().sort("item_id")
    said = together.group_by("item_id").agg(pl.col(name).drop_nulls().n_unique() for name in facts)
    disagree = {name: int((said[name] > 1).sum()) for name in facts}
    if any(disagree.values()):
        found = ", ".join(f"{name} of {count:,} items" for name, count in disagree.items() if count)
        raise TableInvalid(
            f"two of the {len(files)} files under items/ say different things about {found}. Nothing was published. "
            "Leave the newest of them there and move the others away, or make them agree."
        )
    merged = together.group_by("item_id").agg(pl.col(name).drop_nulls().first() for name in facts).sort("item_id")
    lists = [name for name in facts if name in LIST_FACTS]
    return merged.with_columns(
        pl.when(pl.col(name) != "").then(pl.col(name).str.split(SEPARATOR)).otherwise(pl.lit([], pl.List(pl.String)))
        for name in lists
    )


def _item_facts(file: EventFile, kind: pl.DataType, counted: _Counted) -> pl.DataFrame:
    """One file's items, each once; lists as one text, which compares and merges as any other value."""
    columns = file.columns
    facts = [_fact(pl.col(name), name, columns[name]) for name in ITEM_FACTS if name in columns]
    if "genres" in columns and "categories" not in columns:
        facts.append(_genres(columns["genres"]))
    frame = scan_columns([file]).select(_id("item_id", kind), *facts).collect(engine="streaming")
    frame = counted.keep(frame, pl.col("item_id").is_not_null(), "items: no id, or one that no event can have")
    repeated = int(frame["item_id"].is_duplicated().sum())
    if repeated:
        raise TableInvalid(
            f"{file.uri}: {repeated:,} of {len(frame):,} rows share their item_id with another row, and each item may "
            "stand there once. Nothing was published. Mend what writes the table: it may join or append too much."
        )
    return frame


def _genres(kind: pl.DataType) -> pl.Expr:
    """Between the genres stands | as GroupLens writes them; a file without any has spaces there, as RecBole's."""
    if kind.is_nested():
        return _fact(pl.col("genres"), "categories", kind)
    text = pl.col("genres").cast(pl.String).str.replace(NO_GENRES, "", literal=True)
    mark = pl.when(text.str.contains("|", literal=True).any()).then(pl.lit("|")).otherwise(pl.lit(" "))
    entries = text.str.split(mark)
    return _fact(entries, "categories", pl.List(pl.String()))


def _fact(value: pl.Expr, name: str, kind: pl.DataType) -> pl.Expr:
    if name == "published_at":
        return microseconds(value, kind).alias("published_at")
    if name == "available":
        return value
    entries = value.cast(pl.List(pl.String)) if kind.is_nested() else pl.concat_list(value.cast(pl.String))
    entry = pl.element()
    plain = entries.list.eval(entry.filter(entry.is_not_null() & (entry != "")).str.replace_all(r"\p{Cc}", " "))
    joined = plain.list.unique().list.sort().list.join(SEPARATOR)
    return pl.when(value.is_not_null()).then(joined).alias(name)


def _users(files: tuple[EventFile, ...], tables: TableFiles, counted: _Counted) -> pl.DataFrame:
    """user_id, each once. What no event may be called, no list may be written for."""
    frame = pl.concat(
        scan_columns([file]).select(_id("user_id", tables.user_id)).collect(engine="streaming") for file in files
    )
    frame = counted.keep(frame, pl.col("user_id").is_not_null(), "users: null_user_id")
    if tables.user_id == pl.String:
        frame = counted.keep(frame, ~is_malformed(pl.col("user_id")), "users: malformed_user_id")
    return frame.unique().sort("user_id")


def _blocked(files: tuple[EventFile, ...], tables: TableFiles, counted: _Counted) -> pl.DataFrame:
    ids = (_id("user_id", tables.user_id), _id("item_id", tables.item_id))
    frame = pl.concat(scan_columns([file]).select(ids).collect(engine="streaming") for file in files)
    both = pl.all_horizontal(pl.col("user_id", "item_id").is_not_null())
    return (
        counted.keep(frame, both, "blocked: no id, or one that no event can have").unique().sort("user_id", "item_id")
    )


def _segments(files: tuple[EventFile, ...], tables: TableFiles, counted: _Counted) -> pl.DataFrame:
    """user_id, segment; each user once."""
    columns = (_id("user_id", tables.user_id), pl.col("segment").cast(pl.String).str.replace_all(r"\p{Cc}", " "))
    frame = pl.concat(scan_columns([file]).select(columns).collect(engine="streaming") for file in files)
    frame = counted.keep(frame, pl.col("user_id").is_not_null(), "segments: no id, or one that no event can have")
    frame = counted.keep(frame, pl.col("segment").is_not_null() & (pl.col("segment") != ""), "segments: no segment")
    frame = frame.unique().sort("user_id", "segment")
    torn = frame.filter(pl.col("user_id").is_duplicated())["user_id"].n_unique()
    if torn:
        raise TableInvalid(
            f"segments/ puts {torn:,} users into more than one segment, and each may be in one. Nothing was published. "
            "Mend what writes the table, or take yesterday's file away."
        )
    names = frame["segment"].n_unique()
    if names > MOST_SEGMENTS:
        raise TableInvalid(
            f"segments/ has {names:,} different segments, and a night can take {MOST_SEGMENTS:,}: each gets its own "
            "list of what is popular. Nothing was published. Write coarser segments."
        )
    return frame
