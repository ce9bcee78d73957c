"""Rolling back, releasing, repairing and retention as an operator does them: commands and flows, on real nights."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import retention_by_hand, rollback_by_hand
from flows.by_hand import _for_make
from flows.nightly import nightly
from flows.retention import retention
from flows.rollback import release, repair, rollback
from tasks.contracts import LATEST_KEY
from tasks.publish import retention as room
from tasks.publish.reader import open_latest
from tasks.store import Store, open_store
from tests.flows.conftest import PROJECT_ROOT, QUICK, two_taste_events

GOOD, BAD, NEXT = date(2025, 11, 16), date(2025, 11, 17), date(2025, 11, 18)
ROLLBACK_S = 10.0


@pytest.fixture(scope="module")
def published(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder store with two nights: made once, and copied by each test."""
    folder = tmp_path_factory.mktemp("published")
    store = folder / "store"
    (store / "events").mkdir(parents=True)
    two_taste_events().write_parquet(store / "events" / "day.parquet")
    with pytest.MonkeyPatch.context() as environment, temporary_settings({PREFECT_API_URL: prefect_server}):
        environment.setenv("NIGHTGRAPH_STORE", str(store))
        environment.setenv("NIGHTGRAPH_WORK", str(folder / "work"))
        environment.setenv("PREFECT_API_URL", prefect_server)
        for as_of in (GOOD, BAD):
            nightly(QUICK, as_of=as_of)
        yield store


