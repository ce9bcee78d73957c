"""A version of the registry as it stands in the store, and how the next one is committed."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import ObjectNotFound, PublishUnresolved, RegistryInvalid
from tasks.store import Store, settle

Kind = Literal["users", "items"]
KINDS: tuple[Kind, ...] = ("users", "items")
FORMAT = 1
COMMITS = "_meta/registry"
NEW_SALT_BYTES = 16


@dataclass(frozen=True)
class RegistryVersion:
    """Which state of the registry a night used. Appending changes `number`, `users` and `items` and nothing before."""

    number: int  # 0: there is no registry yet
    epoch: int  # row numbers of another epoch mean nothing
    forgotten: int  # acts of forgetting so far
    users: int  # rows given out, the forgotten ones' too
    items: int


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Segment(_Written):
    """Consecutive rows from `first_row` on, one id each, null where the id was forgotten."""

    key: str
    first_row: int
    rows: int
    bytes: int
    sha256: str


class File(_Written):
    key: str
    rows: int
    bytes: int
    sha256: str


class Column(_Written):
    """Users or items."""

    id_type: str = ""  # String, Int64 or UInt64; empty: no id yet
    segments: tuple[Segment, ...] = ()

    @property
    def rows(self) -> int:
        return self.segments[-1].first_row + self.segments[-1].rows if self.segments else 0


class Commit(_Written):
    format: int
    number: int
    epoch: int
    forgotten: int
    act: Literal["append", "forget", "compact"]
    attempt: str  # of the writer: an answer that got lost is recognised by it
    salt: str  # hex; the key of the hashes of forgotten ids
    users: Column
    items: Column
    hashes: File | None = None  # of the forgotten ids: kind, hash

    @property
    def version(self) -> RegistryVersion:
        return RegistryVersion(self.number, self.epoch, self.forgotten, self.users.rows, self.items.rows)

    def column(self, kind: Kind) -> Column:
        return self.users if kind == "users" else self.items

    def files(self) -> set[str]:
        """Every file that this version is made of."""
        segments = {segment.key for kind in KINDS for segment in self.column(kind).segments}
        return segments | ({self.hashes.key} if self.hashes else set())


NOTHING_YET = Commit(
    format=FORMAT, number=0, epoch=0, forgotten=0, act="append", attempt="", salt="", users=Column(), items=Column()
)


def read_version(store: Store) -> RegistryVersion:
    """The newest one. Raises RegistryInvalid."""
    return read_commit(store).version


def read_commit(store: Store) -> Commit:
    keys = [stored.key for stored in store.list(COMMITS)]
    newest = max((key for key in keys if re.fullmatch(rf"{COMMITS}/v\d{{8}}\.json", key)), default=None)
    return NOTHING_YET if newest is None else _parsed(store.read(newest)[0], store, newest)


def next_commit(base: Commit, **changes: object) -> Commit:
    """The version after `base`, not yet committed."""
    fields: dict[str, object] = {"number": base.number + 1, "attempt": secrets.token_hex(8)}
    if not base.salt:
        fields["salt"] = secrets.token_hex(NEW_SALT_BYTES)
    return base.model_copy(update=fields | changes)


def file_key(kind: str, commit: Commit) -> str:
    """The number in it is the version that the file was written for, so who cleans up knows what can still be used."""
    return f"registry/{kind}/v{commit.number:08d}-{commit.attempt}.parquet"


def wins(store: Store, commit: Commit) -> bool:
    """Commit it, unless another writer has taken the number. Raises PublishUnresolved where the store will not say."""
    key = f"{COMMITS}/v{commit.number:08d}.json"
    standing = settle(store, key, commit.model_dump_json(indent=1).encode())
    if standing is None:
        raise PublishUnresolved(
            f"whether version {commit.number} of the id registry was written could not be read. Nothing was deleted "
            "and nothing was published. Run again when the store answers."
        )
    return _parsed(standing, store, key).attempt == commit.attempt


def _parsed(content: bytes, store: Store, key: str) -> Commit:
    try:
        commit = Commit.model_validate_json(content)
    except ValidationError:
        raise invalid(store, key, "it is no registry version of this format") from None
    if commit.format != FORMAT or key != f"{COMMITS}/v{commit.number:08d}.json":
        raise invalid(store, key, f"it says that it is version {commit.number}, format {commit.format}")
    return commit


def read_checked(store: Store, file: Segment | File) -> bytes:
    """Raises RegistryInvalid where the file is gone or has other bytes than the commit says."""
    try:
        content = store.read(file.key)[0]
    except ObjectNotFound:
        raise invalid(store, file.key, "it is gone") from None
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        raise invalid(store, file.key, "its bytes are not those that were written")
    return content


def invalid(store: Store, key: str, why: str) -> RegistryInvalid:
    return RegistryInvalid(
        f"{store.uri_of(key)}, a part of the id registry, cannot be used: {why}. Nothing was published; the live "
        "recommendations stay. Bring the file back from the bucket's versions or a backup. If there is none, remove "
        "registry/, _meta/registry/ and _meta/days/ together: the next night numbers all ids anew and reads every day, "
        "and people who were forgotten must be forgotten again."
    )
