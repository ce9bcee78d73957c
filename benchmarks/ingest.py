"""Event files to edge arrays: a hundred million events beside plain Polars, twice as many, a second night, one hash.

    make bench-ingest [ROWS=100000000] [PARTS="files second growth hashes"] [SCRATCH=folder]

Drawn events: thirty days, a file each, of ROWS / 100 users and ROWS / 500 items by Zipf's law, ids as text, a rating
and a moment each; one row in a hundred is delivered twice, one in ten thousand breaks a rule. Every run is a process of
its own on two threads, and its peak is what the kernel saw of it (VmHWM, mapped files included). Needs about 120 bytes
of disk a row, twice that for `growth`, in the scratch folder, which is gone at the end.

files    the ingest and graph rooms' own path (list, inspect, scan, rules, compact, merge; split, arrays, adjacency),
         the same pairs by Polars alone (benchmarks/ingest_peer.py), and a bare scan of all columns
second   thirty days where twenty-nine are digested, beside all thirty anew
growth   the whole path once more, and with twice the events
hashes   the graph of 200,000 events over file order, row order, threads, hash seeds and days digested before
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.common import PROJECT_ROOT, merge_results
from benchmarks.registry import peak_gib

DAYS = 30
FIRST_DAY = date(2026, 1, 1)
AS_OF = FIRST_DAY + timedelta(days=DAYS)
PARTS = ("files", "second", "growth", "hashes")
ROUNDS = 2
Details = dict[str, Any]
FULL_SIZE = 100_000_000
HASH_RUNS = 20
HASHED_ROWS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=FULL_SIZE)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--scratch", type=Path, help="where the events are written; default: a temporary folder")
    parser.add_argument("--apart", nargs="+", help=argparse.SUPPRESS)  # a measured process: what, and where
    options = parser.parse_args()
    if options.apart:
        what, *arguments = options.apart
        print(json.dumps(APART[what](*map(Path, arguments))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        details = {part: MEASURED[part](Path(scratch), options.rows) for part in PARTS if part in options.parts}
    report(details, options.rows)


def report(details: dict[str, Details], rows: int) -> None:
    for part, found in details.items():
        figures = found.pop("figures")
        merge_results("ingest", part, figures if rows == FULL_SIZE or part == "hashes" else {}, found | {"rows": rows})
        if rows != FULL_SIZE:
            print("\n".join(f"  {name:<44}{value:.6g}" for name, value in figures.items()))


# ---- parts


def measure_files(scratch: Path, rows: int) -> Details:
    store = events_of(scratch / "store", rows)
    runs: dict[str, list[Details]] = {"night": [], "peer": [], "scan": []}
    for _ in range(ROUNDS):  # in turn, so that a busy minute falls on all of them
        runs["night"].append(run("night", store, scratch / "work"))
        runs["peer"].append(run("peer", store, scratch / "work"))
        runs["scan"].append(run("scan", store))
    ours, peer, scan = (best_of(runs[name]) for name in ("night", "peer", "scan"))
    for name in ("pairs", "likes", "time_sum"):
        if ours[name] != peer[name]:
            raise SystemExit(f"the two do not agree on {name}: {ours[name]} and {peer[name]}")
    say("ours, files -> pairs", ours["ingest_s"], ours["ingest_peak_gib"])
    say("ours, pairs -> edge arrays", ours["graph_s"], ours["peak_gib"])
    say("Polars, the same pairs", peer["ingest_s"], peer["peak_gib"])
    say("Polars, a bare scan", scan["ingest_s"], scan["peak_gib"])
    return {
        "runs": runs,
        "figures": {
            "ingest_100m_over_polars": ours["ingest_s"] / peer["ingest_s"],
            "ingest_100m_over_scan": ours["ingest_s"] / scan["ingest_s"],
            "ingest_100m_peak_gib": max(found["peak_gib"] for found in runs["night"]),
        },
    }


def measure_growth(scratch: Path, rows: int) -> Details:
    """Peaks and seconds at both sizes; there are twice the users and items, too."""
    found = {}
    for name, size in (("once", rows), ("twice", 2 * rows)):
        store = events_of(scratch / ("store" if name == "once" else name), size)
        found[name] = run("night", store, scratch / "work")
        say(f"{size:,} files -> edge arrays", found[name]["ingest_s"] + found[name]["graph_s"], found[name]["peak_gib"])
    shutil.rmtree(scratch / "twice")
    ratio = found["twice"]["peak_gib"] / found["once"]["peak_gib"]
    return found | {"figures": {"ingest_200m_over_100m_peak": ratio}}


def measure_second(scratch: Path, rows: int) -> Details:
    store = events_of(scratch / "store", rows)
    newest = store / "events" / f"dt={AS_OF - timedelta(days=1)}"
    newest.rename(scratch / "newest")
    run("ingest", store, scratch / "work")
    (scratch / "newest").rename(newest)
    second = run("ingest", store, scratch / "work")
    forget_digested(store)
    full = run("ingest", store, scratch / "work")
    if second["fingerprint"] != full["fingerprint"]:
        raise SystemExit("a night that used digested days has other pairs than one that read all files")
    say("all thirty days", full["ingest_s"], full["peak_gib"])
    say("one new day of thirty", second["ingest_s"], second["peak_gib"])
    return {
        "second": second,
        "full": full,
        "figures": {"second_night_over_full": second["ingest_s"] / full["ingest_s"]},
    }


def measure_hashes(scratch: Path, rows: int) -> Details:
    """Twenty nights of the same events; each after the first has them in other files and rows, on 1 or 2 threads."""
    graphs = []
    for number in range(HASH_RUNS):
        rng = random.Random(number)
        store = scratch / f"hashed-{number}"
        write_events(store, HASHED_ROWS, shuffled=number)
        if number % 4 == 3:  # some days digested by an earlier night: the registry numbers in another order
            late = sorted(store.glob("events/*"))[rng.randrange(1, DAYS) :]
            aside = scratch / "late"
            aside.mkdir()
            for folder in late:
                folder.rename(aside / folder.name)
            run("ingest", store, scratch / "work", threads=1)
            for folder in late:
                (aside / folder.name).rename(folder)
            aside.rmdir()
        graphs.append(run("night", store, scratch / "work", threads=1 + number % 2, hash_seed=number)["graph"])
        shutil.rmtree(store)
    print(f"{len(set(graphs))} graph of {len(graphs)} nights")
    return {"figures": {"graph_hashes": len(set(graphs)), "graph_hash_runs": len(graphs)}}


MEASURED: dict[str, Callable[[Path, int], Details]] = {
    "files": measure_files,
    "second": measure_second,
    "growth": measure_growth,
    "hashes": measure_hashes,
}


# ---- measured processes


def run(what: str, *folders: Path, threads: int = 2, hash_seed: int = 0) -> Details:
    store, *work = folders
    if what in ("night", "peer"):
        forget_digested(store, unless=what == "night" and store.name.startswith("hashed-"))
    environment = os.environ | {
        "POLARS_MAX_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(hash_seed),
    }
    words = [sys.executable, "-m", "benchmarks.ingest", "--apart", what, *map(str, folders)]
    if threads == 1:
        words = ["taskset", "-c", "0", *words]
    done = subprocess.run(words, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
    for folder in work:
        shutil.rmtree(folder, ignore_errors=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def forget_digested(store: Path, *, unless: bool = False) -> None:
    for name in ("_meta", "days", "registry", "quarantine"):
        if not unless:
            shutil.rmtree(store / name, ignore_errors=True)


def ingest(store: Path, work: Path) -> Details:
    from tasks.config import IngestConfig
    from tasks.ingest.earlier import read_earlier
    from tasks.ingest.inspection import inspect_files
    from tasks.ingest.interactions import digest
    from tasks.ingest.sources import pin_inputs
    from tasks.store import open_store

    started = time.perf_counter()
    opened, settings = open_store(str(store)), IngestConfig()
    work.mkdir(parents=True)
    events = pin_inputs(opened, settings)
    schema = inspect_files(opened, events, settings, known=read_earlier(opened, events, settings).files)
    found = digest(opened, events, schema, work, as_of=AS_OF, settings=settings)
    seconds = time.perf_counter() - started
    return {
        "ingest_s": seconds,
        "peak_gib": peak_gib(),
        "ingest_peak_gib": peak_gib(),
        "pairs": found.kept + found.below_threshold,
        "likes": found.kept,
        "users": found.num_users,
        "items": found.num_items,
        "fingerprint": found.fingerprint,
    }


def night(store: Path, work: Path) -> Details:
    from tasks.config import GraphConfig
    from tasks.graph.task import graph_of

    found = ingest(store, work / "pairs")
    (work / "graph").mkdir()
    started = time.perf_counter()
    graph = graph_of(work / "pairs", work / "graph", GraphConfig())
    return found | {
        "graph_s": time.perf_counter() - started,
        "peak_gib": peak_gib(),
        "graph": graph.fingerprint,
        # Once the peak is read: what is summed here is mapped, and counts as this process's memory.
        "time_sum": int(np.load(work / "pairs" / "timestamp_us.npy", mmap_mode="r").sum()),
    }


def peer(store: Path, work: Path) -> Details:
    from benchmarks.ingest_peer import pairs_by_polars

    started = time.perf_counter()
    work.mkdir(parents=True)
    files = pairs_by_polars(sorted(store.glob("events/*/*.parquet")), work)
    seconds = time.perf_counter() - started
    pairs = pl.scan_parquet(files).select(pairs=pl.len(), likes=pl.col("liked").sum(), time_sum=pl.col("latest").sum())
    return {"ingest_s": seconds, "peak_gib": peak_gib(), **pairs.collect().row(0, named=True)}


def scan(store: Path) -> Details:
    started = time.perf_counter()
    columns = pl.scan_parquet(store / "events/**/*.parquet").select(
        pl.col("user_id", "item_id").str.len_bytes().sum(), pl.col("rating", "timestamp").sum()
    )
    columns.collect(engine="streaming")
    return {"ingest_s": time.perf_counter() - started, "peak_gib": peak_gib()}


APART: dict[str, Callable[..., Details]] = {"ingest": ingest, "night": night, "peer": peer, "scan": scan}


# ---- events


def events_of(store: Path, rows: int) -> Path:
    if not store.exists():
        write_events(store, rows)
    return store


def write_events(store: Path, rows: int, *, shuffled: int = 0) -> None:
    """The same rows for the same `rows`; `shuffled` says in which order, and in how many files a day."""
    users, items = max(2, rows // 100), max(2, rows // 500)
    user_cdf, item_cdf = (zipf_cdf(*size) for size in ((users, 0.6), (items, 0.8)))
    for number in range(DAYS):
        rng = np.random.default_rng((rows, number))
        count = rows // DAYS
        midnight = datetime.combine(FIRST_DAY + timedelta(days=number), datetime.min.time(), UTC).timestamp()
        # Who is first by Zipf's law has nothing to do with the order of ids.
        user = np.searchsorted(user_cdf, rng.random(count)) * 2_654_435_761 % users
        item = np.searchsorted(item_cdf, rng.random(count)) * 2_654_435_761 % items
        rating = rng.integers(1, 11, count) / 2
        rating[rng.random(count) < 1e-4] = np.nan
        frame = pl.DataFrame(
            {"user": user, "item": item, "rating": rating, "timestamp": midnight + rng.integers(0, 86_400, count)}
        ).select(
            pl.format("u{}", pl.col("user").cast(pl.String).str.zfill(9)).alias("user_id"),
            pl.format("i{}", pl.col("item").cast(pl.String).str.zfill(8)).alias("item_id"),
            pl.col("rating").cast(pl.Float32),
            pl.col("timestamp").cast(pl.Int64),
        )
        frame = pl.concat([frame, frame.head(count // 100)])
        folder = store / f"events/dt={FIRST_DAY + timedelta(days=number)}"
        folder.mkdir(parents=True)
        if shuffled:
            frame = frame.sample(fraction=1.0, shuffle=True, seed=shuffled)
        files = 1 + shuffled % 3
        for file in range(files):
            part = frame.gather_every(files, file)
            part.write_parquet(folder / f"{(file * 7 + shuffled) % 10}.parquet", row_group_size=1 << 20)


def zipf_cdf(count: int, exponent: float) -> np.ndarray:
    weight = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    return weight / weight[-1]


def best_of(runs: list[Details]) -> Details:
    """The quickest: others on this machine only ever slow a run down."""
    return min(runs, key=lambda found: found["ingest_s"])


def say(what: str, seconds: float, gib: float) -> None:
    print(f"{what:<32}{seconds:>10.1f} s{gib:>10.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
