"""The write-once commit log and LATEST.json: which nights exist, and which one readers get.

Publishing is one create-only write of `_meta/commits/DATE/v(n+1).json`. Whatever happens before it, nothing was
published; whatever happens after it, the night is published, and LATEST.json follows. The answer to that write can
get lost, so the outcome is always read from the log and never concluded from an error (Delta's rule, without a
special reader). Nothing here deletes.
"""

import logging
import re
import time
from collections.abc import Callable
from datetime import date

from tasks.contracts import LATEST_KEY
from tasks.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    PublishConflict,
    PublishUnresolved,
    StoreUnavailable,
)
from tasks.publish.holds import last_hold
from tasks.publish.manifest import Manifest, commit_key, commits_folder, damaged, parse_manifest
from tasks.store import Store

COMMIT_KEY = re.compile(r"_meta/commits/(\d{4}-\d{2}-\d{2})/v(\d{8})\.json")

log = logging.getLogger("nightgraph.publish")


def find_commit(store: Store, as_of: date) -> Manifest | None:
    """The newest version of this date, or None. Raises ManifestInvalid if it cannot be read."""
    folder = commits_folder(as_of)
    keys = [stored.key for stored in store.list(folder)]
    newest = max((key for key in keys if re.fullmatch(rf"{folder}/v\d{{8}}\.json", key)), default=None)
    if newest is None:
        return None
    content, _ = store.read(newest)
    manifest = parse_manifest(content, store.uri_of(newest))
    if commit_key(manifest.as_of, manifest.version) != newest:
        raise damaged(store.uri_of(newest), f"it says that it is version {manifest.version} of {manifest.as_of}")
    return manifest


def dates_with_a_commit(store: Store) -> list[date]:
    """In their order."""
    keys = [COMMIT_KEY.fullmatch(one.key) for one in store.list("_meta/commits")]
    return sorted({date.fromisoformat(key[1]) for key in keys if key})


def what_is_live(store: Store) -> Manifest | None:
    """By the log alone: what the last hold names, else the newest commit. None: nothing was ever published.

    Holds are asked for first: what one of them names was committed before. Keys sort as dates and versions do.
    """
    hold = last_hold(store)
    if hold is not None and hold.commit:
        key: str = hold.commit
    else:
        keys = [stored.key for stored in store.list("_meta/commits")]
        key = max((one for one in keys if COMMIT_KEY.fullmatch(one)), default="")
    if not key:
        return None
    manifest = parse_manifest(store.read(key)[0], store.uri_of(key))
    if hold is None:
        return manifest
    held = f"{hold.created_at:%Y-%m-%d %H:%M} UTC, {hold.who}: {hold.reason}" if hold.commit else ""
    return manifest.model_copy(update={"holds": hold.number, "held": held})


def commit(
    store: Store,
    manifest: Manifest,
    *,
    force: bool,
    deadline_s: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Manifest:
    """Publish `manifest` as the next version. Returns the commit that stands: it, or its equal by another attempt.

    Raises PublishConflict if another night took the version, or also an equal one when `force` is set. Raises
    PublishUnresolved if the outcome could not be read before the deadline; a rerun finds it out.
    """
    key = commit_key(manifest.as_of, manifest.version)
    content = manifest.to_json()
    give_up_at = clock() + deadline_s
    pause_s = 0.2
    while True:
        try:
            store.put_once(key, content)
            return manifest
        except ObjectExists:
            pass  # perhaps by our own first try, whose answer got lost
        except StoreUnavailable as error:
            log.warning("the commit's outcome is unknown, reading it back: %s", error)
        try:
            found, _ = store.read(key)
        except (ObjectNotFound, StoreUnavailable):
            if clock() + pause_s > give_up_at:
                break
            sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)
            continue
        standing = parse_manifest(found, store.uri_of(key))
        if standing.attempt == manifest.attempt:
            return manifest
        if standing.run_key == manifest.run_key and not force:
            return standing
        raise PublishConflict(
            f"version {manifest.version} of {manifest.as_of} was published by another night (attempt "
            f"{standing.attempt}, {standing.created_at:%Y-%m-%d %H:%M} UTC) while this one ({manifest.attempt}) ran. "
            "That version stays live, nothing of it was touched. Run again to publish on top of it."
        )
    raise PublishUnresolved(
        f"whether version {manifest.version} of {manifest.as_of} (attempt {manifest.attempt}) was published could not "
        f"be read for {deadline_s:.0f} s. Nothing was deleted. Run again when the store answers: "
        "a night that was published is recognised, one that was not is published."
    )


def advance_latest(
    store: Store,
    manifest: Manifest,
    *,
    deadline_s: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Let LATEST.json follow the log, which has `manifest`. Returns whether it names this manifest now.

    LATEST.json is read before the log: whoever commits meanwhile swaps after us, or makes our swap fail. It never moves
    back in (holds, date, version).

    Raises ManifestInvalid if LATEST.json is damaged, and StoreUnavailable after the deadline.
    """
    give_up_at = clock() + deadline_s
    while True:
        try:
            return _follow(store, manifest).attempt == manifest.attempt
        except (ObjectExists, ObjectChanged, StoreUnavailable) as error:
            # Another night moved it, or the answer got lost: what LATEST.json says now decides.
            if clock() > give_up_at:
                raise StoreUnavailable(
                    f"version {manifest.version} of {manifest.as_of} is committed, and LATEST.json could not be moved "
                    f"to it for {deadline_s:.0f} s. Readers keep the version before, unless only the answer got lost. "
                    "Run again: only LATEST.json is moved."
                ) from error
        sleep(0.2)


def _follow(store: Store, committed: Manifest) -> Manifest:
    """One try. Returns what LATEST.json names then. Raises ObjectExists or ObjectChanged where somebody was quicker."""
    try:
        found, etag = store.read(LATEST_KEY)
    except ObjectNotFound:
        due = what_is_live(store)
        assert due is not None, "whoever moves LATEST has committed"
        store.put_once(LATEST_KEY, due.to_json())
        if due.attempt != committed.attempt or due.version > 1 or due.holds:
            said = "LATEST.json was gone; it names version %d of %s again, as the log says"
            log.warning(said, due.version, due.as_of)
        return due
    live = parse_manifest(found, store.uri_of(LATEST_KEY))
    due = what_is_live(store)
    if due is None or place_of(live) >= place_of(due):
        return live
    store.compare_and_swap(LATEST_KEY, due.to_json(), etag=etag)
    return due


def place_of(manifest: Manifest) -> tuple[int, date, int]:
    """In the history of LATEST, which only goes on."""
    return manifest.holds, manifest.as_of, manifest.version
