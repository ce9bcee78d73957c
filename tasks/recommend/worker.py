"""Write shards. `python -m tasks.recommend.worker spec.json`, alone or by torchrun, by hand or under tasks/ranks.py.

Rank r of P takes the shards whose number leaves r when divided by P, and never talks to the others: an item of a list
depends on its user and on nothing that the other ranks do. A shard that is finished is passed over, so whoever comes
after a kill goes on at the first one that is missing. Knows files; neither Prefect nor object storage.
"""

import errno
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from models.distributed import place_among_ranks
from models.processes import die_with_parent
from models.progress import write_json
from tasks.errors import NightError
from tasks.recommend.lists import Everybody, Sources
from tasks.recommend.shards import Counts, Shard, add_counts, cut_into_shards, finished_shard, write_shard

EVERY_S = 0.2  # progress on disk


@dataclass(frozen=True)
class Spec:
    """What ranks are told. All of it but `folder`, `block_bytes` and `threads` decides the bytes."""

    folder: str  # where the shards go
    key: str  # of the night's inputs and settings
    users_per_shard: int
    list_length: int
    block_bytes: int
    threads: int  # of each rank
    sources: Sources

    @classmethod
    def read(cls, path: str | Path) -> "Spec":
        told = json.loads(Path(path).read_text())
        return cls(**{**told, "sources": Sources(**told["sources"])})

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @property
    def shards(self) -> list[Shard]:
        return cut_into_shards(self.sources.num_people, self.users_per_shard)


@dataclass(frozen=True)
class Progress:
    """Of one rank or of all: how many people are done of how many, and at what rate."""

    done: int
    reused: int  # of these, how many stood in shards that were finished before
    people: int
    seconds: float

    @property
    def rate(self) -> float:
        """Users a second, of those that were computed."""
        return (self.done - self.reused) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.people - self.done) / self.rate if self.rate else None


def write_shards(
    spec: Spec, *, rank: int = 0, world: int = 1, beat: Callable[[Progress], None] = lambda _: None
) -> None:
    """This rank's missing shards, one after another. `beat` is called at every sign of life.

    Raises ModelNotFinite, and OSError (ENOSPC) where the disk is full.
    """
    folder = Path(spec.folder)
    own = spec.shards[rank::world]
    people_of_rank = sum(shard.stop - shard.start for shard in own)
    started = time.perf_counter()
    reused = 0
    missing = []
    for shard in own:
        if finished_shard(folder, shard, spec.key):
            reused += shard.stop - shard.start
        else:
            missing.append(shard)
        beat(Progress(reused, reused, people_of_rank, time.perf_counter() - started))
    if not missing:
        return
    everybody = Everybody(spec.sources)
    started, done = time.perf_counter(), reused
    for shard in missing:
        for people in _write(everybody, spec, shard):
            done += people
            beat(Progress(done, reused, people_of_rank, time.perf_counter() - started))


def _write(everybody: Everybody, spec: Spec, shard: Shard) -> Iterator[int]:
    """How many people are listed, block after block. Its rows are gone before the next shard's are made."""
    frames: list[pl.DataFrame] = []
    counts: Counts = {}
    for listed in everybody.lists(shard.start, shard.stop, block_bytes=spec.block_bytes, threads=spec.threads):
        frames.append(listed.rows)
        add_counts(counts, listed.counts)
        yield listed.people
    rows = pl.concat(frames, rechunk=False)  # no copy
    frames.clear()
    write_shard(Path(spec.folder), shard, rows, key=spec.key, list_length=spec.list_length, counts=counts)


# ---- a process of its own


class _Voice:
    """Tells the outside that this rank is alive, and how far it is."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.told_at = 0.0

    def __call__(self, progress: Progress) -> None:
        (self.folder / f"heartbeat-{self.rank}").touch()
        now = time.monotonic()
        if progress.done == progress.people or now - self.told_at > EVERY_S:
            self.told_at = now
            write_json(self.folder / f"progress-{self.rank}.json", asdict(progress))


@contextmanager
def _named_failures(folder: Path) -> Iterator[None]:
    """Leave a failure.json for whoever launched this where the reason has a name."""
    try:
        yield
    except NightError as error:
        write_json(folder / "failure.json", {"name": type(error).__name__, "message": str(error)})
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            write_json(folder / "failure.json", {"name": "DiskFull", "message": ""})
        raise


def main(spec_path: str) -> None:
    die_with_parent()
    spec = Spec.read(spec_path)
    rank, world = place_among_ranks()
    folder = Path(spec.folder)
    torch.set_num_threads(spec.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    with _named_failures(folder):
        write_shards(spec, rank=rank, world=world, beat=_Voice(folder, rank))
    result: dict[str, Any] = {"rank": rank, "world": world}
    write_json(folder / f"result-{rank}.json", result)


if __name__ == "__main__":
    main(sys.argv[1])
