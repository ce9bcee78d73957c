"""Ten nights of MovieLens in a row, replayed by date: training that starts cold every night beside one that goes on.

    make bench-warm [DATA=folder] [ONLY="ml100k"]

Every night knows the events of the days before it and nothing else, is split at one moment as nights are, and trains
its judged fit twice by the night's own rules: cold, and from what the warm fit of the night before left (through the
same file, in float16). Both look at validation after each epoch and wait as many epochs for a better look as nights do.
The same quality is 98 % of what both reach at their best, so that neither is compared with a lucky look of the other.
A warm start that is faster but worse would show in the last lines: validation and test recall of the look that each
night takes. Three seeds; nothing is chosen on test.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from benchmarks.common import merge_results, spec_of, write_movielens
from models.distributed import Ranks
from models.graph import load_csr
from models.train import Spec, fit
from models.validation import Validation
from tasks.config import NightlyConfig
from tasks.contracts import Graph, Run, WarmSource
from tasks.store import open_store
from tasks.train.start import choose_start, leave_for_the_next
from tasks.warm import warm_key

DAY_S = 86_400
NIGHTS = 10
SEEDS = (2020, 2021, 2022)
SAME = 0.98  # of the recall that both fits of a night reach
# ML-100K has events every day. The small set's 10 last days have 300 events: its nights are 30 days apart.
DATA_SETS = {"ml100k": ("movielens-100k", 1), "mlsmall": ("movielens-small", 30)}
ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = NightlyConfig.model_validate({"train": {"warm_start": True}})


@dataclass(frozen=True)
class Trained:
    recalls: list[float]  # on validation, by epoch
    seconds: list[float]  # after each epoch, the start included
    test_recall: float  # at the best look

    @property
    def best(self) -> float:
        return max(self.recalls)

    def epochs_to(self, recall: float) -> int:
        return next(epoch for epoch, found in enumerate(self.recalls, start=1) if found >= recall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="settings of the warm fits")
    options = parser.parse_args()
    changes = {name: float(value) for name, value in (one.split("=") for one in options.set)}
    torch.set_num_threads(1)
    for name in options.only:
        folder, days_apart = DATA_SETS[name]
        ratings = pl.read_parquet(Path(options.data) / folder / "ratings.parquet")
        nights = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as scratch:
                nights += replay(ratings, days_apart, seed, Path(scratch), changes)
        figures = compared(nights)
        print_table(name, nights, figures)
        if changes:
            continue  # what was tried is no result
        prefix = "warm_start" if name == "ml100k" else f"warm_start_{name}"
        merge_results(
            "ingest", prefix, {f"{prefix}_{figure}": value for figure, value in figures.items()}, by_seed(nights)
        )


def replay(
    ratings: pl.DataFrame, days_apart: int, seed: int, scratch: Path, changes: dict[str, float]
) -> list[dict[str, Trained]]:
    """Both ways through all nights, and one cold night before them to start from."""
    end = (int(ratings["timestamp"].max()) // DAY_S + 1) * DAY_S  # type: ignore[arg-type]
    ends = [end - DAY_S * days_apart * back for back in range(NIGHTS, -1, -1)]
    left, nights = None, []
    for number, end in enumerate(ends):
        folder = scratch / str(number)
        graph = build(ratings.filter(pl.col("timestamp") < end), folder / "graph")
        cold = train(graph, seed, folder / "cold", None, {})
        warm = cold if left is None else train(graph, seed, folder / "warm", left, changes)
        if left is not None:
            nights.append({"cold": cold, "warm": warm})
        left = leave(graph, folder / ("cold" if left is None else "warm"), scratch / "store", end)
        shutil.rmtree(folder)
    return nights


def build(ratings: pl.DataFrame, folder: Path) -> Graph:
    """As a night's graph stage, as far as training goes."""
    _, num_users, num_items = write_movielens(ratings, "global_time", folder)
    likes = {part: load_csr(folder, f"liked_{part}").counts() for part in ("all", "train", "validation", "test")}
    validation_from_us, test_from_us = np.load(folder / "cut.npy").tolist()
    return Graph(
        folder=str(folder),
        fingerprint="",
        split="global_time",
        num_users=num_users,
        num_items=num_items,
        num_likes=int(likes["all"].sum()),
        num_train=int(likes["train"].sum()),
        num_validation=int(likes["validation"].sum()),
        num_test=int(likes["test"].sum()),
        num_validation_users=int((likes["validation"] > 0).sum()),
        num_test_users=int((likes["test"] > 0).sum()),
        num_test_users_with_history=int(((likes["test"] > 0) & (likes["train"] > 0)).sum()),
        validation_from_us=validation_from_us,
        test_from_us=test_from_us,
    )


def train(
    graph: Graph, seed: int, folder: Path, left: tuple[str, WarmSource] | None, changes: dict[str, float]
) -> Trained:
    folder.mkdir()
    started = time.perf_counter()
    start = ""
    if left is not None:
        start = choose_start(run_of(*left), graph, folder).path
        assert start, "each night's cut is later than that of the night before"
    spec = spec_of(Path(graph.folder), graph.num_users, graph.num_items, threads=1, output_folder=str(folder))
    patience = spec.patience * spec.validate_every
    spec = replace(spec, seed=seed, start=start, keeps_layer_0=True, validate_every=1, patience=patience)
    spec = replace(spec, **{name: type(getattr(spec, name))(value) for name, value in changes.items()})
    seconds: list[float] = []
    validation = _Looked(spec, seconds, started)
    judged = fit(spec, ALONE, "judged", epochs=spec.max_epochs, validation=validation, identity="")
    recalls = [epoch.validation_recall or 0.0 for epoch in judged.curve]
    return Trained(recalls, seconds, recall_on_test(spec, folder / "judged.safetensors"))


