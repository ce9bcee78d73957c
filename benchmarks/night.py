"""Whole nights on MovieLens, both splits: seconds and memory of each stage, quality beside the baselines.

    make bench-night [DATA=folder]

DATA holds movielens-100k/ratings.parquet and movielens-small/ratings.parquet (user_id, item_id, rating, timestamp in
seconds). Each night is `make nightly FORCE=1`: a process of its own with Prefect's embedded server. The first of a
data set and split warms the disk and is not counted; the median of the others is. Prints the tables and writes
benchmarks/results/night.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import PROJECT_ROOT, commit, machine

DATA_SETS = {"ml100k": "movielens-100k", "mlsmall": "movielens-small"}
SPLITS = ("per_user_time", "global_time")
MODELS = {
    "lightgcn": "LightGCN",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "graph_filter": "graph filter",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--nights", type=int, default=3, help="counted nights of each data set and split")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = {
            f"{name}_{split}": run_nights(Path(options.data) / folder, split, options.nights, Path(scratch))
            for name, folder in DATA_SETS.items()
            for split in SPLITS
        }
    report = {
        "machine": machine(),
        "commit": commit(),
        "figures": figures(results),
        "nights": results,
    }
    path = PROJECT_ROOT / "benchmarks" / "results" / "night.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print_tables(results, report)
    print(f"\nwritten to {path.relative_to(PROJECT_ROOT)}")


def run_nights(folder: Path, split: str, counted: int, scratch: Path) -> dict[str, Any]:
    """The last night's audit, and the seconds of the counted ones."""
    store = scratch / f"{folder.name}-{split}"
    command = [
        sys.executable,
        "-m",
        "flows.by_hand",
        "--force",
        "--ratings",
        str((folder / "ratings.parquet").resolve()),
    ]
    command += ["--store", str(store), "--set", f"graph.split={split}"]
    environment = os.environ | {"NIGHTGRAPH_WORK": str(scratch / "work"), "PREFECT_HOME": str(scratch / "prefect")}
    seconds = []
    for night in range(counted + 1):
        started = time.perf_counter()
        ended = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            sys.exit(ended.stdout[-3000:] + ended.stderr[-3000:])
        if night > 0:
            seconds.append(time.perf_counter() - started)
        print(f"{folder.name} {split} night {night}: {time.perf_counter() - started:.1f} s", flush=True)
    audits = sorted((store / "_meta" / "audits").rglob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = [json.loads(path.read_text())["costs"] for path in audits[1:]]
    audit = json.loads(audits[-1].read_text())
    return {
        "night_seconds": seconds,
        "stages": {
            cost["stage"]: {
                "seconds": statistics.median(
                    c["seconds"] for costs in stages for c in costs if c["stage"] == cost["stage"]
                ),
                "peak_mib": max(c["peak_bytes"] for costs in stages for c in costs if c["stage"] == cost["stage"])
                / 2**20,
            }
            for cost in audit["costs"]
        },
        "scores": audit["evaluation"]["scores"],
        "recall_by_history": audit["evaluation"]["recall_by_history"],
        "users_by_history": audit["evaluation"]["users_by_history"],
        "over_popularity": audit["evaluation"]["over_popularity"],
        "epochs": audit["fitted"]["epochs"],
    }


def figures(results: dict[str, Any]) -> dict[str, float]:
    """Flat: nights and quality on the per-user split."""
    flat = {}
    for name in DATA_SETS:
        night = results[f"{name}_per_user_time"]
        flat[f"{name}_night_seconds"] = statistics.median(night["night_seconds"])
        flat[f"{name}_peak_gib"] = max(stage["peak_mib"] for stage in night["stages"].values()) / 1024
        recall = {s["model"]: s["recall"]["mean"] for s in night["scores"] if s["part"] == "test"}
        flat[f"{name}_recall_at_20"] = recall["lightgcn"]
        flat[f"{name}_popularity_recall_at_20"] = recall["popularity"]
        flat[f"{name}_itemknn_recall_at_20"] = recall["item_knn"]
        flat[f"{name}_graph_filter_recall_at_20"] = recall["graph_filter"]
        if "ease" in recall:
            flat[f"{name}_ease_recall_at_20"] = recall["ease"]
    return flat


def print_tables(results: dict[str, Any], report: dict[str, Any]) -> None:
    print(f"\n{report['machine']}, commit {report['commit']}")
    print(f"\n{'quality on test (95 % interval)':<34}{'recall@20':<28}{'ndcg@20':<28}users")
    for name, night in results.items():
        print(f"{name}, {night['epochs']} epochs")
        for score in night["scores"]:
            if score["part"] == "test":
                recall, ndcg = (
                    f"{m['mean']:.4f} ({m['low']:.4f}-{m['high']:.4f})" for m in (score["recall"], score["ndcg"])
                )
                print(f"  {MODELS[score['model']]:<32}{recall:<28}{ndcg:<28}{score['num_users']}")
    print(f"\n{'stage: seconds (peak MiB)':<34}" + "".join(f"{name:<26}" for name in results))
    for stage in next(iter(results.values()))["stages"]:
        cells = (night["stages"][stage] for night in results.values())
        print(f"{stage:<34}" + "".join(f"{c['seconds']:6.2f} ({c['peak_mib']:,.0f})".ljust(26) for c in cells))
    totals = (statistics.median(night["night_seconds"]) for night in results.values())
    print(f"{'the whole process':<34}" + "".join(f"{total:6.2f}".ljust(26) for total in totals))
    print("\n" + "\n".join(f"{name:<40}{value:.4f}" for name, value in report["figures"].items()))


if __name__ == "__main__":
    main()
