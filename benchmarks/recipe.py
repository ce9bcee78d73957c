"""Why the recipe's defaults are what they are: validation recall@20 of the judged fit, one setting changed at a time.

    make bench-recipe [DATA=folder] [ONLY="gowalla ml1m"]

Six data sets and splits: MovieLens-100K and -small, each by each user's last tenth and by global time; MovieLens-1M
and Gowalla by a tenth of each user's train likes. Test likes are not read. Rivals on the same validation users stand
first. Prints the table and merges it into benchmarks/results/recipe.json.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.common import (
    carve_validation,
    merge_results,
    read_split,
    spec_of,
    write_arrays,
    write_movielens,
)
from models.distributed import Ranks
from models.metrics import hits, recall
from models.processes import keep_freed_memory
from models.rivals import ease_scorer, graph_filter_scorer, item_knn_scorer, popularity, popularity_scorer
from models.scorers import Scorer, for_everybody
from models.topk import top_k
from models.train import Spec, fit, make_repeatable
from models.validation import Validation

CHANGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.1},
    {"temperature": 0.12},
    {"temperature": 0.15},
    {"temperature": 0.2},
    {"popularity_bias": 0.0},
    {"popularity_bias": 0.5},
    {"popularity_bias": 0.9},
    {"layers": 0},
    {"layers": 1},
    {"layers": 3},
    {"width": 64},
    {"width": 256},
    {"negatives": 2048},
    {"learning_rate": 0.005},
    {"weight_decay": 0.0001},
    {"batches_per_epoch": 16},
    {"max_epochs": 40},
    {"precision": "bfloat16"},
]


# A fit of Gowalla takes most of a minute: these answer for sparse graphs.
CHANGES_ON_GOWALLA: list[dict[str, Any]] = [
    {},
    {"temperature": 0.12},
    {"temperature": 0.15},
    {"popularity_bias": 0.0},
    {"popularity_bias": 0.9},
    {"layers": 0},
    {"layers": 1},
    {"layers": 3},
    {"width": 64},
    {"negatives": 2048},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--only", nargs="*", help="some of the data sets")
    parser.add_argument("--change", nargs="*", metavar="NAME=VALUE", help="one change instead of the list")
    options = parser.parse_args()
    make_repeatable(2)
    warnings.simplefilter("ignore")
    changes = CHANGES
    if options.change:
        changes = [{name: _as_number(value) for name, value in (one.split("=") for one in options.change)}]
    results: dict[str, dict[str, float]] = {}
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only or DATA_SETS:
            spec = prepare(name, Path(options.data), Path(scratch))
            listed = CHANGES_ON_GOWALLA if name == "gowalla" and not options.change else changes
            results[name] = measure(spec, listed, rivals=not options.change)
    print(f"\n{'validation recall@20':<60}" + "".join(f"{name:<18}" for name in results))
    for row in dict.fromkeys(row for found in results.values() for row in found):
        cells = (f"{found[row]:.4f}" if row in found else "" for found in results.values())
        print(f"{row:<60}" + "".join(f"{cell:<18}" for cell in cells))
    if not options.change:
        for name, found in results.items():
            merge_results("recipe", name, {f"{name}: {row}": value for row, value in found.items()}, None)


DATA_SETS = ("ml100k_user", "ml100k_global", "mlsmall_user", "mlsmall_global", "ml1m", "gowalla")


def prepare(name: str, data: Path, scratch: Path) -> Spec:
    if name in ("ml1m", "gowalla"):
        liked, _, num_items = read_split(data / {"ml1m": "movielens-1m", "gowalla": "gowalla"}[name])
        train, validation = carve_validation(liked)
        folder = write_arrays(scratch / name, train, validation, num_items, users_at_most=6000)
        return spec_of(folder, liked.num_rows, num_items)
    short, split = name.split("_")
    ratings = data / {"ml100k": "movielens-100k", "mlsmall": "movielens-small"}[short] / "ratings.parquet"
    folder, num_users, num_items = write_movielens(
        ratings, {"user": "per_user_time", "global": "global_time"}[split], scratch / name
    )
    return spec_of(folder, num_users, num_items)


def measure(spec: Spec, changes: list[dict[str, Any]], *, rivals: bool) -> dict[str, float]:
    validation = Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
    measured = {}
    for name, scorer in _rivals(validation, spec) if rivals else ():
        measured[name] = _recall_of(scorer, validation, spec)
        print(f"{spec.graph_folder.split('/')[-1]}: {name} {measured[name]:.4f}", flush=True)
    for change in changes:
        changed = Spec(**{**vars(spec), **change})
        alone = Ranks(0, 1, torch.device("cpu"))
        found = fit(changed, alone, "judged", epochs=changed.max_epochs, validation=validation, identity="")
        label = "the defaults" if not change else ", ".join(f"{key} {value}" for key, value in change.items())
        looks = {e.epoch: e.validation_recall for e in found.curve if e.validation_recall is not None}
        measured[label] = looks[found.epochs]
        measured[f"{label} (last look)"] = list(looks.values())[-1]
        tables = load_file(Path(spec.output_folder) / "judged.safetensors")
        light = validation.train.counts()[validation.users] < 10
        per_user = validation.recall_of((tables["user_UD"], tables["item_ID"]), validation.users)
        if light.any():
            measured[f"{label} (users with under 10 likes)"] = float(per_user[light].mean())
        print(
            f"{spec.graph_folder.split('/')[-1]}: {label} {measured[label]:.4f} at epoch {found.epochs}, last look "
            f"{list(looks.values())[-1]:.4f}, {found.seconds:.1f} s, users with under 10 likes "
            f"{per_user[light].mean() if light.any() else float('nan'):.4f}",
            flush=True,
        )
    return measured


def _rivals(validation: Validation, spec: Spec) -> list[tuple[str, Scorer]]:
    liked = validation.train
    rivals = [
        ("popularity", popularity_scorer(liked, spec.num_items)),
        ("item-kNN", item_knn_scorer(liked, spec.num_items, neighbours=200, shrink=10.0)),
        ("graph filter", graph_filter_scorer(liked, spec.num_items, width=256, low_pass=0.3)),
    ]
    if spec.num_items <= 10_000:
        rivals.append(("EASE", ease_scorer(liked, spec.num_items, regularisation=300.0)))
    return rivals


def _recall_of(scorer: Scorer, validation: Validation, spec: Spec) -> float:
    blocks = top_k(
        [scorer, for_everybody(popularity(validation.train, spec.num_items), validation.train.num_rows)],
        users=validation.users,
        excluded=validation.seen,
        k=spec.k,
        item_rank_I=validation.item_rank_I,
    )
    target = validation.target
    per_user = [recall(hits(b.item_BK, b.users, target, spec.num_items), target.counts()[b.users]) for b in blocks]
    return float(np.concatenate(per_user).mean())


def _as_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    main()
