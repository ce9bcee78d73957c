"""Publishing: one commit whatever happens, told truthfully, and LATEST.json that only moves on."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tasks.config import IngestConfig, NightlyConfig
from tasks.contracts import LATEST_KEY
from tasks.errors import (
    CountsDisagree,
    GateRefused,
    ManifestInvalid,
    ObjectNotFound,
    PublishConflict,
    PublishUnresolved,
    StoreDenied,
    StoreUnavailable,
    UploadCorrupt,
)
from tasks.publish import commit_log, night
from tasks.publish.commit_log import advance_latest, commit, find_commit
from tasks.publish.manifest import commit_key, parse_manifest
from tasks.publish.night import find_published
from tasks.publish.reader import open_latest
from tasks.store import open_store, s3

AS_OF = date(2026, 11, 23)


def commits(store_uri: str) -> list[str]:
    return [stored.key for stored in open_store(store_uri).list("_meta/commits")]


def die(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_a_published_night_says_everything_about_itself(make_night, store_uri):
    published = make_night(store_uri, mark=3.0).publish(attempt="20261124T031205Z-7f3a9c1e")
    store = open_store(store_uri)
    manifest = json.loads(store.read(LATEST_KEY)[0])
    assert store.read(commit_key(AS_OF, 1))[0] == store.read(LATEST_KEY)[0]
    assert [manifest[name] for name in ("format", "version", "base_version", "as_of")] == [1, 1, 0, "2026-11-23"]
    assert manifest["files"] == list(published.files)
    assert manifest["files"][1] == f"{store.uri}/recs/dt=2026-11-23/run=20261124T031205Z-7f3a9c1e/part-00001.parquet"
    assert manifest["output_schema"][0] == {"name": "user_id", "type": "int64"}
    assert [column["type"] for column in manifest["output_schema"]] == [
        "int64",
        "int32",
        "string",
        "float32",
        "string",
        "list<struct<kind: string, item_id: string, share: float32>>",
    ]
    assert (manifest["output_format"], manifest["outputs"]) == (2, {})
    assert sum(part["rows"] for part in manifest["parts"]) == manifest["rows"] == published.rows == 24
    assert sum(part["users"] for part in manifest["parts"]) == manifest["users"] == 6
    assert manifest["metrics"]["lightgcn_test_recall_at_20"] == published.metrics["lightgcn_test_recall_at_20"] == 0.3
    assert "lightgcn_test_ndcg_at_20" not in manifest["metrics"]  # NaN: a mean over nobody
    assert manifest["model_fingerprint"] == "f" * 64
    assert manifest["config"]["recommend"]["k"] == 20
    assert manifest["verdict"]["checks"][0]["gate"] == "popularity"
    assert (published.already, published.is_latest) == (False, True)
    assert published.commit_uri == f"{store.uri}/_meta/commits/2026-11-23/v00000001.json"
    assert published.latest_uri == f"{store.uri}/_meta/LATEST.json"


def test_an_odd_volume_that_somebody_overrode_stands_in_the_manifest_with_the_reason(make_night, store_uri):
    night = make_night(store_uri)
    accepted = IngestConfig(volume_override="accept", volume_override_reason="Anna: the sale")
    run = replace(night.run, config=NightlyConfig(ingest=accepted), odd_volume="2026-11-22 has 301 rows, +201%")
    replace(night, run=run).publish()
    told = open_latest(store_uri).manifest.input
    assert (told.odd_volume, told.override_reason) == ("2026-11-22 has 301 rows, +201%", "Anna: the sale")
    make_night(store_uri, as_of=date(2026, 11, 24)).publish()
    told = open_latest(store_uri).manifest.input
    assert (told.odd_volume, told.override_reason) == ("", "")


def test_only_parquet_lies_below_recs(make_night, store_uri):
    make_night(store_uri).publish()
    assert {Path(stored.key).suffix for stored in open_store(store_uri).list("recs")} == {".parquet"}


def test_a_refused_night_writes_nothing(make_night, store_uri):
    with pytest.raises(GateRefused, match=r"recall 0\.30 against 0\.20"):
        make_night(store_uri, passed=False).publish()
    assert open_store(store_uri).list("") == []


def test_the_same_night_again_changes_nothing(make_night, store_uri):
    first = make_night(store_uri).publish()
    before = open_store(store_uri).list("")
    again = make_night(store_uri).publish()
    assert (again.already, again.version, again.attempt) == (True, 1, first.attempt)
    assert find_published(open_store(store_uri), make_night(store_uri).run) == again
    assert open_store(store_uri).list("") == before


def test_other_inputs_for_the_same_date_make_the_next_version(make_night, store_uri):
    make_night(store_uri, mark=1.0).publish()
    assert find_published(open_store(store_uri), make_night(store_uri, mark=2.0).run) is None
    second = make_night(store_uri, mark=2.0).publish()
    assert (second.version, second.already, second.is_latest) == (2, False, True)
    manifest = open_latest(store_uri, verify=True).manifest
    assert (manifest.version, manifest.base_version, manifest.reason) == (2, 1, "rerun")


def test_a_forced_night_is_published_again_although_nothing_changed(make_night, store_uri):
    make_night(store_uri).publish()
    forced = make_night(store_uri, force=True)
    assert find_published(open_store(store_uri), forced.run) is None
    published = forced.publish()
    assert (published.version, published.already, published.is_latest) == (2, False, True)


def test_a_backfill_of_an_older_date_does_not_move_latest(make_night, store_uri):
    make_night(store_uri, mark=1.0).publish()
    backfill = make_night(store_uri, as_of=date(2026, 11, 20), mark=2.0).publish()
    assert (backfill.version, backfill.is_latest) == (1, False)
    assert open_latest(store_uri).manifest.as_of == AS_OF


def test_a_night_that_died_between_commit_and_latest_is_finished_by_its_rerun(make_night, store_uri, monkeypatch):
    make_night(store_uri, as_of=date(2026, 11, 22), mark=1.0).publish()
    with monkeypatch.context() as broken:
        broken.setattr(night, "advance_latest", die)
        with pytest.raises(KeyboardInterrupt):
            make_night(store_uri, mark=2.0).publish()
    assert open_latest(store_uri).manifest.as_of == date(2026, 11, 22)
    healed = find_published(open_store(store_uri), make_night(store_uri, mark=2.0).run)
    assert (healed.already, healed.is_latest) == (True, True)
    assert open_latest(store_uri, verify=True).scan().collect()["score"].unique().to_list() == [2.0]
    assert len(commits(store_uri)) == 2


def test_a_night_that_died_before_its_commit_was_never_there(make_night, store_uri, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(night, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            make_night(store_uri).publish()
    with pytest.raises(ObjectNotFound, match="nothing has been published"):
        open_latest(store_uri)
    assert find_published(open_store(store_uri), make_night(store_uri).run) is None
    published = make_night(store_uri).publish()
    assert (published.version, published.is_latest) == (1, True)
    assert open_latest(store_uri, verify=True).scan().collect().height == 24


def test_of_nights_that_race_one_wins_and_the_others_know(make_night, store_uri):
    nights = [make_night(store_uri, mark=float(mark)) for mark in range(4)]
    together = threading.Barrier(len(nights))
    outcomes: list[str] = []

    def publish(one: object) -> None:
        together.wait()
        try:
            outcomes.append(f"version {one.publish().version}")
        except PublishConflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=publish, args=(one,)) for one in nights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = sorted(outcome for outcome in outcomes if outcome != "conflict")
    assert len(outcomes) == 4
    assert versions == [f"version {number + 1}" for number in range(len(versions))]
    assert len(commits(store_uri)) == len(versions)
    assert open_latest(store_uri, verify=True).manifest.version == len(versions)


def make_manifest(make_night: Callable, store_uri: str, **changes: object):
    """A manifest like a published one, for the next version, by another attempt."""
    published = make_night(store_uri).publish()
    manifest = find_commit(open_store(store_uri), published.as_of)
    return manifest.model_copy(update={"version": 2, "base_version": 1, "attempt": "mine", **changes})


def test_a_twin_that_was_quicker_has_published_for_both(make_night, store_uri):
    store, mine = open_store(store_uri), make_manifest(make_night, store_uri)
    twin = mine.model_copy(update={"attempt": "twin"})
    assert commit(store, twin, force=False) == twin
    assert commit(store, mine, force=False) == twin
    with pytest.raises(PublishConflict, match="twin"):
        commit(store, mine, force=True)


def test_a_stranger_that_was_quicker_is_a_conflict_and_stays(make_night, store_uri):
    store, mine = open_store(store_uri), make_manifest(make_night, store_uri)
    stranger = mine.model_copy(update={"attempt": "stranger", "run_key": "other inputs"})
    commit(store, stranger, force=False)
    with pytest.raises(PublishConflict, match="stranger"):
        commit(store, mine, force=False)
    assert find_commit(store, AS_OF) == stranger


def test_latest_never_moves_back(make_night, store_uri):
    store, second = open_store(store_uri), make_manifest(make_night, store_uri)
    first = find_commit(store, AS_OF)
    commit(store, second, force=True)
    assert advance_latest(store, second)
    assert advance_latest(store, second)
    assert not advance_latest(store, first)
    assert open_latest(store_uri).manifest.attempt == "mine"


def test_latest_stays_where_a_part_of_the_log_is_lost(make_night, tmp_path):
    store_uri = str(tmp_path / "store")
    store, second = open_store(store_uri), make_manifest(make_night, store_uri)
    first = find_commit(store, AS_OF)
    commit(store, second, force=True)
    advance_latest(store, second)
    (tmp_path / "store" / commit_key(AS_OF, 2)).unlink()
    assert not advance_latest(store, first)
    assert open_latest(store_uri).manifest.attempt == "mine"


def test_a_manifest_with_fields_of_the_future_is_read_and_copied_whole(make_night, store_uri):
    make_night(store_uri).publish()
    content = json.loads(open_store(store_uri).read(LATEST_KEY)[0])
    content["parts"][0]["user_min"] = 1
    content["audience"] = "everyone"
    manifest = parse_manifest(json.dumps(content).encode(), "here")
    assert json.loads(manifest.to_json()) == content


def test_a_commit_that_lies_about_its_version_is_damaged(make_night, store_uri):
    store, second = open_store(store_uri), make_manifest(make_night, store_uri)
    store.put_once(commit_key(AS_OF, 7), second.to_json())
    with pytest.raises(ManifestInvalid, match="v00000007"):
        find_commit(store, AS_OF)


def test_files_that_are_not_what_was_counted_are_not_published(make_night, store_uri):
    one = make_night(store_uri)
    Path(one.recommendations.parts[1].path).write_bytes(Path(one.recommendations.parts[0].path).read_bytes()[:-1])
    with pytest.raises(Exception, match="Parquet"):
        one.publish()
    another = make_night(store_uri)
    object.__setattr__(another.recommendations, "rows", 23)
    with pytest.raises(CountsDisagree, match="23"):
        another.publish()
    assert commits(store_uri) == []


# ---- what is published beside the lists


def test_outputs_stand_in_the_same_commit_and_never_among_the_files_of_the_lists(make_night, store_uri):
    published = make_night(store_uri, outputs=True).publish(attempt="one")
    store = open_store(store_uri)
    manifest = json.loads(store.read(LATEST_KEY)[0])
    similar = manifest["outputs"]["similar_items"]
    assert list(manifest["outputs"]) == ["item_embeddings", "similar_items"]
    assert similar["files"] == [
        f"{store.uri}/outputs/similar_items/dt=2026-11-23/run=one/part-0000{n}.parquet" for n in (0, 1)
    ]
    assert [part["rows"] for part in similar["parts"]] == [6, 6]
    assert similar["rows"] == 12
    assert [column["type"] for column in similar["output_schema"]] == ["string", "int32", "string", "float32"]
    assert manifest["outputs"]["item_embeddings"]["output_schema"][1] == {"name": "embedding", "type": "float32[2]"}
    assert published.outputs["similar_items"] == tuple(similar["files"])
    assert manifest["files"] == list(published.files)
    assert len(published.files) == 2
    assert manifest["rows"] == 24
    lists_alone = {Path(stored.key).parent.as_posix() for stored in store.list("recs")}
    assert lists_alone == {"recs/dt=2026-11-23/run=one"}, "a reader of the whole folder finds lists alone"


def test_a_night_that_died_after_its_outputs_and_before_its_commit_was_never_there(make_night, store_uri, monkeypatch):
    make_night(store_uri, as_of=date(2026, 11, 22), mark=1.0, outputs=True).publish()
    with monkeypatch.context() as broken:
        broken.setattr(night, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            make_night(store_uri, mark=2.0, outputs=True).publish()
    live = open_latest(store_uri, verify=True)
    assert live.output("similar_items").collect()["score"].unique().to_list() == [1.0]
    make_night(store_uri, mark=2.0, outputs=True).publish()
    live = open_latest(store_uri, verify=True)
    assert live.output("similar_items").collect()["score"].unique().to_list() == [2.0]
    assert live.scan().collect()["score"].unique().to_list() == [2.0]


def test_an_output_that_arrives_changed_is_never_committed(make_night, fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "flip a byte" if request.conditional and "embeddings" in request.path else None
    with pytest.raises(UploadCorrupt, match="item_embeddings"):
        make_night(s3_store, outputs=True).publish()
    assert commits(s3_store) == []


def test_a_table_with_a_wrong_column_is_refused_before_anything_is_uploaded(make_night, store_uri):
    for break_it in (
        lambda rows: rows.drop("reasons"),
        lambda rows: rows.cast({"rank": pl.Int64}),
        lambda rows: rows.with_columns(more=1),
        lambda rows: rows.with_columns(pl.lit(None, pl.List(pl.Int64)).alias("reasons")),
        lambda rows: rows.with_columns(pl.col("reasons").list.eval(pl.element().struct.with_fields(item_id=1))),
    ):
        one = make_night(store_uri)
        for part in one.recommendations.parts:
            break_it(pl.read_parquet(part.path)).write_parquet(part.path)
        with pytest.raises(GateRefused, match="output format 2, user_id, rank, item_id, score, tier, reasons"):
            one.publish()
    another = make_night(store_uri, outputs=True)
    for file in another.recommendations.outputs[1].files:
        pl.read_parquet(file.path).cast({"embedding": pl.List(pl.Float32)}).write_parquet(file.path)
    with pytest.raises(GateRefused, match="files of item_embeddings"):
        another.publish()
    assert open_store(store_uri).list("") == []


def test_a_manifest_of_format_1_is_read_as_a_night_without_outputs(make_night, store_uri):
    make_night(store_uri).publish()
    content = json.loads(open_store(store_uri).read(LATEST_KEY)[0])
    del content["outputs"]
    content["output_format"] = 1
    manifest = parse_manifest(json.dumps(content).encode(), "here")
    assert (manifest.output_format, manifest.outputs) == (1, {})


# ---- faults on the way to S3


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries and deadlines, fewer and shorter."""
    monkeypatch.setattr(s3, "SDK_TRIES", 2)
    for function in (commit_log.commit, commit_log.advance_latest):
        monkeypatch.setattr(function, "__kwdefaults__", function.__kwdefaults__ | {"deadline_s": 0.1})


