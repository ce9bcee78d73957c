"""Which files a night reads: listed once and pinned by key, size and ETag, so that nothing can change under it.

An event file lies in a folder of its day (dt=2026-11-21, date= or day=, anywhere in its key), or in none.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, InputMissing, InputUnstable
from tasks.run import fingerprint_of
from tasks.store import Store, StoredObject

# Optional, beside the events: what is known of items, who else gets a list, what nobody may be given, who is what.
# Table -> the columns that each of its files has.
TABLES = {
    "items": ("item_id",),
    "users": ("user_id",),
    "blocked": ("user_id", "item_id"),
    "segments": ("user_id", "segment"),
}
ITEM_FACTS = ("available", "categories", "segments", "published_at")  # each optional
OPTIONAL_OF_TABLE = {"items": (*ITEM_FACTS, "genres")}
DAY_FOLDER = re.compile(r"(?:dt|date|day)=(\d{4}-\d{2}-\d{2})")


def pin_inputs(store: Store, settings: IngestConfig) -> list[StoredObject]:
    """The event files there are now, sorted by key; control files and hidden names are no event files."""
    return pin_events(list_events(store, settings), store, settings)


def list_events(store: Store, settings: IngestConfig) -> list[StoredObject]:
    """Everything under the prefixes, control files included, sorted by key."""
    return sorted((found for prefix in settings.prefixes for found in store.list(prefix)), key=lambda one: one.key)


def pin_events(listed: Sequence[StoredObject], store: Store, settings: IngestConfig) -> list[StoredObject]:
    """The event files of a listing. Raises InputMissing where there are none."""
    pinned = [found for found in listed if is_data_file(found.key)]
    if not pinned:
        places = " or ".join(f"{store.uri}/{prefix}" for prefix in settings.prefixes)
        raise InputMissing(
            f"there is no .parquet file under {places}. Nothing was started. Put event files there, with the columns "
            "user_id, item_id, rating and timestamp (seconds since 1970, UTC), in any folders below; or say in "
            "ingest.prefixes where they are, and in ingest.columns what their columns are called."
        )
    return pinned


def day_of(key: str) -> date | None:
    """The day in a key's folders; the innermost where there are several."""
    for folder in reversed(key.split("/")[:-1]):
        if found := DAY_FOLDER.fullmatch(folder):
            try:
                return date.fromisoformat(found.group(1))
            except ValueError:
                continue  # dt=2026-02-30 is a folder's name and no day
    return None


def within_window(objects: Sequence[StoredObject], as_of: date, settings: IngestConfig) -> list[StoredObject]:
    """Without the files of days that cannot hold an event of the night's window. Files without a day stay.

    A day's folder may hold events of its neighbours, so one day more is read on either side.
    """
    return [found for found in objects if is_in_window(day_of(found.key), night=as_of, settings=settings)]


def is_in_window(on: date | None, *, night: date | None, settings: IngestConfig) -> bool:
    """Whether files of this day are read; those of no day are, and all where the night's date is not known yet."""
    if settings.window_days is None or on is None or night is None:
        return True
    return night - timedelta(days=settings.window_days + 1) <= on <= night


def night_after(objects: Sequence[StoredObject]) -> date | None:
    """The day after the last one in the keys, None where a key has no day.

    A day that is later than the day after its own file was written is a mistake, and chooses no date.
    """
    days = [(day_of(found.key), found.modified_at.date() + timedelta(days=1)) for found in objects]
    if any(on is None for on, _ in days):
        return None
    last = max((on for on, latest in days if on is not None and on <= latest), default=None)
    return None if last is None else last + timedelta(days=1)


def pin_tables(store: Store) -> list[StoredObject]:
    """The files of the optional tables, table by table, sorted by key; there may be none."""
    return [found for table in TABLES for found in store.list(f"{table}/") if is_data_file(found.key)]


def table_of(key: str) -> str:
    """The folder that a key lies in: events, items, users, blocked or segments."""
    return key.split("/", 1)[0]


def events_of(objects: list[StoredObject]) -> list[StoredObject]:
    """Without the tables' files."""
    return [found for found in objects if table_of(found.key) not in TABLES]


def is_data_file(key: str) -> bool:
    names = key.split("/")
    return key.endswith(".parquet") and not any(name.startswith(("_", ".")) for name in names)


def input_fingerprint(objects: list[StoredObject]) -> str:
    return fingerprint_of(sorted([found.key, found.num_bytes, found.etag] for found in objects))


def ensure_unchanged(store: Store, objects: list[StoredObject]) -> None:
    """Raises InputUnstable if a pinned file is gone or has other bytes. Files that arrived since are for later."""
    now = {found.key: found for folder in _folders_of(objects) for found in store.list(folder)}
    for pinned in objects:
        found = now.get(pinned.key)
        if found is None or (found.num_bytes, found.etag) != (pinned.num_bytes, pinned.etag):
            what = "vanished" if found is None else "was replaced"
            raise InputUnstable(
                f"{store.uri_of(pinned.key)} {what} while the night was reading it, so this night's rows would be a "
                "mixture. Nothing was published. Run again once whoever writes there is done; give a new file a "
                "new name."
            )


def _folders_of(objects: list[StoredObject]) -> list[str]:
    """For each first folder, the deepest one below it that all of its files share."""
    by_first: dict[str, list[str]] = {}
    for found in objects:
        by_first.setdefault(table_of(found.key), []).append(found.key.rpartition("/")[0])
    return [os.path.commonpath(folders) + "/" for folders in by_first.values()]


@contextmanager
def pinned_while_reading(store: Store, objects: list[StoredObject]) -> Iterator[None]:
    """Raises InputUnstable if a pinned file changed meanwhile: swapped under the reader it looks corrupt, or good."""
    try:
        yield
    except InputCorrupt:
        ensure_unchanged(store, objects)
        raise
    ensure_unchanged(store, objects)
