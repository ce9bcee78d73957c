"""A night's identity and its work folder: what is reused, what is computed again, and who may work at the same time."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.config import NightlyConfig
from tasks.contracts import Run
from tasks.errors import DiskFull, NightInProgress
from tasks.run import (
    PROJECT_ROOT,
    clear_work_folder,
    code_version,
    decide_date,
    fingerprint_of,
    finish_stage,
    hold_work_folder,
    measured,
    pin_path,
    stage_costs,
    work_folder,
)

NIGHT = date(2026, 11, 23)


@dataclass(frozen=True)
class Answer:
    number: int
    when: datetime
    share: float


ANSWER = Answer(42, datetime(2026, 11, 22, 23, 59, tzinfo=UTC), 0.1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path, NIGHT)


def run_of(root: Path, as_of: date) -> Run:
    folder = work_folder(str(root / "work"), "s3://bucket/shop", as_of)
    return Run(
        store_uri="s3://bucket/shop",
        as_of=as_of,
        run_key="k" * 64,
        input_fingerprint="i",
        code_version="c",
        config=NightlyConfig(),
        force=False,
        work_folder=str(folder),
        inputs_path=str(pin_path(folder, "k" * 64)),
        num_files=1,
        num_input_bytes=1,
    )


class Stage:
    """Writes two files, and counts how often it really did."""

    def __init__(self) -> None:
        self.times = 0
        self.folder = Path()

    def __call__(self, folder: Path) -> Answer:
        assert not list(folder.iterdir()), "a stage starts in an empty folder"
        self.times += 1
        self.folder = folder
        (folder / "deep").mkdir()
        (folder / "deep" / "answer.bin").write_bytes(b"forty-two")
        (folder / "other.bin").write_bytes(b"other")
        return ANSWER

    def finish(self, run: Run, *inputs: object) -> Answer:
        return finish_stage(run, "think", Answer, self, inputs=inputs or ("input",))


@pytest.fixture
def stage() -> Stage:
    return Stage()


# ---- stages


def test_a_finished_stage_is_read_not_computed(run: Run, stage: Stage) -> None:
    assert stage.finish(run) == stage.finish(run) == ANSWER
    assert stage.times == 1
    (cost,) = stage_costs(run)
    assert (cost.stage, cost.reused) == ("think", True)


def _remove(folder: Path) -> None:
    (folder / "deep" / "answer.bin").unlink()


def _flip_a_byte(folder: Path) -> None:
    (folder / "deep" / "answer.bin").write_bytes(b"forty-tvo")


def _cut(folder: Path) -> None:
    (folder / "other.bin").write_bytes(b"oth")


def _unmark(folder: Path) -> None:
    (folder / ".stage.json").unlink()


def _cut_the_marker(folder: Path) -> None:
    marker = folder / ".stage.json"
    marker.write_bytes(marker.read_bytes()[:20])


def _marker_of_another_shape(folder: Path) -> None:
    marker = json.loads((folder / ".stage.json").read_text())
    marker["ref"] = {"another": "shape"}
    (folder / ".stage.json").write_text(json.dumps(marker))


DAMAGES = [_remove, _flip_a_byte, _cut, _unmark, _cut_the_marker, _marker_of_another_shape]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_stage_is_computed_again(run: Run, stage: Stage, damage: Callable[[Path], None]) -> None:
    stage.finish(run)
    damage(stage.folder)
    assert stage.finish(run) == ANSWER
    assert stage.times == 2
    assert (stage.folder / "deep" / "answer.bin").read_bytes() == b"forty-two"
    assert (stage.folder / "other.bin").read_bytes() == b"other"
    stage.finish(run)
    assert stage.times == 2


def test_other_inputs_other_code_or_another_day_are_another_stage(run: Run, stage: Stage, tmp_path: Path) -> None:
    stage.finish(run, "input")
    stage.finish(run, "another input")
    stage.finish(replace(run, code_version="one byte later"), "input")
    stage.finish(run_of(tmp_path, date(2026, 11, 24)), "input")
    assert stage.times == 4


def test_a_stage_that_failed_is_computed_again_from_an_empty_folder(run: Run, stage: Stage) -> None:
    def fail(folder: Path) -> Answer:
        (folder / "half.bin").write_bytes(b"half")
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        finish_stage(run, "think", Answer, fail, inputs=("input",))
    assert stage.finish(run) == ANSWER
    assert not (stage.folder / "half.bin").exists()


def test_a_full_disk_has_a_name_and_says_where(run: Run) -> None:
    def fill(folder: Path) -> Answer:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "big.bin"))

    with pytest.raises(DiskFull, match=r"filled up during think.*NIGHTGRAPH_WORK.*finished stages are kept") as full:
        finish_stage(run, "think", Answer, fill, inputs=())
    assert run.work_folder in str(full.value)
    assert not full.value.worth_a_retry


def test_another_error_of_the_system_keeps_its_own_name(run: Run) -> None:
    def deny(folder: Path) -> Answer:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        finish_stage(run, "think", Answer, deny, inputs=())


def test_a_stages_cost_is_noted_once_and_not_in_its_answer(run: Run, stage: Stage) -> None:
    stage.finish(run)
    (cost,) = stage_costs(run)
    assert cost.seconds >= 0
    assert cost.peak_bytes > 2**20
    assert not cost.reused


# ---- one night at a time


def test_a_second_process_cannot_work_on_the_same_night(run: Run) -> None:
    with hold_work_folder(run):
        assert _try_to_hold_elsewhere(run) == "NightInProgress"
    assert _try_to_hold_elsewhere(run) == "held"


def test_two_nights_of_different_dates_can_run_beside_each_other(run: Run, tmp_path: Path) -> None:
    with hold_work_folder(run):
        assert _try_to_hold_elsewhere(run_of(tmp_path, date(2026, 11, 22))) == "held"


def test_a_second_night_in_the_same_process_is_refused_too(run: Run) -> None:
    refused = pytest.raises(NightInProgress, match=r"2026-11-23.*Nothing was started. Wait for it")
    with hold_work_folder(run), refused, hold_work_folder(run):
        pass


def _try_to_hold_elsewhere(run: Run) -> str:
    program = f"""
