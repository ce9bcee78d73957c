"""Launches a stage's ranks, watches their heartbeats, relaunches what died, and leaves no process behind.

Two rooms have ranks (tasks/train, tasks/recommend), and rooms do not import each other. A rank is
`python -m <module> spec.json`. Beside the spec it touches heartbeat-<rank> while it works and leaves progress and
result, or failure.json, which names why it ended. It knows files, and nothing else of the night.

Three things end the tree: this function's `finally` (an exception, Ctrl-C, Prefect's cancel), the kernel's
parent-death signal (this process was killed: models/distributed.py), and torchrun (one rank died: it ends the others).
A relaunch is a fresh torchrun that goes on from the newest checkpoint: restarts inside a torchrun can meet the
addresses of dead ranks (pytorch#135712) and hang.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from tasks.errors import NightError

POLL_S = 0.2
GRACE_S = 5.0  # between asking the tree to end and killing it
STARTUP_S = 60.0  # granted at least until the first sign of life: a busy machine imports torch for many seconds
MEETING_S = 600.0  # for all nodes to be there; torchrun's own limit for a rendezvous
RUN_ID_VARIABLE = "NIGHTGRAPH_RUN_ID"  # in the environment of every process of a launch, whatever session it is in
log = logging.getLogger("nightgraph.ranks")


def read_json(path: Path) -> dict[str, Any] | None:
    """None where the ranks have not left it (yet); what they write is there as a whole or not at all."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return content


def _progress(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / "progress.json")


def _result(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / "result.json")


@dataclass(frozen=True)
class Work:
    """What the ranks of a stage run, and what the night calls its ends."""

    module: str
    name: str  # as in "training lost"
    silence_limit: str  # the setting that decides it, for messages
    deadline_limit: str
    goes_on: str  # where a relaunch does
    lost: type[NightError]
    if_lost: str  # what to do
    named: Callable[[str, str], NightError]  # the error of a failure's name and message
    progress: Callable[[Path], dict[str, Any] | None] = _progress  # of all ranks, from the spec's folder
    result: Callable[[Path], dict[str, Any] | None] = _result  # None: they did not end with one


