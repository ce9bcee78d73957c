"""A producer's checksums: _SHA256SUMS beside event files or in a folder above them, as sha256sum prints it.

Flipped bits in a page are read as other rows by every Parquet reader; only whoever wrote the file can say what it was.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from tasks.errors import InputCorrupt, InputUnstable, ObjectChanged, ObjectNotFound
from tasks.ingest.sources import day_of, is_data_file
from tasks.store import Store, StoredObject

NAME = "_SHA256SUMS"
LARGEST_BYTES = 64 << 20
AT_ONCE = 4
BLOCK_BYTES = 1 << 20
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def verify(store: Store, files: Sequence[StoredObject]) -> None:
    """Files that no manifest names are not checked. Raises InputCorrupt and InputUnstable naming the file."""
    folders = {folder for found in files for folder in _folders_above(found.key)}
    wanted: dict[str, str] = {}
    for folder in sorted(folders, key=lambda one: one.count("/")):  # the manifest that is nearest decides
        wanted |= _read_manifest(store, folder)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda found: _verify(store, found, wanted[found.key]), [f for f in files if f.key in wanted]))


def named_and_absent(
    store: Store, listed: Sequence[StoredObject], is_read: Callable[[date | None], bool]
) -> dict[str, str]:
    """Key of an event file that is not there -> the manifest that names it; by `listed`, control files included.

    Of days that are read (`is_read`) alone. Raises InputCorrupt where a manifest is none.
    """
    there = {found.key for found in listed}
    manifests = sorted(key for key in there if key.rpartition("/")[2] == NAME and is_read(day_of(key)))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        named = threads.map(lambda key: _read_manifest(store, key.removesuffix(NAME)), manifests)
        return {
            key: manifest
            for manifest, files in zip(manifests, named, strict=True)
            for key in sorted(files)
            if key not in there and is_data_file(key) and is_read(day_of(key))
        }


def _folders_above(key: str) -> Iterator[str]:
    """events/dt=2026-11-21/, then events/, for a file in the first."""
    while folder := key.rpartition("/")[0]:
        yield folder + "/"
        key = folder


def _read_manifest(store: Store, folder: str) -> dict[str, str]:
    """Key -> SHA-256; empty where there is no manifest."""
    key = folder + NAME
    try:
        with store.open(key) as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except (ObjectNotFound, FileNotFoundError):
        return {}
    try:
        lines = [LINE.fullmatch(line) for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        lines = [None]
    if len(content) > LARGEST_BYTES or not all(lines):
        raise InputCorrupt(
            f"{store.uri_of(key)} is not what sha256sum prints: a line each, 64 hexadecimal digits, two spaces and the "
            "file's name from there. Nothing was published. Write it again, or remove it: files are then not checked."
        )
    return {folder + line[2]: line[1].lower() for line in lines if line}


def _verify(store: Store, pinned: StoredObject, wanted: str) -> None:
    uri = store.uri_of(pinned.key)
    digest = hashlib.sha256()
    try:
        with store.open(pinned.key) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    except (ObjectNotFound, ObjectChanged, FileNotFoundError) as error:
        raise InputUnstable(
            f"{uri} vanished or was replaced after it was listed. Nothing was published. Run again once whoever writes "
            "there is done."
        ) from error
    if digest.hexdigest() != wanted:
        corrupt = InputCorrupt(
            f"{uri} has other bytes than {NAME} says: SHA-256 {digest.hexdigest()[:16]}..., wanted {wanted[:16]}.... "
            "Nothing was published. Write the file again, or its line there if it was replaced on purpose."
        )
        corrupt.file_key = pinned.key
        raise corrupt
