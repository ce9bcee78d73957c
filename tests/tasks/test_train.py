"""The supervisor among real processes that are killed, stopped and orphaned: a named end, no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tasks.config import NightlyConfig, TrainConfig
from tasks.contracts import Fitted, Graph, Run
from tasks.errors import DeviceUnavailable, TrainingDiverged, TrainingLost
from tasks.run import file_sha256, fingerprint_of
from tasks.train import supervisor
from tasks.train import task as train_task
from tasks.train.fitting import Place, choose_place, fit_twice
from tasks.train.supervisor import train_on_ranks
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
    """torchrun and its ranks, found by the spec that stands in their command line."""
    spec_path = str(folder / "spec.json")
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if spec_path in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def ranks_of(folder: Path) -> list[psutil.Process]:
    return [
        p
        for p in processes_of(folder)
        if p.info["cmdline"][-3:-1] == ["-m", "models.train"] and "models.distributed" not in p.info["cmdline"]
    ]


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
    settings = {"silence_s": 60, "relaunches": 0, "on_progress": lambda _: None} | changes
    return train_on_ranks(spec_path, ranks=ranks, threads=1, project_root=PROJECT_ROOT, **settings)


# ---- an undisturbed training


def test_two_fits_come_back_with_what_the_night_needs_to_know(undisturbed: Fitted, graph: Graph) -> None:
    assert undisturbed.ranks == 2
    assert undisturbed.device == "cpu"
    assert undisturbed.epochs % 10 == 0, "a look at validation chose it"
    assert 0.3 < undisturbed.best_validation_recall <= 1.0
    assert undisturbed.num_parameters == (graph.num_users + graph.num_items) * 8
    both = [file_sha256(path) for path in (undisturbed.judged_path, undisturbed.served_path)]
    assert undisturbed.fingerprint == fingerprint_of(*both), "a change of either is another result"
    assert both[0] != both[1]


# ---- disturbances


def test_a_killed_rank_is_replaced_and_two_ranks_write_the_bytes_of_an_undisturbed_run(
    graph: Graph, undisturbed: Fitted, folder: Path
) -> None:
    """The same ranks that train twice write the same bytes, whatever happened on the way."""
    folder.mkdir()
    killed: list[int] = []

    def kill_one() -> None:
        victim = ranks_of(folder)[-1]
        killed.append(victim.pid)
        victim.send_signal(signal.SIGKILL)

    fitted = fit_twice(graph, SETTINGS, PLACE, folder, k=10, on_progress=once(kill_one))

    assert killed
    assert "ended first, with exit code -9 (SIGKILL)" in (folder / "ranks.log").read_text()
    assert fitted.fingerprint == undisturbed.fingerprint
    assert file_sha256(fitted.judged_path) == file_sha256(undisturbed.judged_path)
    assert fitted.epochs == undisturbed.epochs


def test_a_rank_that_keeps_dying_ends_the_night_by_name(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, **ENDLESS)
    started = time.monotonic()
    with pytest.raises(TrainingLost, match=r"(?s)on 2 ranks ended without a result.*SIGKILL.*Run the night") as lost:
        supervise(spec_path, ranks=2, on_progress=once(lambda: ranks_of(folder)[0].send_signal(signal.SIGKILL)))
    assert time.monotonic() - started < 60
    assert lost.value.worth_a_retry
    assert processes_of(folder) == []


def test_a_rank_that_hangs_is_noticed_by_its_silence(
    graph: Graph, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank waits for it, so both fall silent. A stopped process does not hear SIGTERM, hence the kill."""
    monkeypatch.setattr(supervisor, "GRACE_S", 1.0)
    spec_path = write_spec(graph, folder, **ENDLESS)
    stopped: list[psutil.Process] = []

    def stop_one() -> None:
        stopped.append(ranks_of(folder)[0])
        stopped[0].suspend()

    with pytest.raises(TrainingLost, match=r"no rank gave a sign of life for [5-9] s"):
        supervise(spec_path, ranks=2, silence_s=5, on_progress=once(stop_one))
    assert stopped
    _wait_until_gone(folder, at_most_s=5)


def test_whoever_kills_the_supervisor_kills_the_ranks(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, **ENDLESS)
    program = (
        "import sys; from pathlib import Path; from tasks.train.supervisor import train_on_ranks; "
        "train_on_ranks(Path(sys.argv[1]), ranks=2, threads=1, silence_s=60, relaunches=1, "
        f"project_root=Path({str(PROJECT_ROOT)!r}), on_progress=lambda _: None)"
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


def test_a_loss_that_is_no_number_is_not_tried_again(graph: Graph, folder: Path) -> None:
    spec_path = write_spec(graph, folder, temperature=1e-45)
    with pytest.raises(TrainingDiverged, match=r"the loss of the judged fit is nan.*Nothing was published"):
        supervise(spec_path, ranks=1, relaunches=3)
    assert (folder / "ranks.log").read_text().count("Diverged: ") == 1


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


# ---- where it trains


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
    device: str, ranks: int | None, gpus: int, chosen: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert choose_place(TrainConfig(device=device, ranks=ranks)) == chosen  # type: ignore[arg-type]


def test_a_number_of_threads_that_was_asked_for_is_taken() -> None:
    assert choose_place(TrainConfig(device="cpu", ranks=2, threads=5)) == Place("cpu", 2, 5)


@pytest.mark.parametrize("change", [{"threads": 2}, {"ranks": 2}, {"width": 16}])
def test_other_threads_other_ranks_or_another_recipe_are_another_fit(
    change: dict[str, Any], graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are added up in another order then, and a key must never stand for two results."""
    keys = []

    def note(run: Run, stage: str, kind: type, compute: Callable[[Path], Fitted], *, inputs: tuple[Any, ...]) -> None:
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
    ranks: int | None, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(DeviceUnavailable, match=f"this machine has {gpus} usable GPUs.*Set train.device to auto"):
        choose_place(TrainConfig(device="cuda", ranks=ranks))


def test_ranks_get_no_credentials_and_no_settings_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    environment = supervisor._environment(1, PROJECT_ROOT)
    assert "secret" not in environment.values()
    assert environment["NIGHTGRAPH_PARENT_PID"] == str(os.getpid())
