"""What is an event: the named rules, and the lazy scan of all files that applies them.

Nothing is read before a sink asks for it; what goes wrong while reading gets one of our names, and the file's.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import polars as pl

from tasks.errors import InputCorrupt, InputMissing, InputUnstable, StoreDenied, StoreUnavailable
from tasks.ingest.inspection import EventFile, EventSchema

LONGEST_ID_BYTES = 256
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Seconds beyond this many do not fit into int64 microseconds. It is the year 287,000: far outside every rule's bound.
LARGEST_S = 9_000_000_000_000
CLOCK_SLACK = timedelta(days=1)

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


# ---- the rules


def rules(schema: EventSchema, *, as_of: date | None) -> dict[str, pl.Expr]:
    """Rule -> true for a row that breaks it. A row is quarantined under the first one. None: no bound in the future."""
    ids = {"user_id": schema.user_id, "item_id": schema.item_id}
    rating = {
        "null_rating": pl.col("rating").is_null(),
        # Explicit, because NaN > 0 is true here.
        "not_finite_rating": ~pl.col("rating").cast(pl.Float64).is_finite(),
    }
    future = {} if as_of is None else {"timestamp_in_future": pl.col("timestamp_us") >= midnight_us(as_of)}
    return {
        **{f"null_{name}": pl.col(name).is_null() for name in ids},
        **{f"malformed_{name}": is_malformed(pl.col(name)) for name, kind in ids.items() if kind == pl.String},
        **(rating if schema.has_rating else {}),
        "null_timestamp": pl.col("timestamp_us").is_null(),
        "timestamp_before_1970": pl.col("timestamp_us") < 0,
        **future,
    }


def is_malformed(text: pl.Expr) -> pl.Expr:
    """Ids are opaque: never trimmed, folded or cast. Only what breaks files, logs and screens is quarantined."""
    size = text.str.len_bytes()
    return (size == 0) | (size > LONGEST_ID_BYTES) | text.str.contains(r"\p{Cc}")


def midnight_us(day: date) -> int:
    return (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def first_broken(named: dict[str, pl.Expr]) -> pl.Expr:
    """The name of the first rule the row breaks, null where it breaks none."""
    return pl.coalesce([pl.when(is_bad).then(pl.lit(name)) for name, is_bad in named.items()]).alias("rule")


# ---- reading


def scan_events(schema: EventSchema, *, like_threshold: float | None) -> pl.LazyFrame:
    """All rows of all files: user_id, item_id, rating, timestamp as they came, and timestamp_us, liked.

    Where the files disagree on a type, ratings become float64 and timestamps text: only the quarantined rows keep them.
    """
    groups: dict[tuple[str, ...], list[EventFile]] = {}
    for file in schema.files:
        groups.setdefault(tuple(str(kind) for kind in file.columns.values()), []).append(file)
    return pl.concat([_scan(files, schema, like_threshold=like_threshold) for files in groups.values()])


def _scan(files: list[EventFile], schema: EventSchema, *, like_threshold: float | None) -> pl.LazyFrame:
    columns = files[0].columns
    original = {name: {str(file.columns[name]) for file in schema.files} for name in columns}
    rating_as_it_came = pl.col("rating") if len(original.get("rating", "")) == 1 else pl.col("rating").cast(pl.Float64)
    timestamp = pl.col("timestamp")
    return pl.scan_parquet(
        [place_of(file.uri) for file in files],
        schema=columns,
        extra_columns="ignore",  # columns we do not need may come and go
        hive_partitioning=False,  # dt=2026-11-21 in a key is a folder's name, not a column
        glob=False,
    ).select(
        pl.col("user_id").cast(schema.user_id),
        pl.col("item_id").cast(schema.item_id),
        *([rating_as_it_came] if schema.has_rating else []),
        timestamp if len(original["timestamp"]) == 1 else timestamp.cast(pl.String),
        microseconds(timestamp, columns["timestamp"]).alias("timestamp_us"),
        _is_liked(columns, like_threshold).alias("liked"),
    )


def place_of(uri: str) -> str:
    """What Polars opens as it stands: it undoes %xx in a file:// URI, and in no other."""
    return uri.removeprefix("file://")


