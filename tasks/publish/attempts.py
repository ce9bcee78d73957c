"""An attempt's life, by which everybody knows who may still commit and whose files may be removed.

    _meta/attempts/DATE/ATTEMPT.json    open -> committing -> committed, or -> revoked -> deleted

A commit needs `committing` and removing needs `revoked`, and each step is a compare-and-swap: of a slow night and of
whoever removes what dead nights left, one goes on and the other one learns of it. `slot` is the version that the
attempt is about to commit; a slot that another attempt took can never be this one's. So is `hold` for a rollback, which
writes a hold after its commit (holds.py): its record does not end before that is decided. `pins` are attempts that are
about to name these files too. tests/tasks/publish_protocol.py is the specification.
"""

import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import AttemptRevoked, ManifestInvalid, NightGone, ObjectExists, ObjectNotFound, StoreUnavailable
from tasks.publish.holds import is_decided
from tasks.publish.manifest import Manifest
from tasks.store import Store, change, settle

FOLDER = "_meta/attempts"
State = Literal["open", "committing", "committed", "revoked", "deleted"]


class Attempt(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: int = 1
    as_of: date
    attempt: str
    state: State
    slot: int = 0
    hold: int = 0
    pins: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode() + b"\n"


def new_attempt(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def attempt_key(as_of: date, attempt: str) -> str:
    return f"{FOLDER}/{as_of.isoformat()}/{attempt}.json"


def parse_attempt(content: bytes, place: str) -> Attempt:
    try:
        return Attempt.model_validate_json(content)
    except ValidationError:
        raise ManifestInvalid(
            f"{place} is damaged: it is no record of an attempt. Nothing was changed. Look who wrote there; moved "
            "away, its files are neither named nor removed by anybody."
        ) from None


def open_attempt(store: Store, as_of: date, attempt: str) -> None:
    """Before the first file. An attempt that tries again finds its own record."""
    begun = Attempt(as_of=as_of, attempt=attempt, state="open").to_json()
    if settle(store, attempt_key(as_of, attempt), begun) is None:
        raise StoreUnavailable(
            f"whether attempt {attempt} was written down could not be read. Nothing was published. Run again when the "
            "store answers."
        )


def to_committing(store: Store, as_of: date, attempt: str, slot: int) -> None:
    """After this nobody removes the attempt's files, unless its slot goes to another. Raises AttemptRevoked."""

    def step(found: Attempt) -> Attempt:
        if found.state in ("revoked", "deleted"):
            raise AttemptRevoked(
                f"attempt {attempt} for {as_of} was given up before it could commit, because it had not ended after a "
                "day: its files are being removed. Nothing was published; the live recommendations stay. Run again."
            )
        if found.state == "committed":
            return found
        return found.model_copy(update={"state": "committing", "slot": slot})

    _change(store, as_of, attempt, step)


def to_holding(store: Store, as_of: date, attempt: str, number: int) -> None:
    """After its commit: nobody ends its record before it is known whose that hold is. Raises AttemptRevoked."""

    def step(found: Attempt) -> Attempt:
        if found.state != "committing":
            raise AttemptRevoked(
                f"rollback {attempt} was given up before it could hold what it had committed, because it had not ended "
                "after a day. Readers get the newest night, or what was held before. Run again."
            )
        return found.model_copy(update={"hold": number})

    _change(store, as_of, attempt, step)


def to_committed(store: Store, manifest: Manifest, *, given_up: bool = False) -> None:
    """Once LATEST has moved: what an earlier LATEST named is kept until the grace after this is over.

    Nothing is changed while a hold of it may still come. `given_up`: a rollback that had a day to say which.
    """

    def step(found: Attempt) -> Attempt:
        is_about_to_hold = manifest.reason == "rollback" and not found.hold and not given_up
        if found.state != "committing" or is_about_to_hold or not is_decided(store, found.hold):
            return found
        return found.model_copy(update={"state": "committed"})

    _change(store, manifest.as_of, manifest.attempt, step)


def pin(store: Store, of: Manifest, *, by: str) -> None:
    """Keep the files that `of` names until whoever is called `by` has committed, or was revoked.

    Raises NightGone where they are being removed.
    """
    for as_of, attempt in sorted(attempts_of(of)):

        def step(found: Attempt) -> Attempt:
            if found.state in ("revoked", "deleted"):
                raise NightGone(
                    f"the files of the night of {of.as_of}, version {of.version}, were removed, or are being removed "
                    "now. Nothing was changed. Choose a night that is kept."
                )
            return found.model_copy(update={"pins": tuple(sorted({*found.pins, by}))})

        _change(store, as_of, attempt, step)


def attempts_of(manifest: Manifest) -> set[tuple[date, str]]:
    """Whose files it names: its own, or those of nights that it repeats. As (date, attempt), from their keys."""
    return {attempt_of(file.key) for file in manifest.all_files()}


def attempt_of(key: str) -> tuple[date, str]:
    """Of a key that manifest.py makes."""
    *_, on, run, _ = key.split("/")
    return date.fromisoformat(on.removeprefix("dt=")), run.removeprefix("run=")


def _change(store: Store, as_of: date, attempt: str, step: Callable[[Attempt], Attempt]) -> Attempt:
    key = attempt_key(as_of, attempt)

    def wanted(found: bytes) -> bytes:
        return step(parse_attempt(found, store.uri_of(key))).to_json()

    try:
        return parse_attempt(change(store, key, wanted), store.uri_of(key))
    except ObjectNotFound:
        # Of a night that was published before attempts were written down.
        with suppress(ObjectExists):
            store.put_once(key, Attempt(as_of=as_of, attempt=attempt, state="committed").to_json())
        return parse_attempt(change(store, key, wanted), store.uri_of(key))
