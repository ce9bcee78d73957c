"""Ranks, agents and hangs: kill them at random moments of a training, and hold its bytes to an undisturbed one's.

    make bench-training-kills

10 ranks and 5 torchrun agents are killed (SIGKILL) and 5 ranks stopped (SIGSTOP), each in a training of its own on two
ranks, at a random epoch of either fit. Recovered: it ended by itself, in the same bytes. Orphans: processes of the
training that are left 5 seconds after it ended.
"""

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import PROJECT_ROOT, carve_validation, merge_results, spec_of, write_arrays
from models.graph import interactions_by_user
from tasks.ranks import RUN_ID_VARIABLE, Launch, run_ranks
from tasks.run import file_sha256
from tasks.train.fitting import TRAINING

DISTURBANCES = ["rank"] * 10 + ["agent"] * 5 + ["hang"] * 5
EPOCHS = 30


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rng = np.random.default_rng(2026)
    with tempfile.TemporaryDirectory() as scratch:
        launch_of = prepare(Path(scratch))
        _, undisturbed = train(launch_of("undisturbed"), lambda _: None)
        rows = []
        for number, what in enumerate(DISTURBANCES):
            due = ("judged" if rng.random() < 0.5 else "served", int(rng.integers(1, EPOCHS)))
            rows.append(disturb(launch_of(f"{number:02d}"), what, due, undisturbed) | {"what": what, "due": due})
            print(f"{number + 1:2d} {rows[-1]}", flush=True)
    figures = {
        "kills_tried": len(rows),
        "kills_recovered": sum(row["recovered"] for row in rows),
        "kills_orphans": sum(row["orphans"] for row in rows),
        "kills_median_seconds": float(np.median([row["seconds"] for row in rows])),
    }
    merge_results("training", "kills", figures, rows)


def prepare(scratch: Path) -> Callable[[str], Launch]:
    rng = np.random.default_rng(1)
    pair = np.unique(rng.integers(0, 300 * 400, 9000))
    train_part, validation = carve_validation(interactions_by_user(pair // 400, pair % 400, 300))
    folder = write_arrays(scratch / "graph", train_part, validation, 400)

    def launch_of(name: str) -> Launch:
        out = scratch / name
        out.mkdir()
        spec = spec_of(
            folder, 300, 400, threads=1, output_folder=str(out), split="columns", width=16, negatives=64,
            max_epochs=EPOCHS, patience=100, checkpoint_s=0.2,
        )  # fmt: skip
        (out / "spec.json").write_text(json.dumps(asdict(spec)))
        return Launch(
            TRAINING, out / "spec.json", ranks=2, threads=1, project_root=PROJECT_ROOT, silence_s=5, deadline_s=120,
            relaunches=3,
        )  # fmt: skip

    return launch_of


def train(launch: Launch, on_progress: Any) -> tuple[dict[str, Any], tuple[str, str]]:
    result = run_ranks(launch, on_progress)
    folder = launch.spec_path.parent
    return result, (file_sha256(folder / "judged.safetensors"), file_sha256(folder / "served.safetensors"))


def disturb(launch: Launch, what: str, due: tuple[str, int], undisturbed: tuple[str, str]) -> dict[str, Any]:
    victims: list[psutil.Process] = []

    def on_progress(progress: dict[str, Any]) -> None:
        if victims or (progress["fit"], progress["epoch"]) < due:
            return
        family = processes_of(launch)
        agents = [process for process in family if "models.distributed" in process.cmdline()]
        ranks = [process for process in family if process not in agents]
        victims.append(agents[0] if what == "agent" else ranks[due[1] % len(ranks)])
        victims[0].send_signal(signal.SIGSTOP if what == "hang" else signal.SIGKILL)

    started = time.perf_counter()
    try:
        _, found = train(launch, on_progress)
    except Exception as error:
        print(error, flush=True)
        found = ("", "")
    seconds = time.perf_counter() - started
    until = time.monotonic() + 5
    while (orphans := processes_of(launch)) and time.monotonic() < until:
        time.sleep(0.1)
    return {"recovered": bool(victims) and found == undisturbed, "orphans": len(orphans), "seconds": seconds}


def processes_of(launch: Launch) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            ours = RUN_ID_VARIABLE in process.environ() and str(launch.spec_path) in process.cmdline()
        except psutil.Error:
            continue
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


if __name__ == "__main__":
    main()
