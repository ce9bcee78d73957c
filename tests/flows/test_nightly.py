"""A whole night, for real: a Prefect server, training ranks in processes of their own, files at the end."""

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.nightly import nightly
from tasks import errors
from tasks.config import NightlyConfig
from tasks.publish.reader import open_latest
from tests.flows.conftest import PROJECT_ROOT, QUICK, bytes_of, rows_of, two_taste_events, write_events


def test_a_night_gives_every_user_their_list_and_readers_find_it(night_place: Path) -> None:
    events = two_taste_events()
    write_events(night_place / "store", events)

    published = nightly(QUICK)

    rows = rows_of(published)
    assert rows.schema == {
        "user_id": pl.String,
        "rank": pl.Int32,
        "item_id": pl.String,
        "score": pl.Float32,
        "tier": pl.String,
        "reasons": pl.List(pl.Struct({"kind": pl.String, "item_id": pl.String, "share": pl.Float32})),
    }
    assert rows.equals(rows.sort("user_id", "rank"))
    assert rows.group_by("user_id").len()["len"].unique().to_list() == [5]
    assert set(rows["user_id"]) == set(events["user_id"])
    assert rows.join(events, on=["user_id", "item_id"], how="semi").is_empty(), "somebody is recommended what they met"
    graph = rows.filter(pl.col("tier") == "graph")
    same_taste = (graph["user_id"].str.slice(-1).cast(int) % 2) == (graph["item_id"].str.slice(-1).cast(int) % 2)
    top = graph.filter(pl.col("rank") <= 2)
    assert same_taste.filter(graph["rank"] <= 2).all(), top
    live = open_latest(str(night_place / "store"), verify=True)
    assert live.manifest.attempt == published.attempt
    assert live.for_user("user-004").equals(rows.filter(pl.col("user_id") == "user-004"))
    nearest = live.output("similar_items").filter(pl.col("rank") == 1).collect()
    assert (nearest["item_id"].str.tail(1).cast(int) % 2).equals(nearest["similar_item_id"].str.tail(1).cast(int) % 2)
    assert published.as_of == date(2025, 11, 18), "started by hand: the day after the last event"


