"""Back to a night that is kept: its very files, committed once more under the live date, and held.

Nights go on meanwhile, are judged and kept; LATEST stays until a person releases it. Nobody can remove the files on
the way (tasks/publish/attempts.py).
"""

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial

from tasks.contracts import LATEST_KEY, LiveNight
from tasks.due import due_keys
from tasks.errors import ManifestInvalid, NightGone, NothingHeld, ObjectNotFound, PublishConflict, RunConfigError
from tasks.publish.attempts import new_attempt, open_attempt, pin, to_committed, to_committing, to_holding
from tasks.publish.commit_log import advance_latest, commit, dates_with_a_commit, find_commit, what_is_live
from tasks.publish.holds import Hold, last_hold, note_settled, write_hold
from tasks.publish.manifest import Manifest, commit_key, parse_manifest
from tasks.store import Store

SAID_AT_MOST = 300

log = logging.getLogger("nightgraph.publish")


@dataclass(frozen=True)
class Kept:
    """A night that readers could be brought to."""

    as_of: date
    version: int
    created_at: datetime
    rows: int
    users: int
    rolled_back_to: str
    is_live: bool


def kept_nights(store: Store, *, at_most: int) -> list[Kept]:
    """Each date's newest version whose files are all there, the newest date first."""
    live, due = what_is_live(store), due_keys(store)
    kept: list[Kept] = []
    for as_of in reversed(dates_with_a_commit(store)):
        if len(kept) == at_most:
            break
        one = find_commit(store, as_of)
        if one is not None and not missing_of(store, one, due):
            is_live = live is not None and (one.as_of, one.version) == (live.as_of, live.version)
            kept.append(Kept(as_of, one.version, one.created_at, one.rows, one.users, one.rolled_back_to, is_live))
    return kept


def live_night(store: Store) -> LiveNight | None:
    """What readers get by the log, for people to look at. None: nothing was ever published."""
    live = what_is_live(store)
    if live is None:
        return None
    return LiveNight(
        as_of=live.as_of,
        version=live.version,
        rolled_back_to=live.rolled_back_to,
        held=live.held,
        created_at=live.created_at,
        rows=live.rows,
        users=live.users,
        files=len(live.files),
        latest_uri=store.uri_of(LATEST_KEY),
    )


def roll_back(store: Store, to: date, *, version: int | None = None, who: str, reason: str, now: datetime) -> Manifest:
    """Bring readers to the night of `to`, its newest version if none is given, and hold it there. Returns its commit.

    Asked for again, it ends what a killed one began. Raises NightGone where that night was never published or is not
    all there any more, RunConfigError, and the Store* errors.
    """
    _ensure_said(who, reason)
    while True:
        live = what_is_live(store)
        aim = _aim(store, to, version)
        if live is not None and live.held and live.all_files() == aim.all_files():
            return _follow(store, live, number=live.holds)
        assert live is not None
        attempt = new_attempt(now)
        base = find_commit(store, live.as_of)
        assert base is not None
        manifest = aim.model_copy(
            update={
                "as_of": live.as_of,
                "version": base.version + 1,
                "base_version": base.version,
                "attempt": attempt,
                "reason": "rollback",
                "rolled_back_to": f"{aim.as_of} v{aim.version}",
                "rolled_back_at": now,
                "store": store.uri,
                "files": tuple(store.uri_of(part.key) for part in aim.parts),
                "outputs": {
                    name: output.model_copy(update={"files": tuple(store.uri_of(part.key) for part in output.parts)})
                    for name, output in aim.outputs.items()
                },
            }
        )
        open_attempt(store, live.as_of, attempt)
        pin(store, aim, by=attempt)
        _ensure_whole(store, aim)  # once more: now nobody can remove them
        to_committing(store, live.as_of, attempt, manifest.version)
        try:
            commit(store, manifest, force=True)
        except PublishConflict:
            log.info("another version of %s was published meanwhile, trying again", live.as_of)
            continue
        hold = write_hold(
            store,
            Hold(
                number=live.holds + 1,
                commit=commit_key(manifest.as_of, manifest.version),
                by=attempt,
                who=who,
                reason=reason,
                created_at=now,
            ),
            announce=partial(to_holding, store, live.as_of, attempt),
        )
        log.info("%s is version %d of %s now, and held", manifest.rolled_back_to, manifest.version, live.as_of)
        return _follow(store, manifest, number=hold.number)


