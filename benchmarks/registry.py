"""The id registry at scale: ten million ids, and a night that brings a hundred thousand new ones.

    make bench-ingest

A registry of text ids in a local folder is filled first. Then, in a process of its own, a night opens it, asks for the
rows of its users (as many known ones as new ones) and commits what is new. Seconds are from opening to the commit, the
peak is the whole process's, with Python and Polars in it. Floor: the ids' bytes are read and hashed once, and a table
of the asked ids is looked up for each of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import PROJECT_ROOT, merge_results
from tasks.registry import extend, open_registry
from tasks.store import open_store

NO_ITEMS = pl.Series("id", [], dtype=pl.String)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--new", type=int, default=100_000)
    parser.add_argument("--add-to", help=argparse.SUPPRESS)  # the measured process
    options = parser.parse_args()
    if options.add_to:
        print(json.dumps(add(options.add_to, options.ids, options.new)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(scratch)
        extend(store, open_registry(store), user_ids(0, options.ids), NO_ITEMS)
        measured = run_apart(scratch, options.ids, options.new)
        floor_s = seconds_to_read(Path(scratch))
    size = f"{options.ids / 1e6:g} M ids, {options.new:,} new"
    print(
        f"{size}: {measured['seconds']:.2f} s, peak {measured['peak_gib']:.2f} GiB; reading the bytes {floor_s:.2f} s"
    )
    figures = {"registry_10m_seconds": measured["seconds"], "registry_10m_peak_gib": measured["peak_gib"]}
    details = measured | {"ids": options.ids, "new": options.new, "seconds_to_read_and_hash": floor_s}
    merge_results("ingest", "registry", figures if options.ids == 10_000_000 else {}, details)


def user_ids(start: int, stop: int) -> pl.Series:
    """Text of 16 characters, longer than what is kept in place, in an order that is not the rows'."""
    scattered = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return pl.select(
        pl.format("u{}", pl.Series(scattered).cast(pl.String).str.pad_start(20, "0").str.slice(5))
    ).to_series()


def run_apart(folder: str, num_ids: int, num_new: int) -> dict[str, float]:
    words = ["-m", "benchmarks.registry", "--add-to", folder, "--ids", str(num_ids), "--new", str(num_new)]
    done = subprocess.run([sys.executable, *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def add(folder: str, num_ids: int, num_new: int) -> dict[str, float]:
    store = open_store(folder)
    tonight = user_ids(num_ids - num_new, num_ids + num_new)
    started = time.perf_counter()
    registry = extend(store, open_registry(store), tonight, NO_ITEMS)
    rows = registry.rows_of("users", tonight)
    seconds = time.perf_counter() - started
    assert registry.version.users == num_ids + num_new
    assert (rows >= 0).all()
    return {"seconds": seconds, "peak_gib": peak_gib()}


def peak_gib() -> float:
    """Of this program alone: what getrusage says begins with the memory of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**20


def seconds_to_read(folder: Path) -> float:
    store = open_store(str(folder))
    started = time.perf_counter()
    for segment in open_registry(store).commit.users.segments:
        store.read(segment.key)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
