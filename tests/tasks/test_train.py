"""The supervisor among real processes that are killed, stopped and orphaned: a named end, no process left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tasks import ranks as supervisor
from tasks.config import NightlyConfig, TrainConfig
from tasks.contracts import Fitted, Graph, Run
from tasks.errors import (
    DeviceUnavailable,
    RankMismatch,
    RunConfigError,
    TrainingDiverged,
    TrainingLost,
    TrainingOutOfMemory,
)
from tasks.ranks import Launch, run_ranks
from tasks.run import file_sha256, fingerprint_of
from tasks.train import task as train_task
from tasks.train.fitting import TRAINING, Place, choose_place, fit_twice
from tests.worlds import build_graph_of, spec_for, two_taste_world

PROJECT_ROOT = Path(__file__).resolve().parents[2]
ENDLESS = {"max_epochs": 1_000_000, "patience": 1_000_000, "validate_every": 1_000_000}
# Long enough to be disturbed, and looked at by validation on the way.
SETTINGS = TrainConfig(
    ranks=2, device="cpu", width=8, negatives=40, max_epochs=50, validate_every=10, patience=100, relaunches=1
)


PLACE = Place("cpu", ranks=2, threads=1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(two_taste_world().seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def undisturbed(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_twice(graph, SETTINGS, PLACE, tmp_path_factory.mktemp("undisturbed"), k=10, on_progress=lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test trains; whatever the test did, nobody trains there afterwards."""
    yield tmp_path / "training"
    left = processes_of(tmp_path / "training")
    for process in left:
        process.kill()
    assert not left, "a training process outlived its test"


def processes_of(folder: Path) -> list[psutil.Process]:
    """torchrun and its ranks, found as the supervisor finds them, for whichever launches wrote into this folder.

    By their environment, not by their group: torchrun gives each rank a session of its own.
    """
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(psutil.Error):
            here = supervisor.RUN_ID_VARIABLE in process.environ() and str(folder / "spec.json") in process.cmdline()
            if here and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ranks_of(folder: Path) -> list[psutil.Process]:
    return [p for p in processes_of(folder) if "models.distributed" not in p.cmdline()]


def agent_of(folder: Path) -> psutil.Process:
    (agent,) = [p for p in processes_of(folder) if "models.distributed" in p.cmdline()]
    return agent