def release(store: Store, *, who: str, reason: str, now: datetime) -> Manifest:
    """Let readers go to the newest night again. Returns it. Raises NothingHeld, RunConfigError."""
    _ensure_said(who, reason)
    held = last_hold(store)
    if held is None or not held.commit:
        raise NothingHeld("no night is held: LATEST.json follows the newest one already. Nothing was changed.")
    let_go = Hold(number=held.number + 1, by=new_attempt(now), who=who, reason=reason, created_at=now)
    number = write_hold(store, let_go).number
    live = what_is_live(store)
    assert live is not None
    log.info("nothing is held any more: readers go on to version %d of %s", live.version, live.as_of)
    return _follow(store, live, number=number)


def repair(store: Store) -> Manifest | None:
    """Let LATEST.json say again what the log says, also where it is damaged or gone. None: nothing was published."""
    live = what_is_live(store)
    if live is None:
        return None
    with suppress(ObjectNotFound):
        found, etag = store.read(LATEST_KEY)
        try:
            parse_manifest(found, LATEST_KEY)
        except ManifestInvalid:
            store.compare_and_swap(LATEST_KEY, live.to_json(), etag=etag)
    return _follow(store, live, number=live.holds)


def _ensure_said(who: str, reason: str) -> None:
    """Both stand in LATEST.json, for everybody who wonders why it does not move."""
    for name, text in (("WHO", who), ("REASON", reason)):
        if not text.strip() or len(text) > SAID_AT_MOST or not text.isprintable():
            raise RunConfigError(
                f"{name} is {'empty' if not text.strip() else 'too long, or holds control characters'}. Nothing was "
                f"changed. Give it in up to {SAID_AT_MOST} characters on one line: it stands in LATEST.json while the "
                "night is held."
            )


def _follow(store: Store, manifest: Manifest, *, number: int) -> Manifest:
    advance_latest(store, manifest)
    if number:
        note_settled(store, number)
    to_committed(store, manifest)
    return manifest


def _aim(store: Store, to: date, version: int | None) -> Manifest:
    try:
        aim = find_commit(store, to) if version is None else _read(store, commit_key(to, version))
    except ObjectNotFound:
        aim = None
    if aim is None:
        of = f"{to}" if version is None else f"{to}, version {version}"
        raise NightGone(f"no night of {of} was ever published. Nothing was changed. {_what_is_kept(store)}")
    _ensure_whole(store, aim)
    return aim


def _read(store: Store, key: str) -> Manifest:
    return parse_manifest(store.read(key)[0], store.uri_of(key))


def _ensure_whole(store: Store, aim: Manifest) -> None:
    missing = missing_of(store, aim, due_keys(store))
    if missing:
        raise NightGone(
            f"of the night of {aim.as_of}, version {aim.version}, {missing:,} of {len(aim.all_files()):,} files were "
            f"removed, or are about to be. Nothing was changed. {_what_is_kept(store)}"
        )


def missing_of(store: Store, manifest: Manifest, due: frozenset[str]) -> int:
    """How many of its files are gone, of another size, or due for removal. Asks for lists, and reads no file."""
    folders = {file.key.rpartition("/")[0] for file in manifest.all_files()}
    found = {one.key: one.num_bytes for folder in sorted(folders) for one in store.list(folder)}
    return sum(found.get(file.key) != file.bytes or file.key in due for file in manifest.all_files())


def _what_is_kept(store: Store) -> str:
    nights = ", ".join(f"{night.as_of} v{night.version}" for night in kept_nights(store, at_most=10))
    return f"Kept are: {nights}." if nights else "No night is kept."
