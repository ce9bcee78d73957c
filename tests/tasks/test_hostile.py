"""The thirty-six corrupt inputs, each through the processes of a night that inspect and that read, and mutated ones."""

import hashlib
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import InputCorrupt, InputTooLarge, NightError
from tasks.ingest.child import digest_apart, inspect_apart
from tasks.ingest.interactions import ensure_counts_add_up
from tasks.ingest.sources import pin_inputs
from tasks.store import open_store
from tests.tasks.hostile_files import (
    CORRUPT,
    CORRUPT_OR_HARMLESS,
    HARMLESS,
    HOSTILE,
    ROWS,
    ROWS_REFUSED,
    UNNOTICED,
    columns,
    parquet,
    plain,
)

AS_OF = date(2026, 11, 23)
SECONDS_AT_MOST = 90  # on a busy machine
LAX = {"quarantine_share_at_most": 1.0}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(str(tmp_path / "store"))


def night_of(store: Any, folder: Path, **settings: Any) -> Interactions:
    """The inspection of footers in one process and reading in another, as a night does it."""
    source = IngestConfig(**LAX, **settings)
    pinned = pin_inputs(store, source)
    inspect_apart(store.uri, pinned, source)
    folder.mkdir(parents=True, exist_ok=True)
    night = digest_apart(store.uri, pinned, folder, as_of=AS_OF, settings=source)
    ensure_counts_add_up(night)
    return night


def put_good(store: Any, key: str = "events/dt=2026-11-22/a.parquet") -> None:
    store.put_once(key, plain())


BAD = "events/dt=2026-11-22/m.parquet"


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name][1] not in (UNNOTICED,)])
def test_a_hostile_file_ends_in_its_verdict_by_name(name: str, store: Any, tmp_path: Path) -> None:
    make, verdict = HOSTILE[name]
    put_good(store)
    store.put_once(BAD, make())
    started = time.monotonic()
    try:
        night = night_of(store, tmp_path / "night")
    except NightError as error:
        found = type(error).__name__
        assert found in verdict, str(error)
        assert BAD in str(error)
        assert "user-0" not in str(error)
    else:
        assert verdict in (HARMLESS, CORRUPT_OR_HARMLESS, ROWS_REFUSED)
        refused = {"malformed_user_id": 1} if verdict == ROWS_REFUSED else {}
        assert (night.rows_in, night.quarantined) == (2 * ROWS, refused)
        # The same rows as in the good file: each is there twice, but for the refused one.
        assert night.set_aside == {"duplicate": ROWS - len(refused)} | _older(night)
    assert time.monotonic() - started < SECONDS_AT_MOST


def _older(night: Interactions) -> dict[str, int]:
    return {"older": night.set_aside["older"]} if "older" in night.set_aside else {}
