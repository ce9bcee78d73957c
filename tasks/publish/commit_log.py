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
from tasks.publish.manifest import Manifest, commit_key, commits_folder, damaged, parse_manifest
from tasks.store import Store

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
    keys = [
        re.fullmatch(r"_meta/commits/(\d{4}-\d{2}-\d{2})/v\d{8}\.json", one.key) for one in store.list("_meta/commits")
    ]
    return sorted({date.fromisoformat(key[1]) for key in keys if key})


def _newest_commit(store: Store, known: Manifest) -> Manifest:
    """The newest (date, version) of the log, which is `known` or later. Keys sort as dates and versions do."""
    keys = [stored.key for stored in store.list("_meta/commits")]
    commits = [key for key in keys if re.fullmatch(r"_meta/commits/\d{4}-\d{2}-\d{2}/v\d{8}\.json", key)]
    newest = max(commits, default="")
    if newest <= commit_key(known.as_of, known.version):
        return known
    return parse_manifest(store.read(newest)[0], store.uri_of(newest))


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
    """Move LATEST.json on to `manifest`, never back in (date, version). Returns whether it names this manifest now.

    Raises ManifestInvalid if LATEST.json is damaged, and StoreUnavailable after the deadline.
    """
    content = manifest.to_json()
    give_up_at = clock() + deadline_s
    while True:
        try:
            found, etag = store.read(LATEST_KEY)
            live = parse_manifest(found, store.uri_of(LATEST_KEY))
            if live.attempt == manifest.attempt:
                return True
            if (live.as_of, live.version) >= (manifest.as_of, manifest.version):
                return False
            store.compare_and_swap(LATEST_KEY, content, etag=etag)
            return True
        except ObjectNotFound:
            try:
                # The first night, or somebody deleted it: then the newest of the whole log is what was live.
                newest = _newest_commit(store, manifest)
                store.put_once(LATEST_KEY, newest.to_json())
                if newest.version > 1 or newest.attempt != manifest.attempt:
                    said = "LATEST.json was gone; it names version %d of %s again, the newest that was committed"
                    log.warning(said, newest.version, newest.as_of)
                return newest.attempt == manifest.attempt
            except (ObjectExists, StoreUnavailable) as error:
                outcome: Exception = error
        except (ObjectChanged, StoreUnavailable) as error:
            outcome = error
        # Another night moved it, or the answer got lost: what LATEST.json says now decides.
        if clock() > give_up_at:
            raise StoreUnavailable(
                f"version {manifest.version} of {manifest.as_of} is committed, and LATEST.json could not be moved to "
                f"it for {deadline_s:.0f} s. Readers keep the version before, unless only the answer got lost. "
                "Run again: only LATEST.json is moved."
            ) from outcome
        sleep(0.2)
