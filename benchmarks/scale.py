"""The recommend stage's own processes at scale: peak memory of a million people, and two ranks against one.

    make bench-topk

Random tables, 64 wide, ten likes a person, rules and reasons as a night has them; lists are written to disk as shards.
Rules: 5 % of the items unavailable, three segments of which one has items of its own, one blocked pair for every
hundred people. Similar items are not in: the night's own process writes them after the lists.
Memory: 1 M people x 100,000 items under the cap of 2 GiB; everything is loaded, a tenth of the shards is computed, and
the time of all is ten times that (shards are alike). Ranks: 200,000 people x 40,981 items by one process of one thread
and by two, the median of three rounds' ratios; start-up is in the wall time and not in the ranks' own seconds.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from benchmarks.common import PROJECT_ROOT, merge_results
from models.graph import interactions_by_user, save_arrays
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Tables
from tasks.recommend.everyone import plan_lists

WIDTH = 64
LIKES_EACH = 10
CAP_MIB = 2048
ROUNDS = 3
NIGHT = date(2026, 11, 25)
DAY_US = 86_400_000_000
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--ranks-people", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures, details = memory(Path(scratch) / "memory", options.people, options.items)
        shutil.rmtree(Path(scratch) / "memory")
        more, ranks_details = two_ranks(Path(scratch) / "ranks", options.ranks_people)
    merge_results("topk", "scale", figures | more, details | ranks_details)


def made_up_night(folder: Path, num_people: int, num_items: int) -> tuple[Graph, Fitted]:
    """What the graph and train stages leave, as far as lists are made of it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    user_E = np.repeat(np.arange(num_people), LIKES_EACH)
    pair_E = np.unique(user_E * num_items + (num_items * rng.random(len(user_E)) ** 2).astype(np.int64))
    liked = interactions_by_user(pair_E // num_items, pair_E % num_items, num_people)
    for name in ("liked_all", "seen_all"):
        save_arrays(folder, name, liked)
    night_us = (NIGHT - date(1970, 1, 1)).days * DAY_US
    at_E = night_us - 1 - (rng.random(len(pair_E)) * 100 * DAY_US).astype(np.int64)
    np.save(folder / "seen_at.npy", at_E)
    np.save(folder / "liked_at.npy", at_E)
    np.save(folder / "item_first_seen.npy", np.full(num_items, night_us - 100 * DAY_US))
    np.save(folder / "item_rank.npy", np.arange(num_items, dtype=np.int32))
    for name, count in (("user", num_people), ("item", num_items)):
        pl.DataFrame({f"{name}_id": np.arange(count)}).write_parquet(folder / f"{name}_ids.parquet")
    generator = torch.Generator().manual_seed(0)
    served = {
        "user_UD": torch.randn(num_people, WIDTH + 1, generator=generator),
        "item_ID": torch.randn(num_items, WIDTH + 1, generator=generator),
        "hop_ID": torch.randn(num_items, WIDTH, generator=generator),
        "scale_U": torch.ones(num_people),
        "fold_ID": torch.randn(num_items, WIDTH, generator=generator),
        "fold_length": torch.ones(1),
    }
    save_file(served, folder / "served.safetensors")
    graph = Graph(str(folder), "made up", "", num_people, num_items, len(pair_E), 0, 0, 0, 0, 0, 0)
    path = str(folder / "served.safetensors")
    return graph, Fitted(str(folder), path, path, "made up", 0, 0.0, 0.0, 0.0, 1, 1, "cpu", "", 0.0, 0, "", 0)


def made_up_tables(folder: Path, num_people: int, num_items: int) -> Tables:
    rng = np.random.default_rng(1)
    item_I, segment_I = np.arange(num_items), [["a"] if item % 50 == 0 else [] for item in range(num_items)]
    pair_E = np.unique(rng.integers(0, num_people * num_items, num_people // 100))
    frames = {
        "items": pl.DataFrame({"item_id": item_I, "available": rng.random(num_items) >= 0.05, "segments": segment_I}),
        "segments": pl.DataFrame(
            {"user_id": np.arange(num_people), "segment": rng.choice(["a", "b", "c"], num_people)}
        ),
        "blocked": pl.DataFrame({"user_id": pair_E // num_items, "item_id": pair_E % num_items}),
    }
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return Tables(str(folder), "made up", {name: len(frame) for name, frame in frames.items()}, {})


def run_ranks(spec_path: Path, *, ranks: int, world: int) -> tuple[float, float, int]:
    """(wall seconds, the slowest rank's own seconds, peak bytes of the largest) of the first `ranks` of `world`."""
    started = time.perf_counter()
    running = []
    for rank in range(ranks):
        environment = os.environ | {
            "PYTHONPATH": str(PROJECT_ROOT),
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [sys.executable, "-m", "tasks.recommend.worker", str(spec_path)]
        running.append(subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT))
    peak = 0
    while any(process.poll() is None for process in running):
        peak = max([peak, *(peak_of(process.pid) for process in running)])
        time.sleep(0.02)
    wall = time.perf_counter() - started
    assert all(process.returncode == 0 for process in running)
    own = [json.loads((spec_path.parent / f"progress-{rank}.json").read_text())["seconds"] for rank in range(ranks)]
    return wall, max(own), peak


def peak_of(pid: int) -> int:
    """Not ru_maxrss: a child inherits that of the process that started it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def memory(folder: Path, num_people: int, num_items: int) -> tuple[dict[str, float], dict[str, object]]:
    graph, fitted = made_up_night(folder / "night", num_people, num_items)
    settings = RecommendConfig(memory_mib=CAP_MIB, users_per_shard=num_people // 20, similar_items=0)
    (folder / "lists").mkdir()
    tables = made_up_tables(folder / "night", num_people, num_items)
    spec = plan_lists(graph, fitted, settings, folder / "lists", tables=tables, as_of=NIGHT)
    spec.write(folder / "lists" / "spec.json")
    parts = min(10, len(spec.shards))
    wall, seconds, peak = run_ranks(folder / "lists" / "spec.json", ranks=1, world=parts)
    written = sum(path.stat().st_size for path in (folder / "lists").glob("part-*.parquet"))
    print(
        f"{num_people:,} people x {num_items:,} items: peak {peak / GIB:.2f} GiB under a cap of {CAP_MIB / 1024:.0f}; "
        f"a {parts}th took {seconds:.0f} s ({spec.threads} threads), {written / 2**20:.0f} MiB written",
        flush=True,
    )
    figures = {"peak_gib_1m_users": peak / GIB, "seconds_1m_users_extrapolated": seconds * parts}
    return figures, {"memory": {"wall_s": wall, "part_s": seconds, "parts": parts, "spec": spec.block_bytes}}


def two_ranks(folder: Path, num_people: int) -> tuple[dict[str, float], dict[str, object]]:
    graph, fitted = made_up_night(folder / "night", num_people, 40_981)
    tables = made_up_tables(folder / "night", num_people, 40_981)
    runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    digests = set()
    for _ in range(ROUNDS):
        for ranks, taken in runs.items():
            lists = folder / f"lists-{ranks}"
            shutil.rmtree(lists, ignore_errors=True)
            lists.mkdir()
            settings = RecommendConfig(ranks=2, users_per_shard=num_people // 20, similar_items=0)
            spec = plan_lists(graph, fitted, settings, lists, tables=tables, as_of=NIGHT)
            replace(spec, threads=1).write(lists / "spec.json")
            wall, seconds, _ = run_ranks(lists / "spec.json", ranks=ranks, world=ranks)
            taken.append((wall, seconds))
            digest = hashlib.sha256()
            for path in sorted(lists.glob("part-*.parquet")):
                digest.update(path.read_bytes())
            digests.add(digest.hexdigest())
            print(f"{ranks} ranks of 1 thread: {seconds:.1f} s, with start-up {wall:.1f} s", flush=True)
    assert len(digests) == 1, "one rank and two wrote different bytes"
    rounds = list(zip(runs[1], runs[2], strict=True))
    return {
        "ranks2_speedup": statistics.median(one[1] / two[1] for one, two in rounds),
        "ranks2_speedup_with_start_up": statistics.median(one[0] / two[0] for one, two in rounds),
    }, {"ranks": {str(ranks): taken for ranks, taken in runs.items()}, "people": num_people}


if __name__ == "__main__":
    main()