def is_commit(request: object) -> bool:
    return "/_meta/commits/" in request.path and request.method == "PUT"


def test_a_lost_answer_to_any_write_of_a_night_is_told_truthfully(make_night, fault_proxy, s3_store):
    """To each conditional write in turn: LATEST.json created, two parts, the commit, LATEST.json moved on."""
    for turn, write in enumerate([4, 1, 2, 3, 4], start=1):
        first = len(fault_proxy.conditional_puts())
        broken = first + write
        fault_proxy.fault = lambda request, broken=broken: "lose answer" if request.number == broken else None
        published = make_night(s3_store, as_of=date(2026, 11, turn), mark=float(turn)).publish()
        assert (published.already, published.version, published.is_latest) == (False, 1, True), turn
        assert len(fault_proxy.conditional_puts()) >= first + 5, "the client repeated the write by itself"
        assert open_latest(s3_store, verify=True).manifest.attempt == published.attempt
    assert len(commits(s3_store)) == 5
    assert not [request for request in fault_proxy.requests if request.method == "DELETE"]


def test_a_commit_whose_every_answer_is_lost_is_found_by_reading(make_night, fault_proxy, s3_store, hasty):
    fault_proxy.fault = lambda request: "lose answer" if is_commit(request) else None
    published = make_night(s3_store).publish()
    assert (published.already, published.version) == (False, 1)
    forced = make_night(s3_store, force=True).publish()
    assert (forced.already, forced.version) == (False, 2)
    assert len(commits(s3_store)) == 2


