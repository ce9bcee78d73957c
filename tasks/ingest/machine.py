"""What this machine has, by what is built in and what a container may use of it: the same tomorrow as today."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from tasks.ingest.planner import Machine

CGROUPS = Path("/sys/fs/cgroup")


def this_machine(work_root: str) -> Machine:
    """`work_root` need not be there yet."""
    limits = [psutil.virtual_memory().total, *memory_limits(Path("/proc/self/cgroup"), CGROUPS)]
    return Machine(min(limits), _free_bytes(Path(work_root)), len(os.sched_getaffinity(0)), torch.cuda.device_count())


def memory_limits(own: Path, cgroups: Path) -> Iterator[int]:
    """Of the group that this process is in, and of all around it; version 2, and version 1 as containers mount it.

    `own` is /proc/self/cgroup.
    """
    places = [cgroups / "memory/memory.limit_in_bytes"]
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        group = cgroups / line.rpartition(":")[2].lstrip("/")
        places += [folder / "memory.max" for folder in (group, *group.parents) if folder.is_relative_to(cgroups)]
    for place in places:
        if place.is_file() and (said := place.read_text().strip()).isdigit():
            yield int(said)


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    return shutil.disk_usage(there).free