def run_of(store_uri: str, warm: WarmSource | None) -> Run:
    return Run(store_uri, date.max, "", "", "", CONFIG, False, "", "", 0, 0, warm)


class _Looked(Validation):
    """Notes when each look began: what came before it is what the epochs so far took."""

    def __init__(self, spec: Spec, seconds: list[float], started: float) -> None:
        super().__init__(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
        self.seconds, self.started = seconds, started

    def recall(self, *arguments: Any) -> float:
        began = time.perf_counter()
        self.seconds.append(began - self.started)
        recall = super().recall(*arguments)
        self.started += time.perf_counter() - began
        return recall


def recall_on_test(spec: Spec, path: Path) -> float:
    on_test = Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
    on_test.target = load_csr(spec.graph_folder, "liked_test")
    on_test.seen = load_csr(spec.graph_folder, "seen_before_test")
    on_test.users = np.flatnonzero(on_test.target.counts() > 0)
    tables = load_file(path)
    return on_test.recall((tables["user_UD"], tables["item_ID"]), ALONE)


def leave(graph: Graph, folder: Path, store_folder: Path, end_s: int) -> tuple[str, WarmSource]:
    """What the next night starts from, in a store. For the served fit, which is not looked at here, the same tables."""
    shutil.copy(folder / "judged-layer-0.safetensors", folder / "served-layer-0.safetensors")
    shutil.copy(folder / "judged-layer-0.sha256", folder / "served-layer-0.sha256")
    store, as_of = open_store(str(store_folder)), datetime.fromtimestamp(end_s, UTC).date()
    left = leave_for_the_next(run_of(store.uri, None), graph, folder)
    assert left is not None
    key = warm_key(as_of, "benchmark")
    store.put_once(key, Path(left.path))
    return store.uri, WarmSource(as_of, key, left.num_bytes, left.sha256)


def compared(nights: list[dict[str, Trained]]) -> dict[str, float]:
    """Sums over nights and seeds, warm over cold; recalls are means."""
    epochs, seconds = {"cold": 0, "warm": 0}, {"cold": 0.0, "warm": 0.0}
    for night in nights:
        same = SAME * min(one.best for one in night.values())
        for which, one in night.items():
            epochs[which] += one.epochs_to(same)
            seconds[which] += one.seconds[one.epochs_to(same) - 1]
    trained = {which: sum(len(night[which].recalls) for night in nights) for which in epochs}
    figures = {
        "epochs_over_cold": epochs["warm"] / epochs["cold"],
        "seconds_over_cold": seconds["warm"] / seconds["cold"],
        "epochs_until_it_stops_over_cold": trained["warm"] / trained["cold"],
    }
    for which in ("cold", "warm"):
        fits = [night[which] for night in nights]
        figures[f"{which}_epochs"] = epochs[which] / len(nights)
        figures[f"{which}_recall_after_one_epoch"] = statistics.mean(one.recalls[0] for one in fits)
        figures[f"{which}_validation_recall"] = statistics.mean(one.best for one in fits)
        figures[f"{which}_test_recall"] = statistics.mean(one.test_recall for one in fits)
    return figures


def by_seed(nights: list[dict[str, Trained]]) -> dict[str, list[float]]:
    """Means over a seed's nights of what the warm fit has more than the cold one."""
    seeds = [nights[i : i + NIGHTS] for i in range(0, len(nights), NIGHTS)]
    return {
        f"{part} recall, warm less cold": [
            round(statistics.mean(getattr(n["warm"], of) - getattr(n["cold"], of) for n in some), 5) for some in seeds
        ]
        for part, of in (("validation", "best"), ("test", "test_recall"))
    }


def print_table(name: str, nights: list[dict[str, Trained]], figures: dict[str, float]) -> None:
    print(f"\n{name}: {NIGHTS} nights, {len(SEEDS)} seeds")
    print(f"{'seed, night':<14}{'validation, best look (its epoch)':<40}{'after one epoch':<22}test")
    for number, night in enumerate(nights):
        cold, warm = night["cold"], night["warm"]
        best = "   ".join(f"{one.best:.4f} ({one.epochs_to(one.best)})" for one in (cold, warm))
        print(
            f"{SEEDS[number // NIGHTS]}, {number % NIGHTS + 1:<8}{best:<40}{cold.recalls[0]:.4f}   "
            f"{warm.recalls[0]:<13.4f}{cold.test_recall:.4f}   {warm.test_recall:.4f}"
        )
    for what, values in by_seed(nights).items():
        print(f"{what}, by seed: " + "  ".join(f"{value:+.4f}" for value in values))
    for figure, value in figures.items():
        print(f"  {figure:<40}{value:.4f}")


if __name__ == "__main__":
    main()
