"""The two tasks of the room, with Prefect around them."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.context import FlowRunContext

from tasks.config import NightlyConfig
from tasks.errors import InputUnstable
from tasks.ingest.task import ingest, open_run
from tasks.ingest.town import write_town
from tasks.store import open_store


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NIGHTGRAPH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NIGHTGRAPH_WORK", str(tmp_path / "work"))
    store = open_store(str(tmp_path / "store"))
    write_town(store)
    return store


def test_a_night_opens_reads_its_events_and_reuses_them_when_it_runs_again(town: Any) -> None:
    run = open_run.fn(NightlyConfig(), None, False)
    assert (run.as_of, run.num_files, run.store_uri) == (date(2026, 11, 23), 31, town.uri)
    night = ingest.fn(run)
    written_at = (Path(night.folder) / "item_row.npy").stat().st_mtime_ns
    assert Path(night.folder).is_relative_to(run.work_folder)
    again = open_run.fn(NightlyConfig(), None, False)
    assert replace(again, inputs_path=run.inputs_path) == run
    assert ingest.fn(again) == night
    assert (Path(night.folder) / "item_row.npy").stat().st_mtime_ns == written_at


def test_a_file_swapped_after_the_night_opened_ends_it(town: Any) -> None:
    run = open_run.fn(NightlyConfig(), None, False)
    folder = Path(town.uri.removeprefix("file://")) / "events"
    one, other = sorted(folder.glob("*/events.parquet"))[:2]
    one.write_bytes(other.read_bytes())
    with pytest.raises(InputUnstable, match=r"dt=2026-10-24/events\.parquet"):
        ingest.fn(run)


@pytest.mark.parametrize(
    ("by_schedule", "as_of", "night"),
    [
        (True, None, date(2026, 11, 22)),
        (True, date(2026, 11, 20), date(2026, 11, 20)),
        (False, None, date(2026, 11, 23)),
    ],
)
def test_the_start_gives_the_date_only_to_a_run_that_the_schedule_made(
    by_schedule: bool, as_of: date | None, night: date, town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = SimpleNamespace(
        auto_scheduled=by_schedule, expected_start_time=datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
    )
    monkeypatch.setattr(FlowRunContext, "get", lambda: SimpleNamespace(flow_run=flow_run))
    assert open_run.fn(NightlyConfig(), as_of, False).as_of == night