def test_a_finished_night_leaves_no_scratch_and_publishes_nothing_new_until_forced(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    first = nightly(QUICK)
    assert [path for path in (night_place / "work").rglob("*") if path.is_file() and path.name != "lock"] == []

    again = nightly(QUICK)
    assert again.already
    assert again.version == 1
    assert [path for path in (night_place / "work").rglob("*") if path.is_file() and path.name != "lock"] == []

    forced = nightly(QUICK, force=True)
    assert (forced.version, forced.already) == (2, False)
    assert bytes_of(forced) == bytes_of(first), "the same night has the same bytes"
    commits = sorted(path.name for path in (night_place / "store" / "_meta" / "commits").rglob("*.json"))
    assert commits == ["v00000001.json", "v00000002.json"]


def test_other_settings_are_another_night(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    nightly(QUICK)
    wider = QUICK.model_copy(update={"recommend": QUICK.recommend.model_copy(update={"k": 3})})
    published = nightly(wider)
    assert (published.version, published.already) == (2, False)
    assert rows_of(published)["rank"].max() == 3


def test_a_night_on_s3_has_the_bytes_of_a_night_in_a_folder(
    night_place: Path, s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_events(night_place / "store", two_taste_events())
    in_folder = nightly(QUICK)
    from tasks.store import open_store

    store = open_store(s3_store)
    store.put_once("events/day.parquet", path)
    store.put_once("events/_SUCCESS", b"")
    monkeypatch.setenv("NIGHTGRAPH_STORE", s3_store)

    on_s3 = nightly(QUICK)

    parts = [store.read(part.key)[0] for part in open_latest(s3_store, verify=True).manifest.parts]
    assert parts == bytes_of(in_folder)
    assert all(uri.startswith("s3://") for uri in on_s3.files)


def test_two_ranks_publish_what_one_rank_publishes(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    one = nightly(QUICK)
    two = nightly(QUICK.model_copy(update={"train": QUICK.train.model_copy(update={"ranks": 2})}))
    ours, theirs = rows_of(one), rows_of(two)
    assert two.version == 2
    assert np.allclose(ours["score"].to_numpy(), theirs["score"].to_numpy(), atol=1e-4)


def test_the_report_stands_in_the_dashboard_and_in_the_store(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    published = nightly(QUICK)
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
    newest = max(artifacts, key=lambda artifact: artifact.created)
    text = str(newest.data)
    for found in ("version 1, live", "recall@5", "popularity", "item-kNN", "Gate", published.latest_uri, "240"):
        assert found in text
    assert isinstance(newest.flow_run_id, UUID)
    audit = night_place / "store" / "_meta" / "audits" / published.as_of.isoformat() / f"{published.attempt}.json"
    assert audit.with_suffix(".svg").read_text().count("<polyline") == 3, "the training curve outlives the scratch"
    night = json.loads(audit.read_text())
    assert night["interactions"]["rows_in"] == 240
    assert [cost["stage"] for cost in night["costs"]] == [
        *("ingest", "tables", "graph", "train", "evaluate", "recommend", "compare", "judge", "publish")
    ]
    assert "user-0" not in text + audit.read_text(), "nobody's id stands in a report"


def test_tables_beside_the_events_decide_who_gets_what(night_place: Path) -> None:
    """Somebody new with a name that breaks things, an item that is gone, a pair that is blocked, one of a kind."""
    events = two_taste_events()
    store, stranger = night_place / "store", "👩‍🚀 'Zoë', \"the\" <b>new</b>; -- %s"
    write_events(store, events)
    before = rows_of(nightly(QUICK))
    first = before.filter((pl.col("user_id") == "user-004") & (pl.col("rank") == 1))["item_id"].item()
    gone = before.filter(pl.col("item_id") != first)["item_id"].mode().sort().first()
    items = events["item_id"].unique().sort()
    kind = (items.str.tail(2).cast(pl.Int64) % 3).cast(pl.String)
    tables = {
        "items": {"item_id": items, "available": items != gone, "categories": kind},
        "users": {"user_id": [stranger, "two\nlines", "user-004"]},
        "blocked": {"user_id": ["user-004", "nobody"], "item_id": [first, first]},
        "segments": {"user_id": [stranger, "user-001"], "segment": ["odd", "odd"]},
    }
    for name, columns in tables.items():
        (store / name).mkdir()
        pl.DataFrame(columns).write_parquet(store / name / "today.parquet")
    capped = QUICK.model_copy(update={"recommend": QUICK.recommend.model_copy(update={"at_most_per_category": 2})})

    published = nightly(capped)

    rows = rows_of(published)
    assert published.version == 2
    assert set(rows["user_id"]) == {*events["user_id"], stranger}
    assert rows.group_by("user_id").len()["len"].unique().to_list() == [5], "K stays K"
    assert gone not in rows["item_id"]
    assert rows.filter((pl.col("user_id") == "user-004") & (pl.col("item_id") == first)).is_empty()
    of_a_kind = (
        rows.join(pl.DataFrame({"item_id": items, "kind": kind}), on="item_id").group_by("user_id", "kind").len()
    )
    assert of_a_kind["len"].max() == 2
    assert open_latest(str(store), verify=True).for_user(stranger)["tier"].unique().to_list() == ["segment"]
    audit = store / "_meta" / "audits" / published.as_of.isoformat() / f"{published.attempt}.json"
    night = json.loads(audit.read_text())
    assert night["tables"]["rows"] == {"items": 20, "users": 2, "blocked": 1, "segments": 2}
    assert night["tables"]["ignored"] == {"users: malformed_user_id": 1, "blocked: unknown user": 1}
    assert "segment" in {tier["tier"] for tier in night["evaluation"]["tiers"]}, "user-001 is judged in theirs"
    taken = night["recommendations"]["removed_by_rule"]
    assert min(taken["seen"], taken["blocked"], taken["unavailable"]) > 0
    assert "nobody" not in audit.read_text()


# ---- nights that end by name


def test_a_refused_night_leaves_the_live_one_and_a_report(night_place: Path) -> None:
    """Everybody moves to the same three items, which nobody can foresee from their own past: popularity wins."""
    write_events(night_place / "store", two_taste_events())
    live = nightly(QUICK)
    write_events(night_place / "store", _everybody_moves_to_the_popular(), "turned")

    with pytest.raises(errors.GateRefused, match="Nothing was published; the live recommendations stay") as refused:
        nightly(_blind_to_popularity())

    assert "difference -" in str(refused.value)
    assert "run again with gate.override=popularity" in str(refused.value)
    assert open_latest(str(night_place / "store"), verify=True).manifest.attempt == live.attempt
    audits = list((night_place / "store" / "_meta" / "audits").rglob("*.json"))
    assert len(audits) == 2
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
    assert "**refused**" in str(max(artifacts, key=lambda artifact: artifact.created).data)


def _everybody_moves_to_the_popular() -> pl.DataFrame:
    """300 users: first ten likes anywhere in 200 items, then all of them the same three."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(300):
        for position, item in enumerate(rng.choice(200, 10, replace=False)):
            rows.append((f"late-{user:03d}", f"odd-{item:03d}", 5.0, 1_763_500_000 + position))
        if user < 150:  # who has met the hits early makes them popular in the train part
            rows += [(f"late-{user:03d}", f"hit-{hit}", 5.0, 1_763_400_000 + hit) for hit in range(3)]
        else:
            rows += [(f"late-{user:03d}", f"hit-{hit}", 5.0, 1_763_600_000 + hit) for hit in range(3)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")


def _blind_to_popularity() -> NightlyConfig:
    """A recipe that cannot see popularity: no bias, no propagation, hardly a step."""
    train = QUICK.train.model_copy(
        update={"popularity_bias": 0.0, "layers": 0, "max_epochs": 1, "learning_rate": 1.0, "batches_per_epoch": 50}
    )
    return QUICK.model_copy(update={"train": train})


def _corrupt(store: Path) -> None:
    write_events(store, two_taste_events())
    (store / "events" / "page.parquet").write_text("<html>404</html>" * 100)


def _without_a_column(store: Path) -> None:
    write_events(store, two_taste_events().drop("item_id"))


def _with_a_text_rating(store: Path) -> None:
    write_events(store, two_taste_events().with_columns(pl.col("rating").cast(pl.String)))


def _one_user(store: Path) -> None:
    write_events(store, two_taste_events().filter(pl.col("user_id") == "user-000"))


def _one_item(store: Path) -> None:
    write_events(store, two_taste_events().filter(pl.col("item_id") == "item-00"))


def _all_disliked(store: Path) -> None:
    write_events(store, two_taste_events().with_columns(rating=pl.lit(1.0)))


def _no_rows(store: Path) -> None:
    write_events(store, two_taste_events().clear())


@pytest.mark.parametrize(
    ("prepare", "name", "says"),
    [
        (lambda store: None, "InputMissing", ["events"]),
        (_no_rows, "InputMissing", ["0"]),
        (_corrupt, "InputCorrupt", ["events/page.parquet"]),
        (_without_a_column, "SchemaDrift", ["events/day.parquet", "item_id"]),
        (_with_a_text_rating, "SchemaDrift", ["events/day.parquet", "rating", "found text"]),
        (_all_disliked, "NothingLiked", ["4"]),
        (_one_user, "GraphTooSmall", ["1"]),
        (_one_item, "GraphTooSmall", ["1"]),
    ],
    ids=["nothing", "no rows", "not parquet", "missing column", "text rating", "all disliked", "one user", "one item"],
)
def test_bad_input_ends_the_night_by_name_and_leaves_the_live_one(
    night_place: Path, monkeypatch: pytest.MonkeyPatch, prepare: object, name: str, says: list[str]
) -> None:
    store = night_place / "store"
    live = store / "_meta" / "LATEST.json"
    live.parent.mkdir(parents=True)
    live.write_text("what is live")
    prepare(store)  # type: ignore[operator]

    with pytest.raises(getattr(errors, name)) as ended:
        nightly(QUICK)

    for word in says:
        assert word in str(ended.value)
    assert "user-0" not in str(ended.value)
    assert live.read_text() == "what is live"
    assert not (store / "recs").exists()
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night-failed"])))
    assert name in str(max(artifacts, key=lambda artifact: artifact.created).data)


@pytest.mark.parametrize(
    ("store", "name"),
    [
        ("s3://no-such-bucket-at-all/prefix", "StoreNotFound"),
        ("http://127.0.0.1/bucket", "RunConfigError"),
        ("/proc/no/folder", "StoreDenied"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_before_anything_starts(
    night_place: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch, store: str, name: str
) -> None:
    monkeypatch.setenv("NIGHTGRAPH_STORE", store)
    with pytest.raises(getattr(errors, name)):
        nightly(QUICK)


def test_an_unreachable_store_is_named_within_half_a_minute(
    night_place: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NIGHTGRAPH_STORE", "s3://some-bucket/prefix")
    started = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        nightly(QUICK)
    assert time.monotonic() - started < 30


def test_a_night_of_the_future_is_refused(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    with pytest.raises(errors.RunConfigError, match="as_of is 2999-01-01"):
        nightly(QUICK, as_of=date(2999, 1, 1))


def test_rows_that_are_no_events_are_counted_and_change_nothing(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    settings = QUICK.model_copy(update={"ingest": QUICK.ingest.model_copy(update={"quarantine_share_at_most": 0.05})})
    clean = nightly(settings, as_of=date(2025, 11, 18))
    bad = pl.DataFrame(
        [
            (None, "item-00", 5.0, 1_763_000_000),
            ("user-000", None, 5.0, 1_763_000_000),
            ("user-000", "item-01", float("nan"), 1_763_000_000),
            ("user-000", "item-03", 5.0, 4_000_000_000),
        ],
        schema=["user_id", "item_id", "rating", "timestamp"],
        orient="row",
    )
    write_events(night_place / "store", bad, "planted")

    planted = nightly(settings, as_of=date(2025, 11, 18))

    assert planted.version == 2
    assert bytes_of(planted) == bytes_of(clean)
    audit = night_place / "store" / "_meta" / "audits" / "2025-11-18" / f"{planted.attempt}.json"
    assert json.loads(audit.read_text())["interactions"]["quarantined"] == {
        "null_user_id": 1,
        "null_item_id": 1,
        "not_finite_rating": 1,
        "timestamp_in_future": 1,
    }


def test_a_catalogue_smaller_than_k_gives_all_that_is_left(night_place: Path) -> None:
    write_events(night_place / "store", two_taste_events())
    greedy = QUICK.model_copy(update={"recommend": QUICK.recommend.model_copy(update={"k": 500})})
    published = nightly(greedy)
    assert rows_of(published).group_by("user_id").len()["len"].unique().to_list() == [10], "20 items less 10 seen"


def test_the_flow_also_loads_by_its_path(night_place: Path) -> None:
    """Prefect then has flows/ first on its path: a file there named like a package of ours would hide it."""
    write_events(night_place / "store", two_taste_events())
    script = (
        "from prefect.flows import load_flow_from_entrypoint\n"
        "flow = load_flow_from_entrypoint('flows/nightly.py:nightly')\n"
        f"print(flow(config={QUICK.model_dump()!r}).version)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip().endswith("1")


def test_a_night_goes_on_where_the_night_before_ended_and_so_does_its_rerun(night_place: Path) -> None:
    """And once what the night before left is damaged, it starts cold, says so, and is published all the same."""
    warm = NightlyConfig.model_validate(
        QUICK.model_dump()
        | {"graph": {"split": "global_time"}, "train": QUICK.train.model_dump() | {"warm_start": True}}
    )
    store = night_place / "store"
    write_events(store, two_taste_events())
    nights = [date(2025, 11, 18), date(2025, 11, 19)]

    def manifest() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((store / "_meta/LATEST.json").read_text())
        return found

    nightly(warm, as_of=nights[0])
    first = manifest()
    assert first["started"] == "cold: no earlier night was published"
    second = nightly(warm, as_of=nights[1])
    assert manifest()["started"] == "from the night of 2025-11-18, which knew 44 of 44 rows"
    assert manifest()["run_key"] != first["run_key"]
    assert nightly(warm, as_of=nights[1]).already, "what a date starts from does not change when it is published"
    assert bytes_of(nightly(warm, as_of=nights[1], force=True)) == bytes_of(second)

    left = store / first["warm"]["key"]
    left.write_bytes(left.read_bytes()[:-1] + b"\xff")
    assert nightly(warm, as_of=nights[1], force=True).version == 3
    assert "warm.safetensors is not what was written (the night of 2025-11-18)" in manifest()["started"]
    left.unlink()
    assert nightly(warm, as_of=nights[1]).version == 4
    assert manifest()["started"].endswith("warm.safetensors is gone")
