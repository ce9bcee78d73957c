"""What a careful team would write with Polars alone for the pairs that a night needs: the peer of benchmarks/ingest.py.

Rules, ids to rows in the order of ids, exact repeats away, one row a pair (latest event, whether it is liked, first
event, first like), sorted by user and item, row groups of a fixed size. One query over all files holds all pairs at
once and needs more memory the more there are; this one keeps within the same few GiB as ours: each file's rows by
number first, then range by range of users.
"""

import itertools
from pathlib import Path

import polars as pl

USERS_AT_ONCE_ROWS = 8_000_000  # rows of the ranges of users, which decide the peak
ROW_GROUP = 1 << 20
YEAR_10000_S = 253_402_300_800


def pairs_by_polars(files: list[Path], work: Path) -> list[Path]:
    valid = [valid_rows(pl.scan_parquet(file)) for file in files]
    users, items = (numbered(valid, name) for name in ("user_id", "item_id"))
    by_day, rows = [], 0
    for number, frame in enumerate(valid):
        path = work / f"day-{number:03d}.parquet"
        numbers = frame.join(users.lazy(), on="user_id").join(items.lazy(), on="item_id")
        numbers = numbers.select("user", "item", time=pl.col("timestamp") * 1_000_000, liked=pl.col("rating") >= 4)
        numbers = numbers.unique().sort("user", "item", "time")
        numbers.sink_parquet(path, row_group_size=ROW_GROUP // 8, compression="zstd", compression_level=1)
        rows += pl.scan_parquet(path).select(pl.len()).collect().item()
        by_day.append(path)
    ranges = max(1, -(-rows // USERS_AT_ONCE_ROWS))
    edges = [len(users) * part // ranges for part in range(ranges + 1)]
    written = []
    for part, (low, high) in enumerate(itertools.pairwise(edges)):
        path = work / f"pairs-{part:03d}.parquet"
        of_range = pl.scan_parquet(by_day).filter(pl.col("user") >= low, pl.col("user") < high)
        pairs_of(of_range).sink_parquet(path, row_group_size=ROW_GROUP, compression="zstd", compression_level=1)
        written.append(path)
    users.write_parquet(work / "users.parquet")
    items.write_parquet(work / "items.parquet")
    return written


def valid_rows(frame: pl.LazyFrame) -> pl.LazyFrame:
    ids = pl.col("user_id", "item_id")
    return frame.filter(
        pl.all_horizontal(
            ids.is_not_null(),
            ids.str.len_bytes().is_between(1, 256),
            ~ids.str.contains(r"[\x00-\x1f]"),
        ),
        pl.col("rating").is_finite(),
        pl.col("rating").abs() <= 1e6,
        pl.col("timestamp").is_between(0, YEAR_10000_S, closed="left"),
    )


def numbered(frames: list[pl.LazyFrame], name: str) -> pl.DataFrame:
    """Row r is the r-th smallest id."""
    ids = pl.concat([frame.select(name).unique() for frame in frames]).unique().sort(name)
    short = name.removesuffix("_id")
    return ids.collect(engine="streaming").with_row_index(short).cast({short: pl.Int32})


def pairs_of(events: pl.LazyFrame) -> pl.LazyFrame:
    """The latest event of a pair decides, of simultaneous ones a like."""
    time, liked = pl.col("time"), pl.col("liked")
    packed = (time * 2 + liked.cast(pl.Int64)).max()
    pairs = events.group_by("user", "item").agg(
        packed.alias("last"), first=time.min(), first_liked=time.filter(liked).min()
    )
    return pairs.select(
        "user", "item", "first", "first_liked", latest=pl.col("last") // 2, liked=pl.col("last") % 2 == 1
    ).sort("user", "item")
