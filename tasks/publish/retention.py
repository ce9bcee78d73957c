"""Which nights' files go: those that no reader, no rollback and no hold can need any more, and what dead attempts left.

Kept are the newest version of each of the newest dates, what is live or held, and whatever LATEST may have named within
the grace. LATEST is read first, then the attempts' records, then the log: what an answer has said then only grows, and
removing begins with a compare-and-swap of the very record that was read (tests/tasks/publish_protocol.py). Ages are by
the store's own clock. Commits, records and holds stay for ever: a few kilobytes a night.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tasks.contracts import LATEST_KEY, GoneFiles, Retained
from tasks.due import now_of
from tasks.errors import ManifestInvalid, ObjectChanged, ObjectNotFound
from tasks.publish.attempts import FOLDER as ATTEMPTS
from tasks.publish.attempts import Attempt, attempt_of, attempts_of, parse_attempt, to_committed
from tasks.publish.commit_log import COMMIT_KEY, advance_latest
from tasks.publish.holds import Hold, read_hold, stored_holds
from tasks.publish.manifest import Manifest, commit_key, parse_manifest
from tasks.store import Store, StoredObject

FOLDERS = ("recs", "outputs", "models")
GRACE = timedelta(hours=48)
OPEN_AT_MOST = timedelta(hours=24)
UNKNOWN_AT_MOST = timedelta(days=30)
AT_ONCE = 8

log = logging.getLogger("nightgraph.publish")
Id = tuple[date, str]  # of an attempt


@dataclass(frozen=True)
class Read:
    """An attempt's record, and the version of it that was read."""

    record: Attempt
    etag: str
    changed_at: datetime


@dataclass(frozen=True)
class Removal:
    id: Id
    read: Read
    version: int  # that it was published as; 0: never
    why: str
    files: tuple[StoredObject, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True)
class Plan:
    remove: tuple[Removal, ...]
    kept: tuple[Id, ...]  # with files
    kept_bytes: int
    to_end: tuple[Manifest, ...]  # committed, and no record says so: a night died in between, or is older than records
    unknown: tuple[Id, ...]  # nobody knows whether they may still commit: for a person to look at


def retain(store: Store, *, keep_dates: int, apply: bool) -> Retained:
    """Remove what nobody can need any more, or only say what that is. Raises ManifestInvalid and the Store* errors."""
    plan = plan_retention(store, keep_dates=keep_dates)
    gone = apply_retention(store, plan) if apply else plan.remove
    if apply:
        num_bytes = sum(one.num_bytes for one in gone)
        log.info("removed the files of %d attempts, %.1f MB; %d are kept", len(gone), num_bytes / 1e6, len(plan.kept))
    return Retained(
        store_uri=store.uri,
        applied=apply,
        keep_dates=keep_dates,
        gone=tuple(GoneFiles(*one.id, one.version, one.why, len(one.files), one.num_bytes) for one in gone),
        left_alone=len(plan.remove) - len(gone),
        kept=len(plan.kept),
        kept_bytes=plan.kept_bytes,
        ended=len(plan.to_end),
        unknown=tuple(f"{as_of} {attempt}" for as_of, attempt in plan.unknown),
    )


def plan_retention(store: Store, *, keep_dates: int, grace: timedelta = GRACE) -> Plan:
    """Reads only, but for a clock. Raises ManifestInvalid where a commit or a record is damaged: then nothing goes."""
    now = now_of(store)
    latest = _latest(store)
    records = dict(_records(store))
    holds = [(stored, read_hold(store, stored.key)) for stored in stored_holds(store)]
    commits = _commits(store)
    files = _files_by_attempt(store)
    kept = _kept(commits, latest, holds, records, keep_dates=keep_dates, before=now - grace)
    by_attempt = {(manifest.as_of, manifest.attempt): manifest for manifest in commits.values()}
    remove, to_end, unknown = [], [], []
    for id in sorted(files.keys() | records.keys()):
        of_attempt, read, standing = files.get(id, []), records.get(id), by_attempt.get(id)
        if read is None:
            to_end += [standing] if standing else []
            unknown += [] if standing or id in kept else [id]
            continue
        slot_is_taken = (id[0], read.record.slot) in commits and standing is None
        match read.record.state:
            case "open" | "committing" if standing is not None:
                if standing.reason != "rollback" or now - read.changed_at >= OPEN_AT_MOST:
                    to_end.append(standing)
                continue
            case "open" if now - read.changed_at >= OPEN_AT_MOST:
                why = "never committed, and older than a day"
            case "committing" if slot_is_taken:
                why = "another night took its place"
            case "committing" if now - read.changed_at >= UNKNOWN_AT_MOST:
                unknown.append(id)
                continue
            case "revoked":
                why = "removing it had begun"
            case "deleted" if of_attempt:
                why = "written after it was given up"
            case "committed" if of_attempt and id not in kept:
                why = "beyond the nights to keep"
            case _:
                continue
        if id not in kept:
            remove.append(Removal(id, read, standing.version if standing else 0, why, tuple(of_attempt)))
    stay = sorted(files.keys() - {removal.id for removal in remove})
    num_bytes = sum(file.num_bytes for id in stay for file in files[id])
    return Plan(tuple(remove), tuple(stay), num_bytes, tuple(to_end), tuple(unknown))