from tasks.run import hold_work_folder
from tasks.contracts import Run
from tasks.config import NightlyConfig
from tasks.errors import NightInProgress
from datetime import date
run = Run("s", date({run.as_of.year}, {run.as_of.month}, {run.as_of.day}), "", "", "", NightlyConfig(), False,
          {run.work_folder!r}, {run.work_folder + "/inputs-none.json"!r}, 0, 0)
try:
    with hold_work_folder(run):
        print("held")
except NightInProgress:
    print("NightInProgress")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_after_a_success_only_the_empty_lock_is_left(run: Run, stage: Stage) -> None:
    with hold_work_folder(run):
        stage.finish(run)
        clear_work_folder(run)
    assert [path.name for path in Path(run.work_folder).iterdir()] == ["lock"]
    assert (Path(run.work_folder) / "lock").stat().st_size == 0


def test_a_finished_night_leaves_alone_what_another_opening_pinned(run: Run, tmp_path: Path) -> None:
    """The other process has listed its inputs and waits for the lock: it will read them."""
    other = run_of(tmp_path, NIGHT)
    with hold_work_folder(run):
        for night in (run, other):
            Path(night.inputs_path).write_text("[]")
        clear_work_folder(run)
    assert not Path(run.inputs_path).exists()
    assert Path(other.inputs_path).read_text() == "[]"


def test_a_night_that_failed_or_was_turned_away_leaves_no_pin(run: Run, tmp_path: Path) -> None:
    turned_away = run_of(tmp_path, NIGHT)
    Path(run.work_folder).mkdir(parents=True)
    for night in (run, turned_away):
        Path(night.inputs_path).write_text("[]")
    with pytest.raises(NightInProgress), hold_work_folder(run), hold_work_folder(turned_away):
        pass
    assert [path.name for path in Path(run.work_folder).iterdir()] == ["lock"]


def test_pins_of_killed_nights_go_after_a_day(run: Run) -> None:
    folder = Path(run.work_folder)
    folder.mkdir(parents=True)
    fresh, old = folder / "inputs-fresh.json", folder / "inputs-old.json"
    for path in (fresh, old):
        path.write_text("[]")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    with hold_work_folder(run):
        assert (fresh.exists(), old.exists()) == (True, False)


