"""Leaving people out of the nights that are kept: a new version of each date, LATEST moved on, old files due."""

import dataclasses
import hashlib
import json
import os
import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from tasks import due, registry
from tasks.contracts import LATEST_KEY, Output, OutputFile
from tasks.errors import ManifestInvalid, StoreDenied
from tasks.publish import rewrite
from tasks.publish.commit_log import find_commit
from tasks.publish.reader import open_latest
from tasks.publish.rewrite import files_in_use, rewrite_nights
from tasks.publish.rollback import roll_back
from tasks.run import file_sha256
from tasks.store import open_store
from tasks.warm import Recipe, save_warm
from tasks.without import Theirs
from tests.nights import K
from tests.policies import enforced

AS_OF = date(2026, 11, 23)  # of make_night: users 1 to 3 in one file, 4 to 6 in another, K rows for each
NOW = datetime(2026, 11, 25, 9, tzinfo=UTC)


def forget(store_uri, *users, scratch, now=NOW, epoch=0):
    scratch.mkdir(exist_ok=True)
    theirs = Theirs({"user_id": lambda ids: ids.is_in(users)}, np.array(users, np.int64), epoch=epoch)
    return rewrite_nights(open_store(store_uri), theirs, now=now, scratch=scratch)


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def with_embeddings(night, folder: Path):
    rows = {"user_id": [1, 2, 3, 4, 5, 6], "embedding": pl.Series([[0.5, 1.0]] * 6, dtype=pl.Array(pl.Float32, 2))}
    path = folder / "user-embeddings.parquet"
    pl.DataFrame(rows).write_parquet(path)
    file = OutputFile(str(path), 6, path.stat().st_size, file_sha256(path))
    outputs = (*night.recommendations.outputs, Output("user_embeddings", (file,)))
    return dataclasses.replace(night, recommendations=dataclasses.replace(night.recommendations, outputs=outputs))


def with_warm(night, folder: Path, *, epoch: int = 0):
    """The registry has users 1 to 6 in the rows 1 to 6."""
    rows = {"user": np.arange(1, 7), "item": np.arange(9)}
    tables = {
        f"{fit}_{kind}": np.ones((n, 4)) for fit in ("judged", "served") for kind, n in (("user_UD", 6), ("item_ID", 9))
    }
    path = folder / "warm.safetensors"
    save_warm(path, Recipe(epoch, 4, 2, "softmax", 1, 2), rows, tables)
    warm = OutputFile(str(path), 15, path.stat().st_size, file_sha256(path))
    return dataclasses.replace(night, fitted=dataclasses.replace(night.fitted, warm=warm))


def everything(store_uri) -> dict[str, set[int]]:
    """Every Parquet file of the store -> the users whose rows are in it."""
    store = open_store(store_uri)
    found = {}
    for stored in store.list(""):
        if stored.key.endswith(".parquet"):
            with store.open(stored.key) as stream:
                rows = pl.read_parquet(stream.read())
            found[stored.key] = set(rows["user_id"]) if "user_id" in rows.columns else set()
    return found


def test_the_live_night_has_a_next_version_without_the_person_and_says_the_truth(
    make_night, store_uri, tmp_path, scratch
):
    with_embeddings(make_night(store_uri, outputs=True), tmp_path).publish()
    before = open_latest(store_uri, verify=True)
    done = forget(store_uri, 5, scratch=scratch)
    assert (done.nights, done.rows, done.failed) == ((AS_OF,), K + 1, {})
    after = open_latest(store_uri, verify=True)
    assert set(after.scan().collect()["user_id"]) == {1, 2, 3, 4, 6}
    assert set(after.output("user_embeddings").collect()["user_id"]) == {1, 2, 3, 4, 6}
    old, new = before.manifest, after.manifest
    assert (new.version, new.base_version, new.reason) == (2, 1, "forgotten")
    assert (new.rows, new.users, new.rows_by_tier) == (5 * K, 5, {"graph": 5 * K})
    assert (new.parts[1].rows, new.parts[1].users) == (2 * K, 2)
    assert new.outputs["user_embeddings"].rows == 5
    assert new.outputs["user_embeddings"].parts[0].rows == 5
    assert new.parts[0] == old.parts[0], "a file that holds nobody of them is named as it is"
    assert new.outputs["similar_items"] == old.outputs["similar_items"]
    assert new.parts[1].key != old.parts[1].key
    assert new.run_key == old.run_key, "the same night: who runs it again need not publish it again"
    assert (new.created_at, new.rewritten_at) == (old.created_at, NOW), "a night is no fresher for being rewritten"
    untouched = set(type(old).model_fields) - {
        *("version", "base_version", "attempt", "reason", "rewritten_at", "rows", "users", "rows_by_tier"),
        *("files", "parts", "outputs"),
    }
    assert {name: getattr(new, name) for name in untouched} == {name: getattr(old, name) for name in untouched}
    assert open_store(store_uri).read(LATEST_KEY)[0] == new.to_json()


