"""One row for every (user, item) pair that has an event, and every row that is none under its rule.

Nothing is dropped: each row that comes in is a like, a seen item that was not liked, an older event of its pair, or a
quarantined row under the name of the first rule it breaks (events.py). The four counts add up to the footers' rows.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import CountsDisagree, GraphTooSmall, InputMissing, NothingLiked
from tasks.ingest.events import instant, naming_read_errors
from tasks.ingest.inspection import EventSchema
from tasks.ingest.rules import midnight_us, rules
from tasks.ingest.scan import as_they_came, scan_file
from tasks.run import file_sha256

# Row groups of a streamed file follow the engine's morsels unless their size is fixed, and so would the bytes.
ROWS_PER_GROUP = 100_000


@dataclass(frozen=True)
class _Seen:
    """Measured on the finished file."""

    pairs: int
    likes: int
    num_users: int
    num_items: int
    liking_users: int
    liked_items: int
    first_us: int
    last_us: int


def digest(schema: EventSchema, folder: Path, *, as_of: date, settings: IngestConfig) -> Interactions:
    """Write the pairs and the quarantined rows under `folder`, in one pass over the files.

    The pairs' bytes depend on the set of valid rows and on nothing else: not on the order of files and rows, on
    quarantined rows or on threads. Of a pair's events the latest counts, of simultaneous ones the best rated.

    Raises InputMissing, InputCorrupt, InputUnstable, NothingLiked, GraphTooSmall, CountsDisagree.
    """
    seen_path, quarantine_path = folder / "seen.parquet", folder / "quarantine.parquet"
    too_late = pl.col("timestamp_us") >= midnight_us(as_of)
    rule = pl.when(pl.col("rule").is_null() & too_late).then(pl.lit("timestamp_in_future")).otherwise("rule")
    scanned = [
        scan_file(file, schema, settings).with_columns(rule.alias("rule"), pl.col("kind").eq(1).alias("liked"))
        for file in schema.files
    ]
    columns = ("user_id", "item_id", "timestamp_us", "liked", "rule")
    events = pl.concat([frame.select(columns) for frame in scanned])
    refused = pl.concat([as_they_came(frame.filter(pl.col("rule").is_not_null()), schema.files) for frame in scanned])
    with naming_read_errors(schema.files):
        _, _, counted = pl.collect_all(
            [
                _sink(_one_row_a_pair(events.filter(pl.col("rule").is_null())), seen_path),
                _sink(refused.sort(refused.collect_schema().names()), quarantine_path),
                events.group_by("rule").len(),
            ],
            engine="streaming",
        )
    rows = {name: int(count) for name, count in counted.iter_rows()}
    num_valid = rows.pop(None, 0)
    quarantined = {rule.name: rows[rule.name] for rule in rules(schema.files[0], schema, settings) if rule.name in rows}
    _expect_events(num_valid, quarantined, schema, as_of)
    seen = _measure(seen_path)
    _expect_a_graph(seen, num_valid, schema, settings)
    interactions = Interactions(
        seen_path=str(seen_path),
        quarantine_path=str(quarantine_path),
        fingerprint=file_sha256(seen_path),
        rows_in=schema.num_rows,
        kept=seen.likes,
        below_threshold=seen.pairs - seen.likes,
        duplicate=num_valid - seen.pairs,
        quarantined=quarantined,
        num_users=seen.num_users,
        num_items=seen.num_items,
        first_event_at=instant(seen.first_us),
        last_event_at=instant(seen.last_us),
    )
    ensure_counts_add_up(interactions)
    return interactions


def ensure_counts_add_up(interactions: Interactions) -> None:
    """Raises CountsDisagree unless every row that came in is counted exactly once."""
    quarantined = sum(interactions.quarantined.values())
    out = interactions.kept + interactions.below_threshold + interactions.duplicate + quarantined
    if out != interactions.rows_in or interactions.duplicate < 0:
        raise CountsDisagree(
            f"{interactions.rows_in:,} rows came in by the files' footers and {out:,} are accounted for "
            f"({interactions.kept:,} likes, {interactions.below_threshold:,} below the threshold, "
            f"{interactions.duplicate:,} older events, {quarantined:,} quarantined). Nothing was published. This is a "
            "bug: please report it with these counts."
        )


def _one_row_a_pair(valid: pl.LazyFrame) -> pl.LazyFrame:
    # One integer orders a pair's events: the time, and the like as its last bit. Its maximum is the latest event and,
    # of simultaneous ones, a liked one if there is any, which is the best rated. Exact, and the engine streams it.
    time = pl.col("timestamp_us")
    pairs = valid.group_by("user_id", "item_id").agg(
        (time * 2 + pl.col("liked")).max().alias("key"),
        time.min().alias("first_seen_us"),
        pl.when("liked").then(time).min().alias("first_liked_us"),
    )
    return pairs.select(
        "user_id",
        "item_id",
        (pl.col("key") // 2).alias("timestamp_us"),
        (pl.col("key") % 2 == 1).alias("liked"),
        "first_seen_us",
        "first_liked_us",
    ).sort("user_id", "item_id")


def _sink(frame: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    return frame.sink_parquet(
        path, compression="zstd", compression_level=3, row_group_size=ROWS_PER_GROUP, maintain_order=True, lazy=True
    )


def _measure(seen_path: Path) -> _Seen:
    liked = pl.col("liked")
    row = (
        pl.scan_parquet(seen_path)
        .select(
            pairs=pl.len(),
            likes=liked.sum(),
            num_users=pl.col("user_id").n_unique(),
            num_items=pl.col("item_id").n_unique(),
            liking_users=pl.col("user_id").filter(liked).n_unique(),
            liked_items=pl.col("item_id").filter(liked).n_unique(),
            first_us=pl.col("first_seen_us").min(),
            last_us=pl.col("timestamp_us").max(),
        )
        .collect(engine="streaming")
    )
    return _Seen(**row.row(0, named=True))


# ---- what no night can go on with


def _expect_events(num_valid: int, quarantined: dict[str, int], schema: EventSchema, as_of: date) -> None:
    if num_valid:
        return
    if not schema.num_rows:
        raise InputMissing(
            f"the {len(schema.files)} event files hold no rows at all. Nothing was published. See what should have "
            "written them."
        )
    found = ", ".join(f"{rule} {count:,}" for rule, count in quarantined.items())
    hint = ""
    too_late = sum(quarantined.get(rule, 0) for rule in ("timestamp_in_future", "timestamp_after_9999"))
    if too_late * 2 > schema.num_rows:
        hint = (
            f" Most events lie after the start of {as_of} (UTC): the date is before the first event, or integer "
            "timestamps are milliseconds where seconds are wanted."
        )
    raise InputMissing(
        f"none of the {schema.num_rows:,} rows in {len(schema.files)} event files is a valid event before {as_of}: "
        f"{found}. Nothing was published.{hint}"
    )


def _expect_a_graph(seen: _Seen, num_valid: int, schema: EventSchema, settings: IngestConfig) -> None:
    if not seen.likes and settings.like_threshold is not None:
        raise NothingLiked(
            f"of {seen.pairs:,} pairs none has a latest rating of at least {settings.like_threshold:g}; the highest in "
            f"all {num_valid:,} valid events is {_highest_rating(schema, settings):g}. Nothing was published. Set "
            "ingest.like_threshold to what a like is in this source, or to none if it has no ratings."
        )
    if seen.liking_users < 2 or seen.liked_items < 2:
        raise GraphTooSmall(
            f"the likes come from {seen.liking_users:,} users and go to {seen.liked_items:,} items; a recommendation "
            "needs at least 2 of each. Nothing was published. Check that all event files are there, and "
            "ingest.like_threshold."
        )


def _highest_rating(schema: EventSchema, settings: IngestConfig) -> float:
    valid = [scan_file(file, schema, settings).filter(pl.col("rule").is_null()) for file in schema.files]
    highest = pl.concat([frame.select(pl.col("rating").cast(pl.Float64).max()) for frame in valid]).max()
    with naming_read_errors(schema.files):
        return float(highest.collect(engine="streaming").item())