def test_housekeeping_fails_no_night(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Old scratch that cannot be removed, and a work folder that somebody emptied meanwhile."""
    _leave_unfinished(tmp_path, [date(2026, 11, day) for day in (17, 18, 19)], Stage())
    with monkeypatch.context() as denied:
        denied.setattr(shutil, "rmtree", _deny)
        with hold_work_folder(run):
            pass
        Path(run.work_folder, "think-key").mkdir()
        clear_work_folder(run)
    assert "the scratch of the night of 2026-11-17 could not be removed" in caplog.text
    assert "scratch of this night could not be removed" in caplog.text
    shutil.rmtree(run.work_folder)
    clear_work_folder(run)
    with measured(run, "publish"):
        pass
    assert [cost.stage for cost in stage_costs(run)] == ["publish"]
    shutil.rmtree(run.work_folder)
    Path(run.work_folder).write_text("a file where the folder was")
    with measured(run, "publish"):
        pass
    assert "what publish took could not be noted" in caplog.text


def _deny(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "denied")


def test_two_processes_that_open_the_same_night_again_and_again_never_end_each_other(run: Run) -> None:
    program = f"""
import sys
from pathlib import Path
from tasks.errors import NightInProgress
from tests.tasks.test_run import run_of, NIGHT, hold_work_folder
for _ in range(150):
    run = run_of(Path({str(Path(run.work_folder).parents[2])!r}), NIGHT)
    Path(run.work_folder).mkdir(parents=True, exist_ok=True)
    Path(run.inputs_path).with_suffix(".tmp").write_text("[]")
    Path(run.inputs_path).with_suffix(".tmp").replace(run.inputs_path)
    try:
        with hold_work_folder(run):
            pass
    except NightInProgress:
        pass
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


def test_of_each_stage_only_the_newest_work_is_kept(run: Run, stage: Stage) -> None:
    """Settings are tried one after the other on one date: scratch must not grow with them."""
    for number in range(5):
        stage.finish(replace(run, run_key=str(number) * 64), f"setting {number}")
    assert len(list(Path(run.work_folder).glob("think-*"))) == 1
    assert len(list((Path(run.work_folder) / "costs").iterdir())) == 1


def _leave_unfinished(root: Path, days: list[date], stage: Stage) -> None:
    """Nights that failed after their first stage, two days ago."""
    two_days_ago = time.time() - 2 * 24 * 3600
    for day in days:
        night = run_of(root, day)
        with hold_work_folder(night):
            stage.finish(night)
        os.utime(night.work_folder, (two_days_ago, two_days_ago))


def _kept(root: Path) -> list[str]:
    folder = Path(run_of(root, NIGHT).work_folder).parent
    return [path.name for path in sorted(folder.iterdir()) if any(child.is_dir() for child in path.iterdir())]


def test_only_the_newest_two_unfinished_nights_are_kept(tmp_path: Path, stage: Stage) -> None:
    _leave_unfinished(tmp_path, [date(2026, 11, day) for day in (17, 18, 19, 20)], stage)
    with hold_work_folder(run_of(tmp_path, NIGHT)):
        pass
    assert _kept(tmp_path) == ["2026-11-19", "2026-11-20"]


def test_a_night_that_is_running_is_never_dropped(tmp_path: Path, stage: Stage) -> None:
    _leave_unfinished(tmp_path, [date(2026, 11, 1)], stage)
    with hold_work_folder(run_of(tmp_path, date(2026, 11, 1))):
        _leave_unfinished(tmp_path, [date(2026, 11, day) for day in (18, 19, 20)], stage)
        with hold_work_folder(run_of(tmp_path, NIGHT)):
            pass
    assert _kept(tmp_path) == ["2026-11-01", "2026-11-19", "2026-11-20"]


def test_a_backfill_of_many_nights_in_one_day_drops_none_of_them(tmp_path: Path, stage: Stage) -> None:
    days = [date(2026, 11, day) for day in (17, 18, 19, 20)]
    for day in days:
        with hold_work_folder(run_of(tmp_path, day)):
            stage.finish(run_of(tmp_path, day))
    assert _kept(tmp_path) == [day.isoformat() for day in days]


def test_two_stores_never_share_a_folder(tmp_path: Path) -> None:
    one = work_folder(str(tmp_path), "s3://bucket/shop", NIGHT)
    assert one != work_folder(str(tmp_path), "s3://bucket/shop2", NIGHT)
    assert one != work_folder(str(tmp_path), "s3://bucket/shop", date(2026, 11, 24))


# ---- identity


@pytest.mark.parametrize(
    ("as_of", "scheduled_on", "decided"),
    [
        (date(2020, 1, 1), date(2026, 11, 23), date(2020, 1, 1)),
        (None, date(2026, 11, 23), date(2026, 11, 23)),
        (None, None, date(2001, 3, 1)),
    ],
)
def test_the_date_is_the_parameter_else_the_schedule_else_the_day_after_the_last_event(
    as_of: date | None, scheduled_on: date | None, decided: date
) -> None:
    last_event_at = datetime(2001, 2, 28, 23, 59, 59, tzinfo=UTC)
    assert decide_date(as_of=as_of, scheduled_on=scheduled_on, last_event_at=last_event_at) == decided


def test_one_byte_of_any_source_is_another_version(tmp_path: Path) -> None:
    for room in ("flows", "models", "tasks"):
        shutil.copytree(PROJECT_ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "constraints.txt", tmp_path)
    before = code_version(tmp_path)
    assert before == code_version(PROJECT_ROOT), "the place does not matter"
    versions = {before}
    for name in ("models/topk.py", "tasks/graph/split.py", "flows/nightly.py", "constraints.txt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b"\n")
        versions.add(code_version(tmp_path))
    (tmp_path / "models" / "new.py").write_bytes(b"")
    versions.add(code_version(tmp_path))
    assert len(versions) == 6
    (tmp_path / "models" / "__pycache__").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("not code")
    assert code_version(tmp_path) in versions


def test_a_fingerprint_follows_values_not_objects() -> None:
    assert fingerprint_of("a", NIGHT, NightlyConfig()) == fingerprint_of("a", date(2026, 11, 23), NightlyConfig())
    changed = NightlyConfig.model_validate({"train": {"width": 65}})
    assert fingerprint_of(NightlyConfig()) != fingerprint_of(changed)
    assert fingerprint_of("a", "b") != fingerprint_of("ab")
    assert fingerprint_of({"x": 1, "y": 2}) == fingerprint_of({"y": 2, "x": 1})
