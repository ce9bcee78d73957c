"""The best quality on Gowalla within half an hour of training, whatever the width.

    make bench-training-best [DATA=folder]

Candidates are compared on validation (a tenth of each user's train likes); the best of them is fitted once on all of
train, and its lists are read once on test. The training time of the candidates counts.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import carve_validation, merge_results, read_split, spec_of, write_arrays
from benchmarks.training import ALONE, THREADS, quality
from models.processes import keep_freed_memory
from models.train import fit, make_repeatable
from models.validation import Validation

CANDIDATES: list[dict[str, Any]] = [
    {"width": 256},
    {"width": 256, "layers": 3},
    {"width": 512},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    options = parser.parse_args()
    keep_freed_memory()
    make_repeatable(THREADS)
    train, test, num_items = read_split(Path(options.data) / "gowalla")
    part, validation_part = carve_validation(train)
    started = time.perf_counter()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_arrays(Path(scratch) / "validation", part, validation_part, num_items, users_at_most=6000)
        plain = spec_of(folder, train.num_rows, num_items, threads=THREADS)
        validation = Validation(str(folder), num_items=num_items, k=20, seed=plain.seed)
        for change in CANDIDATES:
            spec = replace(plain, **change)
            fitted = fit(spec, ALONE, "judged", epochs=spec.max_epochs, validation=validation, identity="")
            found[str(change)] = max(e.validation_recall for e in fitted.curve if e.validation_recall is not None)
            print(f"{change}: validation recall@20 {found[str(change)]:.4f}, {fitted.seconds:.0f} s", flush=True)
        best = max(CANDIDATES, key=lambda change: found[str(change)])
        figures, details = quality(train, test, num_items, Path(scratch) / "test", "gowalla_best", **best)
    figures["gowalla_best_seconds_with_candidates"] = time.perf_counter() - started
    merge_results("training", "best", figures, {"chosen": best, "validation": found} | details)


if __name__ == "__main__":
    main()
