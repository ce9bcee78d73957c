"""A row, once given, is somebody's for ever: across nights, races, lost answers, and what is forgotten."""

import hashlib
import os
import threading

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import PublishConflict, RegistryInvalid, SchemaDrift
from tasks.registry import FORGOTTEN, UNKNOWN, compact, extend, forget, open_registry, read_version
from tasks.registry.commits import COMMITS
from tasks.store import Store, open_store

NO_ITEMS = pl.Series("id", [], dtype=pl.String)


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri)


@pytest.fixture
def local(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


def users(*ids: str) -> pl.Series:
    return pl.Series("user_id", ids, dtype=pl.String)


def add(store: Store, *ids: str):
    return extend(store, open_registry(store), users(*ids), NO_ITEMS)


def rows(store: Store, *ids: str) -> list[int]:
    return open_registry(store).rows_of("users", users(*ids)).tolist()


def test_a_known_user_keeps_their_row_when_new_users_arrive(store):
    first = add(store, "b", "d")
    assert first.rows_of("users", users("d", "b")).tolist() == [1, 0]
    second = add(store, "a", "d", "c")
    assert second.rows_of("users", users("a", "b", "c", "d", "e")).tolist() == [2, 0, 3, 1, UNKNOWN]
    assert open_registry(store).ids["users"].to_list() == ["b", "d", "a", "c"]
    assert second.ids_of("users", np.array([3, 0], dtype=np.int32)).to_list() == ["c", "b"]
    assert read_version(store) == second.version


def test_nothing_is_written_where_everybody_is_known(local):
    before = add(local, "a", "b").version
    assert add(local, "b", "a").version == before
    assert len(local.list(COMMITS)) == 1


def test_ids_are_opaque(local):
    ids = ["42", "042", " 42", "42 ", "\uff14\uff12", "\u00e9", "e\u0301", "A", "a"]
    add(local, *ids)
    assert sorted(rows(local, *ids)) == list(range(len(ids)))
    assert open_registry(local).ids["users"].to_list() == sorted(ids, key=str.encode)


@pytest.mark.parametrize("narrow", [pl.Int8, pl.UInt32, pl.Int32])
def test_integers_of_every_width_are_the_same_ids(local, narrow):
    extend(local, open_registry(local), pl.Series([3, 1], dtype=pl.Int64), NO_ITEMS)
    assert open_registry(local).rows_of("users", pl.Series([1, 3, 5], dtype=narrow)).tolist() == [0, 1, UNKNOWN]


def test_text_where_all_nights_before_had_integers_is_drift_and_not_a_second_population(local):
    extend(local, open_registry(local), pl.Series([3, 1]), NO_ITEMS)
    with pytest.raises(SchemaDrift, match="users' ids are String tonight and were Int64"):
        add(local, "3")
    with pytest.raises(SchemaDrift):
        open_registry(local).rows_of("users", pl.Series([2**63], dtype=pl.UInt64))


def test_many_small_nights_leave_few_files(local):
    for night in range(40):
        add(local, *(f"{night:02d}-{one}" for one in range(3)))
    column = open_registry(local).commit.users
    assert column.rows == 120
    assert len(column.segments) <= 7  # log2(120)
    assert rows(local, "00-0", "39-2") == [0, 119]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(alphabet="abß😀0", min_size=1, max_size=3), max_size=8), max_size=8))
def test_rows_are_those_of_a_plain_dictionary_filled_night_by_night(tmp_path_factory, nights):
    local = open_store(str(tmp_path_factory.mktemp("store")))
    model: dict[str, int] = {}
    for ids in nights:
        add(local, *ids)
        for one in sorted(set(ids) - set(model), key=str.encode):
            model[one] = len(model)
    assert rows(local, *model) == list(model.values())


def test_two_nights_at_once_never_fork_it(store):
    ready = threading.Barrier(4)

    def night(number: int) -> None:
        opened = open_registry(store)
        ready.wait()
        extend(store, opened, users(*(f"{(number * 5 + one) % 20:02d}" for one in range(10))), NO_ITEMS)

    nights = [threading.Thread(target=night, args=(number,)) for number in range(4)]
    for one in nights:
        one.start()
    for one in nights:
        one.join()
    registry = open_registry(store)
    everybody = [f"{one:02d}" for one in range(20)]
    assert sorted(registry.ids["users"].to_list()) == everybody
    assert registry.version.number == len(store.list(COMMITS))


