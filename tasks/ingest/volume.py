"""Whether the days look like days: none empty in the middle, and the newest about as large as those before it.

By the footers alone, before a row is read, and only where keys carry days.
"""

import logging
from collections.abc import Mapping
from datetime import date, timedelta
from statistics import median

from tasks.config import IngestConfig
from tasks.errors import VolumeAnomaly
from tasks.ingest.inspection import EventSchema
from tasks.ingest.sources import day_of

DAYS_COMPARED = 14
FEWEST_DAYS = 7
SMALLEST, LARGEST = 0.3, 3.0  # of the median: -70 % and +200 %

log = logging.getLogger("nightgraph.ingest")


def check_volume(schema: EventSchema, night: date, settings: IngestConfig) -> str:
    """What was found and overridden, empty where nothing was. Raises VolumeAnomaly."""
    found = what_is_odd(rows_by_day(schema), night)
    if not found:
        return ""
    if settings.volume_override == "none":
        raise VolumeAnomaly(
            f"{found}. Nothing was started; the live recommendations stay. See what writes the days. If that is how it "
            "was, run again with ingest.volume_override=accept and ingest.volume_override_reason."
        )
    log.warning("overridden, because %s: %s", settings.volume_override_reason, found)
    return found


def rows_by_day(schema: EventSchema) -> dict[date, int]:
    """Of all prefixes together. Files without a day are of none."""
    rows: dict[date, int] = {}
    for file in schema.files:
        if (on := day_of(file.key)) is not None:
            rows[on] = rows.get(on, 0) + file.num_rows
    return rows


def what_is_odd(rows: Mapping[date, int], night: date) -> str:
    """In words, empty where nothing is. Days from the night's date on are not yet its own."""
    past = {on: count for on, count in rows.items() if on < night}
    if not past:
        return ""
    newest = max(past)
    every = [min(past) + timedelta(days=day) for day in range((newest - min(past)).days + 1)]
    empty = [on for on in every if not past.get(on)]
    if empty:
        what = "no rows in its files" if empty[0] in past else "no file"
        return (
            f"{empty[0]} has {what}, and there are days before it, or after it"
            + (f" ({len(empty):,} of {len(every):,} days are empty)" if len(empty) > 1 else "")
            + ": a hole that a model would learn from"
        )
    before = [past[on] for on in every[-1 - DAYS_COMPARED : -1]]
    if len(before) < FEWEST_DAYS:
        return ""
    usual = median(before)
    if SMALLEST * usual <= past[newest] <= LARGEST * usual:
        return ""
    return (
        f"{newest} has {past[newest]:,} rows, {past[newest] / usual - 1:+.0%} against the median of the "
        f"{len(before)} days before it, {usual:,.0f} (allowed: {SMALLEST - 1:+.0%} to {LARGEST - 1:+.0%})"
    )