def apply_retention(store: Store, plan: Plan) -> tuple[Removal, ...]:
    """What was removed. Who went on meanwhile, or was pinned, is left alone. A killed run is ended by the next one."""
    if plan.to_end:
        advance_latest(store, plan.to_end[-1])  # to what is live, whichever that is
    for manifest in plan.to_end:
        to_committed(store, manifest, given_up=True)
    return tuple(removal for removal in plan.remove if _remove(store, removal))


def _remove(store: Store, removal: Removal) -> bool:
    record, etag = removal.read.record, removal.read.etag
    key = f"{ATTEMPTS}/{removal.id[0].isoformat()}/{removal.id[1]}.json"
    if record.state not in ("revoked", "deleted"):
        record = record.model_copy(update={"state": "revoked"})
        try:
            etag = store.compare_and_swap(key, record.to_json(), etag=etag)
        except ObjectChanged:  # it went on, or the answer to our own swap got lost: the next run sees which
            log.info("%s of %s changed meanwhile and is left alone", removal.id[1], removal.id[0])
            return False
    for file in removal.files:
        with suppress(ObjectChanged):
            store.remove(file.key, etag=None)
    if record.state == "revoked":
        with suppress(ObjectChanged):
            store.compare_and_swap(key, record.model_copy(update={"state": "deleted"}).to_json(), etag=etag)
    return True


# ---- what must stay


def _kept(
    commits: dict[tuple[date, int], Manifest],
    latest: Manifest | None,
    holds: list[tuple[StoredObject, Hold]],
    records: dict[Id, Read],
    *,
    keep_dates: int,
    before: datetime,
) -> set[Id]:
    """Attempts whose files are needed."""
    newest = dict(sorted(commits))
    left = _left_behind(commits, records, before)
    needed = [commits[as_of, newest[as_of]] for as_of in sorted(newest)[-keep_dates:]]
    needed += [latest] if latest is not None else []
    needed += [manifest for place, manifest in commits.items() if left is None or place >= left]
    keys = {commit_key(*place): manifest for place, manifest in commits.items()}
    for number, (_, hold) in enumerate(holds, start=1):
        was_left = any(later.settled and stored.modified_at <= before for stored, later in holds[number:])
        if hold.commit and not was_left:
            needed.append(_named(keys, hold))
    kept = {id for manifest in needed for id in attempts_of(manifest)}
    # Not "whose setter is at work": a setter that began after the listing is not known here at all.
    ended = {id[1] for id, read in records.items() if read.record.state not in ("open", "committing")}
    return kept | {id for id, read in records.items() if not ended.issuperset(read.record.pins)}


def _named(commits: dict[str, Manifest], hold: Hold) -> Manifest:
    if hold.commit not in commits:
        raise ManifestInvalid(
            f"hold {hold.number} names {hold.commit}, and no such commit is there. Nothing was removed. Bring it back "
            "from the bucket's versions or a backup."
        )
    return commits[hold.commit]


def _left_behind(
    commits: dict[tuple[date, int], Manifest], records: dict[Id, Read], before: datetime
) -> tuple[date, int] | None:
    """LATEST left every commit before this one behind, before `before`: records say `committed` once it has moved."""
    for place, manifest in sorted(commits.items(), reverse=True):
        read = records.get((place[0], manifest.attempt))
        if read and read.record.state == "committed" and read.changed_at <= before:
            return place
    return None


# ---- what there is


def _latest(store: Store) -> Manifest | None:
    try:
        return parse_manifest(store.read(LATEST_KEY)[0], store.uri_of(LATEST_KEY))
    except ObjectNotFound:
        return None


def _records(store: Store) -> Iterator[tuple[Id, Read]]:
    listed = [stored for stored in store.list(ATTEMPTS) if stored.key.endswith(".json")]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for stored, (content, etag) in zip(listed, threads.map(lambda one: store.read(one.key), listed), strict=True):
            record = parse_attempt(content, store.uri_of(stored.key))
            # One that changed since it was listed is as young as can be: its listed age is that of an earlier state.
            changed_at = stored.modified_at if etag == stored.etag else datetime.max.replace(tzinfo=UTC)
            yield (record.as_of, record.attempt), Read(record, etag, changed_at)


def _commits(store: Store) -> dict[tuple[date, int], Manifest]:
    keys = [stored.key for stored in store.list("_meta/commits") if COMMIT_KEY.fullmatch(stored.key)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        read = threads.map(lambda key: parse_manifest(store.read(key)[0], store.uri_of(key)), keys)
        return {(manifest.as_of, manifest.version): manifest for manifest in read}


def _files_by_attempt(store: Store) -> dict[Id, list[StoredObject]]:
    found: dict[Id, list[StoredObject]] = {}
    for folder in FOLDERS:
        for stored in store.list(folder):
            with suppress(ValueError):  # not of a key that a night makes
                found.setdefault(attempt_of(stored.key), []).append(stored)
    return found
