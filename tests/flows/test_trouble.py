"""What goes wrong around a night: a store that comes back, a dashboard that does not, an error after the commit."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Failed

from flows.nightly import nightly
from tasks import errors
from tasks.contracts import LATEST_KEY, Run
from tasks.errors import NightError, is_worth_a_retry
from tasks.ingest.task import ingest, open_run
from tasks.publish.commit_log import advance_latest
from tasks.publish.reader import open_latest
from tasks.publish.task import publish
from tasks.store import LocalStore, open_store
from tests.flows.conftest import PROJECT_ROOT, QUICK, start_prefect_server, two_taste_events, write_events

NAMES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NightError)]


# ---- trying again


@flow
def opening(retries: int) -> Run:
    return open_run.with_options(retries=retries, retry_delay_seconds=0.1)(QUICK, None, False)


def test_a_store_that_comes_back_costs_a_retry_and_not_the_night(
    night_place: Path, s3_store: str, fault_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_store).put_once("events/day.parquet", write_events(night_place / "made", two_taste_events()))
    monkeypatch.setenv("NIGHTGRAPH_STORE", s3_store)
    before = len(fault_proxy.requests)
    fault_proxy.fault = lambda request: "503 SlowDown"
    with pytest.raises(errors.StoreUnavailable):
        opening(retries=0)
    asked_in_vain = len(fault_proxy.requests) - before
    # Now the store is away for as long as one attempt lasts.
    gone_until = len(fault_proxy.requests) + asked_in_vain
    fault_proxy.fault = lambda request: "503 SlowDown" if len(fault_proxy.requests) <= gone_until else None
    assert opening(retries=1).num_files == 1


def test_a_store_that_refuses_is_asked_once(
    night_place: Path, s3_store: str, fault_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGRAPH_STORE", s3_store)
    fault_proxy.fault = lambda request: "403 AccessDenied"
    asked = []
    for retries in (0, 3):
        before = len(fault_proxy.requests)
        with pytest.raises(errors.StoreDenied):
            opening(retries=retries)
        asked.append(len(fault_proxy.requests) - before)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_only_what_can_end_differently_is_tried_again(kind: type[NightError]) -> None:
    may_pass = {"StoreUnavailable", "InputUnstable", "TrainingLost", "RanksLost", "PublishUnresolved"}
    assert is_worth_a_retry(None, None, Failed(data=kind("why"))) is (kind.__name__ in may_pass)


def test_a_file_that_changed_under_the_reader_is_not_read_again() -> None:
    """It was pinned by its bytes; opening the night anew is what helps, and is worth a retry."""
    changed = Failed(data=errors.InputUnstable("why"))
    assert not ingest.retry_condition_fn(None, None, changed)  # type: ignore[misc, arg-type]
    assert open_run.retry_condition_fn(None, None, changed)  # type: ignore[misc, arg-type]
    assert ingest.retry_condition_fn(None, None, Failed(data=errors.StoreUnavailable("why")))  # type: ignore[misc, arg-type]


def test_an_error_without_a_name_is_not_tried_again() -> None:
    assert not is_worth_a_retry(None, None, Failed(data=ValueError("why")))


# ---- errors after the decision


def test_an_error_after_the_commit_is_reported_with_what_is_live(
    night_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LATEST cannot be moved: the night ends in an error, its commit stands, and the rerun ends what it began."""
    write_events(night_place / "store", two_taste_events())
    first = nightly(QUICK)

    swap = LocalStore.compare_and_swap

    def unavailable(store: LocalStore, key: str, data: bytes, *, etag: str) -> str:
        if key == LATEST_KEY:
            raise errors.StoreUnavailable(f"{key} cannot be written")
        return swap(store, key, data, etag=etag)

    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "compare_and_swap", unavailable)
        broken.setattr("tasks.publish.night.advance_latest", partial(advance_latest, deadline_s=1.0))
        with pytest.raises(errors.StoreUnavailable):
            nightly(QUICK, force=True)
    text = newest_artifact("night-failed")
    assert "StoreUnavailable" in text
    assert f"Live in the store now: the night of {first.as_of}, version 1" in text
    assert "without publishing" not in text
    assert "publishing failed" in newest_artifact("night")

    again = nightly(QUICK)
    assert (again.version, again.already, again.is_latest) == (2, True, True)


def test_a_forced_night_that_tries_again_after_its_commit_adds_one_version(
    night_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(night_place / "store", two_taste_events())
    nightly(QUICK)
    failed = []

    def fail_once(store: LocalStore, manifest: Any) -> bool:
        if not failed:
            failed.append(True)
            raise errors.StoreUnavailable("LATEST.json could not be moved")
        return advance_latest(store, manifest)

    monkeypatch.setattr("tasks.publish.night.advance_latest", fail_once)
    monkeypatch.setattr("flows.nightly.publish", publish.with_options(retries=2, retry_delay_seconds=0.1))
    forced = nightly(QUICK, force=True)
    assert failed
    assert (forced.version, forced.already, forced.is_latest) == (2, False, True)
    commits = sorted(path.name for path in (night_place / "store" / "_meta" / "commits").rglob("*.json"))
    assert commits == ["v00000001.json", "v00000002.json"]


def test_a_report_that_cannot_be_made_or_shown_is_a_warning(
    night_place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_events(night_place / "store", two_taste_events())

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    for version, targets in enumerate((("stage_costs",), ("create_markdown_artifact", "write_audit")), 1):
        with monkeypatch.context() as broken:
            for target in targets:
                broken.setattr(f"tasks.report.task.{target}", fail)
            assert nightly(QUICK, force=True).version == version
        assert caplog.text.count("could not be written: nobody answers") >= len(targets)
        caplog.clear()


def newest_artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return str(max(artifacts, key=lambda artifact: artifact.created).data)


# ---- a dashboard that goes away


def test_a_night_whose_dashboard_dies_in_training_publishes_all_the_same(tmp_path: Path) -> None:
    """Only its end cannot be noted: Prefect asks in vain for minutes, so the test does not wait for that."""
    write_events(tmp_path / "store", two_taste_events())
    slow = QUICK.model_copy(update={"train": QUICK.train.model_copy(update={"max_epochs": 60, "patience": 100})})
    (tmp_path / "prefect").mkdir()
    places = {"NIGHTGRAPH_STORE": str(tmp_path / "store"), "NIGHTGRAPH_WORK": str(tmp_path / "work")}
    with (
        start_prefect_server(tmp_path / "prefect") as (url, server),
        open(tmp_path / "output", "w") as output,
        subprocess.Popen(
            [sys.executable, str(PROJECT_ROOT / "tests/flows/killed_night.py"), "never", slow.model_dump_json()],
            cwd=PROJECT_ROOT,
            env=os.environ
            | places
            | {"PYTHONPATH": str(PROJECT_ROOT), "PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as night,
    ):
        _wait_for(lambda: list((tmp_path / "work").rglob("progress.json")), at_most_s=60)
        server.kill()
        _wait_for(lambda: list((tmp_path / "store").rglob("LATEST.json")), at_most_s=60)
        _wait_for(lambda: list((tmp_path / "store" / "_meta" / "audits").rglob("*.json")), at_most_s=30)
        night.kill()
    assert open_latest(str(tmp_path / "store"), verify=True).manifest.version == 1


def _wait_for(condition: Callable[[], object], *, at_most_s: float) -> None:
    until = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
