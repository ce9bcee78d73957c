"""One event file as a lazy frame in the night's own columns, with the rule that each row breaks.

Nothing is read before a sink asks for it. A file is read with its own types, so that no other file changes a value.
"""

from collections.abc import Sequence

import fsspec
import polars as pl
import pyarrow as pa

from tasks.config import IngestConfig
from tasks.ingest.inspection import EventFile, EventSchema
from tasks.ingest.rules import first_broken, rules

# Seconds beyond this many do not fit into int64 microseconds. It is the year 287,000: far outside every rule's bound.
LARGEST_S = 9_000_000_000_000


def scan_file(file: EventFile, schema: EventSchema, settings: IngestConfig) -> pl.LazyFrame:
    """All rows of one file, in its order: user_id and item_id in the types of `schema`; rating and event_type where
    they are read, and timestamp, as they came; timestamp_us (i64); kind (u8); rule, null for a valid row.

    kind: with event weights the place of the type in settings.event_types, null where it is none of them; with ratings
    1 = at least the threshold, 0 = below; else 1.
    """
    asked = {role: pl.col(name).alias(role) for role, name in file.names.items()}
    canonical = scan_columns([file]).select(
        asked["user_id"].cast(schema.user_id),
        asked["item_id"].cast(schema.item_id),
        *(asked[role] for role in ("rating", "event_type") if role in asked),
        asked["timestamp"],
    )
    return canonical.with_columns(
        microseconds(pl.col("timestamp"), file.columns["timestamp"]).alias("timestamp_us"),
        _kind(file, settings).cast(pl.UInt8).alias("kind"),
    ).with_columns(first_broken(rules(file, schema, settings)))


def scan_columns(files: Sequence[EventFile]) -> pl.LazyFrame:
    """The required columns of files of the same types, under the files' own names."""
    if any(file.text_as_bytes for file in files):
        return pl.concat([_scan_bytes(file) for file in files])
    return pl.scan_parquet(
        [place_of(file.uri) for file in files],
        schema={files[0].names[role]: kind for role, kind in files[0].columns.items()},
        extra_columns="ignore",  # columns we do not need may come and go
        hive_partitioning=False,  # dt=2026-11-21 in a key is a folder's name, not a column
        glob=False,
    )


def _scan_bytes(file: EventFile) -> pl.LazyFrame:
    """Text by way of its bytes. What is no UTF-8 comes as its escapes after a NUL, and a rule refuses it by name."""
    import pyarrow.dataset as ds  # it loads pandas, and hardly a night needs it

    filesystem, path = fsspec.core.url_to_fs(place_of(file.uri))
    found = ds.dataset(path, filesystem=filesystem, format="parquet").schema
    wanted = [found.field(file.names[role]) for role in file.columns]
    text = [field.name for field in wanted if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    schema = pa.schema([field.with_type(pa.large_binary()) if field.name in text else field for field in wanted])
    decoded = pl.col(text).map_batches(_decoded, return_dtype=pl.String(), is_elementwise=True)
    as_bytes = ds.dataset(path, schema=schema, filesystem=filesystem, format="parquet")
    return pl.scan_pyarrow_dataset(as_bytes).with_columns(decoded)


def _decoded(values: pl.Series) -> pl.Series:
    return pl.Series(values.name, [None if value is None else _text_of(value) for value in values], pl.String())


def _text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "\0" + value.decode(errors="backslashreplace")


def as_they_came(rows: pl.LazyFrame, files: Sequence[EventFile]) -> pl.LazyFrame:
    """The columns of refused rows, in a type that the rows of all `files` can have: rows of several go into one file.

    Where the files disagree, ratings become float64 and timestamps text.
    """
    wide = {"rating": pl.Float64(), "timestamp": pl.String(), "event_type": pl.String()}
    columns = [role for role in ("user_id", "item_id", "rating", "event_type", "timestamp") if role in files[0].columns]
    disagree = {role for role in wide if len({str(file.columns.get(role)) for file in files}) > 1}
    kept = [pl.col(role).cast(wide[role]) if role in disagree else pl.col(role) for role in columns]
    return rows.select(*kept, "rule")


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


def _kind(file: EventFile, settings: IngestConfig) -> pl.Expr:
    if settings.event_weights:
        place = {name: place for place, name in enumerate(settings.event_types)}
        told = pl.col("event_type").cast(pl.String)
        return told.replace_strict(place, default=None, return_dtype=pl.UInt8)
    if settings.like_threshold is None:
        return pl.lit(1)
    # In the file's own precision: 3.3 as float32 is less than 3.3 as float64.
    kind = pl.Float32() if file.columns["rating"] == pl.Float32 else pl.Float64()
    return (pl.col("rating").cast(kind) >= pl.lit(settings.like_threshold, dtype=kind)).fill_null(False)
