"""make compact-registry: what it would give up, on the screen and in the server; APPLY=1 does it."""

import os
import subprocess
import sys
from pathlib import Path

from tasks.ingest.child import digest_apart
from tasks.registry import read_version
from tasks.store import open_store
from tests.flows.conftest import AS_OF, PROJECT_ROOT, QUICK, two_taste_events, write_events
from tests.tasks.test_days import pin_inputs


def _compact(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows.compact_by_hand", *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_says_what_would_go_and_does_it_when_told_to(night_place: Path) -> None:
    folder = night_place / "store"
    write_events(folder, two_taste_events())
    old = write_events(folder, two_taste_events(first_user=100), "old")
    store = open_store(str(folder))
    (night_place / "digested").mkdir()
    pinned = pin_inputs(store, QUICK.ingest)
    digest_apart(store.uri, pinned, night_place / "digested", as_of=AS_OF, settings=QUICK.ingest)
    old.unlink()
    told = _compact("--store", str(folder))
    assert told.returncode == 0, told.stdout + told.stderr
    assert "24 of 48 rows of users and 0 of 20 of items would be given up" in told.stdout
    assert read_version(store).epoch == 0
    done = _compact("--store", str(folder), "--apply")
    assert "were given up" in done.stdout, done.stdout + done.stderr
    assert (read_version(store).epoch, read_version(store).users) == (1, 24)


def test_a_store_that_is_not_there_is_named(night_place: Path) -> None:
    told = _compact("--store", str(night_place / "nowhere"))
    assert told.returncode == 1
    assert "nowhere" in told.stdout
