"""`make show`: one person of the live night, or a kind word on why there is nobody."""

import os
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from flows.by_hand import _for_make
from flows.show import main
from tasks.registry import forget
from tasks.store import open_store
from tests.flows.conftest import PROJECT_ROOT
from tests.tasks.conftest import make_night  # noqa: F401

AS_OF = datetime(2026, 11, 23, tzinfo=UTC)  # of make_night, which has lists for the users 1 to 6


@pytest.fixture
def store(make_night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """1 likes three things; 7 came after the night, 8 and 9 met something before it, 10 never at a moment. "item
    1/0" has a title."""
    store = tmp_path / "store"
    make_night(str(store)).publish()
    night = int(AS_OF.timestamp())
    rows = [(1, f"item {n}", 5.0, night - 1000 + n) for n in (1, 2, 3)]
    rows += [(1, "item 4", 1.0, night - 1), (7, "item 1", 5.0, night), (8, "item 1", 5.0, night - 5)]
    rows += [(9, "item 1", 1.0, night - 5), (10, "item 1", 5.0, None)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    for folder, frame in (
        ("events", events),
        ("users", pl.DataFrame({"user_id": [9, 11, 1]})),
        ("items", pl.DataFrame({"item_id": ["item 1/0", "item 3"], "title": ["The Night Train", "Third"]})),
    ):
        (store / folder).mkdir()
        frame.write_parquet(store / folder / "all.parquet")
    monkeypatch.setenv("COLUMNS", "100")
    return str(store)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    return code, " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_likes_and_list_stand_there_with_titles_tiers_and_reasons(store, capsys):
    code, text = shown(capsys, "--user", "1", "--store", store)
    assert code == 0
    assert "user 1 night of 2026-11-23, version 1" in text
    assert "Third item 2 item 1" in text, "the latest like first, what was not liked nowhere"
    assert "1 The Night Train graph because of The Night Train, 50%" in text
    assert "4 item 1/3 graph because of The Night Train, 50%" in text


def test_whoever_is_not_there_is_named_kindly_with_the_reason(store, capsys):
    for user, words in {
        "99": "no list for user 99: no event there is theirs, and no users table lists them. Check the id",
        "7": "no list for user 7: all of their 1 events came on that day or later. The next night knows them.",
        "8": "they have 1 events before that day, 1 of them likes.",
        "9": "they have 1 events before that day, 0 of them likes.",
        "10": "all of their 1 events are quarantined",
        "11": "they have no event before that day, and users/ lists them.",
    }.items():
        code, text = shown(capsys, "--user", user, "--store", store)
        assert code == 1
        assert "UserNotFound" in text
        assert words in text


def test_who_was_forgotten_hears_that_no_night_knows_them_again(store, capsys):
    forget(open_store(store), "users", pl.Series("id", [8]))
    code, text = shown(capsys, "--user", "8", "--store", store)
    assert code == 1
    assert "they were forgotten (make forget), and no night gives them a list again." in text
    assert "team's own files: 1 rows of events." in text
    assert "the next one knows them" not in text


def test_who_has_no_list_and_no_events_to_say_why_hears_what_is_wrong_with_them(store, capsys):
    (Path(store) / "events/all.parquet").write_bytes(b"no Parquet")
    code, text = shown(capsys, "--user", "99", "--store", store)
    assert code == 1
    assert "InputCorrupt" in text


def test_who_asks_for_nobody_gets_an_example_and_who_asks_for_text_is_told_the_kind(store, capsys):
    code, text = shown(capsys, "--store", store)
    assert code == 1
    assert "Say who, as in make show USER=1." in text
    code, text = shown(capsys, "--user", "anna", "--store", store)
    assert code == 1
    assert "USER=anna is no number" in text


def test_without_events_and_titles_the_list_is_shown_all_the_same(store, capsys):
    for path in [*Path(store).glob("events/*"), *Path(store).glob("items/*")]:
        path.write_bytes(b"no Parquet")
    code, text = shown(capsys, "--user", "2", "--store", store)
    assert code == 0
    assert "item 2/4 graph because of item 1/0, 50%" in text
    assert "What people liked cannot be read" in text
    assert "Titles cannot be read" in text


def test_a_store_where_nothing_is_published_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, text = shown(capsys, "--user", "2", "--store", str(tmp_path))
    assert code == 1
    assert "ObjectNotFound" in text
    assert "nothing has been published" in text


@pytest.mark.parametrize("user", ["42", "it's", 'a "b" c', "-x", "😀 $HOME $(id) `id`", "a\\b", ""])
def test_make_hands_on_the_very_id_that_was_typed_and_never_the_shells_own_user(tmp_path, user):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = f"make -o .venv/runtime show BIN={tmp_path}" + (f" USER={_for_make(user)}" if user else "")
    told = subprocess.run(
        ["sh", "-c", command],
        cwd=PROJECT_ROOT,
        # The tests run under make themselves: its own variables would make this one speak of directories.
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        | {"USER": "root"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == ["-m", "flows.show", *([f"--user={user}"] if user else [])], shlex.join(
        [command]
    )
