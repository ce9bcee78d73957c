"""Launches the ranks, watches their heartbeats, relaunches what died, and leaves no process behind.

Three things end the tree: this function's `finally` (an exception, Ctrl-C, Prefect's cancel), the kernel's
parent-death signal (this process was killed: models/distributed.py), and torchrun (one rank died: it ends the others).
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tasks.errors import TrainingDiverged, TrainingLost

POLL_S = 0.2
GRACE_S = 5.0  # between asking the tree to end and killing it
STARTUP_S = 60.0  # granted at least until the first sign of life: a busy machine imports torch for many seconds
log = logging.getLogger("nightgraph.train")


def train_on_ranks(
    spec_path: Path,
    *,
    ranks: int,
    threads: int,
    silence_s: float,
    relaunches: int,
    project_root: Path,
    on_progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run `models.train` on `ranks` processes to its end and return its result.

    Raises TrainingDiverged at once, and TrainingLost when the ranks died or fell silent once more than `relaunches`.
    """
    folder = spec_path.parent
    for launch in range(relaunches + 1):
        for leftover in ("result.json", "failure.json", "progress.json"):
            (folder / leftover).unlink(missing_ok=True)
        reason = _launch_and_watch(spec_path, ranks, threads, silence_s, project_root, on_progress)
        if (folder / "failure.json").exists():
            failure = json.loads((folder / "failure.json").read_text())
            raise TrainingDiverged(
                f"{failure['diverged']}. Nothing was published. Lower train.learning_rate (half of it is a good try)."
            )
        if (folder / "result.json").exists():
            return json.loads((folder / "result.json").read_text())
        log.warning("training lost: %s (launch %d of %d)", reason, launch + 1, relaunches + 1)
    raise TrainingLost(
        f"training on {ranks} ranks ended without a result, {relaunches + 1} times; the last time {reason}. "
        f"Nothing was published. The ranks' last words:\n{_last_lines(folder / 'ranks.log')}\n"
        "Run the night again to retry from the training stage; with fewer train.ranks if memory is short."
    )


def _launch_and_watch(
    spec_path: Path,
    ranks: int,
    threads: int,
    silence_s: float,
    project_root: Path,
    on_progress: Callable[[dict[str, Any]], None],
) -> str:
    """One launch. Returns how it ended, in words."""
    command = [sys.executable, "-m", "models.distributed", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--log-dir", str(spec_path.parent / "torchrun")]  # or each launch leaves a folder in /tmp
    command += ["-m", "models.train", str(spec_path)]
    with open(spec_path.parent / "ranks.log", "ab") as output:
        # No session of its own: Prefect's cancel signals this process group, and torchrun passes that on to the ranks.
        tree = subprocess.Popen(
            command, env=_environment(threads, project_root), cwd=project_root, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            return _watch(tree, spec_path.parent, silence_s, on_progress)
        finally:
            _end(tree)


def _environment(threads: int, project_root: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
    environment |= {
        "PYTHONPATH": str(project_root),
        "OMP_NUM_THREADS": str(threads),
        "NIGHTGRAPH_PARENT_PID": str(os.getpid()),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it CUDA's matrix products are not deterministic
        # A relaunched rank must not meet the addresses of a dead one (pytorch#135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if sys.platform.startswith("linux"):
        # One machine: nothing of the ranks' talk belongs on the network.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _watch(
    tree: subprocess.Popen[bytes], folder: Path, silence_s: float, on_progress: Callable[[dict[str, Any]], None]
) -> str:
    started = time.time()
    told: dict[str, Any] = {}
    while (code := tree.poll()) is None:
        told = _tell(folder, told, on_progress)
        # Ranks wait for each other at every step: when one hangs, all fall silent; while one works, one is heard.
        heard = max((path.stat().st_mtime for path in folder.glob("heartbeat-*")), default=0.0)
        silent_for = time.time() - max(started, heard)
        if silent_for > (silence_s if heard > started else max(silence_s, STARTUP_S)):
            return f"no rank gave a sign of life for {silent_for:.0f} s"
        time.sleep(POLL_S)
    _tell(folder, told, on_progress)
    return f"torchrun ended with code {code}"


def _tell(folder: Path, told: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    except FileNotFoundError:
        return told
    if progress != told:
        on_progress(progress)
    return progress


def _end(tree: subprocess.Popen[bytes]) -> None:
    """Ask torchrun to end its ranks; kill whatever of the tree is left after a grace."""
    try:
        family = [psutil.Process(tree.pid), *psutil.Process(tree.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if tree.poll() is None:
        tree.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    for process in alive:
        process.kill()
    tree.wait()


def _last_lines(path: Path, count: int = 12) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join("  " + line[:200] for line in lines[-count:])
