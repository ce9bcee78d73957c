"""Whether the days look like days: none of them empty, the last one there, and about as large as those before it.

By the footers alone, before a row is read, and only where keys carry days. What the rows say of their days is held
against their keys once they have been read (`check_moments`).
"""

import logging
from collections.abc import Mapping
from datetime import date, timedelta
from statistics import median

from tasks.config import IngestConfig
from tasks.errors import VolumeAnomaly
from tasks.ingest.events import instant
from tasks.ingest.inspection import EventSchema
from tasks.ingest.rules import midnight_us
from tasks.ingest.sources import day_of

DAYS_COMPARED = 14
FEWEST_DAYS = 7
SMALLEST, LARGEST = 0.3, 3.0  # of the median: -70 % and +200 %
NO_FILES: Mapping[date, list[str]] = {}

log = logging.getLogger("nightgraph.ingest")


def check_volume(schema: EventSchema, night: date, settings: IngestConfig) -> str:
    """What was found and overridden, empty where nothing was. Raises VolumeAnomaly."""
    every_file_has_a_day = all(day_of(file.key) is not None for file in schema.files)
    found = what_is_odd(
        rows_by_day(schema), night, every_file_has_a_day=every_file_has_a_day, aside=_set_aside_by_day(schema)
    )
    return refuse_unless_overridden(found, settings, "started")


def refuse_unless_overridden(found: str, settings: IngestConfig, what_was_not_done: str) -> str:
    """`found` again, where somebody accepts it; empty where it is. Raises VolumeAnomaly."""
    if not found:
        return ""
    if settings.volume_override == "none":
        raise VolumeAnomaly(
            f"{found}. Nothing was {what_was_not_done}; the live recommendations stay. See what writes the days. If "
            "that is how it was, run again with ingest.volume_override=accept and ingest.volume_override_reason."
        )
    log.warning("overridden, because %s: %s", settings.volume_override_reason, found)
    return found


def rows_by_day(schema: EventSchema) -> dict[date, int]:
    """Of all prefixes together, 0 where every file was set aside. Files without a day are of none."""
    rows: dict[date, int] = {}
    counts = {file.key: file.num_rows for file in schema.files} | dict.fromkeys(schema.set_aside, 0)
    for key, count in counts.items():
        if (on := day_of(key)) is not None:
            rows[on] = rows.get(on, 0) + count
    return rows


def _set_aside_by_day(schema: EventSchema) -> dict[date, list[str]]:
    """Day -> keys of its files that cannot be read."""
    aside: dict[date, list[str]] = {}
    for key in sorted(schema.set_aside):
        if (on := day_of(key)) is not None:
            aside.setdefault(on, []).append(key)
    return aside


def what_is_odd(
    rows: Mapping[date, int],
    night: date,
    *,
    every_file_has_a_day: bool = True,
    aside: Mapping[date, list[str]] = NO_FILES,
) -> str:
    """In words, empty where nothing is. Days from the night's date on are not yet its own.

    Beside files of no day the last days may stand in those. `aside`: the files of a day that count for nothing,
    because they cannot be read.
    """
    past = {on: count for on, count in rows.items() if on < night}
    if not past:
        return ""
    newest = max(past)
    last = night - timedelta(days=1) if every_file_has_a_day else newest
    every = [min(past) + timedelta(days=day) for day in range((last - min(past)).days + 1)]
    empty = [on for on in every if not past.get(on)]
    if empty:
        return _of_empty_days(empty, every, newest, past, aside)
    before = [past[on] for on in every[-1 - DAYS_COMPARED : -1]]
    if len(before) < FEWEST_DAYS:
        return ""
    usual = median(before)
    if SMALLEST * usual <= past[newest] <= LARGEST * usual:
        return ""
    return (
        f"{newest} has {past[newest]:,} rows{_without(aside.get(newest, []))}, {past[newest] / usual - 1:+.0%} against "
        f"the median of the {len(before)} days before it, {usual:,.0f} (allowed: {SMALLEST - 1:+.0%} to "
        f"{LARGEST - 1:+.0%})"
    )


def _of_empty_days(
    empty: list[date], every: list[date], newest: date, past: Mapping[date, int], aside: Mapping[date, list[str]]
) -> str:
    """The newest day is what a night is run for, so that one is named first."""
    first, what_for = (empty[-1], "the last day before the night") if every[-1] in empty else (empty[0], "")
    what = f"no rows in its files{_without(aside.get(first, []))}" if first in past else "no file"
    many = f" ({len(empty):,} of {len(every):,} days are empty)" if len(empty) > 1 else ""
    if what_for:
        return f"{first}, {what_for}, has {what}; the newest day with a file is {newest}{many}"
    return f"{first} has {what}, and there are days before it, or after it{many}: a hole that a model would learn from"


def _without(keys: list[str]) -> str:
    more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
    return f" (set aside, for it cannot be read: {keys[0]}{more})" if keys else ""


def check_moments(last_us: Mapping[str, int | None], night: date, settings: IngestConfig) -> str:
    """Whether the newest day's files hold anything new, by the latest event of each file.

    A day that was delivered once more under a newer name has as many rows as any. Its latest event is not of that day,
    and no later than those of the days before; where folders are named after the day on which they are written, events
    of the day before are the newest there are. Raises VolumeAnomaly; else what was found and overridden.
    """
    of_day: dict[date, list[int]] = {}
    for key, last in last_us.items():
        if last is not None and (on := day_of(key)) is not None and on < night:
            of_day.setdefault(on, []).append(last)
    newest = max(of_day, default=None)
    earlier = [last for on, lasts in of_day.items() if on != newest for last in lasts]
    if newest is None or not earlier:
        return ""
    latest = max(of_day[newest])
    if latest >= midnight_us(newest) or latest > max(earlier):
        return ""
    found = (
        f"no event in the files of {newest} is of that day, or later than those of the days before: the latest is of "
        f"{instant(latest):%Y-%m-%d}, as if an older day had been delivered again under its name"
    )
    return refuse_unless_overridden(found, settings, "published")