def test_a_commit_that_never_arrives_is_unresolved_until_the_rerun(make_night, fault_proxy, s3_store, hasty):
    fault_proxy.fault = lambda request: "500 InternalError" if is_commit(request) else None
    with pytest.raises(PublishUnresolved, match="Nothing was deleted"):
        make_night(s3_store).publish()
    fault_proxy.fault = lambda request: None
    assert commits(s3_store) == []
    assert make_night(s3_store).publish().version == 1


def test_a_part_that_arrives_changed_is_never_committed(make_night, fault_proxy, s3_store):
    fault_proxy.fault = lambda request: "flip a byte" if request.conditional and "part-00001" in request.path else None
    with pytest.raises(UploadCorrupt, match="part-00001"):
        make_night(s3_store).publish()
    assert commits(s3_store) == []


def test_a_store_that_fails_at_each_request_in_turn_never_shows_half_a_night(make_night, fault_proxy, s3_store):
    """Denied at the n-th request: the night fails by name, and the rerun publishes one version of each date."""
    make_night(s3_store, as_of=date(2026, 11, 1), mark=1.0).publish()
    for turn in range(1, 100):
        start = len(fault_proxy.requests)
        fault_proxy.fault = lambda request, at=start + turn: (
            "403 AccessDenied" if len(fault_proxy.requests) == at else None
        )
        as_of = date(2026, 11, 1 + turn)
        try:
            make_night(s3_store, as_of=as_of, mark=float(turn + 1)).publish()
            break
        except StoreDenied:
            fault_proxy.fault = lambda request: None
            live = open_latest(s3_store, verify=True)
            assert live.manifest.as_of.day in (turn, turn + 1)
            rerun = make_night(s3_store, as_of=as_of, mark=float(turn + 1)).publish()
            assert (rerun.version, rerun.is_latest) == (1, True)
    fault_proxy.fault = lambda request: None
    assert turn > 9  # the number of requests that a publication takes, and one
    assert len(commits(s3_store)) == turn + 1


