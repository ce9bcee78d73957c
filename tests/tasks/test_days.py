"""Days are digested once: nights to come use what an earlier one left, and a full rebuild gives the same bytes."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import InputCorrupt, InputMissing, SchemaDrift, VolumeAnomaly
from tasks.ingest import digest as digest_module
from tasks.ingest.child import digest_apart, last_event_apart
from tasks.ingest.earlier import read_earlier
from tasks.ingest.events import last_event_at
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.sources import pin_inputs
from tasks.ingest.units import SOURCES, units_of
from tasks.run import PROJECT_ROOT
from tasks.store import LocalStore, Store, StoredObject, open_store
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


def here(store: Store, folder: Path, *, as_of: date = AS_OF, settings: IngestConfig = SETTINGS) -> Interactions:
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
    assert (second.units, second.units_reused, rebuilt.units_reused) == (DAYS + 1, DAYS, 0)
    assert replace(second, folder="") == replace(rebuilt, folder="")


def test_an_unreadable_file_of_a_new_day_does_end_the_night(store: LocalStore, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    here(store, tmp_path / "first")
    new = put_day(store, DAYS)
    events = pin_inputs(store, SETTINGS)
    make_unreadable(store, [new])
    with pytest.raises(InputCorrupt, match=f"{FIRST_DAY + timedelta(days=DAYS)}"):
        night(store, tmp_path / "second", events)


def test_the_last_event_of_digested_files_is_known_without_opening_them(store: LocalStore, tmp_path: Path) -> None:
    here(store, tmp_path / "first")
    events = pin_inputs(store, SETTINGS)
    make_unreadable(store, [found.key for found in events])
    assert last_event_here(store, events).timestamp() == last_of_day(DAYS - 1)
    new = put_day(store, DAYS)
    events += [found for found in pin_inputs(store, SETTINGS) if found.key == new]
    assert last_event_apart(store.uri, events, SETTINGS).timestamp() == last_of_day(DAYS) > last_of_day(DAYS - 1)


def last_event_here(store: LocalStore, events: Sequence[StoredObject]) -> datetime:
    known = read_earlier(store, events, SETTINGS)
    schema = inspect_files(store, events, SETTINGS, known=known.files)
    return last_event_at(schema, SETTINGS, known=known.last_us)


def last_of_day(day: int) -> float:
    return float(a_day(day, seed=day).filter(pl.col("rating").is_finite())["timestamp"].max())  # type: ignore[arg-type]


def test_the_last_event_of_a_digested_file_without_a_valid_row_is_none(store: LocalStore, tmp_path: Path) -> None:
    path_of(store, "events").rename(path_of(store, "away"))
    put_day(store, 0, rating=pl.lit(float("nan")))
    with pytest.raises(InputMissing, match="none of the 300 rows"):
        here(store, tmp_path / "first")
    with pytest.raises(InputMissing, match="no date to work for"):
        last_event_here(store, pin_inputs(store, SETTINGS))


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


def test_everything_that_decides_what_a_digested_day_holds_is_in_its_name() -> None:
    """By the imports of what digests: but for who lists the files, and whose contents are in the name otherwise."""
    needed, to_look_at = set(), ["tasks/ingest/digest.py", "tasks/ingest/units.py"]
    while to_look_at:
        path = to_look_at.pop()
        if path in needed or not path.startswith(("tasks/ingest/", "models/")):
            continue
        needed.add(path)
        for node in ast.walk(ast.parse((PROJECT_ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                to_look_at.append(f"{node.module.replace('.', '/')}.py")
    assert needed - set(SOURCES) == {"tasks/ingest/sources.py"}
    assert set(SOURCES) <= needed


def test_another_version_of_what_reads_the_files_is_another_name(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pin_inputs(store, SETTINGS)
    before = [unit.name for unit in units_of(events, SETTINGS, epoch=0)]
    monkeypatch.setattr(pl, "__version__", "0.0.1")
    assert not set(before) & {unit.name for unit in units_of(events, SETTINGS, epoch=0)}


def test_nights_of_other_dates_and_windows_share_digested_days(store: LocalStore, tmp_path: Path) -> None:
    here(store, tmp_path / "first")
    before = digested(store)
    earlier = here(store, tmp_path / "earlier", as_of=FIRST_DAY + timedelta(days=2))
    window = here(store, tmp_path / "window", settings=SETTINGS.model_copy(update={"window_days": 3}))
    assert digested(store) == before
    assert earlier.set_aside["later"] == 2 * (EVENTS_A_DAY - 1)
    assert window.set_aside["before_window"] == 2 * (EVENTS_A_DAY - 1)
    assert pairs_of(earlier)["timestamp_us"].max() < 1e6 * datetime(2026, 11, 20, tzinfo=UTC).timestamp()


# ---- what is gone or damaged


def test_a_run_or_a_marker_that_is_gone_or_damaged_is_digested_anew(store: LocalStore, tmp_path: Path) -> None:
    here(store, tmp_path / "first")
    expected = bytes_below(tmp_path / "first")
    whole = digested(store)
    run, marker = (
        next(key for key in whole if key.startswith(folder)) for folder in ("days/dt=2026-11-19", "_meta/days")
    )
    flipped = whole[run][:-20] + bytes([whole[run][-20] ^ 1]) + whole[run][-19:]
    damages: dict[str, tuple[str, bytes | None]] = {
        "run-gone": (run, None),
        "marker-gone": (marker, None),
        "marker-cut": (marker, whole[marker][:-30]),
        "marker-of-an-earlier-format": (marker, whole[marker].replace(b'"footers"', b'"heads"')),
        "run-cut": (run, whole[run][:-5]),
        "run-flipped": (run, flipped),
    }
    for name, (key, content) in damages.items():
        path_of(store, key).unlink() if content is None else path_of(store, key).write_bytes(content)
        here(store, tmp_path / name)
        assert bytes_below(tmp_path / name) == expected, name
        left = digested(store)
        if not name.startswith("run-") or name == "run-gone":
            assert left == whole, name
        else:  # what stands in the store is never overwritten: the marker names an object beside it
            assert left[key] == content
            named = [one["key"] for one in markers(store).values() for one in [one["runs"][0]]]
            assert key not in named
        here(store, tmp_path / f"{name}-again")
        assert digested(store) == left, "and once is enough"
        assert bytes_below(tmp_path / f"{name}-again") == expected


def test_a_run_on_s3_that_can_be_read_and_is_another_is_digested_anew(s3_store: str, tmp_path: Path) -> None:
    """There it is fetched, and held to its SHA-256 on the way."""
    store = open_store(s3_store)
    for day in range(2):
        a_day(day, seed=day).write_parquet(tmp_path / "day.parquet")
        store.put_once(f"events/dt={FIRST_DAY + timedelta(days=day)}/a.parquet", tmp_path / "day.parquet")
    here(store, tmp_path / "first")
    [run] = store.list(f"days/dt={FIRST_DAY}")
    with store.open(run.key) as stream:
        pl.read_parquet(stream.read()).with_columns(pl.col("item_row") * 0).write_parquet(tmp_path / "other.parquet")
    store.remove(run.key, etag=run.etag)
    store.put_once(run.key, tmp_path / "other.parquet")
    second = here(store, tmp_path / "second")
    assert bytes_below(tmp_path / "second") == bytes_below(tmp_path / "first")
    assert second.units_reused == 1


def test_a_damaged_run_needs_the_days_files_and_says_so_where_they_are_unreadable(
    store: LocalStore, tmp_path: Path
) -> None:
    here(store, tmp_path / "first")
    events = pin_inputs(store, SETTINGS)
    path_of(store, next(key for key in digested(store) if key.startswith("days/dt=2026-11-19"))).unlink()
    make_unreadable(store, [found.key for found in events])
    with pytest.raises(InputCorrupt, match=r"dt=2026-11-19/a\.parquet"):
        night(store, tmp_path / "second", events)


# ---- nothing is lost


def test_each_row_of_each_file_is_counted_once(store: LocalStore, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"bot_events_per_day": 12, "window_days": 3})
    put_day(store, 1, name="again", seed=1)  # the same events
    put_day(store, 2, name="broken", item_id=pl.when(pl.int_range(pl.len()) < 7).then(pl.lit("")).otherwise("item_id"))
    settings = settings.model_copy(update={"quarantine_share_at_most": 1.0})
    found = here(store, tmp_path / "night", settings=settings)
    of_files = {key: counts for one in markers(store).values() for key, counts in one["files"].items()}
    assert set(of_files) == {stored.key for stored in store.list("events")}
    for key, counts in of_files.items():
        aside, refused = sum(counts["set_aside"].values()), sum(counts["quarantined"].values())
        assert counts["rows"] == len(pl.read_parquet(path_of(store, key))), key
        assert counts["rows"] == counts["valid"] + aside + refused, key
    runs = [path_of(store, one["key"]) for marker in markers(store).values() for one in marker["runs"]]
    assert sum(counts["valid"] for counts in of_files.values()) == sum(len(pl.read_parquet(run)) for run in runs)
    aside = sum(found.set_aside.values())
    assert found.rows_in == sum(counts["rows"] for counts in of_files.values()) == (DAYS + 2) * EVENTS_A_DAY
    assert found.rows_in == found.kept + found.below_threshold + aside + sum(found.quarantined.values())
    assert {"bot", "duplicate", "older", "before_window"} == set(found.set_aside)
    assert found.quarantined == {"malformed_item_id": 7, "not_finite_rating": DAYS + 1}
    assert found.quarantined["not_finite_rating"] + 7 == sum(
        len(pl.read_parquet(path_of(store, key))) for key in found.quarantine_files
    )


def test_exact_repeats_across_files_and_days_are_duplicates_and_change_nothing(
    store: LocalStore, tmp_path: Path
) -> None:
    once = here(store, tmp_path / "once")
    pairs = pairs_of(once)
    put_day(store, 1, name="b", seed=1)  # the day delivered twice
    late = a_day(2, seed=2)
    put_file(
        store, f"events/dt={FIRST_DAY + timedelta(days=3)}/late.parquet", late
    )  # and one in its neighbour's folder
    twice = here(store, tmp_path / "twice")
    assert pairs_of(twice).equals(pairs)
    repeats = 2 * (EVENTS_A_DAY - 1)
    assert twice.set_aside == once.set_aside | {"duplicate": once.set_aside.get("duplicate", 0) + repeats}
    assert (twice.kept, twice.below_threshold) == (once.kept, once.below_threshold)


def test_a_day_that_was_delivered_twice_makes_nobody_a_bot(store: LocalStore, tmp_path: Path) -> None:
    busiest = max(
        a_day(day, seed=day).filter(pl.col("rating").is_finite()).unique()["user_id"].value_counts()["count"].max()
        for day in range(DAYS)
    )  # type: ignore[type-var]
    settings = SETTINGS.model_copy(update={"bot_events_per_day": busiest})
    put_day(store, 1, name="b", seed=1)
    assert "bot" not in here(store, tmp_path / "night", settings=settings).set_aside


# ---- from events to pairs


def test_weights_of_event_types_add_up_over_files_and_days(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "shop"))
    assert isinstance(store, LocalStore)
    noon = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp())
    day = 86_400
    put_weighed(store, "events/dt=2026-11-20/a.parquet", [("ann", "tea", "view", noon - 2 * day)] * 3)
    put_weighed(
        store,
        "events/dt=2026-11-22/a.parquet",
        [
            ("ann", "tea", "view", noon),
            ("ann", "tea", "like", noon + 60),
            ("ann", "rye", "purchase", noon),
            ("ben", "tea", "view", noon),
            ("ben", "tea", "view", noon + 1),
            ("ben", "rye", "like", noon - 3 * day),
            ("ben", "rye", "like", noon),
            ("ben", "jam", "purchase", noon - 5 * day),
            ("cleo", "tea", "purchase", noon),
        ],
    )
    settings = IngestConfig(
        event_weights={"view": 0.1, "like": 0.6, "purchase": 1.0}, weight_half_life_days=1.0, like_threshold=0.7
    )
    found = here(store, tmp_path / "night", settings=settings)
    likes = {(user, item): liked for user, item, _, liked, *_ in pairs_of(found).iter_rows()}
    # Ages are whole days before midnight. tea of ann: 0.1 / 4 + 0.1 + 0.6; rye of ben: 0.6 + 0.6 / 8
    assert likes == {
        ("ann", "tea"): True,
        ("ann", "rye"): True,
        ("ben", "tea"): False,
        ("ben", "rye"): False,
        ("ben", "jam"): False,
        ("cleo", "tea"): True,
    }
    assert (found.kept, found.below_threshold, found.set_aside) == (3, 3, {"duplicate": 2, "older": 4})
    marked = set(markers(store))
    other = settings.model_copy(
        update={"event_weights": {"view": 0.1, "like": 0.65, "purchase": 1.0}, "weight_half_life_days": 30.0}
    )
    likes = {
        (user, item): liked
        for user, item, _, liked, *_ in pairs_of(here(store, tmp_path / "other", settings=other)).iter_rows()
    }
    assert [pair for pair, liked in likes.items() if not liked] == [("ben", "tea")]
    assert set(markers(store)) == marked, "weights and half life are none of a digested day"


def put_weighed(store: LocalStore, key: str, rows: list[tuple[str, str, str, int]]) -> None:
    put_file(store, key, pl.DataFrame(rows, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row"))


def test_042_and_42_are_two_users_in_every_night(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "town"))
    assert isinstance(store, LocalStore)
    for day, user in enumerate(["042", "42", " 42", "42"]):
        put_day(store, day, user_id=pl.lit(user), rating=pl.lit(5.0))
        found = here(store, tmp_path / f"night-{day}") if day else None
    assert found is not None
    assert pairs_of(found)["user_id"].unique().sort().to_list() == [" 42", "042", "42"]
    of_day = [set(a_day(day, seed=day)["item_id"]) for day in range(DAYS)]
    met = {user: set(items) for user, items in pairs_of(found).group_by("user_id").agg("item_id").iter_rows()}
    assert met == {"042": of_day[0], "42": of_day[1] | of_day[3], " 42": of_day[2]}


# ---- SIGKILL, then again

KILLED = Path(__file__).with_name("killed_digest.py")
MOMENTS = ("piece-1", "piece-5", "registry", "run-1", "run-2", "unmarked-1", "marker-1", "run-8", "marker", "merged")


def readings(*of_each: tuple[LocalStore, Path, str]) -> list[str]:
    """One after another: how each ended."""
    words = [word for store, folder, moment in of_each for word in (store.uri, str(folder), moment)]
    ended = subprocess.run(
        [sys.executable, str(KILLED), SETTINGS.model_dump_json(), *words],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


def copy_of(store: LocalStore, folder: Path) -> LocalStore:
    shutil.copytree(path_of(store, "events"), folder / "events")
    return LocalStore(folder)


def test_a_reading_that_is_killed_at_any_step_and_run_again_ends_with_the_same_bytes(
    store: LocalStore, tmp_path: Path
) -> None:
    calm = copy_of(store, tmp_path / "calm")
    ended = readings(
        (calm, tmp_path / "calm-night", "never"),
        *((store, tmp_path / moment, moment) for moment in MOMENTS),
        (store, tmp_path / "again", "never"),
    )
    assert ended == [
        f"never: {DAYS * 3} pieces, {DAYS * 3} runs, {DAYS} markers",
        *(f"{moment}: SIGKILL" for moment in MOMENTS),
        "never: 0 pieces, 0 runs, 0 markers",  # what the killed ones finished is not read again
    ]
    assert bytes_below(tmp_path / "again") == bytes_below(tmp_path / "calm-night")
    assert digested(store) == digested(calm)


def test_a_reading_that_is_killed_once_and_run_again_ends_with_the_same_bytes(
    store: LocalStore, tmp_path: Path
) -> None:
    moments = ("piece-1", "registry", "run-2", "unmarked-1")
    stores = {moment: copy_of(store, tmp_path / moment) for moment in moments}
    ended = readings(
        (store, tmp_path / "calm-night", "never"),
        *((stores[moment], tmp_path / f"{moment}-killed", moment) for moment in moments),
        *((stores[moment], tmp_path / f"{moment}-again", "never") for moment in moments),
    )
    whole = f"never: {DAYS * 3} pieces, {DAYS * 3} runs, {DAYS} markers"
    assert ended == [whole, *(f"{moment}: SIGKILL" for moment in moments), *[whole] * len(moments)]
    for moment in moments:
        assert bytes_below(tmp_path / f"{moment}-again") == bytes_below(tmp_path / "calm-night"), moment
        assert digested(stores[moment]) == digested(store), moment


def test_a_large_day_is_read_in_pieces_and_its_pairs_and_counts_are_those_of_one(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_day(store, DAYS - 1, name="again", seed=DAYS - 1)  # duplicates, which stand in other pieces
    whole = here(store, tmp_path / "whole")
    forget_digested_days(store)
    read: list[int] = []
    read_piece = digest_module._read_piece

    def counted(piece: list[Any], *others: Any) -> None:
        read.append(sum(part.rows for part in piece))
        read_piece(piece, *others)

    monkeypatch.setattr(digest_module, "_read_piece", counted)
    monkeypatch.setattr(digest_module, "PIECE_ROWS_AT_MOST", 70)
    pieces = here(store, tmp_path / "pieces")
    assert max(read) == 70
    assert sum(read) == (DAYS + 1) * EVENTS_A_DAY
    assert replace(pieces, folder="", quarantine_files=()) == replace(whole, folder="", quarantine_files=())
    assert whole.set_aside["duplicate"] >= EVENTS_A_DAY - 1


# ---- days that are not what their keys say


def test_an_old_day_that_is_delivered_again_as_the_newest_stops_the_night(store: LocalStore, tmp_path: Path) -> None:
    put_day(store, DAYS)
    assert night(store, tmp_path / "before").odd_days == ""
    path_of(store, f"events/dt={FIRST_DAY + timedelta(days=DAYS)}/a.parquet").unlink()
    put_file(store, f"events/dt={FIRST_DAY + timedelta(days=DAYS)}/b.parquet", a_day(1, seed=1))
    words = "no event in the files of 2026-11-22 is of that day, or later than those of the days before"
    with pytest.raises(VolumeAnomaly, match=words):
        night(store, tmp_path / "again")
    accept = IngestConfig(volume_override="accept", volume_override_reason="Anna: it is a copy for a trial")
    assert words in night(store, tmp_path / "accepted", settings=accept).odd_days


def test_yesterday_delivered_again_as_today_holds_nothing_later_than_yesterday(
    store: LocalStore, tmp_path: Path
) -> None:
    put_file(store, f"events/dt={FIRST_DAY + timedelta(days=DAYS)}/a.parquet", a_day(DAYS - 1, seed=DAYS - 1))
    with pytest.raises(VolumeAnomaly, match="the latest is of 2026-11-21"):
        night(store, tmp_path / "night")


def test_folders_named_after_the_day_on_which_they_are_written_hold_the_day_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert isinstance(store, LocalStore)
    for day in range(DAYS):
        put_file(store, f"events/dt={FIRST_DAY + timedelta(days=day + 1)}/a.parquet", a_day(day, seed=day))
    assert here(store, tmp_path / "night").odd_days == ""


@pytest.mark.parametrize("stale_first", [True, False])
def test_one_file_of_the_day_is_enough_for_a_day(stale_first: bool, store: LocalStore, tmp_path: Path) -> None:
    stale, new = ("a", "b") if stale_first else ("b", "a")
    put_day(store, DAYS, name=new)
    put_file(store, f"events/dt={FIRST_DAY + timedelta(days=DAYS)}/{stale}.parquet", a_day(1, seed=1))
    assert here(store, tmp_path / "night").odd_days == ""


def test_a_folder_of_the_nights_own_date_is_not_its_newest_day(store: LocalStore, tmp_path: Path) -> None:
    put_file(store, f"events/dt={FIRST_DAY + timedelta(days=DAYS)}/a.parquet", a_day(1, seed=1))
    assert here(store, tmp_path / "night", as_of=FIRST_DAY + timedelta(days=DAYS)).odd_days == ""


def test_a_newest_day_of_which_no_row_can_be_read_is_empty_also_where_its_footer_looked_well(
    store: LocalStore, tmp_path: Path
) -> None:
    key = put_day(store, DAYS)
    content = bytearray(path_of(store, key).read_bytes())
    content[4:400] = bytes(396)  # pages, not the footer
    path_of(store, key).write_bytes(content)
    settings = IngestConfig(max_bad_files=1)
    (tmp_path / "night").mkdir()
    with pytest.raises(VolumeAnomaly, match=rf"2026-11-22.* no rows in its files \(set aside.*: {key}\)"):
        digest_apart(store.uri, pin_inputs(store, settings), tmp_path / "night", as_of=AS_OF, settings=settings)
    known = {"volume_override": "accept", "volume_override_reason": "Anna: it is known"}
    accepted = night(store, tmp_path / "accepted", settings=settings.model_copy(update=known))
    assert f"set aside, for it cannot be read: {key}" in accepted.odd_days, "the report says what was overridden"