@dataclass(frozen=True)
class Launch:
    """What it takes to start the ranks of this node, and how long to wait for them."""

    work: Work
    spec_path: Path
    ranks: int  # of this node
    threads: int
    project_root: Path
    silence_s: float
    deadline_s: float
    relaunches: int
    nodes: int = 1
    rdzv_endpoint: str = ""

    def command(self) -> list[str]:
        """What one node runs; with several nodes each runs the same. One rank needs nobody to start and watch it."""
        if self.ranks == self.nodes == 1:
            return [sys.executable, "-m", self.work.module, str(self.spec_path)]
        command = [sys.executable, "-m", "models.distributed", "--nproc-per-node", str(self.ranks)]
        if self.nodes == 1:
            command += ["--standalone"]
        else:
            command += ["--nnodes", str(self.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", self.rdzv_endpoint]
            command += ["--rdzv-id", self.spec_path.parent.name]
        command += ["--log-dir", str(self.spec_path.parent / "torchrun")]  # or each launch leaves a folder in /tmp
        return [*command, "-m", self.work.module, str(self.spec_path)]


def run_ranks(launch: Launch, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the work on the ranks to its end and return its result.

    Raises the error of the name that a rank left behind, and `work.lost` when the ranks died or fell silent once more
    than `relaunches`, or the deadline passed.
    """
    work, folder = launch.work, launch.spec_path.parent
    until = time.monotonic() + launch.deadline_s
    for number in range(launch.relaunches + 1):
        if launch.nodes > 1:
            command = " ".join(["python", *launch.command()[1:]])
            log.info(
                "waiting for %d more nodes; in the checkout of each, in its virtual environment, run: %s",
                launch.nodes - 1,
                command,
            )
        for pattern in ("result*.json", "failure.json", "progress*.json"):
            for leftover in folder.glob(pattern):
                leftover.unlink(missing_ok=True)
        reason = _launch_and_watch(launch, until, on_progress)
        if (failure := read_json(folder / "failure.json")) is not None:
            raise work.named(failure["name"], failure["message"])
        if (result := work.result(folder)) is not None:
            return result
        again = number < launch.relaunches and time.monotonic() < until
        log.warning(
            "%s lost: %s (launch %d of %d)%s",
            work.name,
            reason,
            number + 1,
            launch.relaunches + 1,
            f"; launching again, {work.goes_on}" if again else "",
        )
        if not again:
            break
    raise work.lost(
        f"{work.name} on {launch.ranks} ranks ended without a result, {number + 1} times; the last time {reason}. "
        f"Nothing was published. The ranks' last words:\n{_last_lines(folder / 'ranks.log')}\n{work.if_lost}"
    )


def _launch_and_watch(launch: Launch, until: float, on_progress: Callable[[dict[str, Any]], None]) -> str:
    """One launch. Returns how it ended, in words."""
    run_id = uuid4().hex
    with open(launch.spec_path.parent / "ranks.log", "ab") as output:
        # No session of its own: Prefect's cancel signals this process group, and torchrun passes that on to the ranks.
        tree = subprocess.Popen(
            launch.command(),
            env=_environment(launch, run_id),
            cwd=launch.project_root,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            return _watch(tree, launch, until, on_progress)
        finally:
            _end(tree, run_id)


def _environment(launch: Launch, run_id: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
    environment |= {
        "PYTHONPATH": str(launch.project_root),
        "OMP_NUM_THREADS": str(launch.threads),
        "POLARS_MAX_THREADS": str(launch.threads),
        "NIGHTGRAPH_PARENT_PID": str(os.getpid()),
        RUN_ID_VARIABLE: run_id,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it CUDA's matrix products are not deterministic
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    # Threads that wait give their core away. Spinning ones make a fit on a busy machine ten times slower.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if launch.nodes == 1 and sys.platform.startswith("linux"):
        # One machine: nothing of the ranks' talk belongs on the network.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _watch(
    tree: subprocess.Popen[bytes], launch: Launch, until: float, on_progress: Callable[[dict[str, Any]], None]
) -> str:
    started = time.time()
    folder = launch.spec_path.parent
    told: dict[str, Any] = {}
    startup_s = STARTUP_S if launch.nodes == 1 else MEETING_S
    while (code := tree.poll()) is None:
        told = _tell(launch, told, on_progress)
        # Ranks wait for each other at every step: when one hangs, all fall silent; while one works, one is heard.
        heard = max((path.stat().st_mtime for path in folder.glob("heartbeat-*")), default=0.0)
        silent_for = time.time() - max(started, heard)
        if silent_for > (launch.silence_s if heard > started else max(launch.silence_s, startup_s)):
            return f"no rank gave a sign of life for {silent_for:.0f} s ({launch.work.silence_limit})"
        if time.monotonic() >= until:
            return f"it had not ended after {launch.work.deadline_limit} = {launch.deadline_s:.0f} s"
        time.sleep(POLL_S)
    _tell(launch, told, on_progress)
    if code == -9:
        return "it ended with code -9 (SIGKILL: killed by hand, or by a machine out of memory)"
    *_, last_words = ["", *_last_lines(folder / "ranks.log").splitlines()]
    return last_words.strip() if "ended first" in last_words else f"it ended with code {code}"


def _tell(launch: Launch, told: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    progress = launch.work.progress(launch.spec_path.parent)
    if progress is None:
        return told
    if progress != told:
        on_progress(progress)
    return progress


def _end(tree: subprocess.Popen[bytes], run_id: str) -> None:
    """Ask torchrun to end its ranks; kill whatever of the launch is left after a grace, in whatever session it is."""
    if tree.poll() is None:
        tree.terminate()
    family = processes_of_launch(run_id)
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    for process in [*alive, *processes_of_launch(run_id)]:
        process.kill()
    tree.wait()
    # A dead process can stay in the table until its parent looks: nobody may meet its port or its memory.
    psutil.wait_procs(family, timeout=GRACE_S)


def processes_of_launch(run_id: str) -> list[psutil.Process]:
    """Found by their environment: torchrun puts each rank in a session of its own, and the dead have new parents."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            ours = process.environ().get(RUN_ID_VARIABLE) == run_id
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _last_lines(path: Path, count: int = 12) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join("  " + line[:200] for line in lines[-count:])
