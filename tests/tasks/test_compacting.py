"""Compacting the registry: what would be given up, and that nights before, during and after are right."""

import threading
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from tasks import due
from tasks.contracts import Interactions
from tasks.errors import RegistryCompacted
from tasks.ingest.compacting import compact_rows
from tasks.ingest.forgetting import objects_in_use, rewrite_days
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.sources import pin_inputs
from tasks.registry import FORGOTTEN, compact, extend, forget, open_registry, read_version
from tasks.report.compacted import compacted_panel
from tasks.store import LocalStore, open_store
from tasks.without import theirs_of
from tests.tasks.test_days import AS_OF, DAYS, SETTINGS, a_day, bytes_below, here, path_of, put_day, put_file
from tests.worlds import pairs_of


@pytest.fixture
def store(tmp_path) -> LocalStore:
    """Four days; the first is the only one with the people v0 to v39."""
    store = open_store(str(tmp_path / "store"))
    assert isinstance(store, LocalStore)
    first = a_day(0, seed=0).with_columns(user_id="v" + pl.col("user_id").str.slice(1))
    put_file(store, "events/dt=2026-11-18/a.parquet", first)
    for day in range(1, DAYS):
        put_day(store, day)
    return store


def pairs(night: Interactions) -> list[tuple]:
    return sorted(pairs_of(night).rows())


def take_the_first_day_away(store: LocalStore) -> None:
    path_of(store, "events/dt=2026-11-18/a.parquet").unlink()


def test_a_dry_run_counts_whom_no_file_knows_any_more_and_changes_nothing(store, tmp_path):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    before = bytes_below(tmp_path / "store")
    told = compact_rows(store, apply=False)
    assert bytes_below(tmp_path / "store") == before
    assert (told.users, told.users_kept, told.applied) == (80, 40, False)
    assert (told.items, told.items_kept, told.units) == (30, 30, DAYS)


def test_the_night_after_a_compaction_has_the_pairs_of_a_night_in_a_new_store(store, tmp_path):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    told = compact_rows(store, apply=True)
    assert told.applied
    assert len(open_registry(store).ids["users"]) == 40
    after = here(store, tmp_path / "two")
    assert read_version(store).epoch == 1
    assert read_version(store).users == 40, "whoever is kept has a row already"
    fresh = open_store(str(tmp_path / "fresh"))
    for stored in store.list("events"):
        fresh.put_once(stored.key, path_of(store, stored.key))
    assert pairs(after) == pairs(here(fresh, tmp_path / "three"))


def test_where_every_row_is_needed_nothing_is_given_up_and_no_day_has_to_be_read_again(store, tmp_path):
    here(store, tmp_path / "one")
    before = bytes_below(tmp_path / "store")
    told = compact_rows(store, apply=True)
    assert (told.applied, told.users, told.users_kept, told.due) == (False, 80, 80, 0)
    assert bytes_below(tmp_path / "store") == before
    assert "each of the 80 rows of users and 30 of items is needed" in compacted_panel(told).renderable


def test_what_the_old_epoch_left_is_due_and_the_new_one_keeps_its_own(store, tmp_path):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    old = {stored.key for folder in ("days", "quarantine") for stored in store.list(folder)}
    old_registry = {stored.key for stored in store.list("registry")}
    assert compact_rows(store, apply=True).due == len(old)
    here(store, tmp_path / "two")
    in_use = objects_in_use(store) | open_registry(store).commit.files()
    assert in_use.isdisjoint(old)
    due.sweep(store, in_use=in_use, grace=timedelta(0))
    left = {stored.key for folder in ("days", "quarantine", "registry") for stored in store.list(folder)}
    assert left == in_use
    assert left.isdisjoint(old | old_registry)


def test_a_second_one_without_a_night_between_gives_nothing_up(store, tmp_path):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    compact_rows(store, apply=True)
    told = compact_rows(store, apply=True)
    assert (told.applied, told.units, told.due) == (False, 0, 0)
    assert read_version(store).epoch == 1
    assert len(open_registry(store).ids["users"]) == 40


def test_one_that_was_killed_after_its_commit_is_ended_by_the_next(store, tmp_path):
    here(store, tmp_path / "one")
    registry = open_registry(store)
    compact(store, registry, {kind: np.ones(len(ids), dtype=bool) for kind, ids in registry.ids.items()})
    told = compact_rows(store, apply=True)
    assert not told.applied
    assert told.due == len(store.list("days")) + len(store.list("quarantine"))


def test_a_store_without_a_registry_has_nothing_to_give_up(tmp_path):
    told = compact_rows(open_store(str(tmp_path / "empty")), apply=True)
    assert (told.applied, told.users, told.due) == (False, 0, 0)


def test_whoever_is_forgotten_stays_forgotten_and_counts_as_given_up(store, tmp_path):
    here(store, tmp_path / "one")
    forget(store, "users", pl.Series(["u3"]))
    (tmp_path / "scratch").mkdir()
    rewrite_days(store, theirs_of(open_registry(store)), scratch=tmp_path / "scratch")
    assert compact_rows(store, apply=True).users_kept == 79
    assert open_registry(store).rows_of("users", pl.Series(["u3"])).tolist() == [FORGOTTEN]
    after = here(store, tmp_path / "two")
    assert after.set_aside["forgotten"] > 0
    assert "u3" not in {user for user, *_ in pairs(after)}


def test_forgetting_after_a_compaction_leaves_days_of_the_old_numbering_alone(store, tmp_path):
    """Their row numbers are other people's now."""
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    compact_rows(store, apply=True)
    here(store, tmp_path / "two")
    forget(store, "users", pl.Series(["u3"]))
    (tmp_path / "scratch").mkdir()
    done = rewrite_days(store, theirs_of(open_registry(store)), scratch=tmp_path / "scratch")
    assert not done.failed
    assert done.units == DAYS - 1
    assert "u3" not in {user for user, *_ in pairs(here(store, tmp_path / "three"))}


def test_a_night_that_was_opened_before_a_compaction_ends_by_name(store, tmp_path):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    compact_rows(store, apply=True)
    events = pin_inputs(store, SETTINGS)
    (tmp_path / "two").mkdir()
    with pytest.raises(RegistryCompacted, match="epoch 0, and epoch 1 is there now"):
        digest(
            store,
            events,
            inspect_files(store, events, SETTINGS),
            tmp_path / "two",
            as_of=AS_OF,
            settings=SETTINGS,
            epoch=0,
        )


def test_a_compaction_while_a_night_reads_ends_that_night_by_name_and_the_next_is_right(store, tmp_path, monkeypatch):
    here(store, tmp_path / "one")
    take_the_first_day_away(store)
    put_file(store, "events/dt=2026-11-22/a.parquet", a_day(4, seed=9).with_columns(user_id="w" + pl.col("user_id")))
    opened, compacted = threading.Event(), threading.Event()
    extended = extend

    def waits(*arguments):
        opened.set()
        assert compacted.wait(60)
        return extended(*arguments)

    monkeypatch.setattr("tasks.ingest.interactions.extend", waits)
    ended = []

    def run():
        try:
            here(store, tmp_path / "two")
        except RegistryCompacted as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert opened.wait(60)
    assert compact_rows(store, apply=True).applied
    compacted.set()
    thread.join(60)
    assert len(ended) == 1
    assert {user[:2] for user, *_ in pairs(here(store, tmp_path / "three"))} >= {"wu"}