def test_the_others_rows_are_the_same_in_the_same_order(make_night, tmp_path, scratch):
    make_night(str(tmp_path / "store"), mark=3.0).publish()
    before = open_latest(str(tmp_path / "store"))
    forget(str(tmp_path / "store"), 2, 4, scratch=scratch)
    after = open_latest(str(tmp_path / "store"))
    assert after.scan().collect().equals(before.scan().filter(~pl.col("user_id").is_in([2, 4])).collect())
    assert after.scan().collect_schema() == before.scan().collect_schema()
    assert after.for_user(5).equals(before.for_user(5))
    assert after.for_user(4).is_empty()


def test_the_tables_that_the_next_night_starts_from_lose_their_row_too(make_night, store_uri, tmp_path, scratch):
    with_warm(make_night(store_uri), tmp_path).publish()
    forget(store_uri, 5, scratch=scratch)
    manifest = open_latest(store_uri, verify=True).manifest
    assert manifest.warm.rows == 14
    store = open_store(store_uri)
    content, _ = store.read(manifest.warm.key)
    assert hashlib.sha256(content).hexdigest() == manifest.warm.sha256
    assert safetensors.numpy.load(content)["user_rows"].tolist() == [1, 2, 3, 4, 6]
    due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert [stored.key for stored in store.list("models")] == [manifest.warm.key]


def test_tables_from_before_a_compaction_may_hold_anybody_and_go_as_a_whole(make_night, store_uri, tmp_path, scratch):
    with_warm(make_night(store_uri), tmp_path, epoch=1).publish()
    forget(store_uri, 99, scratch=scratch, epoch=2)
    live, store = open_latest(store_uri, verify=True), open_store(store_uri)
    assert (live.manifest.version, live.manifest.warm) == (2, None)
    assert live.scan().collect()["user_id"].n_unique() == 6, "the lists have ids, and stay"
    due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert store.list("models") == []
    assert forget(store_uri, 99, scratch=scratch, epoch=2).nights == (), "and once is enough"


def test_tables_of_a_numbering_that_is_newer_than_the_one_known_are_left_alone(
    make_night, store_uri, tmp_path, scratch
):
    with_warm(make_night(store_uri), tmp_path, epoch=1).publish()
    forget(store_uri, 5, scratch=scratch, epoch=0)
    assert open_latest(store_uri).manifest.warm.rows == 15


def test_a_night_that_does_not_hold_them_is_left_as_it_is(make_night, store_uri, scratch):
    make_night(store_uri).publish()
    keys = [stored.key for stored in open_store(store_uri).list("")]
    assert forget(store_uri, 99, scratch=scratch).nights == ()
    assert [stored.key for stored in open_store(store_uri).list("")] == keys


def test_every_date_is_rewritten_and_latest_stays_on_its_own(make_night, store_uri, scratch):
    dates = [AS_OF, AS_OF + timedelta(days=1), AS_OF + timedelta(days=2)]
    for as_of in dates:
        make_night(store_uri, as_of=as_of).publish()
    assert forget(store_uri, 1, scratch=scratch).nights == tuple(dates)
    store = open_store(store_uri)
    assert [find_commit(store, as_of).version for as_of in dates] == [2, 2, 2]
    live = open_latest(store_uri, verify=True).manifest
    assert (live.as_of, live.version) == (dates[-1], 2)


def test_forgetting_again_changes_nothing_and_forgetting_another_makes_one_more_version(make_night, store_uri, scratch):
    make_night(store_uri).publish()
    forget(store_uri, 1, scratch=scratch)
    assert forget(store_uri, 1, scratch=scratch).nights == ()
    assert len(open_store(store_uri).list(due.FOLDER)) == 1
    forget(store_uri, 1, 4, scratch=scratch)
    live = open_latest(store_uri, verify=True)
    assert live.manifest.version == 3
    assert set(live.scan().collect()["user_id"]) == {2, 3, 5, 6}