@pytest.fixture
def place(published: Path, store_uri: str, night_place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of it, in a folder or on S3."""
    monkeypatch.setenv("NIGHTGRAPH_STORE", store_uri)
    monkeypatch.setenv("COLUMNS", "200")
    store = open_store(store_uri)
    for path in published.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            store.put_once(path.relative_to(published).as_posix(), path)
    return store_uri


IN_A_FOLDER = pytest.mark.parametrize("store_uri", ["folder"], indirect=True)


def lists_of(store: Store, as_of: date) -> list[bytes]:
    return [store.read(one.key)[0] for one in store.list(f"recs/dt={as_of}")]


def live_lists(store: Store) -> list[bytes]:
    """As readers get them, every byte checked."""
    live = open_latest(store.uri, verify=True)
    return [store.read(part.key)[0] for part in live.manifest.parts]


def test_after_a_rollback_nights_are_judged_and_kept_and_readers_stay_until_the_release(place: str) -> None:
    store = open_store(place)
    good, bad = lists_of(store, GOOD), lists_of(store, BAD)
    assert live_lists(store) == bad != good
    reading = open_latest(place)

    started = time.monotonic()
    told = rollback(to=GOOD, who="Anna", reason="the lists of the 17th are odd")
    assert time.monotonic() - started < ROLLBACK_S
    assert told is not None
    assert (told.as_of, told.version, told.rolled_back_to) == (BAD, 2, "2025-11-16 v1")
    assert live_lists(store) == good, "bit by bit"

    night = nightly(QUICK, as_of=NEXT)
    assert (night.version, night.already, night.is_latest) == (1, False, False)
    assert store.list(f"_meta/audits/{NEXT}"), "it was judged"
    assert live_lists(store) == good
    assert nightly(QUICK, as_of=NEXT).already
    assert live_lists(store) == good

    let_go = release(who="Ben", reason="mended")
    assert let_go is not None
    assert (let_go.as_of, let_go.version, let_go.held) == (NEXT, 1, "")
    assert live_lists(store) == lists_of(store, NEXT)
    assert reading.manifest.as_of == BAD, "who opened a night before all this still has it, whole"
    assert reading.scan().collect().height == reading.manifest.rows


def artifacts() -> list[str]:
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["retention"]}}})
    return [str(one["data"]) for one in found.json()]


def test_retention_says_what_would_go_and_removes_it_when_told_to_and_readers_keep_theirs(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(place)
    kept = lists_of(store, BAD)
    reading = open_latest(place)
    assert retention(keep_dates=1).gone == (), "who opened it may still be reading"
    real = room.now_of
    monkeypatch.setattr(room, "now_of", lambda store: real(store) + timedelta(hours=49))
    (told,) = retention(keep_dates=1).gone
    assert (told.as_of, told.version, told.why) == (GOOD, 1, "beyond the nights to keep")
    assert lists_of(store, GOOD)
    assert any("| 2025-11-16 | 1 | beyond the nights to keep |" in text for text in artifacts())
    done = retention(apply=True, keep_dates=1)
    assert (done.applied, len(done.gone), done.kept) == (True, 1, 1)
    assert [store.list(f"{folder}/dt={GOOD}") for folder in ("recs", "models", "outputs/similar_items")] == [[], [], []]
    assert live_lists(store) == kept
    assert reading.scan().collect().height == reading.manifest.rows
    assert retention(apply=True, keep_dates=1).gone == ()


@IN_A_FOLDER
def test_repair_brings_latest_back_from_the_log(place: str) -> None:
    latest = Path(place) / LATEST_KEY
    whole = latest.read_bytes()
    latest.write_bytes(whole[:100])
    told = repair()
    assert told is not None
    assert (told.as_of, told.version) == (BAD, 1)
    assert latest.read_bytes() == whole


# ---- by hand


def by_hand(*arguments: str) -> int:
    return rollback_by_hand.main(list(arguments))


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().out.replace("│", " ").split())


@IN_A_FOLDER
def test_by_hand_nights_are_listed_rolled_back_to_released_and_removed(
    place: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(place)
    assert by_hand("rollback") == 0
    assert "2025-11-17 1" in said(capfd)
    assert live_lists(store) == lists_of(store, BAD), "without a date nothing is moved"
    assert by_hand("rollback", "--date", str(GOOD), "--who", "Anna", "--reason", "odd lists") == 0
    assert "live: the night of 2025-11-17, version 2, which is 2025-11-16 v1 again" in said(capfd)
    assert live_lists(store) == lists_of(store, GOOD)
    assert by_hand("repair") == 0
    assert "Anna: odd lists. Nights go on" in said(capfd)
    assert by_hand("release") == 0
    assert "nothing is held any more" in said(capfd)
    assert open_latest(place).manifest.held == ""
    real = room.now_of
    monkeypatch.setattr(room, "now_of", lambda store: real(store) + timedelta(hours=49))
    assert retention_by_hand.main(["--keep-days", "1"]) == 0
    assert "To do it: make retention APPLY=1" in said(capfd)
    assert len(lists_of(store, BAD)) > 0
    assert retention_by_hand.main(["--keep-days", "1", "--apply"]) == 0
    assert "The files of 1 attempts were removed" in said(capfd)
    assert lists_of(store, BAD) == []
    assert live_lists(store) == lists_of(store, GOOD), "the rolled back night is what is live"


@IN_A_FOLDER
def test_what_cannot_be_done_by_hand_is_named_and_changes_nothing(
    place: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = open_store(place)
    before = store.list("")
    for arguments, words in (
        (["rollback", "--date", "yesterday"], "DATE=yesterday is no date"),
        (["rollback", "--date", str(GOOD), "--version", "one"], "VERSION=one is no whole number"),
        (["rollback", "--date", str(GOOD), "--who", "Anna"], "REASON is empty"),
        (
            ["rollback", "--date", "2025-11-01", "--who", "Anna", "--reason", "odd"],
            "Kept are: 2025-11-17 v1, 2025-11-16",
        ),
        (["release", "--who", "Anna"], "NothingHeld"),
        (["repair", "--store", str(tmp_path / "nowhere")], "is no folder"),
    ):
        assert by_hand(*arguments) == 1
        assert words in said(capfd)
    assert retention_by_hand.main(["--keep-days", "0"]) == 1
    assert "KEEP_DAYS=0 is no number of nights" in said(capfd)
    assert [one for one in store.list("") if one.key != "_meta/probe"] == [
        one for one in before if one.key != "_meta/probe"
    ]


@IN_A_FOLDER
def test_the_command_takes_less_than_ten_seconds_start_and_all(place: str) -> None:
    started = time.monotonic()
    words = ["rollback", "--date", str(GOOD), "--who", "Anna", "--reason", "odd"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.rollback_by_hand", *words],
        cwd=PROJECT_ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < ROLLBACK_S
    assert live_lists(open_store(place)) == lists_of(open_store(place), GOOD)


@pytest.mark.parametrize("reason", ["it's odd", 'a "b" c', "-x", "$HOME $(id) `id`", "a\\b"])
def test_make_hands_on_the_very_words(tmp_path: Path, reason: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = f"make -o .venv/runtime rollback BIN={tmp_path} DATE=2025-11-16 REASON={_for_make(reason)}"
    told = subprocess.run(
        ["sh", "-c", command],
        cwd=PROJECT_ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        check=True,
    )
    words = ["-m", "flows.rollback_by_hand", "rollback", "--date", "2025-11-16", f"--reason={reason}"]
    assert told.stdout.splitlines() == words, shlex.join([command])
