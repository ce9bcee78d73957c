"""What forgetting replaced, written down as due, and removed once nobody can be in the middle of reading it.

    _meta/forgotten/00000001.json    keys that came due together, each with its version; `removed` once they are gone

Who opened a night before it was rewritten goes on reading files of the version before, for GRACE at most. How long
something has been due is read from the store's own times, of the list and of an object written just now: a machine
whose clock is wrong removes nothing early.
"""

import json
import logging
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.contracts import Swept
from tasks.errors import ManifestInvalid, ObjectChanged, ObjectExists
from tasks.store import Store, StoredObject

FOLDER = "_meta/forgotten"
CLOCK_KEY = f"{FOLDER}/clock"
GRACE = timedelta(hours=48)

log = logging.getLogger("nightgraph.forget")


class DueObject(BaseModel):
    model_config = ConfigDict(frozen=True)

    key: str
    etag: str
    bytes: int


class DueList(BaseModel):
    """No id stands in it: keys are made of dates and random numbers."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    removed: bool = False
    due: tuple[DueObject, ...]

    def to_json(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode() + b"\n"


def write_down(store: Store, replaced: Iterable[StoredObject]) -> int:
    """Note what is due and does not stand on a list yet. Returns how many objects that are."""
    noted = {(one.key, one.etag) for _, found, _ in _open_lists(store) for one in found.due}
    due = tuple(
        DueObject(key=one.key, etag=one.etag, bytes=one.num_bytes)
        for one in sorted(replaced, key=lambda stored: stored.key)
        if (one.key, one.etag) not in noted
    )
    if not due:
        return 0
    content = DueList(due=due).to_json()
    number = max((int(stored.key[-13:-5]) for stored in _lists(store)), default=0) + 1
    while True:
        try:
            store.put_once(f"{FOLDER}/{number:08d}.json", content)
            return len(due)
        except ObjectExists:
            if store.read(f"{FOLDER}/{number:08d}.json")[0] == content:  # ours: only the answer was lost
                return len(due)
            number += 1


def sweep(store: Store, *, in_use: frozenset[str], grace: timedelta = GRACE) -> Swept:
    """Remove what has been due for `grace`, but nothing that is `in_use`. Goes on where an earlier sweep was killed."""
    now = now_of(store)
    removed: dict[str, int] = {}
    waiting: dict[str, int] = {}
    kept: dict[str, int] = {}
    next_at: datetime | None = None
    for stored, found, etag in _open_lists(store):
        if stored.modified_at + grace > now:
            waiting |= {one.key: one.bytes for one in found.due}
            next_at = min(next_at or stored.modified_at + grace, stored.modified_at + grace)
            continue
        for one in found.due:
            if one.key in in_use:
                kept[one.key] = one.bytes
                continue
            with suppress(ObjectChanged):  # another object by now, which is on a list of its own if it has to go
                store.remove(one.key, etag=one.etag)
                removed[one.key] = one.bytes
        if not kept.keys() & {one.key for one in found.due}:
            with suppress(ObjectChanged):  # by another sweep, or by this one and only the answer was lost
                store.compare_and_swap(stored.key, found.model_copy(update={"removed": True}).to_json(), etag=etag)
    if removed:
        log.info("removed %d objects whose grace is over, %.1f MB", len(removed), sum(removed.values()) / 1e6)
    return Swept(len(removed), sum(removed.values()), len(waiting), sum(waiting.values()), len(kept), next_at)


def due_keys(store: Store) -> frozenset[str]:
    """What is on a list and not removed yet."""
    return frozenset(one.key for _, found, _ in _open_lists(store) for one in found.due)


def _lists(store: Store) -> list[StoredObject]:
    return [stored for stored in store.list(FOLDER) if re.fullmatch(rf"{FOLDER}/\d{{8}}\.json", stored.key)]


def _open_lists(store: Store) -> list[tuple[StoredObject, DueList, str]]:
    """(the object, what it says, the version that says it) of every list that has not been worked off."""
    found = []
    for stored in _lists(store):
        content, etag = store.read(stored.key)
        try:
            due = DueList.model_validate_json(content)
        except ValidationError:
            raise ManifestInvalid(
                f"{store.uri_of(stored.key)} is no list of what is due. Nothing was removed. Look who wrote there; "
                "moved away, what it named is found and written down anew."
            ) from None
        if not due.removed:
            found.append((stored, due, etag))
    return found


def now_of(store: Store) -> datetime:
    """By the store's own clock."""
    content = secrets.token_hex(16).encode()
    try:
        store.put_once(CLOCK_KEY, content)
    except ObjectExists:
        with suppress(ObjectChanged):  # somebody else asked in the same moment, which will do
            store.compare_and_swap(CLOCK_KEY, content, etag=store.read(CLOCK_KEY)[1])
    return next(stored.modified_at for stored in store.list(FOLDER) if stored.key == CLOCK_KEY)