def test_a_night_may_lose_everybody(make_night, store_uri, scratch):
    make_night(store_uri).publish()
    forget(store_uri, *range(1, 7), scratch=scratch)
    live = open_latest(store_uri, verify=True)
    assert (live.manifest.rows, live.manifest.users, live.for_user(1).height) == (0, 0, 0)
    assert live.scan().collect().is_empty()


def test_old_versions_attempts_and_replaced_files_go_after_the_grace_and_not_before(make_night, store_uri, scratch):
    """Two versions of a date, and an attempt that died before its commit: all of them held the person."""
    make_night(store_uri, mark=1.0).publish(attempt="a1")
    make_night(store_uri, mark=2.0).publish(attempt="a2")
    store = open_store(store_uri)
    died = "recs/dt=2026-11-24/run=a3/part-00000.parquet"
    store.put_once(died, store.read("recs/dt=2026-11-23/run=a1/part-00000.parquet")[0])
    forget(store_uri, 1, scratch=scratch)
    held = {key for key, users in everything(store_uri).items() if 1 in users}
    assert held == {died, *(f"recs/dt=2026-11-23/run={a}/part-00000.parquet" for a in ("a1", "a2"))}
    early = due.sweep(store, in_use=files_in_use(store))
    assert (early.removed, early.waiting) == (0, 3)
    assert early.next_at is not None
    assert abs(early.next_at - datetime.now(UTC) - due.GRACE) < timedelta(minutes=5)
    swept = due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert (swept.removed, swept.waiting, swept.kept) == (3, 0, 0)
    assert not [key for key, users in everything(store_uri).items() if 1 in users]
    assert set(open_latest(store_uri, verify=True).scan().collect()["user_id"]) == {2, 3, 4, 5, 6}
    assert due.sweep(store, in_use=files_in_use(store), grace=timedelta(0)).removed == 0


def test_the_grace_is_counted_by_the_stores_own_times(make_night, tmp_path, scratch):
    uri = str(tmp_path / "store")
    make_night(uri).publish()
    forget(uri, 1, scratch=scratch)
    listed = tmp_path / "store" / due.FOLDER / "00000001.json"
    for hours, removed in ((47, 0), (49, 1)):
        then = time.time() - hours * 3600
        os.utime(listed, (then, then))
        assert due.sweep(open_store(uri), in_use=files_in_use(open_store(uri))).removed == removed


def test_a_reader_in_the_middle_keeps_what_it_reads_until_the_grace_is_over(make_night, store_uri, scratch):
    make_night(store_uri).publish()
    reading = open_latest(store_uri, verify=True)
    forget(store_uri, 1, scratch=scratch)
    due.sweep(open_store(store_uri), in_use=files_in_use(open_store(store_uri)))
    assert set(reading.scan().collect()["user_id"]) == {1, 2, 3, 4, 5, 6}


def test_what_a_night_published_since_is_not_removed_but_rewritten_first(make_night, store_uri, scratch):
    """Its parts were up and not committed when somebody was forgotten, so they came due; then it was committed."""
    night = make_night(store_uri)
    store = open_store(store_uri)
    for number in (0, 1):
        key = f"recs/dt=2026-11-23/run=late/part-{number:05d}.parquet"
        store.put_once(key, Path(night.recommendations.parts[number].path))
    forget(store_uri, 1, scratch=scratch)
    night.publish(attempt="late")
    swept = due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert (swept.removed, swept.kept) == (0, 1)
    assert open_latest(store_uri, verify=True).manifest.version == 1
    forget(store_uri, 1, scratch=scratch)
    assert due.sweep(store, in_use=files_in_use(store), grace=timedelta(0)).removed == 1
    assert not [key for key, users in everything(store_uri).items() if 1 in users]
    assert open_latest(store_uri, verify=True).manifest.version == 2


