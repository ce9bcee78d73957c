"""The one door: what every store promises, on a local folder and on S3, and what each fault on the way is called."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.errors import (
    DiskFull,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    RunConfigError,
    StoreDenied,
    StoreNotFound,
    StoreUnavailable,
    StoreUnsafe,
)
from tasks.store import local, open_store, s3

ROOT = Path(__file__).parents[2]


def test_what_is_written_once_is_read_back_with_the_tag_that_names_it(store_uri):
    store = open_store(store_uri)
    etag = store.put_once("a/b.json", b"first")
    assert store.read("a/b.json") == (b"first", etag)
    with store.open("a/b.json") as stream:
        stream.seek(-3, os.SEEK_END)
        assert stream.read() == b"rst"


def test_a_second_create_is_refused_and_the_first_content_stays(store_uri, tmp_path):
    store = open_store(store_uri)
    store.put_once("a", b"first")
    (tmp_path / "source").write_bytes(b"second")
    for source in (b"second", b"first", tmp_path / "source"):
        with pytest.raises(ObjectExists):
            store.put_once("a", source)
    assert store.read("a")[0] == b"first"


def test_a_swap_replaces_only_the_version_it_names(store_uri):
    store = open_store(store_uri)
    old = store.put_once("a", b"old")
    new = store.compare_and_swap("a", b"new", etag=old)
    with pytest.raises(ObjectChanged):
        store.compare_and_swap("a", b"stale", etag=old)
    assert store.read("a") == (b"new", new)


def test_what_is_not_there_has_a_name(store_uri):
    store = open_store(store_uri)
    for ask in (store.read, store.open, lambda key: store.compare_and_swap(key, b"x", etag='"0"')):
        with pytest.raises(ObjectNotFound, match="nowhere"):
            ask("nowhere")
    assert store.list("") == []
    assert store.list("nowhere") == []


def test_a_listing_is_sorted_deep_fresh_and_inside_the_folder_only(store_uri):
    store, another = open_store(store_uri), open_store(store_uri)
    assert store.list("events") == []
    for key in ("events/b", "events/a/c", "eventsmore/x", "events/a-b"):
        another.put_once(key, b"12345")
    listing = store.list("events")
    assert [stored.key for stored in listing] == ["events/a-b", "events/a/c", "events/b"]
    assert store.list("events/") == listing
    assert {stored.num_bytes for stored in listing} == {5}
    assert {stored.etag for stored in listing} == {store.read("events/b")[1]}
    assert abs(datetime.now(UTC) - listing[0].modified_at) < timedelta(minutes=5)


def test_what_was_removed_is_gone_and_removing_it_again_is_fine(store_uri):
    store = open_store(store_uri)
    etag = store.put_once("recs/a", b"x")
    store.put_once("recs/a.b", b"y")
    for _ in range(2):
        store.remove("recs/a", etag=etag)
    store.remove("recs/nowhere/c", etag=None)
    with pytest.raises(ObjectNotFound):
        store.read("recs/a")
    assert store.read("recs/a.b")[0] == b"y", "a longer name is another object"


def test_only_the_version_that_is_meant_is_removed(store_uri):
    store = open_store(store_uri)
    old = store.put_once("days/a", b"old")
    new = store.compare_and_swap("days/a", b"new", etag=old)
    with pytest.raises(ObjectChanged):
        store.remove("days/a", etag=old)
    assert store.read("days/a") == (b"new", new)
    store.remove("days/a", etag=new)
    assert store.list("") == []


@pytest.mark.parametrize(
    "key",
    ["events/a", "users/a", "items/a", "blocked/a", "segments/a", "_meta/LATEST.json", "_meta/commits/x", "recs", "a"],
)
def test_what_is_not_ours_is_never_removed(store_uri, key):
    store = open_store(store_uri)
    store.put_once(key, b"theirs")
    with pytest.raises(StoreDenied, match="not ours to remove"):
        store.remove(key, etag=None)
    with pytest.raises(RunConfigError):
        store.remove(f"recs/../{key}", etag=None)
    assert store.read(key)[0] == b"theirs"


def test_a_bucket_that_keeps_versions_keeps_none_of_what_was_removed(s3_store):
    store = open_store(s3_store)
    ask(store, "put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
    etag = store.put_once("recs/a", b"first")
    etag = store.compare_and_swap("recs/a", b"second", etag=etag)
    store.put_once("recs/ab", b"another")
    ask(store, "delete_object", Key="some/prefix/recs/a")  # covered up, as somebody by hand would
    store.remove("recs/a", etag=etag)
    left = ask(store, "list_object_versions")
    assert [one["Key"] for one in left["Versions"]] == ["some/prefix/recs/ab"]
    assert left.get("DeleteMarkers", []) == []


def ask(store, operation, **parameters):
    return store._ask(operation, "", **parameters)


def test_more_than_one_page_of_a_listing_arrives(s3_store):
    store = open_store(s3_store)
    for number in range(5):
        store.put_once(f"events/{number}", b"x")
    ask = store._ask
    store._ask = lambda operation, key, **parameters: ask(operation, key, MaxKeys=2, **parameters)
    assert [stored.key for stored in store.list("events")] == [f"events/{number}" for number in range(5)]


def test_two_processes_race_for_the_same_keys_and_each_key_has_one_winner(store_uri):
    rounds = 25
    store = open_store(store_uri)
    store.put_once("counter", b"0")
    start_at = time.time() + 2.5
    racers = {
        name: subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("racer.py")), store_uri, name, str(rounds), str(start_at)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    }
    won = {name: json.loads(racer.communicate(timeout=60)[0])["won"] for name, racer in racers.items()}
    assert sorted(won["one"] + won["two"]) == list(range(rounds))
    for name, numbers in won.items():
        assert all(store.read(f"race/{number}")[0] == name.encode() for number in numbers)
    assert store.read("counter")[0] == str(2 * rounds).encode()  # no swap was lost


def test_a_file_in_parts_keeps_the_create_only_condition(s3_store, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "ONE_PUT_BYTES", 5 * 2**20)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1000) * 12_000)
    store = open_store(s3_store)
    etag = store.put_once("large", large)
    assert store.read("large") == (large.read_bytes(), etag)
    with pytest.raises(ObjectExists):
        store.put_once("large", large)


def test_reading_a_replaced_object_stops_rather_than_mixing_two_versions(s3_store):
    store = open_store(s3_store)
    etag = store.put_once("a", b"o" * 300_000)
    with store.open("a") as stream:
        assert stream.read(10) == b"o" * 10
        store.compare_and_swap("a", b"n" * 300_000, etag=etag)
        stream.seek(-10, os.SEEK_END)
        with pytest.raises(ObjectChanged):
            stream.read(10)


def test_probing_a_good_store_again_and_again_leaves_one_small_object(store_uri):
    for _ in range(3):
        open_store(store_uri).probe()
    assert [stored.key for stored in open_store(store_uri).list("")] == ["_meta/probe"]


# ---- local folders


@pytest.mark.parametrize(("code", "name"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreUnavailable)])
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, code, name):
    store = open_store(str(tmp_path / "store"))

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(name):
        store.put_once("a/b", b"x")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_an_unfinished_write_is_not_listed(tmp_path):
    store = open_store(str(tmp_path))
    (tmp_path / f"{local.OURS}12.tmp").write_bytes(b"half")
    store.put_once("whole", b"x")
    assert [stored.key for stored in store.list("")] == ["whole"]


def test_a_pipe_in_the_folder_does_not_hang_a_night(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    store = open_store(str(tmp_path))
    assert store.list("") == []
    with pytest.raises(ObjectNotFound):
        store.read("pipe")


def test_the_three_ways_to_name_a_folder_are_one_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uris = {open_store(place).uri for place in ("mine", "./mine/", str(tmp_path / "mine"), f"file://{tmp_path}/mine")}
    assert uris == {f"file://{tmp_path}/mine"}
    assert (
        open_store("mine").uri_of("recs/dt=2026-11-23/a.parquet")
        == f"file://{tmp_path}/mine/recs/dt=2026-11-23/a.parquet"
    )


def test_a_folder_that_cannot_be_written_is_denied(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunConfigError, match="is a file"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreDenied, match="file"):
        open_store(str(tmp_path / "file" / "below")).probe()
    with pytest.raises(StoreDenied):
        open_store("/proc/no-such-store").probe()


# ---- names


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "http://example.org/bucket",
        "gs://bucket/prefix",
        "file://host/folder",
        "file:relative\x00",
        "s3://",
        "s3:///prefix",
        "s3:/bucket",
        "s3://ab",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket/a?endpoint=b",
        "s3://bucket/a*",
        "s3://key:secret@bucket/prefix",
        "/tmp/per%20cent",
        "/tmp/brackets[1]",
        "/tmp/star*",
        "/tmp/hash#",
    ],
)
def test_a_place_that_is_no_store_is_refused_before_anything_starts(uri):
    with pytest.raises(RunConfigError) as refusal:
        open_store(uri)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\nb", "a\x00"])
def test_a_key_cannot_leave_the_store(store_uri, key):
    store = open_store(store_uri)
    for ask in (store.read, store.open, store.uri_of, lambda key: store.put_once(key, b"x")):
        with pytest.raises(RunConfigError):
            ask(key)


def test_keys_with_unusual_names_arrive_as_they_are(store_uri):
    store = open_store(store_uri)
    keys = sorted(["events/with space.parquet", "events/ünï.parquet", "events/a+b=c&d%20e#f?versionId=g.parquet"])
    for key in keys:
        store.put_once(key, key.encode())
    assert [stored.key for stored in store.list("events")] == keys
    for key in keys:
        assert store.read(key)[0] == key.encode()
        with store.open(key) as stream:
            assert stream.read() == key.encode()


# ---- faults on the way to S3


def test_a_store_that_ignores_conditions_is_found_out(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "strip conditions"
    with pytest.raises(StoreUnsafe, match="create-only"):
        open_store(s3_store).probe()


def test_a_store_that_ignores_only_swaps_is_found_out_too(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "strip conditions" if request.number == 3 else None
    with pytest.raises(StoreUnsafe, match="compare-and-swap"):
        open_store(s3_store).probe()


def test_a_store_that_does_not_know_conditions_is_unsafe(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "501 NotImplemented"
    with pytest.raises(StoreUnsafe):
        open_store(s3_store).probe()


def test_a_probe_costs_three_requests_and_deletes_nothing(fault_proxy, s3_store):
    open_store(s3_store).probe()
    assert [request.method for request in fault_proxy.requests] == ["PUT", "PUT", "PUT"]


def test_a_probe_survives_a_lost_answer(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "lose answer" if request.number == 1 else None
    open_store(s3_store).probe()


def test_a_lost_answer_to_our_own_write_looks_as_if_somebody_else_had_won(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "lose answer" if request.number == 1 else None
    store = open_store(s3_store)
    with pytest.raises(ObjectExists, match="a/b"):
        store.put_once("a/b", b"ours")
    assert store.read("a/b")[0] == b"ours"


def test_conditional_writes_that_met_are_asked_again(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "409 ConditionalRequestConflict" if request.number in (1, 2) else None
    open_store(s3_store).put_once("a", b"x")
    assert open_store(s3_store).read("a")[0] == b"x"


def test_a_short_overload_is_waited_out(fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "503 SlowDown" if request.number == 1 else None
    open_store(s3_store).put_once("a", b"x")


def test_an_answer_cut_in_the_middle_is_read_again(fault_proxy, s3_store):
    store = open_store(s3_store)
    store.put_once("a", b"x" * 300_000)
    cuts = iter(["cut answer"] * 4)
    fault_proxy.fault = lambda request: next(cuts, None) if request.method == "GET" else None
    assert store.read("a")[0] == b"x" * 300_000
    cuts = iter(["cut answer"] * 99)
    with pytest.raises(StoreUnavailable), store.open("a") as stream:
        stream.read()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "ExpiredToken"])
def test_refused_credentials_are_denied_at_once_without_naming_them(fault_proxy, s3_store, code):
    fault_proxy.fault = lambda request: f"403 {code}"
    for ask in (lambda store: store.probe(), lambda store: store.list(""), lambda store: store.read("a")):
        with pytest.raises(StoreDenied, match=code) as denial:
            ask(open_store(s3_store))
        assert "test-key" not in str(denial.value)
        assert "test-secret" not in str(denial.value)
    assert len(fault_proxy.requests) == 3


def test_missing_credentials_are_denied(s3_store, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreDenied, match="AWS_ACCESS_KEY_ID"):
        open_store(s3_store).probe()


def test_a_missing_bucket_is_not_found(s3_server):
    for ask in (lambda store: store.probe(), lambda store: store.list("events"), lambda store: store.read("a")):
        with pytest.raises(StoreNotFound, match="no-such-bucket"):
            ask(open_store("s3://no-such-bucket/prefix"))


def test_a_store_that_nobody_answers_for_is_unavailable_soon(s3_store, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="AWS_ENDPOINT_URL"):
            open_store(s3_store).probe()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("endpoint", ["not a url", "http://key:secret@127.0.0.1:1"])
def test_an_endpoint_that_is_no_url_or_holds_credentials_is_refused(s3_store, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(RunConfigError) as refusal:
        open_store(s3_store).probe()
    assert "secret" not in str(refusal.value)


def test_threads_share_a_store(store_uri):
    store = open_store(store_uri)
    outcomes = []

    def race() -> None:
        try:
            store.put_once("a", b"x")
            outcomes.append("won")
        except ObjectExists:
            outcomes.append("lost")

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