def microseconds(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Since 1970 UTC, naive instants taken as UTC. Absurd values stay absurd instead of wrapping around."""
    if kind == pl.Date:
        return value.cast(pl.Int64).clip(-LARGEST_S // 86_400, LARGEST_S // 86_400) * 86_400_000_000
    if not isinstance(kind, pl.Datetime):
        seconds = value.clip(upper_bound=LARGEST_S) if kind == pl.UInt64 else value
        return seconds.cast(pl.Int64).clip(-LARGEST_S, LARGEST_S) * 1_000_000
    if kind.time_unit == "ns":
        return value.cast(pl.Int64) // 1_000
    if kind.time_unit == "us":
        return value.cast(pl.Int64)
    return value.cast(pl.Int64).clip(-LARGEST_S * 1_000, LARGEST_S * 1_000) * 1_000


def _is_liked(columns: dict[str, pl.DataType], like_threshold: float | None) -> pl.Expr:
    if like_threshold is None:
        return pl.lit(True)
    # In the file's own precision: 3.3 as float32 is less than 3.3 as float64.
    kind = pl.Float32() if columns["rating"] == pl.Float32 else pl.Float64()
    return pl.col("rating").cast(kind) >= pl.lit(like_threshold, dtype=kind)


def last_event_at(schema: EventSchema) -> datetime:
    """The latest valid event that is no more than a day later than its own file.

    The bound keeps one absurd timestamp from choosing the date of the night. Raises InputMissing if there is no event.
    """
    no_threshold = 0.0 if schema.has_rating else None
    latest = []
    for file in schema.files:
        alone = EventSchema(schema.user_id, schema.item_id, schema.has_rating, (file,))
        until_us = (file.modified_at + CLOCK_SLACK - EPOCH) // timedelta(microseconds=1)
        latest.append(
            scan_events(alone, like_threshold=no_threshold)
            .filter(first_broken(rules(schema, as_of=None)).is_null() & (pl.col("timestamp_us") <= until_us))
            .select(pl.col("timestamp_us").max())
        )
    with naming_read_errors(schema.files):
        found = pl.concat(latest).max().collect(engine="streaming").item()
    if found is None:
        raise InputMissing(
            f"none of the {schema.num_rows:,} rows in {len(schema.files)} event files is a valid event dated before "
            "its file was written, so there is no date to work for. Nothing was started. Integer timestamps "
            "must be seconds since 1970, not milliseconds. Give a date (AS_OF) to see which rule quarantines the rows."
        )
    return instant(found)


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
                raise InputCorrupt(
                    f"{file.uri} has a good footer and pages that cannot be read ({type(of_file).__name__}). Nothing "
                    "was published. Write the file again, or move it out of the folder if the night can do without it."
                ) from of_file
        raise StoreUnavailable(
            f"reading {len(files)} input files failed ({type(error).__name__}), and reading them one by one did "
            "not. Nothing was published. Run again."
        ) from error


def read_through(file: EventFile) -> None:
    """Decode every value of the required columns without keeping them."""
    frame = pl.scan_parquet(
        [place_of(file.uri)], schema=file.columns, extra_columns="ignore", hive_partitioning=False, glob=False
    )
    frame.select(pl.all().hash().sum()).collect(engine="streaming")


def _raise_by_name(error: BaseException) -> None:
    """Returns where the error says nothing about its reason."""
    text = str(error)
    if "os error 28" in text:
        raise OSError(errno.ENOSPC, "no space left on the work folder's disk") from error
    if isinstance(error, FileNotFoundError):
        raise InputUnstable(
            "an input file vanished while the night was reading it. Nothing was published. Run again once whoever "
            "writes there is done."
        ) from error
    if isinstance(error, PermissionError):
        raise StoreDenied(
            "the store refuses to let these credentials read the input files. Nothing was published. They need to "
            "list and read everything under events/ and in the tables' folders."
        ) from error
    if isinstance(error, OSError) or "object-store" in text or "error sending request" in text:
        raise StoreUnavailable(
            f"the store stopped answering while the inputs were read ({type(error).__name__}). Nothing was published. "
            "Run again."
        ) from error


def instant(since_1970_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=since_1970_us)