def test_a_night_that_commits_the_same_date_meanwhile_is_rewritten_too(make_night, store_uri, scratch, monkeypatch):
    make_night(store_uri, mark=1.0).publish()
    commit, rivals = rewrite.commit, [make_night(store_uri, mark=2.0)]

    def commit_after_the_rival(*args, **kwargs):
        while rivals:
            rivals.pop().publish()
        return commit(*args, **kwargs)

    monkeypatch.setattr(rewrite, "commit", commit_after_the_rival)
    forget(store_uri, 1, scratch=scratch)
    live = open_latest(store_uri, verify=True)
    assert live.manifest.version == 3
    assert live.scan().collect()["score"].unique().to_list() == [2.0]
    assert set(live.scan().collect()["user_id"]) == {2, 3, 4, 5, 6}


def test_a_night_leaves_out_who_was_forgotten_while_it_ran(make_night, store_uri, tmp_path):
    night, store = make_night(store_uri), open_store(store_uri)
    act = registry.forget(store, "users", pl.Series([1]))
    published = night.publish()
    run = dataclasses.replace(night.run, work_folder=str(tmp_path))
    after = rewrite.without_who_left_meanwhile(store, run, published, now=NOW)
    assert (after.version, after.already, after.is_latest, after.users) == (2, False, True, 5)
    assert set(open_latest(store_uri, verify=True).scan().collect()["user_id"]) == {2, 3, 4, 5, 6}
    knowing = dataclasses.replace(run, registry_forgotten=act.registry.version.forgotten)
    assert rewrite.without_who_left_meanwhile(store, knowing, after, now=NOW) == after


def test_what_a_rollback_holds_is_rewritten_and_stays_held(make_night, tmp_path, scratch):
    """Also where its date has a newer version by then, which is not live."""
    uri, good = str(tmp_path / "store"), AS_OF - timedelta(days=1)
    make_night(uri, as_of=good, mark=1.0).publish()
    make_night(uri, mark=2.0).publish()
    store = open_store(uri)
    roll_back(store, good, who="Anna", reason="odd", now=NOW)
    for later in (None, make_night(uri, mark=3.0, force=True)):
        if later is not None:
            later.publish()
        people = [1] if later is None else [1, 4]
        forget(uri, *people, scratch=scratch)
        live = open_latest(uri, verify=True)
        lists = live.scan().collect()
        assert (set(lists["score"]), set(lists["user_id"]) & set(people)) == ({1.0}, set())
        assert live.manifest.held.endswith("Anna: odd")
        assert all(record["state"] == "committed" for record in records_of(tmp_path / "store"))
    due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert not [key for key, users in everything(uri).items() if users & {1, 4}]
    open_latest(uri, verify=True)


def records_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in (folder / "_meta/attempts").rglob("*.json")]


def test_two_who_forget_at_once_end_in_a_clean_night(make_night, store_uri, tmp_path):
    make_night(store_uri).publish()

    def run(number):
        forget(store_uri, 1, 4, scratch=tmp_path / f"scratch-{number}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(open_latest(store_uri, verify=True).scan().collect()["user_id"]) == {2, 3, 5, 6}
    store = open_store(store_uri)
    due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert not [key for key, users in everything(store_uri).items() if users & {1, 4}]


@pytest.mark.parametrize(("role", "denied"), [("forget", set()), ("job", {"DeleteObject", "ListBucketVersions"})])
def test_the_role_that_forgets_is_enough_and_a_nights_role_is_not(
    make_night, s3_store, fault_proxy, tmp_path, scratch, role, denied
):
    """By the policies that deploy/ hands out; who may not remove can rewrite all the same."""
    refused = set()
    with_warm(with_embeddings(make_night(s3_store), tmp_path), tmp_path).publish()
    fault_proxy.fault = enforced(role, s3_store, refused)
    forget(s3_store, 1, scratch=scratch)
    store = open_store(s3_store)
    if role == "forget":
        assert due.sweep(store, in_use=files_in_use(store), grace=timedelta(0)).removed == 3
    else:
        with pytest.raises(StoreDenied):
            due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
    assert {one.split()[0] for one in refused} <= denied
    assert bool(refused) == bool(denied)


class Killed(BaseException):
    pass


def test_killed_at_any_request_and_run_again_nothing_of_them_is_left(make_night, tmp_path, monkeypatch):
    """At each request to the store in turn, before and after the store has done it."""
    for after in (False, True):
        for count in range(1, 200):
            uri = str(tmp_path / f"store-{after}-{count}")
            make_night(uri, mark=1.0).publish()
            make_night(uri, mark=2.0).publish()
            if not forget_until(uri, count, after, tmp_path / "scratch", monkeypatch):
                break
            open_latest(uri, verify=True)
            forget(uri, 1, scratch=tmp_path / "scratch")
            store = open_store(uri)
            due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
            assert not [key for key, users in everything(uri).items() if 1 in users]
            assert set(open_latest(uri, verify=True).scan().collect()["user_id"]) == {2, 3, 4, 5, 6}
        assert count > 15


def forget_until(uri, count, after, scratch, monkeypatch) -> bool:
    """Whether it was killed: the whole act, sweep and all, has fewer requests than `count` where not."""
    left = [count]

    def counted(request):
        def ask(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            answer = request(*args, **kwargs)
            if left[0] == 0:
                raise Killed
            return answer

        return ask

    with monkeypatch.context() as patched:
        for name in ("put_once", "compare_and_swap", "remove", "list"):
            patched.setattr(f"tasks.store.local.LocalStore.{name}", counted(getattr(open_store(uri).__class__, name)))
        try:
            forget(uri, 1, scratch=scratch)
            store = open_store(uri)
            due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))
        except Killed:
            return True
    return False