def once(what: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Does it at the first sign of progress: the ranks are in the middle of training then."""
    done = []

    def on_progress(_: dict[str, Any]) -> None:
        if not done:
            done.append(True)
            what()

    return on_progress


def write_spec(graph: Graph, folder: Path, **changes: object) -> Path:
    spec_path = folder / "spec.json"
    spec = spec_for(graph, folder, **changes)
    spec_path.write_text(json.dumps(asdict(spec)))
    return spec_path


def supervise(spec_path: Path, *, ranks: int, **changes: Any) -> dict[str, Any]:
    on_progress = changes.pop("on_progress", lambda _: None)
    settings = {"silence_s": 60, "relaunches": 0, "deadline_s": 600} | changes
    launch = Launch(TRAINING, spec_path, ranks=ranks, threads=1, project_root=PROJECT_ROOT, **settings)
    return run_ranks(launch, on_progress)


# ---- an undisturbed training


def test_two_fits_come_back_with_what_the_night_needs_to_know(undisturbed: Fitted, graph: Graph) -> None:
    assert undisturbed.ranks == 2
    assert undisturbed.device == "cpu"
    assert undisturbed.epochs % 10 == 0, "a look at validation chose it"
    assert 0.3 < undisturbed.best_validation_recall <= 1.0
    assert (undisturbed.split, undisturbed.learning_rate) == ("data", SETTINGS.learning_rate)
    assert undisturbed.peak_bytes > 50 * 2**20
    assert Path(undisturbed.curve_path).read_text().count("<polyline") == 3
    assert undisturbed.num_parameters == (graph.num_users + graph.num_items) * 8
    both = [file_sha256(path) for path in (undisturbed.judged_path, undisturbed.served_path)]
    assert undisturbed.fingerprint == fingerprint_of(*both), "a change of either is another result"
    assert both[0] != both[1]


# ---- disturbances


def test_a_killed_rank_a_killed_agent_and_a_hung_rank_cost_time_and_not_a_byte(
    graph: Graph, undisturbed: Fitted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is replaced, from the last checkpoint. The same ranks that train twice write the same bytes."""
    monkeypatch.setattr(supervisor, "GRACE_S", 1.0)  # a stopped process does not hear SIGTERM
    folder.mkdir()
    victims: list[psutil.Process] = []

    def disturb(progress: dict[str, Any]) -> None:
        due = {0: ("judged", 5), 1: ("judged", 25), 2: ("served", 5)}.get(len(victims))
        if due is None or (progress["fit"], progress["epoch"]) < due:
            return
        victims.append(agent_of(folder) if len(victims) == 1 else ranks_of(folder)[-1])
        victims[-1].send_signal(signal.SIGSTOP if len(victims) == 3 else signal.SIGKILL)

    settings = SETTINGS.model_copy(update={"checkpoint_s": 0, "silence_s": 5, "relaunches": 3})
    fitted = fit_twice(graph, settings, PLACE, folder, k=10, on_progress=disturb)

    assert len(victims) == 3
    assert "ended first, with exit code -9 (SIGKILL)" in (folder / "ranks.log").read_text()
    resumed = json.loads((folder / "result.json").read_text())
    assert resumed["judged"]["resumed_at"] > 0
    assert resumed["served"]["resumed_at"] > 0
    assert fitted.fingerprint == undisturbed.fingerprint
    assert file_sha256(fitted.judged_path) == file_sha256(undisturbed.judged_path)
    assert fitted.epochs == undisturbed.epochs
    assert not (folder / "checkpoints").exists(), "nobody goes on from a finished training"


def test_a_rank_that_keeps_dying_ends_the_night_by_name(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, **ENDLESS)
    started = time.monotonic()
    with pytest.raises(TrainingLost, match=r"(?s)on 2 ranks ended without a result.*SIGKILL.*Run the night") as lost:
        supervise(spec_path, ranks=2, on_progress=once(lambda: ranks_of(folder)[0].send_signal(signal.SIGKILL)))
    assert time.monotonic() - started < 60
    assert lost.value.worth_a_retry
    assert processes_of(folder) == []


def test_a_training_that_does_not_end_is_given_up_at_its_deadline(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, **ENDLESS)
    with pytest.raises(TrainingLost, match=r"ended without a result, 1 times.*after train\.deadline_s = 6 s"):
        supervise(spec_path, ranks=1, deadline_s=6, relaunches=3)
    assert processes_of(folder) == []


def test_whoever_kills_the_supervisor_kills_the_ranks(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, **ENDLESS)
    program = (
        "import sys; from pathlib import Path; from tasks.ranks import Launch, run_ranks; "
        "from tasks.train.fitting import TRAINING; run_ranks(Launch(TRAINING, Path(sys.argv[1]), 2, 1, "
        f"Path({str(PROJECT_ROOT)!r}), silence_s=60, deadline_s=600, relaunches=1), lambda _: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(spec_path)], cwd=PROJECT_ROOT)
    try:
        _wait_for(lambda: (folder / "progress.json").exists(), at_most_s=60)
        assert len(ranks_of(folder)) == 2
    finally:
        parent.kill()
        parent.wait()
    _wait_until_gone(folder, at_most_s=5)


def test_a_cancelled_night_leaves_no_ranks(graph: Graph, folder: Path) -> None:
    """Ctrl-C and Prefect's cancel arrive as an exception in the middle of watching."""
    spec_path = write_spec(graph, folder, **ENDLESS)

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(spec_path, ranks=1, on_progress=once(cancel))
    assert processes_of(folder) == []


def test_what_diverges_is_tried_once_more_at_half_the_rate(graph: Graph, folder: Path) -> None:
    """It diverges at any rate: no distance between this temperature and zero."""
    folder.mkdir()
    settings = SETTINGS.model_copy(update={"temperature": 1e-45, "learning_rate": 0.04, "relaunches": 3})
    with pytest.raises(
        TrainingDiverged, match=r"the loss of the judged fit is nan in epoch 1 of 50, step 1.*published"
    ):
        fit_twice(graph, settings, Place("cpu", 1, 1), folder, k=10, on_progress=lambda _: None)
    assert (folder / "ranks.log").read_text().count("Failure: ") == 2
    assert json.loads((folder / "spec.json").read_text())["learning_rate"] == 0.02


def test_a_table_that_no_machine_can_hold_is_named_with_the_formula_and_the_knob(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, width=2**36)
    with pytest.raises(
        TrainingOutOfMemory, match=r"(?i)memory.*8 tables of nodes x train\.width x 4.*lower train\.width"
    ):
        supervise(spec_path, ranks=1, relaunches=3)


def test_the_ranks_last_words_stand_in_the_error(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, graph_folder=str(folder / "nowhere"))
    with pytest.raises(TrainingLost, match=r"(?s)last words:.*No such file.*nowhere"):
        supervise(spec_path, ranks=1)


def _wait_for(condition: Callable[[], bool], *, at_most_s: float) -> None:
    until = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def _wait_until_gone(folder: Path, *, at_most_s: float) -> None:
    _wait_for(lambda: not processes_of(folder), at_most_s=at_most_s)


# ---- several nodes, each its own torchrun, that meet over TCP


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def second_node(launch: Launch) -> subprocess.Popen[bytes]:
    """The command that the first node's log asks for, on another machine: here, another process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("NIGHTGRAPH_PARENT_PID", None)
    return subprocess.Popen(
        launch.command(), cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.fixture
def two_nodes(graph: Graph, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    endpoint = f"127.0.0.1:{free_port()}"
    return Launch(
        TRAINING,
        write_spec(graph, folder, max_epochs=4, split="columns"),
        ranks=1,
        threads=1,
        project_root=PROJECT_ROOT,
        silence_s=60,
        deadline_s=60,
        relaunches=0,
        nodes=2,
        rdzv_endpoint=endpoint,
    )


def test_two_nodes_train_what_two_ranks_of_one_node_train(two_nodes: Launch, graph: Graph, tmp_path: Path) -> None:
    other = second_node(two_nodes)
    try:
        result = run_ranks(two_nodes, lambda _: None)
        assert other.wait(timeout=20) == 0
    finally:
        other.kill()
        other.wait()
    assert result["ranks"] == 2
    here = write_spec(graph, tmp_path / "one node", max_epochs=4, split="columns")
    supervise(here, ranks=2)
    for name in ("judged.safetensors", "served.safetensors"):
        assert (here.parent / name).read_bytes() == (two_nodes.spec_path.parent / name).read_bytes()


def test_a_node_with_another_graph_is_refused(two_nodes: Launch, graph: Graph, tmp_path: Path) -> None:
    shutil.copytree(graph.folder, tmp_path / "graph")
    values = np.load(tmp_path / "graph/adjacency_all.values.npy")
    values[0] *= 1.5
    np.save(tmp_path / "graph/adjacency_all.values.npy", values)
    spec = json.loads(two_nodes.spec_path.read_text()) | {"graph_folder": str(tmp_path / "graph")}
    (tmp_path / "node/training").mkdir(parents=True)  # the same name: it is the rendezvous' id
    (tmp_path / "node/training/spec.json").write_text(json.dumps(spec))
    other = second_node(replace(two_nodes, spec_path=tmp_path / "node/training/spec.json"))
    try:
        with pytest.raises(RankMismatch, match=r"rank \d and rank \d do not have the same graph\. .*Bring the same"):
            run_ranks(two_nodes, lambda _: None)
    finally:
        other.kill()
        other.wait()


def test_a_meeting_place_that_is_taken_by_somebody_else_is_given_up(two_nodes: Launch) -> None:
    host, port = two_nodes.rdzv_endpoint.split(":")
    with socket.socket() as stranger:
        stranger.bind((host, int(port)))
        stranger.listen()
        with pytest.raises(TrainingLost, match="ended without a result, 1 times"):
            run_ranks(replace(two_nodes, deadline_s=6), lambda _: None)


def test_a_meeting_place_is_one_that_the_deployment_allows(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainConfig(device="cpu", nodes=2, ranks=1, rdzv_endpoint="trainer-0:29400")
    with pytest.raises(RunConfigError, match=r"not among the places.*NIGHTGRAPH_RDZV_ENDPOINTS"):
        choose_place(settings, graph)
    monkeypatch.setenv("NIGHTGRAPH_RDZV_ENDPOINTS", "elsewhere:1, trainer-0:29400")
    assert choose_place(settings, graph).world == 2


@pytest.mark.parametrize("settings", [{"nodes": 2}, {"nodes": 2, "ranks": 1}, {"nodes": 2, "rdzv_endpoint": "a:1"}])
def test_nodes_that_do_not_know_where_to_meet_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs train\.rdzv_endpoint"):
        TrainConfig(**settings)


# ---- where it trains, and how


def test_the_plan_is_told_before_anything_starts(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="nightgraph.train"):
        place = choose_place(TrainConfig(device="cpu", ranks=2), graph)
    plans = [record.getMessage() for record in caplog.records]
    assert [plan.split(":")[1].strip() for plan in plans] == ["data", "columns", "rows"]
    assert [place.split for plan in plans if plan.endswith("<- chosen")] == [place.split]
    assert all(
        re.search(r"MiB a rank, [\d,]+ MiB for the start, [\d.,]+ MiB sent a rank and step, about [\d,]+ ms", p)
        for p in plans
    )


def test_a_split_that_cannot_be_is_refused_with_what_could(graph: Graph) -> None:
    with pytest.raises(
        RunConfigError, match=r"8 columns of 100 nodes cannot be.*among 12 ranks\. Take at most 8 ranks"
    ):
        choose_place(TrainConfig(device="cpu", ranks=12, width=8, split="columns"), graph)
    assert choose_place(TrainConfig(device="cpu", ranks=12, width=8), graph).split in ("data", "rows")


def test_what_no_device_can_hold_is_refused_before_it_starts(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**20))
    with pytest.raises(
        TrainingOutOfMemory, match=r"1 ranks on this machine need .* GiB, .*8 tables of 100 nodes.*Lower train\.width"
    ):
        choose_place(TrainConfig(device="cpu", ranks=1, width=1024), graph)


@pytest.mark.parametrize(
    ("device", "ranks", "gpus", "chosen"),
    [
        ("auto", None, 0, Place("cpu", 1, 12)),
        ("auto", 3, 0, Place("cpu", 3, 4)),
        ("auto", 24, 0, Place("cpu", 24, 1)),
        ("auto", None, 4, Place("cuda", 4, 3)),
        ("auto", 2, 4, Place("cuda", 2, 6)),
        ("auto", 8, 4, Place("cpu", 8, 1)),
        ("cpu", None, 4, Place("cpu", 1, 12)),
        ("cuda", None, 2, Place("cuda", 2, 6)),
        ("cuda", 1, 2, Place("cuda", 1, 12)),
    ],
)
def test_the_gpus_are_taken_where_there_are_enough(
    device: str, ranks: int | None, gpus: int, chosen: Place, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert choose_place(TrainConfig(device=device, ranks=ranks, split="data"), graph) == chosen  # type: ignore[arg-type]


def test_what_was_asked_for_is_taken(graph: Graph) -> None:
    assert choose_place(TrainConfig(device="cpu", ranks=2, threads=5, split="rows"), graph) == Place(
        "cpu", 2, 5, split="rows"
    )


@pytest.mark.parametrize("change", [{"threads": 2}, {"ranks": 2}, {"width": 16}])
def test_other_threads_other_ranks_or_another_recipe_are_another_fit(
    change: dict[str, Any], graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are added up in another order then, and a key must never stand for two results."""
    keys = []

    def note(run: Run, stage: str, kind: type, compute: object, *, inputs: tuple[Any, ...], resumes: bool) -> None:
        keys.append(fingerprint_of(stage, *inputs))

    monkeypatch.setattr(train_task, "finish_stage", note)
    for changes in ({}, {"silence_s": 90, "relaunches": 0}, change):
        config = NightlyConfig.model_validate({"train": {"device": "cpu", "ranks": 1, "threads": 1} | changes})
        run = Run("", date(2026, 11, 23), "", "", "", config, False, str(tmp_path), "", 0, 0)
        train_task.train.fn(run, graph)
    assert keys[0] == keys[1], "how ranks are watched changes no number"
    assert keys[0] != keys[2]


@pytest.mark.parametrize(("ranks", "gpus"), [(None, 0), (1, 0), (3, 2)])
def test_asking_for_gpus_that_are_not_there_is_an_error_not_a_slow_night(
    ranks: int | None, gpus: int, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(DeviceUnavailable, match=f"this machine has {gpus} usable GPUs.*Set train.device to auto"):
        choose_place(TrainConfig(device="cuda", ranks=ranks), graph)


def test_ranks_get_no_credentials_and_no_settings_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    launch = Launch(TRAINING, Path("spec.json"), 1, 1, PROJECT_ROOT, silence_s=60, deadline_s=600, relaunches=0)
    environment = supervisor._environment(launch, "run")
    assert "secret" not in environment.values()
    assert environment["NIGHTGRAPH_PARENT_PID"] == str(os.getpid())
