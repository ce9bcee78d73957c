"""Read what is live: one complete night, never half of one, also while the next is being published."""

import hashlib
from dataclasses import dataclass

import polars as pl

from tasks.contracts import LATEST_KEY
from tasks.errors import ObjectNotFound, UploadCorrupt
from tasks.publish.manifest import Manifest, PublishedPart, parse_manifest
from tasks.store import Store, open_store

BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class LatestNight:
    """The night that was live when it was opened; its files never change, so it stays whole."""

    manifest: Manifest
    files: tuple[str, ...]  # where the parts are now: a local store may have been moved since the night

    def scan(self) -> pl.LazyFrame:
        """user_id, rank, item_id, score, tier; sorted by user_id, rank."""
        return pl.scan_parquet(list(self.files), hive_partitioning=False)

    def for_user(self, user_id: int | str) -> pl.DataFrame:
        """Their list by rank, or no rows: a user without an event before the night's date has none.

        Raises TypeError for a number where ids are text, or text where they are numbers.
        """
        kind = self.scan().collect_schema()["user_id"]
        if isinstance(user_id, str) != (kind == pl.String):
            raise TypeError(f"user ids are {'text' if kind == pl.String else 'numbers'} here, and {user_id!r} is not")
        return self.scan().filter(pl.col("user_id") == user_id).sort("rank").collect()


def open_latest(store_uri: str, *, verify: bool = False) -> LatestNight:
    """`verify` reads every byte once. Raises ObjectNotFound, ManifestInvalid, UploadCorrupt and the Store* errors."""
    store = open_store(store_uri)
    try:
        content, _ = store.read(LATEST_KEY)
    except ObjectNotFound as error:
        raise ObjectNotFound(
            f"nothing has been published in {store.uri}: there is no {LATEST_KEY}. Check the place, or run a night."
        ) from error
    manifest = parse_manifest(content, store.uri_of(LATEST_KEY))
    if verify:
        for part in manifest.parts:
            verify_part(store, part)
    return LatestNight(manifest, tuple(store.uri_of(part.key) for part in manifest.parts))


def verify_part(store: Store, part: PublishedPart) -> None:
    """Raises UploadCorrupt unless the store returns exactly the bytes that were written. Parquet alone cannot tell."""
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with store.open(part.key) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
    except ObjectNotFound:
        raise _corrupt(store, part, "it does not exist") from None
    if num_bytes != part.bytes:
        raise _corrupt(store, part, f"it has {num_bytes} bytes, and {part.bytes} were written")
    if digest.hexdigest() != part.sha256:
        raise _corrupt(store, part, f"its {num_bytes} bytes have another SHA-256 than those that were written")


def _corrupt(store: Store, part: PublishedPart, what: str) -> UploadCorrupt:
    return UploadCorrupt(
        f"{store.uri_of(part.key)} is not what was written: {what}. Do not use it: Parquet readers do not notice. "
        "If a night was being published, it was not; run it again. If it is live, publish its date again with FORCE=1."
    )
