"""Whether readers stay with a night that a person chose, whatever nights come after it.

    _meta/holds/00000001.json    written once: a commit that is held, or nothing, which lets go

The last one counts. `settled` is noted once LATEST has moved to what it says.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import ManifestInvalid, StoreUnavailable
from tasks.store import Store, StoredObject, change, settle

FOLDER = "_meta/holds"


class Hold(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: int = 1
    number: int
    commit: str = ""  # the key of what is held; empty: nothing is, from here on
    by: str  # the attempt that wrote it
    who: str
    reason: str
    created_at: datetime
    settled: bool = False

    def to_json(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def hold_key(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def stored_holds(store: Store) -> list[StoredObject]:
    """In their order."""
    return [one for one in store.list(FOLDER) if re.fullmatch(rf"{FOLDER}/\d{{8}}\.json", one.key)]


def last_hold(store: Store) -> Hold | None:
    stored = stored_holds(store)
    return read_hold(store, stored[-1].key) if stored else None


def read_hold(store: Store, key: str) -> Hold:
    return _parsed(store.read(key)[0], store.uri_of(key))


def is_decided(store: Store, number: int) -> bool:
    """Whether that hold is written, or none is meant."""
    return not number or any(one.key == hold_key(number) for one in stored_holds(store))


def write_hold(store: Store, hold: Hold, *, announce: Callable[[int], None] | None = None) -> Hold:
    """As the next number that is free, which may be a later one than `hold` has. Returns it as it stands.

    `announce` is told each number before it is tried.
    """
    while True:
        if announce is not None:
            announce(hold.number)
        content = settle(store, hold_key(hold.number), hold.to_json())
        if content is None:
            raise StoreUnavailable(
                "whether the hold was written could not be read. Run again when the store answers: what was done is "
                "recognised."
            )
        standing = _parsed(content, store.uri_of(hold_key(hold.number)))
        if standing.by == hold.by:
            return standing
        hold = hold.model_copy(update={"number": hold.number + 1})


def note_settled(store: Store, number: int) -> None:
    key = hold_key(number)
    change(
        store,
        key,
        lambda found: _parsed(found, store.uri_of(key)).model_copy(update={"settled": True}).to_json(),
    )


def _parsed(content: bytes, place: str) -> Hold:
    try:
        return Hold.model_validate_json(content)
    except ValidationError:
        raise ManifestInvalid(
            f"{place} is damaged: it is no hold. Nothing was changed, and no night moves LATEST.json before it is "
            "mended: bring it back from the bucket's versions or a backup."
        ) from None