def test_a_latest_that_cannot_be_moved_is_moved_by_the_rerun(make_night, fault_proxy, s3_store, hasty):
    fault_proxy.fault = lambda request: "500 InternalError" if LATEST_KEY in request.path else None
    with pytest.raises(StoreUnavailable, match="is committed"):
        make_night(s3_store).publish()
    fault_proxy.fault = lambda request: None
    again = make_night(s3_store).publish()
    assert (again.already, again.is_latest, again.version) == (True, True, 1)


def test_an_attempt_is_named_by_its_time_and_eight_random_digits(make_night, tmp_path):
    from tasks.publish.task import publish  # costs Prefect's import, so only here

    one = make_night(str(tmp_path / "store"))
    published = publish.fn(one.run, one.fitted, one.evaluation, one.recommendations, one.verdict)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", published.attempt)


def test_a_store_that_was_moved_gets_the_night_anew_because_its_uris_lead_elsewhere(make_night, tmp_path):
    make_night(str(tmp_path / "old")).publish()
    (tmp_path / "old").rename(tmp_path / "new")
    published = make_night(str(tmp_path / "new")).publish()
    assert (published.version, published.already) == (2, False)
    assert all(Path(uri.removeprefix("file://")).is_relative_to(tmp_path / "new") for uri in published.files)
    assert all(Path(uri.removeprefix("file://")).exists() for uri in published.files)


def test_a_deleted_latest_comes_back_as_the_newest_night_not_as_the_one_that_ran_again(make_night, tmp_path):
    store_uri = str(tmp_path / "kept")
    make_night(store_uri, as_of=date(2026, 11, 22)).publish()
    newer = make_night(store_uri, as_of=AS_OF).publish()
    (tmp_path / "kept" / "_meta" / "LATEST.json").unlink()
    store = open_store(store_uri)
    assert not advance_latest(store, find_commit(store, date(2026, 11, 22))), "the newer one is what was live"
    assert open_latest(store_uri).manifest.attempt == newer.attempt
