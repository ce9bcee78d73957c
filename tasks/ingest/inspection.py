"""Hostile files: what is read tonight is pinned once, and every file's footer is checked before a row is believed.

A column that is merely not selected hides its drift, so the whole schema is checked for each file, never the first
file's for all.
"""

import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PlainSerializer, PlainValidator

from tasks.config import IngestConfig
from tasks.contracts import Inspection
from tasks.errors import (
    InputCorrupt,
    InputTooLarge,
    InputUnstable,
    NightError,
    ObjectChanged,
    ObjectNotFound,
    SchemaDrift,
)
from tasks.ingest.bounds import LARGEST_FOOTER_BYTES, ensure_bounded, too_large
from tasks.ingest.footers import ColumnHint, column_hint
from tasks.ingest.sources import OPTIONAL_OF_TABLE, TABLES, table_of
from tasks.ingest.wanted import ACCEPTS, WANTED, check_names, drift, in_words
from tasks.store import Store, StoredObject

FOOTERS_AT_ONCE = 16
MAGIC = b"PAR1"
THRIFT_LIMIT = "Exceeded size limit"  # in Arrow's words

ID_COLUMNS = ("user_id", "item_id")
OUR_NAMES: Mapping[str, str] = {}  # what is wanted is called what we call it


def _type_as_text(kind: pl.DataType) -> str:
    """A process that inspects files tells another; what it read is not to be trusted with more than text."""
    return base64.b64encode(pl.DataFrame(schema={"": kind}).write_ipc(None).getvalue()).decode()


def _type_of_text(text: str | pl.DataType) -> pl.DataType:
    return pl.read_ipc_schema(io.BytesIO(base64.b64decode(text)))[""] if isinstance(text, str) else text


PolarsType = Annotated[pl.DataType, PlainValidator(_type_of_text), PlainSerializer(_type_as_text)]


@dataclass(frozen=True)
class EventFile:
    key: str
    uri: str
    num_rows: int
    modified_at: datetime
    columns: dict[str, PolarsType]  # what a night reads -> its type
    names: dict[str, str]  # the same -> what the file calls it
    hints: dict[str, ColumnHint] = field(default_factory=dict)  # of its ids: about how many there are
    text_as_bytes: bool = False  # set where text turned out not to be UTF-8: Polars reads no such column


Inspected = EventFile | NightError
NOTHING_KNOWN: Mapping[str, Inspected] = {}
UNREADABLE = (InputCorrupt, InputTooLarge)  # a night may do without such a file, where ingest.max_bad_files says so


@dataclass(frozen=True)
class EventSchema:
    """All files of a night agree on this much. The id types are the ones that go through to the recommendations."""

    user_id: PolarsType
    item_id: PolarsType
    has_rating: bool
    files: tuple[EventFile, ...]
    set_aside: dict[str, str] = field(default_factory=dict)  # key of a file that cannot be read -> why

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def inspection(self) -> Inspection:
        widened = {file.key: found for file in self.files if (found := self._widened(file))}
        return Inspection(len(self.files) - len(widened), widened, self.set_aside)

    def _widened(self, file: EventFile) -> list[str]:
        """Values keep what they say: a wider integer, or the microseconds of a moment in another unit."""
        ids = [(column, file.columns[column], getattr(self, column)) for column in ID_COLUMNS]
        found = [f"{column} {of} -> {to}" for column, of, to in ids if of.is_integer() and of != to]
        moment = file.columns["timestamp"]
        if isinstance(moment, pl.Datetime) and moment.time_unit != "us":
            found.append(f"timestamp {moment.time_unit} -> us")
        return found


# ---- what stands in their footers


def inspect_files(
    store: Store,
    objects: list[StoredObject],
    settings: IngestConfig,
    *,
    known: Mapping[str, Inspected] = NOTHING_KNOWN,
    set_aside: Mapping[str, str] = OUR_NAMES,
) -> EventSchema:
    """Files that are `known`, by key, are not opened; what they hold is held against the others all the same.

    Up to ingest.max_bad_files that cannot be read are set aside, those that were already (key -> why) counted in.
    Raises InputCorrupt, InputTooLarge or SchemaDrift for the first file (by key) that the night cannot do without.
    """
    wanted = [pinned for pinned in objects if pinned.key not in set_aside]
    unknown = [pinned for pinned in wanted if pinned.key not in known]
    by_key = {**known, **inspect_each(store, unknown, settings)}
    found = [by_key[pinned.key] for pinned in wanted]
    files = tuple(file for file in found if isinstance(file, EventFile))
    unreadable = {error.file_key or "": what_was_found(error) for error in found if isinstance(error, UNREADABLE)}
    too_many = len(unreadable) + len(set_aside) > settings.max_bad_files or not files
    for error in found:
        if isinstance(error, NightError) and (too_many or not isinstance(error, UNREADABLE)):
            raise error
    return EventSchema(
        user_id=id_type_of_all(files, "user_id"),
        item_id=id_type_of_all(files, "item_id"),
        has_rating=settings.has_rating,
        files=files,
        set_aside={**set_aside, **unreadable},
    )


def inspect_each(store: Store, objects: list[StoredObject], settings: IngestConfig) -> dict[str, Inspected]:
    """By key: what each file's footer says, of events or of a table, or what is wrong with it. Raises InputUnstable."""

    def inspect(pinned: StoredObject) -> Inspected:
        try:
            return _inspect(store, pinned, settings)
        except (*UNREADABLE, SchemaDrift) as error:
            error.file_key = pinned.key
            return error

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        return dict(zip((pinned.key for pinned in objects), threads.map(inspect, objects), strict=True))


