"""Leaving people out of digested days, refused rows and nights to come; who may be forgotten at all."""

import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from tasks import due, registry
from tasks.config import IngestConfig
from tasks.contracts import Interactions, LiveLists
from tasks.errors import RunConfigError, UserNotFound
from tasks.ingest.forgetting import objects_in_use, rewrite_days
from tasks.ingest.people import id_kind, ids_of, look_for, replaced_registry_files
from tasks.store import open_store
from tasks.without import theirs_of
from tests.tasks.test_ingest import NOON_S, PLAIN, read_night
from tests.worlds import pairs_of

EVENTS = pl.DataFrame(PLAIN | {"timestamp": PLAIN["timestamp"]})
MORE = EVENTS.with_columns(pl.col("timestamp") + 100, item_id=pl.col("item_id") + "-again")


def put(store, key, rows, folder):
    path = folder / "to-put.parquet"
    rows.write_parquet(path)
    store.put_once(key, path)


@pytest.fixture
def store(store_uri, tmp_path):
    """Two days of three people, one of whom also has a row that is refused, in a file with many good ones."""
    store = open_store(store_uri)
    good = pl.concat([EVENTS] * 60).with_columns(timestamp=pl.lit(NOON_S) + pl.int_range(300))
    refused = EVENTS.head(1).with_columns(rating=pl.lit(float("nan")))
    put(store, "events/dt=2026-11-21/a.parquet", pl.concat([good, refused]), tmp_path)
    put(store, "events/dt=2026-11-22/a.parquet", MORE, tmp_path)
    return store


def night(store, folder) -> Interactions:
    return read_night(store, made(folder))


def forget(store, *people, scratch):
    registry.forget(store, "users", pl.Series(people))
    scratch.mkdir(exist_ok=True)
    return rewrite_days(store, theirs_of(registry.open_registry(store)), scratch=scratch)


def rows_left(store) -> set[int]:
    """Rows of users in any run that is in the store, and ids in any refused row."""
    found = set()
    for stored in (*store.list("days"), *store.list("quarantine")):
        with store.open(stored.key) as stream:
            rows = pl.read_parquet(stream.read())
        found |= set(rows["user_row"] if "user_row" in rows.columns else rows["user_id"])
    return found


def sweep(store):
    in_use = replaced_registry_files(store) | objects_in_use(store)
    return due.sweep(store, in_use=in_use, grace=timedelta(0))


def test_their_events_and_refused_rows_leave_the_days_which_are_not_read_again(store, tmp_path):
    before = night(store, tmp_path / "before")
    [row] = registry.open_registry(store).rows_of("users", pl.Series(["ada"]))
    assert rows_left(store) >= {int(row), "ada"}
    done = forget(store, "ada", scratch=tmp_path / "scratch")
    assert (done.units, done.failed) == (2, {})
    sweep(store)
    assert not rows_left(store) & {int(row), "ada"}
    markers = [stored.key for stored in store.list("_meta/days")]
    after = night(store, tmp_path / "after")
    assert [stored.key for stored in store.list("_meta/days")] == markers, "no day was digested again"
    assert "ada" not in set(pairs_of(after)["user_id"])
    assert pairs_of(after).equals(pairs_of(before).filter(pl.col("user_id") != "ada"))
    assert after.rows_in == before.rows_in
    assert after.set_aside["forgotten"] == done.rows - 1, "all but the refused one, and the counts add up"


def test_a_night_that_reads_everything_again_makes_the_same_of_it(tmp_path, store, store_uri):
    night(store, tmp_path / "before")
    forget(store, "ada", scratch=tmp_path / "scratch")
    kept = night(store, tmp_path / "kept")
    settings = {"bot_events_per_day": 40_000}  # of another digestion, so that all is read
    again = read_night(store, made(tmp_path / "again"), **settings)
    assert len(store.list("_meta/days")) == 4
    assert pairs_of(again).equals(pairs_of(kept))


def made(folder):
    folder.mkdir(parents=True)
    return folder


def test_events_that_come_later_are_counted_as_forgotten_and_not_used(store, tmp_path):
    night(store, tmp_path / "before")
    forget(store, "ada", scratch=tmp_path / "scratch")
    sweep(store)
    refused = MORE.head(1).with_columns(rating=pl.lit(float("inf")))
    late = pl.concat([MORE.with_columns(item_id=pl.lit("late")), refused])
    put(store, "events/dt=2026-11-20/late.parquet", late, tmp_path)
    after = night(store, tmp_path / "after")
    assert "ada" not in set(pairs_of(after)["user_id"])
    assert after.quarantined == {"not_finite_rating": 2}, "they are counted, and kept nowhere"
    assert not rows_left(store) & {"ada"}


def test_a_day_that_a_night_digested_just_before_is_left_out_by_the_night_and_cleaned_by_the_next(store, tmp_path):
    """Its marker still names runs with their rows: the rewriting did not see it."""
    night(store, tmp_path / "before")
    registry.forget(store, "users", pl.Series(["ada"]))
    after = night(store, tmp_path / "after")
    assert "ada" not in set(pairs_of(after)["user_id"])
    assert pairs_of(after)["user_id"].null_count() == 0
    assert after.set_aside["forgotten"] > 0
    assert forget(store, "ada", scratch=tmp_path / "scratch").units == 2


