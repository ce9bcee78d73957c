"""Forgetting people, end to end: what was theirs is nowhere in the store, on the machine or in what was said."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import forget_by_hand
from flows.by_hand import _for_make
from flows.nightly import nightly
from tasks import due
from tasks.ingest.forgetting import objects_in_use
from tasks.ingest.people import replaced_registry_files
from tasks.publish.reader import open_latest
from tasks.publish.rewrite import files_in_use
from tasks.store import open_store
from tests.flows.conftest import PROJECT_ROOT, QUICK, two_taste_events

PLANTED = "planted-person-7d1f"
AND_ANOTHER = "planted-other-93ab"
ONE_DAY_FOR_ALL = {"volume_override": "accept", "volume_override_reason": "several nights of the same day's events"}
SETTINGS = QUICK.model_copy(
    update={
        "ingest": QUICK.ingest.model_copy(update=ONE_DAY_FOR_ALL),
        "recommend": QUICK.recommend.model_copy(update={"embeddings": True}),
    },
)
THEIRS = {"events/dt=2025-11-16/day.parquet", "users/all.parquet", "blocked/all.parquet"}  # the team's own files
NIGHTS = (date(2025, 11, 17), date(2025, 11, 18))


@pytest.fixture(scope="module")
def published(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder store in which somebody has planted ids, with two nights: made once, and copied by each test."""
    folder = tmp_path_factory.mktemp("published")
    store = folder / "store"
    with pytest.MonkeyPatch.context() as environment, temporary_settings({PREFECT_API_URL: prefect_server}):
        environment.setenv("NIGHTGRAPH_STORE", str(store))
        environment.setenv("NIGHTGRAPH_WORK", str(folder / "work"))
        environment.setenv("PREFECT_API_URL", prefect_server)
        for key, rows in (
            ("events/dt=2025-11-16/day.parquet", with_planted(two_taste_events())),
            ("users/all.parquet", pl.DataFrame({"user_id": [PLANTED, "nobody-else"]})),
            ("blocked/all.parquet", pl.DataFrame({"user_id": [PLANTED], "item_id": ["item-00"]})),
        ):
            (store / key).parent.mkdir(parents=True)
            rows.write_parquet(store / key)
        for as_of in NIGHTS:
            nightly(SETTINGS, as_of=as_of)
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


def with_planted(events: pl.DataFrame) -> pl.DataFrame:
    """Two of the users have ids that are looked for afterwards; a row of one of them is refused."""
    names = {"user-003": PLANTED, "user-008": AND_ANOTHER}
    events = events.with_columns(pl.col("user_id").replace(names))
    refused = events.filter(pl.col("user_id") == PLANTED).head(1).with_columns(rating=pl.lit(float("nan")))
    return pl.concat([events, refused])


def forget(*arguments: str, user: str = "") -> int:
    if user:
        os.environ[forget_by_hand.ONE_PERSON] = user
    return forget_by_hand.main([*arguments, "--store", os.environ["NIGHTGRAPH_STORE"]])


def grace_is_over(store_uri: str) -> None:
    store = open_store(store_uri)
    in_use = replaced_registry_files(store) | objects_in_use(store) | files_in_use(store)
    due.sweep(store, in_use=in_use, grace=timedelta(0))


def places_of(store_uri: str, person: str) -> set[str]:
    """Keys of every object that holds the id, in its bytes or, where pages are compressed, in any of its columns."""
    store = open_store(store_uri)
    found = set()
    for stored in store.list(""):
        content, _ = store.read(stored.key)
        texts = [content]
        if stored.key.endswith(".parquet"):
            texts.append(repr(pl.read_parquet(content).rows()).encode())
        if any(person.encode() in text for text in texts):
            found.add(stored.key)
    return found


def test_the_search_finds_an_id_in_a_compressed_page(place: str) -> None:
    found = places_of(place, PLANTED)
    assert {key.split("/")[0] for key in found} == {
        *("events", "users", "blocked", "recs", "outputs", "quarantine", "registry"),
    }


