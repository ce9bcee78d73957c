"""What a store promises, and how the two promises that a publication rests on are asked for."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from tasks.errors import (
    ObjectChanged,
    ObjectExists,
    RunConfigError,
    StoreDenied,
    StoreUnsafe,
)

# Not one random key a probe: a fixed one is never deleted, so the job's role needs no right to delete.
PROBE_KEY = "_meta/probe"
# What may be removed is what nights made of events: not the team's events and tables, and nothing of the logs below
# _meta/, by which everybody knows what there is.
REMOVABLE = ("recs/", "outputs/", "models/", "days/", "quarantine/", "registry/")
NO_SUCH_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class StoredObject:
    key: str  # relative to the store's root
    num_bytes: int
    etag: str  # names the content's version; S3's own, and the SHA-256 in a local folder
    modified_at: datetime


Listing: TypeAlias = list[StoredObject]


class Store(Protocol):
    """Keys are relative to `uri`, with `/` between names. Every method raises the Store* errors of tasks/errors.py."""

    @property
    def uri(self) -> str:
        """Normalised and complete: s3://bucket/prefix or file:///folder, without a slash at the end."""

    def uri_of(self, key: str) -> str:
        """What a reader opens. Never percent-encoded: DuckDB would look for the percent signs."""

    def list(self, prefix: str) -> Listing:
        """Everything below the folder `prefix` ("" is all), at any depth, asked afresh, sorted by key."""

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes and the ETag that names exactly them. Raises ObjectNotFound."""

    def open(self, key: str) -> BinaryIO:
        """Random access for Parquet footers; close it. Raises ObjectNotFound, and ObjectChanged while reading."""

    def put_once(self, key: str, source: bytes | Path) -> str:
        """Write all or nothing, and only where nothing is. Returns the ETag. Raises ObjectExists."""

    def compare_and_swap(self, key: str, data: bytes, *, etag: str) -> str:
        """Replace exactly the version `etag`. Returns the new ETag. Raises ObjectChanged, ObjectNotFound."""

    def remove(self, key: str, *, etag: str | None) -> None:
        """Gone for good, older versions that a bucket keeps included; what is gone already is fine.

        `etag` is the version that is meant; None: whatever is there. For forgetting and retention, never for a night.
        Raises StoreDenied for a key that does not lie below REMOVABLE, ObjectChanged where another version is there.
        """

    def probe(self) -> None:
        """Raises StoreNotFound, StoreDenied, StoreUnavailable, or StoreUnsafe if a condition is ignored."""


def checked_key(key: str) -> str:
    names = key.split("/")
    if not key or any(name in ("", ".", "..") for name in names) or re.search(r"[\x00-\x1f\x7f]", key):
        raise RunConfigError(
            f"{key!r} is no key of a store: it must be relative, without empty names, '.', '..' or control characters."
        )
    return key


def removable(key: str) -> str:
    if not checked_key(key).startswith(REMOVABLE):
        raise StoreDenied(
            f"{key!r} is not ours to remove: only what nights made is, below {', '.join(REMOVABLE)}. Nothing was "
            "removed. Events and tables belong to whoever writes them, and the logs below _meta/ stay."
        )
    return key


def checked_folder(prefix: str) -> str:
    return checked_key(prefix.rstrip("/")) if prefix.rstrip("/") else ""


def ask_for_both_promises(store: Store) -> None:
    """Three small writes. The first may find the object of an earlier probe; the other two must be refused."""
    with suppress(ObjectExists):
        store.put_once(PROBE_KEY, b"nightgraph asks here whether this store honours conditional writes\n")
    promises: dict[str, Callable[[], object]] = {
        "a create-only write replaced an existing object": lambda: store.put_once(PROBE_KEY, b"must be refused\n"),
        "a compare-and-swap replaced a version that it did not name": lambda: store.compare_and_swap(
            PROBE_KEY, b"must be refused\n", etag=NO_SUCH_ETAG
        ),
    }
    for broken, ask in promises.items():
        try:
            ask()
        except (ObjectExists, ObjectChanged):
            continue
        raise StoreUnsafe(
            f"{store.uri} accepts conditional writes and ignores the condition: {broken}. Two nights could overwrite "
            "each other without noticing, so nothing was started and nothing published. Use a store that honours "
            "If-None-Match and If-Match (AWS S3, MinIO and others do; rclone's server does not)."
        )
