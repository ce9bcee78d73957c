"""Reading event files: what goes wrong on the way gets one of our names, and the file's."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, InputMissing, InputUnstable, StoreDenied, StoreUnavailable
from tasks.ingest.inspection import EventFile, EventSchema
from tasks.ingest.rules import EPOCH
from tasks.ingest.scan import scan_columns, scan_file
from tasks.run import is_disk_full

NOT_UTF8 = "invalid UTF-8"  # in Polars' words
NOTHING_KNOWN: Mapping[str, int | None] = {}
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError)


def scan_events(schema: EventSchema, settings: IngestConfig) -> pl.LazyFrame:
    """user_id, item_id, timestamp_us, kind and rule of all rows of all files."""
    columns = ("user_id", "item_id", "timestamp_us", "kind", "rule")
    return pl.concat([scan_file(file, schema, settings).select(columns) for file in schema.files])


def last_event_at(
    schema: EventSchema, settings: IngestConfig, *, known: Mapping[str, int | None] = NOTHING_KNOWN
) -> datetime:
    """The latest valid event. Files whose latest one is `known`, by key (None: they have none), are not read.

    Raises InputMissing if there is none at all.

    No event is valid that is more than a day later than its own file: one absurd timestamp chooses no date.
    """
    last_us = [found for found in known.values() if found is not None]
    unread = tuple(file for file in schema.files if file.key not in known)
    if unread:
        valid = scan_events(replace(schema, files=unread), settings).filter(pl.col("rule").is_null())
        with naming_read_errors(unread):
            found = valid.select(pl.col("timestamp_us").max()).collect(engine="streaming").item()
        last_us += [] if found is None else [found]
    if not last_us:
        raise InputMissing(
            f"none of the {schema.num_rows:,} rows in {len(schema.files)} event files is a valid event, so there is no "
            "date to work for. Nothing was started. Integer timestamps must be seconds since 1970, not milliseconds. "
            "Give a date (AS_OF) to see which rule the rows break."
        )
    return instant(max(last_us))


@contextmanager
def naming_read_errors(files: Sequence[EventFile]) -> Iterator[None]:
    """Polars' exceptions by our names, and the corrupt file by its key. Ids never reach a message."""
    try:
        yield
    except UNREADABLE as error:
        _raise_by_name(error)
        # The engine does not say which of many files it was.
        for file in files:
            try:
                read_through(file)
            except UNREADABLE as of_file:
                _raise_by_name(of_file)
                corrupt = InputCorrupt(
                    f"{file.uri} has a good footer and pages that cannot be read ({type(of_file).__name__}). Nothing "
                    "was published. Write the file again, or move it out of the folder if the night can do without it."
                )
                corrupt.file_key = file.key
                raise corrupt from of_file
        raise StoreUnavailable(
            f"reading {len(files)} input files failed ({type(error).__name__}), and reading them one by one did "
            "not. Nothing was published. Run again."
        ) from error


def with_text_as_bytes(files: Sequence[EventFile], error: InputCorrupt) -> tuple[EventFile, ...] | None:
    """The files to read once more, where what Polars could not read of one is text that is not UTF-8; else None."""
    if NOT_UTF8 not in str(error.__cause__):
        return None
    return tuple(replace(file, text_as_bytes=True) if _is_not_utf8(file) else file for file in files)


def _is_not_utf8(file: EventFile) -> bool:
    try:
        read_through(file)
    except pl.exceptions.PolarsError as error:
        return NOT_UTF8 in str(error)
    return False


def read_through(file: EventFile) -> None:
    """Decode every value of the required columns without keeping them."""
    scan_columns([file]).select(pl.all().hash().sum()).collect(engine="streaming")


def _raise_by_name(error: BaseException) -> None:
    """Returns where the error says nothing about its reason."""
    text = str(error)
    if is_disk_full(error):
        raise OSError(errno.ENOSPC, "no space left on the work folder's disk") from error
    if isinstance(error, FileNotFoundError):
        raise InputUnstable(
            "an input file vanished while the night was reading it. Nothing was published. Run again once whoever "
            "writes there is done."
        ) from error
    if isinstance(error, PermissionError):
        raise StoreDenied(
            "the store refuses to let these credentials read the input files. Nothing was published. They need to "
            "list and read everything under ingest.prefixes and in the tables' folders."
        ) from error
    # Arrow says OSError, without a number, of pages that it cannot decode, too.
    numbered = isinstance(error, OSError) and (error.errno is not None or "os error" in text)
    if numbered or "object-store" in text or "error sending request" in text:
        raise StoreUnavailable(
            f"the store stopped answering while the inputs were read ({type(error).__name__}). Nothing was published. "
            "Run again."
        ) from error


def instant(since_1970_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=since_1970_us)
