"""Two ranks of one thread against one rank of one thread, for each split: seconds a step, and the same numbers.

    make bench-training-ranks [DATA=folder]

Gowalla, the default recipe at d 128. Start-up is left out: a step is timed by every rank, the slowest counts, the
median of the steps is taken; three rounds of all four, the best of each. Parity: the first step's gradient against one
rank's, of its largest entry; the embeddings after one pass, of their root mean square; top-20 lists where scores are
apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import PROJECT_ROOT, merge_results, read_split, spec_of, write_arrays
from models.clock import Clock
from models.distributed import join_ranks
from models.graph import load_csr
from models.plan import CPU_THREAD, Size, cost_of
from models.processes import keep_freed_memory
from models.train import Spec, begin, make_repeatable, sampler_of

ROUNDS = 3
CASES = {"one": (1, "data"), "data": (2, "data"), "columns": (2, "columns"), "rows": (2, "rows")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--rank", metavar="SPEC", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options.rank)
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(options.data), Path(scratch))


def compare(data: Path, scratch: Path) -> None:
    train, test, num_items = read_split(data / "gowalla")
    folder = write_arrays(scratch / "gowalla", train, test, num_items)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for round_ in range(ROUNDS):
        for name, (ranks, split) in CASES.items():
            out = scratch / name
            out.mkdir(exist_ok=True)
            spec = spec_of(folder, train.num_rows, num_items, threads=1, split=split, output_folder=str(out))
            (out / "spec.json").write_text(json.dumps(asdict(spec)))
            measured[name].append(launch(out / "spec.json", ranks))
            print(f"round {round_ + 1}: {name} {measured[name][-1]['step_ms']:.0f} ms a step", flush=True)
    best = {name: min(runs, key=lambda run: run["step_ms"]) for name, runs in measured.items()}
    figures = {f"ranks2_speedup_{name}": best["one"]["step_ms"] / best[name]["step_ms"] for name in list(CASES)[1:]}
    figures["ranks2_speedup_best"] = max(figures.values())
    one = {part: best["one"]["parts_ms"].get(part, 0.0) for part in best["one"]["parts_ms"]}
    print(f"\n{'ms a step':<12}" + "".join(f"{name:>12}" for name in CASES))
    for part in one:
        print(f"{part:<12}" + "".join(f"{best[name]['parts_ms'].get(part, 0.0):>12.1f}" for name in CASES))
    print(f"{'whole':<12}" + "".join(f"{best[name]['step_ms']:>12.1f}" for name in CASES))
    size = Size(train.num_rows, num_items, len(train.indices), spec.width, spec.layers, 8, spec.negatives)
    for name in list(CASES)[1:]:
        sent = cost_of(name, size, 2, CPU_THREAD).bytes_moved / 2**20
        print(f"{name}: sends {sent:.1f} MiB a step by the formula, speed-up {figures[f'ranks2_speedup_{name}']:.2f}")
    figures |= parity(scratch)
    merge_results("training", "ranks", figures, {name: best[name] for name in CASES})


def launch(spec_path: Path, ranks: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [*command, "-m", "benchmarks.ranks", "--rank", str(spec_path)],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return json.loads((spec_path.parent / "measured.json").read_text())


def run_rank(spec_path: str) -> None:
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    keep_freed_memory()
    make_repeatable(1)
    with join_ranks("cpu", timeout_s=120) as ranks:
        liked = load_csr(spec.graph_folder, "liked_all")
        clock = Clock()
        training = begin(spec, ranks, "served", liked, clock)
        sampler = sampler_of(spec, liked, ranks.device, training.likeness_U)
        clock.seconds.clear()
        seconds = []
        for epoch in (1, 2, 3):
            started = time.perf_counter()
            for number, step in enumerate(clock.each("sample", sampler.epoch(epoch, ranks.rank, ranks.world))):
                training.step(step, learning_rate=spec.learning_rate, at=(epoch, number))
                seconds.append(max(ranks.everybodys(time.perf_counter() - started)))
                if (epoch, number) == (1, 0):
                    gradient = training.model.table.grad
                    assert gradient is not None
                    first_ND = training.layout.whole(gradient).clone()
                started = time.perf_counter()
            if epoch == 1:
                tables = training.tables()
        parts = {part: 1000 * value / len(seconds) for part, value in sorted(clock.seconds.items())}
        if ranks.is_first:
            measured = {"step_ms": 1000 * float(np.median(seconds)), "parts_ms": parts}
            out = Path(spec.output_folder)
            (out / "measured.json").write_text(json.dumps(measured))
            save_file({"gradient": first_ND, "user_UD": tables[0], "item_ID": tables[1]}, out / "numbers.safetensors")


def parity(scratch: Path) -> dict[str, float]:
    """The largest differences of any split from one rank."""
    ours = load_file(scratch / "one" / "numbers.safetensors")
    first, passed, alike, apart_share = [], [], [], []
    users = torch.from_numpy(np.random.default_rng(0).choice(len(ours["user_UD"]), 2000, replace=False))
    for name in list(CASES)[1:]:
        theirs = load_file(scratch / name / "numbers.safetensors")
        first.append(float((theirs["gradient"] - ours["gradient"]).abs().max() / ours["gradient"].abs().max()))
        for table in ("user_UD", "item_ID"):
            difference = (theirs[table] - ours[table]).square().mean().sqrt()
            passed.append(float(difference / ours[table].square().mean().sqrt()))
        score, their_score = (t["user_UD"][users] @ t["item_ID"].T for t in (ours, theirs))
        rounding = 2 * (score - their_score).abs().max()
        value, item = torch.sort(score, dim=1, descending=True)
        their_item = torch.argsort(their_score, dim=1, descending=True)
        apart = (value[:, :21] - value[:, 1:22]) > rounding
        certain = apart[:, 1:] & apart[:, :-1]
        alike.append(float((item[:, 1:21] == their_item[:, 1:21])[certain].float().mean()))
        apart_share.append(float(certain.float().mean()))
    return {
        "parity_first_step_relative": max(first),
        "parity_one_pass_relative": max(passed),
        "parity_lists_equal_where_apart": min(alike),
        "parity_places_apart_share": min(apart_share),
    }


if __name__ == "__main__":
    main()