def what_was_found(error: NightError) -> str:
    """Without what that means for a night that it ends: this one goes on."""
    return str(error).partition(". Nothing was ")[0]


def readable(found: Inspected) -> EventFile:
    if isinstance(found, NightError):
        raise found
    return found


def _inspect(store: Store, pinned: StoredObject, settings: IngestConfig) -> EventFile:
    table = table_of(pinned.key)
    if table in TABLES:
        return inspect_file(store, pinned, list(TABLES[table]), OPTIONAL_OF_TABLE.get(table, ()))
    return inspect_file(store, pinned, required_of(settings), names=settings.columns.model_dump())


def required_of(settings: IngestConfig) -> list[str]:
    """What a night reads of an event."""
    rating = ["rating"] if settings.has_rating else []
    event_type = ["event_type"] if settings.event_weights else []
    return ["user_id", "item_id", *rating, *event_type, "timestamp"]


def inspect_file(
    store: Store,
    pinned: StoredObject,
    required: list[str],
    optional: tuple[str, ...] = (),
    *,
    names: Mapping[str, str] = OUR_NAMES,
) -> EventFile:
    """One file's footer and wanted columns, which the file calls by `names`.

    Raises InputCorrupt, InputTooLarge, InputUnstable and SchemaDrift.
    """
    uri = store.uri_of(pinned.key)
    try:
        with store.open(pinned.key) as stream:
            footer = read_footer(stream, uri, num_bytes=pinned.num_bytes)
    except (ObjectNotFound, ObjectChanged) as error:
        raise InputUnstable(
            f"{uri} vanished or was replaced after it was listed. Nothing was published. Run again once whoever writes "
            "there is done."
        ) from error
    num_rows, columns = check_footer(
        footer, uri, num_bytes=pinned.num_bytes, required=required, optional=optional, names=names
    )
    called = {column: names.get(column, column) for column in columns}
    hints = {column: column_hint(footer, called[column]) for column in required if column in ID_COLUMNS}
    return EventFile(pinned.key, uri, num_rows, pinned.modified_at, columns, called, hints)


def read_footer(stream: BinaryIO, place: str, *, num_bytes: int) -> bytes:
    """The file's last bytes, from its footer on. Raises InputCorrupt and InputTooLarge naming `place`."""
    if num_bytes < 12:
        raise _corrupt(place, f"it has {num_bytes} bytes, fewer than the smallest Parquet file")
    stream.seek(num_bytes - 8)
    end = stream.read(8)
    if end[4:] != MAGIC:
        raise _corrupt(place, "it does not end like a Parquet file: it is cut off, or it is another format")
    length = int.from_bytes(end[:4], "little")
    if not 0 < length <= num_bytes - 12:
        raise _corrupt(place, f"it claims a footer of {length:,} bytes")
    if length > LARGEST_FOOTER_BYTES:
        raise too_large(place, f"its footer has {length:,} bytes, and more than {LARGEST_FOOTER_BYTES:,} are not read")
    stream.seek(num_bytes - 8 - length)
    return stream.read(length) + end


def check_footer(
    footer: bytes,
    place: str,
    *,
    num_bytes: int,
    required: list[str],
    optional: tuple[str, ...] = (),
    names: Mapping[str, str] = OUR_NAMES,
) -> tuple[int, dict[str, pl.DataType]]:
    """Rows and the wanted columns' types, from a footer alone.

    Raises InputCorrupt, InputTooLarge and SchemaDrift naming `place`.
    """
    alone = MAGIC + footer  # magic, footer, its length, magic: a Parquet file of no rows, and all of its schema
    called = {column: names.get(column, column) for column in (*required, *optional)}
    try:
        metadata = pq.read_metadata(pa.BufferReader(alone))
        ensure_bounded(metadata, place, num_bytes=num_bytes, columns=set(called.values()))
        arrow = metadata.schema.to_arrow_schema()
        num_rows = metadata.num_rows
        rows_in_groups = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if THRIFT_LIMIT in str(error):
            raise too_large(place, "its footer lists more things than any reader takes") from error
        raise _corrupt(place, "its footer cannot be read") from error
    if num_rows != rows_in_groups or num_rows < 0:
        raise _corrupt(place, f"it claims {num_rows:,} rows, and its row groups {rows_in_groups:,}")
    check_names(arrow.names, place, required, called)
    wanted = [*required, *(column for column in optional if called[column] in arrow.names)]
    for column in wanted:
        found = arrow.field(called[column]).type
        if not ACCEPTS[column](found):
            raise drift(place, called[column], in_words(found), WANTED[column])
    try:
        types = pl.read_parquet_schema(io.BytesIO(alone))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _corrupt(place, "its schema cannot be read") from error
    return num_rows, {column: types[called[column]] for column in wanted}


def id_type_of_all(files: tuple[EventFile, ...], column: str) -> pl.DataType:
    """The one type all files share; int64 where they hold integers of several widths. Raises SchemaDrift."""
    first = files[0]
    types = [_kept_type(file.columns[column]) for file in files]
    for file, found in zip(files, types, strict=True):
        # uint64 reaches past int64, so widening it would change ids.
        widens = found.is_integer() and types[0].is_integer() and pl.UInt64() not in (found, types[0])
        if found != types[0] and not widens:
            raise drift(file.uri, column, str(found), f"{types[0]}, as in {first.uri}")
    return types[0] if all(found == types[0] for found in types) else pl.Int64()


def _kept_type(found: pl.DataType) -> pl.DataType:
    return found if found.is_integer() else pl.String()


def _corrupt(place: str, why: str) -> InputCorrupt:
    return InputCorrupt(
        f"{place} cannot be read as Parquet: {why}. Nothing was published. Write the file again, or move it out of the "
        "folder if the night can do without it."
    )
