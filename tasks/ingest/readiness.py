"""Whether all is there: said by whoever writes it, or by the quiet that follows the newest day's last file.

A day that is late is waited for, asking less and less often, until a cut-off; then the night ends and says what is
there.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial

from tasks.config import IngestConfig
from tasks.errors import InputIncomplete, InputMissing
from tasks.ingest.checksums import NAME as CHECKSUMS
from tasks.ingest.checksums import named_and_absent
from tasks.ingest.sources import day_of, is_data_file, is_in_window, list_events
from tasks.store import Store, StoredObject

SIGNS = ("_SUCCESS", "_MANIFEST", "_manifest.json", "manifest.json")  # what jobs leave beside a day that is finished
FIRST_WAIT_S = 15.0
LONGEST_WAIT_S = 300.0

log = logging.getLogger("nightgraph.ingest")


@dataclass(frozen=True)
class Clock:
    """What a night may ask of time; given to it, so that a test need not wait."""

    read: Callable[[], datetime]  # UTC
    sleep: Callable[[float], None]


def list_when_ready(store: Store, settings: IngestConfig, night: date | None, clock: Clock) -> list[StoredObject]:
    """The listing of all prefixes, control files included, once the newest day is ready. `night`: the date, if known.

    Raises InputIncomplete at the cut-off, InputCorrupt for checksums that are none.
    """
    until = clock.read() + timedelta(minutes=settings.wait_minutes)
    wait_s = FIRST_WAIT_S
    while True:
        listed = list_events(store, settings)
        missing = what_is_missing(listed, settings, night, clock.read())
        anyway = "take what is there with ingest.ready=now"
        if missing is None:
            missing = what_a_manifest_misses(store, listed, settings, night)
            anyway = f"correct {CHECKSUMS} if the day is all there without"
        if missing is None:
            return listed
        left_s = (until - clock.read()).total_seconds()
        if left_s <= 0:
            raise InputIncomplete(
                f"{missing}, and {settings.wait_minutes} minutes of waiting are over. Nothing was started; the live "
                f"recommendations stay. See what writes the day; wait longer with ingest.wait_minutes; or {anyway}."
            )
        wait_s = min(wait_s, left_s)
        log.info("waiting: %s; asking again in %.0f s, until %s UTC", missing, wait_s, f"{until:%H:%M}")
        clock.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def what_is_missing(
    listed: list[StoredObject], settings: IngestConfig, night: date | None, now: datetime
) -> str | None:
    """In words, prefix by prefix; None where the day is ready by ingest.ready."""
    if settings.ready == "now":
        return None
    for prefix in settings.prefixes:
        found = [one for one in listed if one.key.startswith(prefix)]
        if (missing := _missing_under(prefix, found, settings, night, now)) is not None:
            return missing
    return None


def what_a_manifest_misses(
    store: Store, listed: list[StoredObject], settings: IngestConfig, night: date | None
) -> str | None:
    """In words: event files that checksums name, of days that the night reads, and that are not there. None: none."""
    absent = named_and_absent(store, listed, partial(is_in_window, night=night, settings=settings))
    if not absent:
        return None
    first, by = next(iter(absent.items()))
    others = f", and so are {len(absent) - 1:,} more that are named" if len(absent) > 1 else ""
    return f"{store.uri_of(first)} is not there, and {by} names it{others}"


def _missing_under(
    prefix: str, found: list[StoredObject], settings: IngestConfig, night: date | None, now: datetime
) -> str | None:
    days = {on for one in found if (on := day_of(one.key)) is not None}
    newest = night - timedelta(days=1) if night and days else max(days, default=None)
    of_day = [one for one in found if day_of(one.key) == newest]
    files = [one for one in of_day if is_data_file(one.key)]
    place = f"{prefix} of {newest}" if newest else prefix
    if not files:
        return f"there is no file under {place}"
    there = f"{len(files):,} files of {sum(one.num_bytes for one in files):,} bytes are there under {place}"
    if settings.ready == "success":
        folders = {one.key.rpartition("/")[0] for one in files}
        signed = {one.key.rpartition("/")[0] for one in of_day if one.key.rpartition("/")[2] in SIGNS}
        # A sign may stand beside the files, or above them where the day's folder has folders.
        unsigned = [folder for folder in sorted(folders) if not any(_is_within(folder, above) for above in signed)]
        return f"{there}, and no _SUCCESS or manifest is beside them" if unsigned else None
    last_at = max(one.modified_at for one in files)
    quiet = timedelta(minutes=settings.quiet_minutes)
    if now - last_at >= quiet:
        return None
    return f"{there}, the last since {last_at:%H:%M} UTC, less than {settings.quiet_minutes} minutes ago"


def _is_within(folder: str, above: str) -> bool:
    return f"{folder}/".startswith(f"{above}/")


def ensure_any(events: list[StoredObject], store: Store, settings: IngestConfig, night: date) -> None:
    """Raises InputMissing where no file lies in the window."""
    if events:
        return
    raise InputMissing(
        f"no event file under {', '.join(f'{store.uri}/{prefix}' for prefix in settings.prefixes)} is of the last "
        f"{settings.window_days} days before {night}. Nothing was started. Set ingest.window_days higher, or see what "
        "writes the days."
    )
