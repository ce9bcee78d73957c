"""Days are digested once: nights to come use what an earlier one left, and a full rebuild gives the same bytes."""

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import InputCorrupt, InputMissing, SchemaDrift
from tasks.ingest.child import digest_apart, last_event_apart
from tasks.ingest.earlier import read_earlier
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.sources import pin_inputs
from tasks.store import LocalStore, StoredObject, open_store
from tests.worlds import pairs_of

SETTINGS = IngestConfig()
AS_OF = date(2026, 11, 23)
FIRST_DAY = date(2026, 11, 18)
DAYS = 4
EVENTS_A_DAY = 300


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Four days of three hundred events; two of each day break a rule."""
    store = open_store(str(tmp_path / "store"))
    assert isinstance(store, LocalStore)
    for day in range(DAYS):
        put_day(store, day)
    return store


def put_day(store: LocalStore, day: int, *, name: str = "a", seed: int | None = None, **columns: Any) -> str:
    key = f"events/dt={FIRST_DAY + timedelta(days=day)}/{name}.parquet"
    put_file(store, key, a_day(day, seed=day if seed is None else seed).with_columns(**columns))
    return key


def a_day(day: int, *, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    start = int(datetime.combine(FIRST_DAY + timedelta(days=day), datetime.min.time(), UTC).timestamp())
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in rng.integers(0, 40, EVENTS_A_DAY)],
            "item_id": [f"i{item}" for item in rng.integers(0, 30, EVENTS_A_DAY)],
            "rating": [float("nan")] + [float(stars) for stars in rng.integers(1, 6, EVENTS_A_DAY - 1)],
            "timestamp": start + rng.integers(0, 86_400, EVENTS_A_DAY),
        }
    )


def put_file(store: LocalStore, key: str, frame: pl.DataFrame) -> None:
    path = path_of(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def path_of(store: LocalStore, key: str) -> Path:
    return Path(store.uri_of(key).removeprefix("file://"))


def night(
    store: LocalStore,
    folder: Path,
    events: Sequence[StoredObject] | None = None,
    *,
    as_of: date = AS_OF,
    settings: IngestConfig = SETTINGS,
) -> Interactions:
    """Of the pinned events, or of what lies there now; in a process of its own, as a night does it."""
    folder.mkdir()
    pinned = pin_inputs(store, settings) if events is None else list(events)
    return digest_apart(store.uri, pinned, folder, as_of=as_of, settings=settings)


def here(store: LocalStore, folder: Path, *, as_of: date = AS_OF, settings: IngestConfig = SETTINGS) -> Interactions:
    """The same in this process, which is quicker."""
    folder.mkdir()
    events = pin_inputs(store, settings)
    schema = inspect_files(store, events, settings, known=read_earlier(store, events, settings).files)
    return digest(store, events, schema, folder, as_of=as_of, settings=settings)


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def digested(store: LocalStore) -> dict[str, bytes]:
    """Everything that is kept of days, by key."""
    return {
        stored.key: path_of(store, stored.key).read_bytes()
        for folder in ("days", "quarantine", "_meta/days")
        for stored in store.list(folder)
    }


def markers(store: LocalStore) -> dict[str, dict[str, Any]]:
    return {stored.key: json.loads(store.read(stored.key)[0]) for stored in store.list("_meta/days")}


def forget_digested_days(store: LocalStore) -> None:
    for folder in ("days", "quarantine", "_meta/days"):
        shutil.rmtree(path_of(store, folder))


def make_unreadable(store: LocalStore, keys: Sequence[str]) -> None:
    for key in keys:
        path_of(store, key).write_bytes(b"nothing that anybody can read")


# ---- a second night


def test_a_second_night_opens_no_file_of_a_digested_day_and_gives_the_bytes_of_a_full_rebuild(
    store: LocalStore, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"quarantine_share_at_most": 1.0})
    night(store, tmp_path / "first", as_of=AS_OF - timedelta(days=1), settings=settings)
    new = put_day(store, DAYS)
    events = pin_inputs(store, settings)
    kept = {found.key: path_of(store, found.key).read_bytes() for found in events}
    make_unreadable(store, [key for key in kept if key != new])
    second = night(store, tmp_path / "second", events, settings=settings)
    left = digested(store)
    for key, content in kept.items():
        path_of(store, key).write_bytes(content)
    forget_digested_days(store)
    rebuilt = night(store, tmp_path / "rebuilt", settings=settings)
    assert bytes_below(tmp_path / "second") == bytes_below(tmp_path / "rebuilt")
    assert digested(store) == left
    assert (rebuilt.rows_in, rebuilt.quarantined) == ((DAYS + 1) * EVENTS_A_DAY, {"not_finite_rating": DAYS + 1})
    assert {**vars(second), "folder": ""} == {**vars(rebuilt), "folder": ""}


def test_an_unreadable_file_of_a_new_day_does_end_the_night(store: LocalStore, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    here(store, tmp_path / "first")
    new = put_day(store, DAYS)
    events = pin_inputs(store, SETTINGS)
    make_unreadable(store, [new])
    with pytest.raises(InputCorrupt, match=f"{FIRST_DAY + timedelta(days=DAYS)}"):
        night(store, tmp_path / "second", events)


def test_the_last_event_of_digested_files_is_known_without_opening_them(store: LocalStore, tmp_path: Path) -> None:
    last = last_event_apart(store.uri, pin_inputs(store, SETTINGS), SETTINGS)
    here(store, tmp_path / "first")
    events = pin_inputs(store, SETTINGS)
    old = [found.key for found in events]
    make_unreadable(store, old)
    assert last_event_apart(store.uri, events, SETTINGS) == last
    new = put_day(store, DAYS)
    events += [found for found in pin_inputs(store, SETTINGS) if found.key == new]
    later = last_event_apart(store.uri, events, SETTINGS)
    assert later.timestamp() == a_day(DAYS, seed=DAYS).filter(pl.col("rating").is_finite())["timestamp"].max()
    assert later > last


def test_the_last_event_of_a_digested_file_without_a_valid_row_is_none(store: LocalStore, tmp_path: Path) -> None:
    path_of(store, "events").rename(path_of(store, "away"))
    put_day(store, 0, rating=pl.lit(float("nan")))
    with pytest.raises(InputMissing, match="none of the 300 rows"):
        here(store, tmp_path / "first")
    with pytest.raises(InputMissing, match="no date to work for"):
        last_event_apart(store.uri, pin_inputs(store, SETTINGS), SETTINGS)


def test_what_a_second_night_is_told_of_files_is_what_their_footers_say(store: LocalStore, tmp_path: Path) -> None:
    put_day(store, 1, name="b", user_id=pl.col("user_id").cast(pl.Categorical))
    put_day(store, 2, name="b", timestamp=pl.from_epoch("timestamp").dt.replace_time_zone("Asia/Kathmandu"))
    events = pin_inputs(store, SETTINGS)
    from_footers = inspect_files(store, events, SETTINGS)
    here(store, tmp_path / "first")
    make_unreadable(store, [found.key for found in events])
    told = inspect_files(store, events, SETTINGS, known=read_earlier(store, events, SETTINGS).files)
    assert told == from_footers


def test_ids_of_another_type_than_those_of_digested_days_are_drift(store: LocalStore, tmp_path: Path) -> None:
    here(store, tmp_path / "first")
    new = put_day(store, DAYS, user_id=pl.int_range(pl.len()))
    events = pin_inputs(store, SETTINGS)
    make_unreadable(store, [found.key for found in events if found.key != new])
    with pytest.raises(SchemaDrift, match=r"column 'user_id': found Int64, wanted String, as in .*2026-11-18"):
        night(store, tmp_path / "second", events)


def test_ids_of_another_type_than_the_registrys_are_drift_though_no_file_disagrees(
    store: LocalStore, tmp_path: Path
) -> None:
    here(store, tmp_path / "first")
    shutil.rmtree(path_of(store, "events"))
    put_day(store, DAYS, user_id=pl.int_range(pl.len()) % 40)
    with pytest.raises(SchemaDrift, match="were String in all nights before"):
        here(store, tmp_path / "second")


def test_a_file_that_was_replaced_a_day_that_grew_and_other_rules_are_read_again(
    store: LocalStore, tmp_path: Path
) -> None:
    here(store, tmp_path / "first")
    old = set(markers(store))
    put_day(store, 1, seed=99)
    put_day(store, 2, name="late")
    here(store, tmp_path / "second")
    new = {str(one["place"]) for key, one in markers(store).items() if key not in old}
    assert new == {f"dt={FIRST_DAY + timedelta(days=day)}" for day in (1, 2)}
    known = set(markers(store))
    here(store, tmp_path / "third", settings=SETTINGS.model_copy(update={"like_threshold": 3.0}))
    assert len(set(markers(store)) - known) == DAYS


def test_nights_of_other_dates_and_windows_share_digested_days(store: LocalStore, tmp_path: Path) -> None:
    here(store, tmp_path / "first")
    before = digested(store)
    earlier = here(store, tmp_path / "earlier", as_of=FIRST_DAY + timedelta(days=2))
    window = here(store, tmp_path / "window", settings=SETTINGS.model_copy(update={"window_days": 3}))
    assert digested(store) == before
    assert earlier.set_aside["later"] == 2 * (EVENTS_A_DAY - 1)
    assert window.set_aside["before_window"] == 2 * (EVENTS_A_DAY - 1)
    assert pairs_of(earlier)["timestamp_us"].max() < 1e6 * datetime(2026, 11, 20, tzinfo=UTC).timestamp()
