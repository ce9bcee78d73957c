"""Processes that write shards and kill themselves, as SIGKILL from outside would, at every boundary, one after another.

    python tests/tasks/killed_shards.py spec.json

The boundaries of each shard: `rows` (written aside, not yet under their name), `sidecar` (the rows are in place, their
sidecar is not), `sealed` (just after it). Each process goes on where the one before died; the last one lives. Prints a
line of JSON for each: which boundary, how it ended, which shards it found finished and what it computed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import tasks.recommend.shards as frame
import tasks.recommend.worker as worker

STEPS = ("rows", "sidecar", "sealed")


def write_until(spec: worker.Spec, boundary: tuple[int, str] | None) -> None:
    """In a process of its own. Whatever is computed is noted before anything can happen to it."""
    rename, lists = frame.flush_and_rename, worker.Everybody.lists

    def die_at(shard: int, step: str) -> None:
        if boundary == (shard, step):
            os.kill(os.getpid(), signal.SIGKILL)

    def rename_or_die(aside: Path, path: Path) -> None:
        shard = int(path.stem.removeprefix("part-"))
        die_at(shard, "rows" if path.suffix == ".parquet" else "sidecar")
        rename(aside, path)
        if path.suffix == ".json":
            die_at(shard, "sealed")

    def noted(self: worker.Everybody, start: int, stop: int, **rest: object) -> object:
        with open(Path(spec.folder) / "computed", "a") as note:
            note.write(f"{start // spec.users_per_shard}\n")
        return lists(self, start, stop, **rest)  # type: ignore[arg-type]

    frame.flush_and_rename = rename_or_die
    worker.Everybody.lists = noted  # type: ignore[method-assign, assignment]
    worker.write_shards(spec)


def main(spec_path: str) -> None:
    spec = worker.Spec.read(spec_path)
    boundaries = [(shard.number, step) for shard in spec.shards for step in STEPS]
    for boundary in [*boundaries, None]:
        sealed = sorted(path.stem for path in Path(spec.folder).glob("part-*.json"))
        (Path(spec.folder) / "computed").write_text("")
        child = os.fork()  # before any thread of torch or Polars runs here
        if child == 0:
            write_until(spec, boundary)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        computed = [int(line) for line in (Path(spec.folder) / "computed").read_text().splitlines()]
        told = {
            "boundary": boundary,
            "code": os.waitstatus_to_exitcode(status),
            "sealed_before": sealed,
            "computed": computed,
        }
        print(json.dumps(told), flush=True)
    (Path(spec.folder) / "computed").unlink()


if __name__ == "__main__":
    main(sys.argv[1])
