"""What the planner says a night will take beside what it took: memory of each stage, on three sizes.

    make bench-planner [DATA=folder] [ROWS=5000000]

MovieLens-100K as it comes; the likes of MovieLens-1M with drawn times (its public split has none); and so many drawn
events of 100,000 users and 20,000 items over ten days. Each night is a process of its own with Prefect's server, of one
epoch: memory does not depend on their number. Peaks are those of the night's audit, of all processes together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.common import PROJECT_ROOT, merge_results
from tasks.config import NightlyConfig
from tasks.ingest.machine import this_machine
from tasks.ingest.opening import look
from tasks.ingest.planner import plan_night
from tasks.ingest.readiness import Clock
from tasks.store import open_store

FIRST_DAY = date(2026, 9, 21)
SETTINGS = [
    "train.max_epochs=1",
    "train.validate_every=1",
    "evaluate.filter_likes_at_most=0",  # minutes on the largest
    "gate.override=popularity",
    "gate.override_reason=a fit of one epoch",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=5_000_000, help="of the drawn events")
    options = parser.parse_args()
    cases: dict[str, Callable[[Path, Path], None]] = {
        "ml100k": put_ml100k,
        "ml1m": put_ml1m,
        "drawn": partial(put_drawn, rows=options.rows),
    }
    details, worst = {}, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, put in cases.items():
            store = Path(scratch) / name
            put(Path(options.data), store)
            stages = compare(store, Path(scratch))
            details[name] = stages
            print(f"\n{name:<14}{'told MiB':>12}{'took MiB':>12}{'told s':>10}{'took s':>10}")
            for stage, found in stages.items():
                print(
                    f"{stage:<14}{found['told_mib']:>12,.0f}{found['took_mib']:>12,.0f}"
                    f"{found['told_s']:>10.1f}{found['took_s']:>10.1f}"
                )
                worst = max(worst, abs(found["told_mib"] / found["took_mib"] - 1))
    merge_results("ingest", "planner", {"planner_memory_off_at_most": worst}, {"cases": details})
    print(f"\noff by {worst:.0%} at most")


def compare(store: Path, scratch: Path) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, str]] = {}
    for setting in SETTINGS:
        name, _, value = setting.partition("=")
        group, _, field = name.partition(".")
        groups.setdefault(group, {})[field] = value
    config = NightlyConfig.model_validate(groups)
    clock = Clock(read=partial(datetime.now, UTC), sleep=time.sleep)
    opened = look(open_store(str(store)), config, night=None, clock=clock)
    told = {stage.stage: stage for stage in plan_night(opened.sizes, config, this_machine(str(scratch))).stages}
    took = run_night(store, scratch)
    return {
        stage: {
            "told_mib": plan.memory_bytes / 2**20,
            "took_mib": took[stage]["peak_bytes"] / 2**20,
            "told_s": plan.seconds,
            "took_s": took[stage]["seconds"],
        }
        for stage, plan in told.items()
    }


def run_night(store: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """Stage -> what it took."""
    command = [sys.executable, "-m", "flows.by_hand", "--force", "--store", str(store), "--set", *SETTINGS]
    environment = os.environ | {"NIGHTGRAPH_WORK": str(scratch / "work"), "PREFECT_HOME": str(scratch / "prefect")}
    ended = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
    audits = sorted((store / "_meta" / "audits").rglob("*.json"), key=lambda path: path.stat().st_mtime)
    if not audits:
        sys.exit(ended.stdout[-3000:] + ended.stderr[-3000:])
    return {cost["stage"]: cost for cost in json.loads(audits[-1].read_text())["costs"]}


# ---- the cases


def put_ml100k(data: Path, store: Path) -> None:
    _put(pl.read_parquet(data / "movielens-100k" / "ratings.parquet"), store / "events" / "ratings.parquet")


def put_ml1m(data: Path, store: Path) -> None:
    likes = pl.concat([pl.read_parquet(data / "movielens-1m" / f"{part}.parquet") for part in ("train", "test")])
    second = np.random.default_rng(0).integers(0, 60 * 86_400, len(likes)) + _seconds(FIRST_DAY)
    events = likes.select(
        user_id=pl.col("user"), item_id=pl.col("item"), rating=pl.lit(5.0), timestamp=pl.Series(second)
    )
    _put(events, store / "events" / "likes.parquet")


def put_drawn(data: Path, store: Path, *, rows: int, users: int = 100_000, items: int = 20_000) -> None:
    rng = np.random.default_rng(1)
    for number in range(10):
        on = FIRST_DAY + timedelta(days=number)
        each = rows // 10
        events = pl.DataFrame(
            {
                "user_id": (rng.pareto(1.2, each) * users / 50).astype(np.int64) % users,
                "item_id": (rng.pareto(0.9, each) * items / 200).astype(np.int64) % items,
                "rating": rng.integers(1, 6, each).astype(np.float32),
                "timestamp": rng.integers(0, 86_400, each) + _seconds(on),
            }
        )
        _put(events, store / f"events/dt={on}/events.parquet")


def _put(events: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    events.write_parquet(path)


def _seconds(on: date) -> int:
    return int(datetime(on.year, on.month, on.day, tzinfo=UTC).timestamp())


if __name__ == "__main__":
    main()