@pytest.mark.parametrize("can_be_read", [False, True])
def test_a_damaged_file_is_named_is_not_made_whole_and_keeps_nobody_elses_night_back(
    can_be_read, make_night, tmp_path, scratch
):
    uri, earlier = str(tmp_path / "store"), AS_OF - timedelta(days=1)
    make_night(uri, as_of=earlier).publish()
    published = make_night(uri).publish()
    damaged = Path(published.files[0].removeprefix("file://"))
    content = bytearray(damaged.read_bytes())
    content[50] ^= 1
    if can_be_read:
        pl.read_parquet(damaged, hive_partitioning=False).with_columns(pl.col("score") + 1).write_parquet(damaged)
    else:
        damaged.write_bytes(content)
    done = forget(uri, 1, scratch=scratch)
    assert done.nights == (earlier,)
    assert list(done.failed) == ["the night of 2026-11-23"]
    assert "UploadCorrupt" in done.failed["the night of 2026-11-23"]
    assert find_commit(open_store(uri), AS_OF).version == 1


def test_a_night_whose_files_are_not_kept_any_more_stays_as_it_is(make_night, tmp_path, scratch):
    uri = str(tmp_path / "store")
    published = make_night(uri).publish()
    make_night(uri, as_of=AS_OF + timedelta(days=1)).publish()
    for file in published.files:
        Path(file.removeprefix("file://")).unlink()
    done = forget(uri, 1, scratch=scratch)
    assert (done.nights, done.failed) == ((AS_OF + timedelta(days=1),), {})


def test_a_night_of_which_one_file_is_gone_is_named_for_the_others_may_hold_them(make_night, tmp_path, scratch):
    uri = str(tmp_path / "store")
    published = make_night(uri).publish()
    outputs = [file for files in published.outputs.values() for file in files]
    assert len(published.files) + len(outputs) > 1
    Path(published.files[0].removeprefix("file://")).unlink()
    done = forget(uri, 1, scratch=scratch)
    assert done.nights == ()
    assert "ObjectNotFound" in done.failed["the night of 2026-11-23"]


def test_a_list_of_what_is_due_that_is_damaged_is_named_and_removes_nothing(make_night, tmp_path, scratch):
    uri = str(tmp_path / "store")
    make_night(uri).publish()
    forget(uri, 1, scratch=scratch)
    (tmp_path / "store" / due.FOLDER / "00000001.json").write_text("{")
    store = open_store(uri)
    with pytest.raises(ManifestInvalid, match="no list of what is due"):
        due.sweep(store, in_use=files_in_use(store), grace=timedelta(0))


def test_no_id_and_no_local_time_stands_on_a_list_of_what_is_due(make_night, tmp_path, scratch):
    uri = str(tmp_path / "store")
    make_night(uri).publish()
    forget(uri, 1, scratch=scratch)
    listed = json.loads((tmp_path / "store" / due.FOLDER / "00000001.json").read_text())
    assert set(listed) == {"format", "removed", "due"}
    assert {name for one in listed["due"] for name in one} == {"key", "etag", "bytes"}