def test_a_run_that_can_be_read_and_is_another_is_named_and_not_made_whole(tmp_path):
    store = open_store(str(tmp_path / "store"))
    put(store, "events/dt=2026-11-22/a.parquet", EVENTS, tmp_path)
    night(store, tmp_path / "before")
    [run] = store.list("days")
    path = tmp_path / "store" / run.key
    pl.read_parquet(path, hive_partitioning=False).with_columns(pl.col("item_row") * 0).write_parquet(path)
    done = forget(store, "ada", scratch=tmp_path / "scratch")
    [named] = done.failed.values()
    assert run.key in named
    assert "another SHA-256" in named
    assert (done.units, [stored.key for stored in store.list("days")]) == (0, [run.key])


def test_again_changes_nothing(store, tmp_path):
    night(store, tmp_path / "before")
    forget(store, "ada", scratch=tmp_path / "scratch")
    before = store.list("")
    assert forget(store, "ada", scratch=tmp_path / "scratch").units == 0
    assert store.list("") == before


def test_a_marker_that_a_night_moved_meanwhile_is_looked_at_again(store, tmp_path, monkeypatch):
    night(store, tmp_path / "before")
    swap, rivals = type(store).compare_and_swap, [1]

    def swap_after_the_rival(own, key, data, *, etag):
        if key.startswith("_meta/days/") and rivals:
            rivals.pop()
            content = json.loads(own.read(key)[0])
            swap(own, key, json.dumps(content).encode(), etag=own.read(key)[1])
        return swap(own, key, data, etag=etag)

    monkeypatch.setattr(type(store), "compare_and_swap", swap_after_the_rival)
    assert forget(store, "ada", scratch=tmp_path / "scratch").units == 2


# ---- who


LIVE = LiveLists(IngestConfig(), "", (False,))


def test_an_id_is_taken_as_it_stands_in_the_kind_that_the_store_has(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert ids_of(store, ["042", " x"], "String").to_list() == ["042", " x"]
    assert ids_of(store, ["42", "-1"], "Int64").to_list() == [42, -1]
    for wrong in ("042", "4 2", "x", "", "9223372036854775808"):
        with pytest.raises(RunConfigError, match="the given one is no number") as refusal:
            ids_of(store, [wrong], "Int64")
        assert not wrong or wrong not in str(refusal.value).replace("002", "")
    assert ids_of(store, ["18446744073709551615"], "UInt64").to_list() == [2**64 - 1]


def test_the_kind_of_ids_is_the_registrys_then_the_live_nights_then_the_events(store, tmp_path):
    assert id_kind(store, LIVE) == "String"
    assert id_kind(store, LiveLists(IngestConfig(), "int32", ())) == "Int64"
    night(store, tmp_path / "night")
    assert id_kind(store, LiveLists(IngestConfig(), "int32", ())) == "String"


def test_rows_in_the_teams_own_files_are_counted_by_file_and_a_broken_one_is_named(store, tmp_path):
    put(store, "users/all.parquet", pl.DataFrame({"user_id": ["ada", "zoe"]}), tmp_path)
    store.put_once("events/broken.parquet", b"no Parquet, but longer than the smallest")
    found = look_for(store, pl.Series(["ada"]), LIVE, always=False)
    assert found.rows == {
        "events/dt=2026-11-21/a.parquet": 121,
        "events/dt=2026-11-22/a.parquet": 2,
        "users/all.parquet": 1,
    }
    assert list(found.unread) == ["events/broken.parquet"]
    assert look_for(store, pl.Series(["zoe"]), LIVE, always=False).rows == {"users/all.parquet": 1}


def test_nobody_by_this_id_is_an_error_that_does_not_say_the_id_unless_it_is_wanted(store, tmp_path):
    with pytest.raises(UserNotFound, match="the given one is nobody") as refusal:
        look_for(store, pl.Series(["stranger"]), LIVE, always=False)
    assert "stranger" not in str(refusal.value)
    two = LiveLists(IngestConfig(), "", (False, False))
    with pytest.raises(UserNotFound, match="of the 2 given ones those in the places 2 are nobody"):
        look_for(store, pl.Series(["ada", "stranger"]), two, always=False)
    with pytest.raises(UserNotFound, match="of the 2 given ones those in the lines 7 are nobody"):
        look_for(store, pl.Series(["ada", "stranger"]), two, always=False, lines=[3, 7])
    assert look_for(store, pl.Series(["stranger"]), LIVE, always=True).rows == {}
    registry.forget(store, "users", pl.Series(["stranger"]))
    assert look_for(store, pl.Series(["stranger"]), LIVE, always=False).rows == {}


def test_files_that_no_version_of_the_registry_needs_hold_nobody_after_the_grace(store, tmp_path):
    night(store, tmp_path / "night")
    forget(store, "ada", scratch=tmp_path / "scratch")
    sweep(store)
    for stored in store.list("registry"):
        content, _ = store.read(stored.key)
        assert "ada" not in repr(pl.read_parquet(content).rows())
    assert registry.open_registry(store).rows_of("users", pl.Series(["ada"])).tolist() == [registry.FORGOTTEN]
    assert np.all(registry.open_registry(store).rows_of("users", pl.Series(["ben", "cleo"])) >= 0)
