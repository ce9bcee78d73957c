"""Tonight's lists beside the live ones, person by person, before anything is published: how much would change.

Both are sorted by user, so a file of tonight's is held against the live rows of the same range of users. Memory: the
rows of a file and of that range, and a count for each item.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tasks.contracts import MovedItem, NightDiff, Recommendations, Run
from tasks.errors import NightError, ObjectNotFound
from tasks.publish.reader import LatestNight, open_latest
from tasks.store import Store

log = logging.getLogger("nightgraph.publish")

TENTHS = 10
ITEMS_SHOWN = 20
COLUMNS = ("user_id", "rank", "item_id", "tier")


def compared(store: Store, run: Run, tonight: Recommendations) -> NightDiff:
    """Tonight beside what is live now, if anything is and can be read."""
    try:
        live = open_latest(store.uri)
    except ObjectNotFound:
        return NightDiff(None, 0, 0, tonight.users, same_input=False)
    same_input = live.manifest.input.fingerprint == run.input_fingerprint
    try:
        diff = compare(live, tonight, same_input=same_input)
    except (OSError, pl.exceptions.PolarsError, NightError) as error:
        log.warning("the live night cannot be compared with: %s", error)
        why = f"it cannot be read ({type(error).__name__})"
        return NightDiff(
            live.manifest.as_of, live.manifest.version, live.manifest.users, tonight.users, same_input, why_not=why
        )
    log.info(
        "against the live night of %s: %.1f %% of the lists' items stay, %d items come in, %d go out",
        diff.as_of,
        100 * diff.overlap,
        diff.items_in,
        diff.items_out,
    )
    return diff


def compare(live: LatestNight, tonight: Recommendations, *, same_input: bool) -> NightDiff:
    """Raises what reading the live night does."""
    manifest = live.manifest
    diff = NightDiff(
        as_of=manifest.as_of,
        version=manifest.version,
        users_before=manifest.users,
        users_now=tonight.users,
        same_input=same_input,
    )
    if not _comparable(live, tonight):
        return replace(diff, why_not="its ids are of another kind, or there is no list to compare")
    by_user, exposure = [], []
    for now, before in _ranges(live, tonight):
        by_user.append(_of_users(now, before))
        exposure.append(_exposure(now, before))
        if len(exposure) > 1:
            exposure = [_summed(exposure)]
    users = pl.concat(by_user)
    overlap_B = users["overlap"].to_numpy()
    counts = np.bincount(np.floor(overlap_B * TENTHS).astype(np.int64), minlength=TENTHS + 1)
    items = _summed(exposure)
    moved = items.with_columns(moved=pl.col("now") - pl.col("before"))
    return replace(
        diff,
        users_in_both=len(users),
        overlap=float(overlap_B.mean()) if len(users) else 0.0,
        overlap_tenths=tuple(counts.tolist()),
        identical=int(users["identical"].sum()),
        other_tier=int(users["other_tier"].sum()),
        items_in=int(((items["before"] == 0) & (items["now"] > 0)).sum()),
        items_out=int(((items["before"] > 0) & (items["now"] == 0)).sum()),
        gained=_most(moved, descending=True),
        lost=_most(moved, descending=False),
    )


def _comparable(live: LatestNight, tonight: Recommendations) -> bool:
    """Whether ids are of one kind: text and numbers are never the same id."""
    if not tonight.parts or not tonight.rows:
        return False
    found = pl.read_parquet_schema(tonight.parts[0].path)
    kinds = {column.name: column.type for column in live.manifest.output_schema}
    return all((found[name] == pl.String) == (kinds[name] == "string") for name in ("user_id", "item_id"))


def _schema(live: LatestNight) -> dict[str, Any]:
    schema = live.scan().collect_schema()
    return {name: schema[name] for name in COLUMNS}


def _ranges(live: LatestNight, tonight: Recommendations) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Of each file the rows, and the live ones from behind the file before it to its last user, or all the rest."""
    schema = _schema(live)
    ids = [pl.col(name).cast(schema[name], strict=False) for name in ("user_id", "item_id")]
    behind: Any = None
    parts = [part for part in tonight.parts if part.rows]
    for number, part in enumerate(parts):
        now = pl.read_parquet(part.path, columns=list(COLUMNS), hive_partitioning=False).with_columns(*ids)
        last = now["user_id"][-1]
        before = live.scan().select(COLUMNS)
        if behind is not None:
            before = before.filter(pl.col("user_id") > behind)
        if number < len(parts) - 1:
            before = before.filter(pl.col("user_id") <= last)
        yield now, before.collect(engine="streaming")
        behind = last


def _of_users(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """Of people in both, sorted: overlap, of the longer list; identical, in order too; whether the first tier moved."""
    rows = now.join(before, on=["user_id", "item_id"], suffix="_before")
    common = rows.group_by("user_id").agg(common=pl.len(), in_place=(pl.col("rank") == pl.col("rank_before")).sum())
    lengths = [
        frame.group_by("user_id").agg(
            pl.len().alias(name), pl.col("tier").sort_by("rank").first().alias(f"tier_{name}")
        )
        for frame, name in ((now, "now"), (before, "before"))
    ]
    people = lengths[0].join(lengths[1], on="user_id").join(common, on="user_id", how="left").sort("user_id")
    longer = pl.max_horizontal("now", "before")
    return people.select(
        overlap=pl.col("common").fill_null(0) / longer,
        identical=pl.col("in_place").fill_null(0) == longer,
        other_tier=pl.col("tier_now") != pl.col("tier_before"),
    )


def _exposure(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """In how many lists each item stands, then and now."""
    of_both = [
        frame.group_by("item_id").agg(pl.len().cast(pl.Int64).alias(name))
        for frame, name in ((now, "now"), (before, "before"))
    ]
    return of_both[0].join(of_both[1], on="item_id", how="full", coalesce=True).fill_null(0)


def _summed(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames).group_by("item_id").agg(pl.col("now").sum(), pl.col("before").sum()).sort("item_id")


def _most(moved: pl.DataFrame, *, descending: bool) -> tuple[MovedItem, ...]:
    """Ties by id."""
    most = moved.sort(["moved", "item_id"], descending=[descending, False]).head(ITEMS_SHOWN)
    most = most.filter(pl.col("moved") > 0 if descending else pl.col("moved") < 0)
    return tuple(
        MovedItem(str(item), before, now) for item, now, before in most.select("item_id", "now", "before").rows()
    )
