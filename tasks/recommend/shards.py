"""Shards: neighbouring people's finished rows, each a Parquet file that is written once, and a sidecar that seals it.

    part-00003.parquet   written aside, flushed to disk, renamed
    part-00003.json      written after it in the same way: whose rows they are, how many, their hash, of which night

What has no sidecar is not finished. What does not fit its sidecar, or whose sidecar is of another shard or another
night, is no shard of tonight: it is named in the log and computed again. Knows rows as a frame, and nothing of what
stands in them.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from models.checkpoint import flush_and_rename
from tasks.contracts import Part
from tasks.run import file_sha256

# Of a row group, at most; a multiple of the list length, so that a user stands in one group (but for those whose list
# is short: the cuts of a file with such lists can fall within a list). At 20 rows a user, 6,553 users and some 2.5 MB.
# A third of the time of groups of 20,000.
ROW_GROUP_ROWS = 131_072
COMPRESSION_LEVEL = 1  # of zstd: a tenth quicker than the usual 3, and no larger
Counts = dict[str, dict[str, int]]  # what is counted -> by name
log = logging.getLogger("nightgraph.recommend")


@dataclass(frozen=True)
class Shard:
    """People start..stop - 1, in the order of their ids."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}"


@dataclass(frozen=True)
class Sealed:
    """What a sidecar says."""

    key: str  # of the night's inputs and settings: another night's shard has another
    shard: int
    first: int  # people, by index
    last: int
    rows: int
    users: int  # that have rows
    num_bytes: int
    sha256: str
    counts: Counts

    def part(self, folder: Path, shard: Shard) -> Part:
        return Part(str(folder / f"{shard.name}.parquet"), self.rows, self.users, self.num_bytes, self.sha256)


def cut_into_shards(num_people: int, users_per_shard: int) -> list[Shard]:
    starts = range(0, num_people, users_per_shard)
    return [Shard(number, start, min(start + users_per_shard, num_people)) for number, start in enumerate(starts)]


def row_group_rows(list_length: int) -> int:
    return list_length * max(1, ROW_GROUP_ROWS // max(1, list_length))


def add_counts(total: Counts, more: Counts) -> None:
    for what, by_name in more.items():
        own = total.setdefault(what, {})
        for name, count in by_name.items():
            own[name] = own.get(name, 0) + count


# ---- writing


def write_shard(
    folder: Path, shard: Shard, rows: pl.DataFrame, *, key: str, list_length: int, counts: Counts
) -> Sealed:
    """`rows` sorted by user_id, rank. The same rows give the same bytes, whoever writes them.

    Nothing half-written stands under a shard's name, whenever this is killed. Raises OSError (ENOSPC) where the disk
    is full.
    """
    part, aside = folder / f"{shard.name}.parquet", folder / f"{shard.name}.parquet.tmp"
    with _gone_if_it_fails(aside):
        write_rows(rows, aside, list_length=list_length)
        sealed = Sealed(
            key=key,
            shard=shard.number,
            first=shard.start,
            last=shard.stop - 1,
            rows=len(rows),
            users=int((rows["rank"] == 1).sum()),
            num_bytes=aside.stat().st_size,
            sha256=file_sha256(aside),
            counts=counts,
        )
        flush_and_rename(aside, part)
    sidecar, aside = folder / f"{shard.name}.json", folder / f"{shard.name}.json.tmp"
    with _gone_if_it_fails(aside):
        body = asdict(sealed)
        aside.write_text(json.dumps({"body": body, "seal": _seal(body)}, indent=1))
        flush_and_rename(aside, sidecar)
    return sealed


def write_rows(rows: pl.DataFrame, path: Path, *, list_length: int) -> None:
    """zstd Parquet with statistics, in row groups of whole lists."""
    try:
        rows.write_parquet(
            path, compression="zstd", compression_level=COMPRESSION_LEVEL, row_group_size=row_group_rows(list_length)
        )
    except Exception as error:  # Polars says it in words
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, "no space left on the work folder's disk") from error
        raise


@contextmanager
def _gone_if_it_fails(aside: Path) -> Iterator[None]:
    """A disk that is full must not stay so because of us."""
    try:
        yield
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# ---- what an earlier try left


def finished_shard(folder: Path, shard: Shard, key: str) -> Sealed | None:
    """The shard if it is finished, of this night and byte by byte what was written; else None, and why in the log."""
    part, sidecar = folder / f"{shard.name}.parquet", folder / f"{shard.name}.json"
    if not sidecar.exists():
        if part.exists():
            log.warning("%s: it has no sidecar, so it was not finished; computing it again", shard.name)
        elif part.with_suffix(".parquet.tmp").exists():
            log.warning("%s: it is half written; computing it again", shard.name)
        return None
    try:
        return _read(part, sidecar, shard, key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: %s; computing it again", shard.name, error)
        return None


def _read(part: Path, sidecar: Path, shard: Shard, key: str) -> Sealed:
    try:
        written = json.loads(sidecar.read_text())
        body = written["body"]
        sealed = Sealed(**body)
    except (ValueError, KeyError, TypeError):
        raise ValueError("its sidecar cannot be read") from None
    if written["seal"] != _seal(body):
        raise ValueError("its sidecar is not what was written")
    if sealed.key != key:
        raise ValueError("it is of another night (other inputs, settings or code)")
    if (sealed.shard, sealed.first, sealed.last) != (shard.number, shard.start, shard.stop - 1):
        raise ValueError(
            f"it is shard {sealed.shard:,} under another name (people {sealed.first:,} to {sealed.last:,})"
        )
    if not part.exists():
        raise ValueError("its sidecar is there and its rows are gone")
    if (found := part.stat().st_size) != sealed.num_bytes:
        raise ValueError(f"it has {found:,} bytes and was written with {sealed.num_bytes:,}")
    if file_sha256(part) != sealed.sha256:
        raise ValueError("it has other bytes than it was written with")
    return sealed


def drop_strangers(folder: Path, shards: list[Shard]) -> None:
    """Parts beyond tonight's, as a try with smaller shards leaves them: nobody would look at them again."""
    ours = {shard.name for shard in shards}
    for path in sorted(folder.glob("part-*")):
        if path.name.split(".")[0] not in ours:
            log.warning("%s: there is no such shard tonight; removed", path.name)
            path.unlink()