def test_a_lost_answer_is_no_second_version(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "lose answer" if COMMITS in request.path and request.conditional else None
    store = open_store(s3_store)
    assert add(store, "a").version.number == 1
    fault_proxy.fault = lambda request: None
    assert rows(store, "a") == [0]
    assert len(store.list(COMMITS)) == 1


def test_who_is_forgotten_is_in_no_file_and_is_recognised_for_ever(store):
    add(store, "a", "b", "c")
    add(store, "d")
    act = forget(store, "users", users("b", "never-seen"))
    assert act.rows.tolist() == [1, UNKNOWN]
    for key in act.to_remove:
        assert b"b" in b"".join(pl.read_parquet(store.read(key)[0])["id"].drop_nulls().cast(pl.Binary))
    assert rows(store, "a", "b", "c", "d", "never-seen") == [0, FORGOTTEN, 2, 3, FORGOTTEN]
    assert open_registry(store).ids["users"].to_list() == ["a", None, "c", "d"]
    after = add(store, "b", "e", "never-seen")
    assert after.rows_of("users", users("b", "e")).tolist() == [FORGOTTEN, 4]
    assert after.version.forgotten == 1
    kept = [stored.key for stored in store.list("registry/users") if stored.key not in act.to_remove]
    ids = [one for key in kept for one in pl.read_parquet(store.read(key)[0])["id"]]
    assert "b" not in ids
    assert "never-seen" not in ids


def test_an_item_of_the_same_id_as_somebody_who_is_forgotten_stays(local):
    add(local, "42", "43")
    extend(local, open_registry(local), pl.Series(["42"]), pl.Series(["42"]))
    forget(local, "users", users("42"))
    registry = open_registry(local)
    assert registry.rows_of("users", users("42")).tolist() == [FORGOTTEN]
    assert registry.rows_of("items", pl.Series(["42"])).tolist() != [FORGOTTEN]
    assert "42" in registry.ids["items"].to_list()
    new = extend(local, registry, users("44"), pl.Series(["44"]))
    forget(local, "users", users("44"))
    assert (
        open_registry(local).rows_of("items", pl.Series(["44"])).tolist()
        == new.rows_of("items", pl.Series(["44"])).tolist()
    )


def test_forgetting_again_changes_nothing_and_still_knows_the_row(local):
    add(local, "a", "b")
    first = forget(local, "users", users("b"))
    again = forget(local, "users", users("b"))
    assert again.rows.tolist() == first.rows.tolist() == [1]
    assert again.registry.version == first.registry.version
    assert again.to_remove == first.to_remove


def test_files_of_a_number_that_is_still_to_come_are_not_removed_for_somebody_may_be_writing_them(local):
    add(local, "a", "b")
    now = open_registry(local).version.number
    lost, coming = (f"registry/users/v{number:08d}-of-another.parquet" for number in (now, now + 2))
    for key in (lost, coming):
        local.put_once(key, b"")
    removed = forget(local, "users", users("a")).to_remove  # writes number now + 1
    assert lost in removed
    assert coming not in removed
    assert {stored.key for stored in local.list("registry")} >= set(removed)


def test_an_opened_registry_does_not_change_under_its_reader(local):
    opened = add(local, "a", "b")
    forget(local, "users", users("b"))
    assert opened.ids["users"].to_list() == ["a", "b"]


def test_a_night_that_lost_to_an_act_of_forgetting_does_not_bring_the_person_back(local):
    opened = add(local, "a")
    forget(local, "users", users("x"))
    after = extend(local, opened, users("x", "y"), NO_ITEMS)
    assert after.rows_of("users", users("x", "y")).tolist() == [FORGOTTEN, 1]
    assert open_registry(local).ids["users"].to_list() == ["a", "y"]


def test_compaction_is_a_new_epoch_in_which_the_forgotten_stay_forgotten(local):
    add(local, "a", "b", "c", "d")
    forget(local, "users", users("b"))
    opened = open_registry(local)
    add(local, "late")
    act = compact(local, opened, {"users": np.array([True, True, False, True]), "items": np.ones(0, dtype=bool)})
    assert act.registry.version.epoch == 1
    assert rows(local, "a", "b", "c", "d", "late") == [0, FORGOTTEN, UNKNOWN, 1, 2]
    assert set(act.to_remove).isdisjoint(open_registry(local).commit.files())
    assert add(local, "b", "e").ids["users"].to_list() == ["a", "d", "late", "e"]


def test_of_two_compactions_at_once_the_second_says_so(local):
    opened = add(local, "a", "b")
    keep = {"users": np.array([True, False]), "items": np.ones(0, dtype=bool)}
    compact(local, opened, keep)
    with pytest.raises(PublishConflict, match="somebody else compacted"):
        compact(local, opened, keep)
    assert read_version(local).epoch == 1


@pytest.mark.parametrize("damage", ["gone", "flipped", "commit"])
def test_a_damaged_registry_is_named_and_never_numbered_anew(local, damage, tmp_path):
    add(local, "a", "b")
    key = open_registry(local).commit.users.segments[0].key if damage != "commit" else f"{COMMITS}/v00000001.json"
    path = tmp_path / "store" / key
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    if damage == "commit":
        path.write_bytes(content[:50])
    with pytest.raises(RegistryInvalid, match=os.path.basename(key).replace(".", r"\.")):
        add(local, "c")


def test_the_same_nights_write_the_same_ids_whatever_their_order_within(tmp_path):
    hashes = set()
    for number, ids in enumerate([("c", "a", "b"), ("b", "c", "a"), ("a", "b", "c")]):
        store = open_store(str(tmp_path / str(number)))
        add(store, *ids)
        (segment,) = open_registry(store).commit.users.segments
        hashes.add((segment.sha256, hashlib.sha256(store.read(segment.key)[0]).hexdigest()))
    assert len(hashes) == 1
