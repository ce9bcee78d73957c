"""Leave people out of every night that is kept: a new version of its date without their rows, and LATEST moved on.

A commit is written once and stays; what it names does not. The newest version of a date is the one that is read and
that a rollback lands on, so it is the one that must be clean: its files that hold somebody are written again under a
new attempt, and the others are named as they are. Whatever else below FOLDERS holds somebody (the files just replaced,
older versions of a date, attempts that were never published) is due for removal (tasks/due.py).
"""

import logging
import secrets
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import polars as pl

from tasks import due
from tasks.contracts import LATEST_KEY, Published, RewrittenNights, Run
from tasks.errors import ManifestInvalid, ObjectNotFound, PublishConflict, UploadCorrupt
from tasks.publish.commit_log import advance_latest, commit, dates_with_a_commit, find_commit
from tasks.publish.manifest import (
    Manifest,
    PublishedFile,
    PublishedOutput,
    output_key,
    parse_manifest,
    part_key,
)
from tasks.publish.night import as_published, upload
from tasks.registry import open_registry, read_version
from tasks.run import file_sha256
from tasks.store import Store
from tasks.warm import warm_key, without_users
from tasks.without import Theirs, damaged, fetch, holds, still_holding, theirs_of, write_without

FOLDERS = ("recs", "outputs", "models")
FileT = TypeVar("FileT", bound=PublishedFile)

log = logging.getLogger("nightgraph.forget")


def rewrite_nights(store: Store, theirs: Theirs, *, now: datetime, scratch: Path) -> RewrittenNights:
    """Every date's newest version without them. What cannot be rewritten is named in `failed`, and the rest is done.

    Writes only, and removes nothing. `scratch` is an empty folder. Raises the Store* errors, and ManifestInvalid where
    LATEST is damaged.
    """
    nights: list[date] = []
    failed: dict[str, str] = {}
    rows = 0
    for as_of in dates_with_a_commit(store):
        try:
            left_out = _rewrite_date(store, as_of, theirs, now=now, scratch=scratch)
        except (ManifestInvalid, UploadCorrupt, ObjectNotFound) as error:
            failed[f"the night of {as_of}"] = f"{type(error).__name__}: {error}"
            continue
        if left_out:
            nights.append(as_of)
            rows += left_out
    if (live := _latest(store)) and (newest := find_commit(store, live.as_of)):
        advance_latest(store, newest)
    due.write_down(store, still_holding(store, FOLDERS, theirs, in_use=files_in_use(store), failed=failed))
    return RewrittenNights(tuple(nights), rows, failed)


def without_who_left_meanwhile(store: Store, run: Run, published: Published, *, now: datetime) -> Published:
    """Somebody may have been forgotten while this night ran: then its next version, without them, is what it published.

    What that replaces is noted as due by the next sweep: a night has no part in removing.
    """
    if read_version(store).forgotten == run.registry_forgotten:
        return published
    with TemporaryDirectory(dir=run.work_folder) as scratch:
        theirs = theirs_of(open_registry(store))
        if not _rewrite_date(store, published.as_of, theirs, now=now, scratch=Path(scratch)):
            return published
    standing = find_commit(store, published.as_of)
    assert standing is not None
    return as_published(store, standing, already=published.already)


def files_in_use(store: Store) -> frozenset[str]:
    """Keys that the newest version of some date names, or LATEST. Raises ManifestInvalid."""
    newest = [find_commit(store, as_of) for as_of in dates_with_a_commit(store)]
    return frozenset(file.key for manifest in (*newest, _latest(store)) if manifest for file in _files(manifest))


def _files(manifest: Manifest) -> list[PublishedFile]:
    of_outputs = [file for output in manifest.outputs.values() for file in output.parts]
    return [*manifest.parts, *of_outputs, *([manifest.warm] if manifest.warm else [])]


def _latest(store: Store) -> Manifest | None:
    try:
        return parse_manifest(store.read(LATEST_KEY)[0], store.uri_of(LATEST_KEY))
    except ObjectNotFound:
        return None


