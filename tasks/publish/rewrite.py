"""Leave people out of every night that is kept: a new version of its date without their rows, and LATEST moved on.

A commit is written once and stays; what it names does not. The newest version of a date is the one that is read and
that a rollback lands on, so it is the one that must be clean: its files that hold somebody are written again under a
new attempt, and the others are named as they are. Whatever else below FOLDERS holds somebody (the files just replaced,
older versions of a date, attempts that were never published) is due for removal (tasks/due.py).
"""

import logging
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import polars as pl

from tasks import due
from tasks.contracts import LATEST_KEY, Published, RewrittenNights, Run
from tasks.errors import ManifestInvalid, ObjectNotFound, PublishConflict, UploadCorrupt
from tasks.publish.attempts import new_attempt, open_attempt, pin, to_committed, to_committing
from tasks.publish.commit_log import advance_latest, commit, dates_with_a_commit, find_commit
from tasks.publish.holds import last_hold
from tasks.publish.manifest import (
    Manifest,
    PublishedFile,
    PublishedOutput,
    output_key,
    parse_manifest,
    part_key,
)
from tasks.publish.night import as_published, upload
from tasks.publish.rollback import roll_back
from tasks.registry import open_registry, read_version
from tasks.run import file_sha256
from tasks.store import Store
from tasks.warm import recipe_of, warm_key, without_users
from tasks.without import Theirs, damaged, fetch, holds, still_holding, theirs_of, write_without

FOLDERS = ("recs", "outputs", "models")
FileT = TypeVar("FileT", bound=PublishedFile)

log = logging.getLogger("nightgraph.forget")


def rewrite_nights(store: Store, theirs: Theirs, *, now: datetime, scratch: Path) -> RewrittenNights:
    """Every date's newest version without them. What cannot be rewritten is named in `failed`, and the rest is done.

    Writes only, and removes nothing. `scratch` is an empty folder. Raises the Store* errors, and ManifestInvalid where
    LATEST is damaged.
    """
    rewritten: list[Manifest] = []
    failed: dict[str, str] = {}
    rows = 0
    for as_of in dates_with_a_commit(store):
        try:
            clean, left_out = _rewrite_date(store, as_of, theirs, now=now, scratch=scratch)
        except (ManifestInvalid, UploadCorrupt, ObjectNotFound) as error:
            failed[f"the night of {as_of}"] = f"{type(error).__name__}: {error}"
            continue
        if clean is not None:
            rewritten.append(clean)
            rows += left_out
    nights = tuple(manifest.as_of for manifest in rewritten)
    if held := _rewrite_held(store, theirs, now=now, scratch=scratch):
        rewritten.append(held)
    if (live := _latest(store)) and (newest := find_commit(store, live.as_of)):
        advance_latest(store, newest)
        for manifest in rewritten:
            to_committed(store, manifest)
    due.write_down(store, still_holding(store, FOLDERS, theirs, in_use=files_in_use(store), failed=failed))
    return RewrittenNights(nights, rows, failed)


def without_who_left_meanwhile(store: Store, run: Run, published: Published, *, now: datetime) -> Published:
    """Somebody may have been forgotten while this night ran: then its next version, without them, is what it published.

    What that replaces is noted as due by the next sweep: a night has no part in removing.
    """
    if read_version(store).forgotten == run.registry_forgotten:
        return published
    with TemporaryDirectory(dir=run.work_folder) as scratch:
        theirs = theirs_of(open_registry(store))
        clean, _ = _rewrite_date(store, published.as_of, theirs, now=now, scratch=Path(scratch))
    return published if clean is None else as_published(store, clean, already=published.already)


def files_in_use(store: Store) -> frozenset[str]:
    """Keys that the newest version of some date names, or LATEST. Raises ManifestInvalid."""
    newest = [find_commit(store, as_of) for as_of in dates_with_a_commit(store)]
    return frozenset(file.key for manifest in (*newest, _latest(store)) if manifest for file in manifest.all_files())


def _latest(store: Store) -> Manifest | None:
    try:
        return parse_manifest(store.read(LATEST_KEY)[0], store.uri_of(LATEST_KEY))
    except ObjectNotFound:
        return None


def _rewrite_date(
    store: Store, as_of: date, theirs: Theirs, *, now: datetime, scratch: Path
) -> tuple[Manifest | None, int]:
    """As `_rewrite` the newest version; None, too, where nothing of the night is kept any more."""
    while True:
        standing = find_commit(store, as_of)
        assert standing is not None
        if not any(_is_there(store, file) for file in standing.all_files()):
            return None, 0
        try:
            return _rewrite(store, standing, standing.version, theirs, now=now, scratch=scratch)
        except PublishConflict:
            log.info("%s: another version was published meanwhile, looking at that one", as_of)


def _rewrite_held(store: Store, theirs: Theirs, *, now: datetime, scratch: Path) -> Manifest | None:
    """What a rollback holds may not be its date's newest version. The hold moves on as it came: by a rollback to what
    is returned; None where nobody of them is in what is held."""
    hold = last_hold(store)
    while hold is not None and hold.commit:
        held = parse_manifest(store.read(hold.commit)[0], store.uri_of(hold.commit))
        newest = find_commit(store, held.as_of)
        assert newest is not None
        clean: Manifest | None = newest
        if newest.reason != "forgotten" or newest.base_version != held.version:
            try:
                clean, _ = _rewrite(store, held, newest.version, theirs, now=now, scratch=scratch)
            except PublishConflict:
                continue
        if clean is not None:
            roll_back(store, clean.as_of, version=clean.version, who=hold.who, reason=hold.reason, now=now)
        return clean
    return None


def _rewrite(
    store: Store, standing: Manifest, base_version: int, theirs: Theirs, *, now: datetime, scratch: Path
) -> tuple[Manifest | None, int]:
    """Commit it without them, as the version after `base_version`, and how many rows fewer; None where none of theirs
    is in there. Raises PublishConflict where another version came between."""
    attempt = new_attempt(now)
    rewriting = _Rewriting(store, standing, attempt, base_version, theirs, scratch)
    manifest = rewriting.new_version(now)
    if not rewriting.is_changed:
        return None, 0
    pin(store, standing, by=attempt)  # the files without them stay as they are, and are named once more
    to_committing(store, standing.as_of, attempt, manifest.version)
    commit(store, manifest, force=True)
    log.info("%s: version %d without %d rows of people to forget", standing.as_of, manifest.version, rewriting.rows)
    return manifest, rewriting.rows


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
    base_version: int
    theirs: Theirs
    scratch: Path
    rows: int = 0  # left out so far, of all files together
    is_changed: bool = False

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
                "version": self.base_version + 1,
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
        recipe = recipe_of(source)
        if recipe is None or recipe.registry_epoch < self.theirs.epoch:
            self.is_changed = True  # whose rows these are nobody can tell any more, and no night starts from them
            return None
        rows = without_users(source, target, self.theirs.rows)
        return self._written(file, warm_key(self.standing.as_of, self.attempt), target, rows)

    def _written(self, file: FileT, key: str, path: Path, rows: int) -> FileT:
        """`rows` fewer than `file` has."""
        open_attempt(self.store, self.standing.as_of, self.attempt)
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
        self.is_changed = True
        return written


def _download(store: Store, file: PublishedFile, path: Path) -> None:
    """Raises UploadCorrupt: what is damaged must not come out as whole, under a hash of its own."""
    if fetch(store, file.key, path) != file.sha256:
        raise damaged(store, file.key, "it has another SHA-256 than it was written with")