def test_nobody_is_left_anywhere_but_in_the_teams_own_files(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert forget(user=PLANTED) == 0
    grace_is_over(place)
    assert places_of(place, PLANTED) == THEIRS
    assert {key.split("/")[0] for key in places_of(place, AND_ANOTHER)} > {"events", "recs"}, "who was not asked for"
    live = open_latest(place, verify=True)
    assert (live.manifest.as_of, live.manifest.version) == (NIGHTS[-1], 2)
    assert live.for_user(PLANTED).is_empty()
    assert len(live.for_user(AND_ANOTHER)) == 5
    told = capfd.readouterr()
    assert "1 person forgotten" in told.out
    assert "11  events/dt=2025-11-16/day.parquet" in told.out
    assert "1  users/all.parquet" in told.out
    assert PLANTED not in told.out + told.err
    on_disk = [*(tmp_path / "work").rglob("*"), *tmp_path_factory.getbasetemp().glob("prefect*/**/*")]
    assert any(path.suffix == ".db" for path in on_disk), "the server's database is looked into"
    assert not [path for path in on_disk if path.is_file() and PLANTED.encode() in path.read_bytes()]


def test_the_night_after_does_not_use_what_the_teams_files_still_have(published: Path, night_place: Path) -> None:
    store = night_place / "store"
    shutil.copytree(published, store)
    assert forget(user=PLANTED) == 0
    after = nightly(SETTINGS, as_of=NIGHTS[-1] + timedelta(days=1))
    lists = open_latest(str(store), verify=True)
    assert after.is_latest
    assert lists.for_user(PLANTED).is_empty(), "neither for their events nor for standing in users/"
    assert len(lists.for_user("nobody-else")) == 5
    grace_is_over(str(store))
    assert places_of(str(store), PLANTED) == THEIRS


def test_again_it_says_so_and_changes_nothing(place: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert forget(user=PLANTED) == 0
    before = [stored for stored in open_store(place).list("") if stored.key != due.CLOCK_KEY]
    capfd.readouterr()
    assert forget(user=PLANTED) == 0
    assert [stored for stored in open_store(place).list("") if stored.key != due.CLOCK_KEY] == before
    assert "1 of them before" in capfd.readouterr().out


def test_a_file_of_ids_is_taken_whole_or_not_at_all(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "people.txt"
    listed.write_bytes(f"{PLANTED}\r\n\n{AND_ANOTHER}\nstranger-5e0c\n{PLANTED}\n".encode())
    assert forget("--users", str(listed)) == 1
    told = capfd.readouterr()
    assert "of the 3 given ones those in the lines 4 are nobody" in " ".join(told.out.replace("│", " ").split())
    assert "stranger-5e0c" not in told.out + told.err
    assert open_latest(place).manifest.version == 1, "a mistyped id stops the whole file"
    assert forget("--users", str(listed), "--always") == 0
    grace_is_over(place)
    for person in (PLANTED, AND_ANOTHER):
        assert places_of(place, person) <= THEIRS


# ---- killed


MOMENTS = ("registry", "part", "commit", "latest", "due")


def test_killed_at_any_step_the_next_run_ends_it_without_the_id(published: Path, night_place: Path) -> None:
    store = night_place / "store"
    for moment in MOMENTS:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(published, store)
        killed = subprocess.run(
            [sys.executable, str(PROJECT_ROOT / "tests/flows/killed_forget.py"), moment],
            cwd=PROJECT_ROOT,
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), forget_by_hand.ONE_PERSON: PLANTED},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, f"{moment}: {killed.stdout[-2000:]}{killed.stderr[-2000:]}"
        assert PLANTED not in killed.stdout + killed.stderr
        open_latest(str(store), verify=True)
        assert forget("--sweep") == 0, "nobody has to give the id again"
        grace_is_over(str(store))
        assert places_of(str(store), PLANTED) == THEIRS, moment
        left = [path for path in (night_place / "work").rglob("*") if path.is_file() and path.name != "lock"]
        assert left == []


# ---- what is typed


@pytest.mark.parametrize("user", ["42", "it's", 'a "b" c', "-x", "😀 $HOME $(id) `id`", "a\\b", ""])
def test_make_hands_on_the_very_id_in_the_environment_and_on_no_command_line(tmp_path: Path, user: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "${NIGHTGRAPH_FORGET-none}" "$@"\n')
    python.chmod(0o755)
    command = f"make -o .venv/runtime forget BIN={tmp_path}" + (f" USER={_for_make(user)}" if user else "")
    told = subprocess.run(
        ["sh", "-c", command],
        cwd=PROJECT_ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        | {"USER": "root"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == [user or "none", "-m", "flows.forget_by_hand"], shlex.join([command])


def test_who_asks_for_nobody_or_twice_or_with_a_file_that_is_none_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGRAPH_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "empty").write_text("\n")
    for arguments, user, words in (
        ((), "", "nobody is to be forgotten"),
        (("--users", str(tmp_path / "empty")), "", "nobody is to be forgotten"),
        (("--users", str(tmp_path / "none")), "", "cannot be read as text"),
        (("--users", str(tmp_path / "empty")), "42", "both given"),
    ):
        assert forget(*arguments, user=user) == 1
        told = " ".join(capfd.readouterr().out.replace("│", " ").split())
        assert "RunConfigError" in told
        assert words in told
        assert forget_by_hand.ONE_PERSON not in os.environ