def _rewrite_date(store: Store, as_of: date, theirs: Theirs, *, now: datetime, scratch: Path) -> int:
    """Rows left out: 0 where nobody of them is in there, or nothing of the night is kept any more."""
    while True:
        standing = find_commit(store, as_of)
        assert standing is not None
        if not any(_is_there(store, file) for file in _files(standing)):
            return 0
        attempt = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        rewriting = _Rewriting(store, standing, attempt, theirs, scratch)
        manifest = rewriting.new_version(now)
        if not rewriting.rows:
            return 0
        try:
            commit(store, manifest, force=True)
        except PublishConflict:
            log.info("%s: another version was published meanwhile, looking at that one", as_of)
            continue
        log.info("%s: version %d without %d rows of people to forget", as_of, manifest.version, rewriting.rows)
        return rewriting.rows


def _is_there(store: Store, file: PublishedFile) -> bool:
    try:
        store.open(file.key).close()
    except ObjectNotFound:
        return False
    return True


@dataclass
class _Rewriting:
    """One date's newest version on its way to the next."""

    store: Store
    standing: Manifest
    attempt: str
    theirs: Theirs
    scratch: Path
    rows: int = 0  # left out so far, of all files together

    def new_version(self, now: datetime) -> Manifest:
        parts = []
        by_tier = dict(self.standing.rows_by_tier)
        for number, part in enumerate(self.standing.parts):
            kept, left_out = self._without(part, part_key(self.standing.as_of, self.attempt, number))
            parts.append(kept.model_copy(update={"users": part.users - left_out["user_id"].n_unique()}))
            for tier, count in left_out["tier"].value_counts().iter_rows() if len(left_out) else ():
                by_tier[tier] -= count
        return self.standing.model_copy(
            update={
                "version": self.standing.version + 1,
                "base_version": self.standing.version,
                "attempt": self.attempt,
                "reason": "forgotten",
                "rewritten_at": now,
                "store": self.store.uri,
                "rows": sum(part.rows for part in parts),
                "users": sum(part.users for part in parts),
                "rows_by_tier": by_tier,
                "files": tuple(self.store.uri_of(part.key) for part in parts),
                "parts": tuple(parts),
                "outputs": {name: self._output(name, output) for name, output in self.standing.outputs.items()},
                "warm": self._warm(),
            }
        )

    def _output(self, name: str, output: PublishedOutput) -> PublishedOutput:
        parts = output.parts
        if "user_id" in {column.name for column in output.output_schema}:
            keys = [output_key(name, self.standing.as_of, self.attempt, number) for number in range(len(parts))]
            parts = tuple(self._without(part, key)[0] for part, key in zip(parts, keys, strict=True))
        files = tuple(self.store.uri_of(part.key) for part in parts)
        return output.model_copy(update={"parts": parts, "files": files, "rows": sum(part.rows for part in parts)})

    def _without(self, file: FileT, key: str) -> tuple[FileT, pl.DataFrame]:
        """The file as it is where it holds nobody of them, else what was written under `key`; and the rows left out."""
        if not holds(self.store, file.key, self.theirs):
            return file, pl.DataFrame({"user_id": []})
        source, target = self.scratch / "as-it-was.parquet", self.scratch / "without.parquet"
        _download(self.store, file, source)
        left_out = write_without(source, target, self.theirs)
        return self._written(file, key, target, len(left_out)), left_out

    def _warm(self) -> PublishedFile | None:
        file = self.standing.warm
        if file is None or not _is_there(self.store, file) or not holds(self.store, file.key, self.theirs):
            return file
        source, target = self.scratch / "as-it-was.safetensors", self.scratch / "without.safetensors"
        _download(self.store, file, source)
        rows = without_users(source, target, self.theirs.rows)
        return self._written(file, warm_key(self.standing.as_of, self.attempt), target, rows)

    def _written(self, file: FileT, key: str, path: Path, rows: int) -> FileT:
        """`rows` fewer than `file` has."""
        written = file.model_copy(
            update={
                "key": key,
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "rows": file.rows - rows,
            }
        )
        upload(self.store, path, written)
        self.rows += rows
        return written


def _download(store: Store, file: PublishedFile, path: Path) -> None:
    """Raises UploadCorrupt: what is damaged must not come out as whole, under a hash of its own."""
    if fetch(store, file.key, path) != file.sha256:
        raise damaged(store, file.key, "it has another SHA-256 than it was written with")
