"""Digested units in the store: their runs, their refused rows, and the marker that says they are whole.

    days/<place>/<unit>/run-00000-<sha256>.parquet          user_row, item_row, timestamp_us, kind
    quarantine/<place>/<unit>/part-00000-<sha256>.parquet   refused rows as they came, and file, rule
    _meta/days/<unit>.json                                  written last: files, counts, and every object's SHA-256

The marker names what counts, with its SHA-256; an object beside it that no marker names is left over from a night that
was killed, and does no harm. Where an object that a marker names is gone or has other bytes, the unit is digested anew,
and its objects, which then have the names of damaged ones, get names of their own.
"""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks.errors import ObjectChanged, ObjectExists, ObjectNotFound
from tasks.ingest.digest import FileCounts
from tasks.ingest.footers import ColumnHint
from tasks.ingest.inspection import PolarsType
from tasks.ingest.units import Unit
from tasks.run import file_sha256
from tasks.store import Store

FORMAT = 1
AT_ONCE = 4
BLOCK_BYTES = 1 << 20
MOST_NAMES = 8  # of one content, each damaged before the next was needed

log = logging.getLogger("nightgraph.ingest")


@dataclass(frozen=True)
class StoredFile:
    key: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Footer:
    """An inspection.EventFile, but for where it lies: a store may be moved."""

    columns: dict[str, PolarsType]
    names: dict[str, str]
    hints: dict[str, ColumnHint]


@dataclass(frozen=True)
class DigestedUnit:
    """A marker."""

    unit: str
    place: str
    files: dict[str, FileCounts]  # key -> counts
    runs: tuple[StoredFile, ...]
    quarantine: tuple[StoredFile, ...]
    footers: dict[str, Footer]  # key -> what the file was found to be
    forgotten: int = 0  # valid rows that forgetting took out of the runs since
    epoch: int = 0  # of the registry whose rows the runs hold
    format: int = FORMAT

    def total(self, counted: str) -> dict[str, int]:
        """`set_aside` or `quarantined` of all files: reason -> rows."""
        return summed(getattr(counts, counted) for counts in self.files.values())


def summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for by_reason in counts:
        for reason, count in by_reason.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))


# ---- markers


def read_markers(store: Store, units: list[Unit]) -> dict[str, DigestedUnit]:
    """Unit name -> what was digested earlier, by whatever night."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = threads.map(lambda unit: _read_marker(store, unit), units)
    return {marker.unit: marker for marker in found if marker is not None}


def _read_marker(store: Store, unit: Unit) -> DigestedUnit | None:
    try:
        content, _ = store.read(unit.marker_key)
        marker = TypeAdapter(DigestedUnit).validate_json(content)
    except ObjectNotFound:
        return None
    except ValidationError:
        log.warning("%s cannot be read, so its files are digested again", unit.marker_key)
        return None
    whole = marker.files.keys() == marker.footers.keys() == {found.key for found in unit.files}
    return marker if whole and marker.unit == unit.name and marker.format == FORMAT else None


def write_marker(store: Store, unit: Unit, marker: DigestedUnit) -> None:
    """Once the unit's objects are in the store. Another night that digested it wrote the same."""
    content = TypeAdapter(DigestedUnit).dump_json(marker, indent=1)
    try:
        store.put_once(unit.marker_key, content)
    except ObjectExists:
        found, etag = store.read(unit.marker_key)
        if found != content:
            try:
                store.compare_and_swap(unit.marker_key, content, etag=etag)
            except ObjectChanged:
                log.info("%s was written by another night meanwhile", unit.marker_key)


# ---- objects


def put_files(store: Store, folder: str, stem: str, paths: list[Path]) -> tuple[StoredFile, ...]:
    """Each file under `folder`, named by its number and content."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return tuple(
            threads.map(lambda at: _put_file(store, f"{folder}/{stem}-{at[0]:05d}", at[1]), list(enumerate(paths)))
        )


def _put_file(store: Store, name: str, path: Path) -> StoredFile:
    sha256, num_bytes = file_sha256(path), path.stat().st_size
    for attempt in range(MOST_NAMES):
        key = f"{name}-{sha256[:16]}{f'-{attempt}' if attempt else ''}.parquet"
        try:
            store.put_once(key, path)
        except ObjectExists:
            if _sha256_of(store, key) != sha256:
                continue  # it was damaged there, and nothing is ever overwritten
        return StoredFile(key, num_bytes, sha256)
    raise ObjectExists(
        f"{store.uri_of(name)}-* stands in the store {MOST_NAMES} times, each time with other bytes than its name "
        "says. Nothing was published. Look at what damages objects there, remove these, and run again."
    )


def _sha256_of(store: Store, key: str) -> str:
    digest = hashlib.sha256()
    with store.open(key) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fetch_runs(store: Store, marker: DigestedUnit, folder: Path) -> list[Path] | None:
    """The unit's runs as checked files on this machine, below `folder`; None where one is gone or damaged."""
    paths = []
    for number, run in enumerate(marker.runs):
        path = _fetch(store, run, folder / f"{marker.unit}-{number:05d}.parquet")
        if path is None:
            log.warning("%s is gone or has other bytes than it was written with: digesting again", run.key)
            return None
        paths.append(path)
    return paths


def _fetch(store: Store, run: StoredFile, path: Path) -> Path | None:
    uri = store.uri_of(run.key)
    try:
        if uri.startswith("file://"):  # it lies on this machine already
            path = Path(uri.removeprefix("file://"))
            return path if path.stat().st_size == run.num_bytes and file_sha256(path) == run.sha256 else None
        digest = hashlib.sha256()
        with store.open(run.key) as stream, open(path, "wb") as copy:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                copy.write(block)
    except (FileNotFoundError, ObjectNotFound):
        return None
    return path if digest.hexdigest() == run.sha256 else None
