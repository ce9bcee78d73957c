"""Why the recipe's defaults are what they are: validation recall@20 of the judged fit, one setting changed at a time.

    make bench-recipe [DATA=folder]

Test likes are not read. Baselines on the same validation users stand first. Prints the table and writes
benchmarks/results/recipe.json.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.night import DATA_SETS, PROJECT_ROOT, SPLITS, commit, machine
from models.distributed import Ranks
from models.rivals import item_knn_scorer, popularity, popularity_scorer
from models.topk import top_k
from models.train import Spec, Validation, fit
from tasks.config import NightlyConfig
from tasks.graph.edges import write_graph
from tasks.graph.ids import number_ids
from tasks.graph.split import split_by_time

DEFAULTS = NightlyConfig().train.model_dump(exclude={"ranks", "device", "threads", "silence_s", "relaunches"})
CHANGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.1},
    {"temperature": 0.3},
    {"popularity_bias": 0.0},
    {"popularity_bias": 0.9},
    {"temperature": 0.1, "popularity_bias": 0.9},
    {"layers": 1},
    {"layers": 3},
    {"width": 32},
    {"width": 128},
    {"learning_rate": 0.005},
    {"weight_decay": 0.001},
    {"batches_per_epoch": 16},
    {"max_epochs": 40},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    options = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in DATA_SETS.items():
            for split in SPLITS:
                spec = prepare(
                    Path(options.data) / folder / "ratings.parquet", split, Path(scratch) / f"{name}_{split}"
                )
                results[f"{name}_{split}"] = measure(spec)
    columns = list(results)
    print(f"{machine()}, commit {commit()}\n\n{'validation recall@20':<46}" + "".join(f"{c:<24}" for c in columns))
    for row in results[columns[0]]:
        print(f"{row:<46}" + "".join(f"{results[column][row]:<24.4f}" for column in columns))
    path = PROJECT_ROOT / "benchmarks" / "results" / "recipe.json"
    path.write_text(json.dumps({"machine": machine(), "commit": commit(), "figures": results}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(PROJECT_ROOT)}")


def prepare(ratings: Path, split: str, folder: Path) -> Spec:
    folder.mkdir()
    latest = pl.read_parquet(ratings).sort("timestamp").unique(["user_id", "item_id"], keep="last")
    seen = latest.select(
        "user_id", "item_id", timestamp_us=pl.col("timestamp") * 1_000_000, liked=pl.col("rating") >= 4
    ).sort("user_id", "item_id")
    time = pl.col("timestamp_us")  # these sets have one rating a pair
    seen = seen.with_columns(first_seen_us=time, first_liked_us=pl.when("liked").then(time))
    pairs, user_ids, item_ids = number_ids(seen)
    parted = split_by_time(pairs, split=split, validation_share=0.1, test_share=0.1)
    write_graph(parted, folder, num_users=len(user_ids), num_items=len(item_ids))
    return Spec(
        graph_folder=str(folder),
        output_folder=str(folder),
        num_users=len(user_ids),
        num_items=len(item_ids),
        device="cpu",
        threads=2,
        k=20,
        timeout_s=60,
        **DEFAULTS,
    )


def measure(spec: Spec) -> dict[str, float]:
    validation = Validation(spec)
    liked = validation.train
    measured = {}
    for name, scorer in (
        ("popularity", popularity_scorer(liked, spec.num_items)),
        ("item-kNN", item_knn_scorer(liked, spec.num_items, neighbours=200, shrink=10.0)),
    ):
        blocks = top_k(
            scorer,
            popularity(liked, spec.num_items),
            users=validation.users,
            seen=validation.seen,
            k=spec.k,
            item_rank_I=np.arange(spec.num_items),
        )
        measured[name] = float(np.concatenate([validation._recall_of(b.users, b.item_BK) for b in blocks]).mean())
    for change in CHANGES:
        changed = Spec(**{**vars(spec), **change})
        found = fit(
            changed, Ranks(0, 1, torch.device("cpu")), "judged", epochs=changed.max_epochs, validation=validation
        )
        label = "the defaults" if not change else ", ".join(f"{key} {value}" for key, value in change.items())
        measured[label] = max(e.validation_recall for e in found.curve if e.validation_recall is not None)
    return measured


if __name__ == "__main__":
    main()
