"""Read what is live: one complete night, never half of one, also while the next is being published."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

import polars as pl

from tasks.contracts import LATEST_KEY
from tasks.errors import NightStale, ObjectNotFound, UploadCorrupt
from tasks.publish.lookup import SortedTable
from tasks.publish.manifest import Column, Manifest, PublishedFile, PublishedOutput, parse_manifest
from tasks.store import Store, open_store

BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class LatestNight:
    """The night that was live when it was opened; its files never change, so it stays whole."""

    store: Store
    manifest: Manifest
    files: tuple[str, ...]  # the lists, where they are now: a local store may have been moved since the night
    verify: bool = False
    _verified: set[str] = field(default_factory=set, repr=False)

    def scan(self) -> pl.LazyFrame:
        """user_id, rank, item_id, score, tier, reasons; sorted by user_id, rank. Nights of format 1 have no reasons."""
        return pl.scan_parquet(list(self.files), hive_partitioning=False)

    def for_user(self, user_id: int | str) -> pl.DataFrame:
        """Their list by rank, or no rows for somebody the night did not know.

        Reads one row group, or two neighbours where lists are short and theirs lies across a border.

        Raises TypeError for a number where ids are text, or text where they are numbers.
        """
        return self._lists.rows_of(_checked_id("user", user_id, self.manifest.output_schema))

    @property
    def user_id_type(self) -> str:
        """As in string, int64."""
        return next(column.type for column in self.manifest.output_schema if column.name == "user_id")

    def has_list(self, typed: str) -> bool:
        """Of an id as somebody typed it. One that is no number where ids are has none."""
        try:
            return not self.for_user(typed if self.user_id_type == "string" else int(typed)).is_empty()
        except ValueError:
            return False

    def output(self, name: str) -> pl.LazyFrame:
        """What was published beside the lists: similar_items, user_embeddings or item_embeddings, sorted by its id.

        Raises ObjectNotFound where this night has none of that name, UploadCorrupt where the night is verified.
        """
        parts = self._output(name).parts
        return pl.scan_parquet([self.store.uri_of(part.key) for part in parts], hive_partitioning=False)

    def similar_to(self, item_id: int | str) -> pl.DataFrame:
        """The items most like this one by rank, or no rows for an item that nobody had liked. Reads as `for_user` does.

        Raises ObjectNotFound where the night has no similar_items, TypeError as `for_user` does.
        """
        return self._similar_items.rows_of(_checked_id("item", item_id, self._output("similar_items").output_schema))

    def _output(self, name: str) -> PublishedOutput:
        found = self.manifest.outputs.get(name)
        if found is None:
            others = ", ".join(self.manifest.outputs) or "nothing"
            raise ObjectNotFound(
                f"the night of {self.manifest.as_of} has no {name!r}: beside its lists it has {others}. "
                "recommend.similar_items and recommend.embeddings turn them on for the next night."
            )
        if self.verify and name not in self._verified:  # embeddings are large: only who asks for them reads them
            for part in found.parts:
                verify_part(self.store, part)
            self._verified.add(name)
        return found

    # Each remembers the footers that it has read.
    @cached_property
    def _lists(self) -> SortedTable:
        return self._sorted(self.manifest.parts, "user_id")

    @cached_property
    def _similar_items(self) -> SortedTable:
        return self._sorted(self._output("similar_items").parts, "item_id")

    def _sorted(self, parts: Sequence[PublishedFile], column: str) -> SortedTable:
        with_rows = [part for part in parts if part.rows] or parts[:1]
        return SortedTable(self.store, tuple(part.key for part in with_rows), column)


def open_latest(
    store_uri: str, *, verify: bool = False, max_age: timedelta | None = None, now: datetime | None = None
) -> LatestNight:
    """The live night. `max_age` is how long ago it may have been published.

    `verify` reads every byte of the lists once, and those of an output when it is first asked for.

    Raises NightStale, ObjectNotFound, ManifestInvalid, UploadCorrupt and the Store* errors. `now` is for tests.
    """
    store = open_store(store_uri)
    try:
        content, _ = store.read(LATEST_KEY)
    except ObjectNotFound as error:
        raise ObjectNotFound(
            f"nothing has been published in {store.uri}: there is no {LATEST_KEY}. Check the place, or run a night."
        ) from error
    manifest = parse_manifest(content, store.uri_of(LATEST_KEY))
    if max_age is not None:
        _ensure_fresh(store, manifest, max_age, now or datetime.now(UTC))
    if verify:
        for part in manifest.parts:
            verify_part(store, part)
    return LatestNight(store, manifest, tuple(store.uri_of(part.key) for part in manifest.parts), verify)


def _ensure_fresh(store: Store, manifest: Manifest, max_age: timedelta, now: datetime) -> None:
    age = now - manifest.created_at
    if age > max_age:
        raise NightStale(
            f"the live night of {store.uri} is that of {manifest.as_of}, version {manifest.version}, published "
            f"{_in_words(age)} ago ({manifest.created_at:%Y-%m-%d %H:%M} UTC), and max_age is {_in_words(max_age)}. No "
            "night has been published since: they failed, were refused, or did not run. The dashboard and "
            "_meta/audits/ in the store say which. To read this one all the same, open it with a longer max_age."
        )


def _in_words(span: timedelta) -> str:
    """As in 3 d 4 h, 26 min."""
    minutes = int(span.total_seconds() // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 min"


def _checked_id(what: str, wanted: int | str, schema: tuple[Column, ...]) -> int | str:
    kind = next(column.type for column in schema if column.name == f"{what}_id")
    if kind == "string":
        if isinstance(wanted, str):
            return str(wanted)
        raise TypeError(f"{what} ids are text here, and {wanted!r} is not: ask for {str(wanted)!r} if you mean that")
    if isinstance(wanted, str | bool) or not hasattr(wanted, "__index__"):
        raise TypeError(f"{what} ids are numbers here, and {wanted!r} is not")
    return wanted.__index__()  # also of NumPy's and pandas' integers


def verify_part(store: Store, part: PublishedFile) -> None:
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


def _corrupt(store: Store, part: PublishedFile, what: str) -> UploadCorrupt:
    return UploadCorrupt(
        f"{store.uri_of(part.key)} is not what was written: {what}. Do not use it: Parquet readers do not notice. "
        "If a night was being published, it was not; run it again. If it is live, publish its date again with FORCE=1."
    )
