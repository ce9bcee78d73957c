"""SIGKILL at every boundary of a night, then rerun: the same bytes as an undisturbed night, and no half night seen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.nightly import nightly
from tasks.errors import ObjectNotFound
from tasks.publish.reader import open_latest
from tests.flows.conftest import PROJECT_ROOT, QUICK, bytes_of, two_taste_events, write_events

STAGES = ("ingest", "graph", "train", "evaluate", "recommend", "judge")


def _night(moment: str, *, slow: bool = False) -> "subprocess.Popen[str]":
    settings = QUICK
    if slow:
        settings = QUICK.model_copy(
            update={"train": QUICK.train.model_copy(update={"max_epochs": 1000, "patience": 100, "ranks": 2})}
        )
    return subprocess.Popen(
        [sys.executable, str(PROJECT_ROOT / "tests/flows/killed_night.py"), moment, settings.model_dump_json()],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "PREFECT_LOGGING_EXTRA_LOGGERS": "nightgraph"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(night: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = night.communicate(timeout=120)
    assert "user-0" not in output, "of a whole night, dead or alive, no line holds an id"
    return night.returncode, output


def test_a_night_killed_at_every_boundary_ends_with_the_bytes_of_an_undisturbed_one(
    night_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = night_place / "store"
    write_events(store, two_taste_events())
    for done, stage in enumerate(STAGES):
        code, output = _end(_night(stage))
        assert code == -signal.SIGKILL, output[-2000:]
        reused = [name for name in STAGES if f"{name}: finished earlier, reused" in output]
        assert reused == list(STAGES[:done]), f"the rerun continues at the first unfinished stage: {output[-4000:]}"
        _nothing_is_live(store)
    code, output = _end(_night("recommend-undone"))
    assert code == 0, "recommend had finished before, so this night never gets to that moment"

    undisturbed = _undisturbed(night_place, monkeypatch)
    live = open_latest(str(store), verify=True)
    assert [Path(part.removeprefix("file://")).read_bytes() for part in live.files] == undisturbed


def test_a_night_killed_while_it_publishes_is_seen_whole_or_not_at_all(
    night_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = night_place / "store"
    write_events(store, two_taste_events())
    for moment, version in (("train-undone", 0), ("upload", 0), ("commit", 0), ("latest", 1)):
        code, output = _end(_night(moment))
        assert code == -signal.SIGKILL, f"{moment}: {output[-2000:]}"
        if version == 0:
            _nothing_is_live(store)
        if moment == "commit":  # the rerun finds the commit, moves LATEST on and computes nothing
            code, output = _end(_night("never"))
            assert code == 0
            assert "version 1 already True" in output
            left = {path.name.split("-")[0] for path in (night_place / "work").rglob("*") if path.is_file()}
            assert left == {"lock", "inputs"}, "the scratch of the night that died after its commit"
            (store / "_meta" / "LATEST.json").unlink()
            for commit in (store / "_meta" / "commits").rglob("*.json"):
                commit.unlink()  # back to a night that never published, for the last moment
    code, output = _end(_night("never"))
    assert code == 0
    assert "version 1 already True" in output

    live = open_latest(str(store), verify=True)
    assert [Path(part.removeprefix("file://")).read_bytes() for part in live.files] == _undisturbed(
        night_place, monkeypatch
    )


def test_a_killed_night_takes_its_training_ranks_with_it(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    night = _night("never", slow=True)
    ranks = _wait_for_ranks(night_place, count=2)
    night.kill()
    night.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert alive == []
    assert _ranks(night_place) == []


def _wait_for_ranks(place: Path, *, count: int) -> list[psutil.Process]:
    for _ in range(300):
        ranks = _ranks(place)
        beating = list((place / "work").rglob("heartbeat-*"))
        if len(ranks) >= count and len(beating) >= count:
            return ranks
        time.sleep(0.1)
    raise AssertionError("the ranks did not start within 30 s")


def _ranks(place: Path) -> list[psutil.Process]:
    """Every process of the training tree names the spec file in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(place / "work") in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _nothing_is_live(store: Path) -> None:
    with pytest.raises(ObjectNotFound):
        open_latest(str(store))


def _undisturbed(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setenv("NIGHTGRAPH_STORE", str(place / "calm"))
    monkeypatch.setenv("NIGHTGRAPH_WORK", str(place / "calm-work"))
    write_events(place / "calm", two_taste_events())
    return bytes_of(nightly(QUICK))
