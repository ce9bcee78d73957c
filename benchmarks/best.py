"""The best quality on Gowalla within half an hour of training, whatever the width.

    make bench-training-best [DATA=folder]

Fits of the default recipe at d 256 that differ in their seed, their tables side by side: the score is the mean of the
fits' scores, and still one inner product, so lists stay exact and as fast as its width. How many of them is chosen on
validation (a tenth of each user's train likes), by the mean of Recall@20 and NDCG@20; test is read once for that many.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import carve_validation, merge_results, read_split, spec_of, write_arrays
from benchmarks.training import ALONE, THREADS, on_test
from models.graph import Csr
from models.processes import keep_freed_memory
from models.scorers import InnerProduct, rows_where
from models.train import fit, make_repeatable

WIDTH, MOST = 256, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    options = parser.parse_args()
    keep_freed_memory()
    make_repeatable(THREADS)
    train, test, num_items = read_split(Path(options.data) / "gowalla")
    part, validation = carve_validation(train)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        members: list[tuple[Tensor, Tensor]] = []
        found: dict[int, dict[str, float]] = {}
        for number in range(1, MOST + 1):
            members.append(fitted_tables(Path(scratch) / f"validation{number}", part, num_items, number))
            found[number] = on_test(side_by_side(members, part, num_items), part, validation, num_items, "validation")
            print(f"{number} fits, validation: {found[number]}", flush=True)
        best = max(found, key=lambda number: sum(found[number].values()))
        between = time.perf_counter()
        members = [
            fitted_tables(Path(scratch) / f"test{number}", train, num_items, number) for number in range(1, best + 1)
        ]
        seconds = time.perf_counter() - between
        figures = on_test(side_by_side(members, train, num_items), train, test, num_items, "gowalla_best")
    figures |= {
        "gowalla_best_train_seconds": seconds,
        "gowalla_best_seconds_with_validation": time.perf_counter() - started,
        "gowalla_best_fits": best,
    }
    merge_results("training", "best", figures, {"validation": found, "width": WIDTH})


def fitted_tables(folder: Path, liked: Csr, num_items: int, number: int) -> tuple[Tensor, Tensor]:
    write_arrays(folder, liked, liked, num_items)
    spec = spec_of(folder, liked.num_rows, num_items, threads=THREADS, width=WIDTH, seed=2019 + number)
    fit(spec, ALONE, "served", epochs=spec.max_epochs, validation=None, identity="")
    tables = load_file(folder / "served.safetensors")
    return tables["user_UD"], tables["item_ID"]


def side_by_side(members: list[tuple[Tensor, Tensor]], liked: Csr, num_items: int) -> InnerProduct:
    """The mean of the members' scores as one inner product."""
    user_UD = torch.cat([user for user, _ in members], dim=1) / len(members)
    item_ID = torch.cat([item for _, item in members], dim=1)
    return InnerProduct(
        user_UD, item_ID, rows_where(liked.counts() > 0), np.bincount(liked.indices, minlength=num_items) > 0
    )


if __name__ == "__main__":
    main()
