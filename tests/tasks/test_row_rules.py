"""Rows that break a rule: named, kept, counted, and too many of them the end of a night."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import IngestConfig
from tasks.errors import ContractViolation, InputCorrupt
from tasks.ingest import digest
from tasks.ingest.digest import read_unit
from tasks.ingest.events import naming_read_errors, with_text_as_bytes
from tasks.ingest.inspection import EventSchema, inspect_files
from tasks.ingest.rules import CLOCK_SLACK, ensure_contract, microseconds_of
from tasks.ingest.scan import as_they_came, scan_file
from tasks.ingest.sources import pin_inputs
from tasks.store import open_store
from tests.worlds import pairs_of, read_night

SETTINGS = IngestConfig()
NOON_S = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp())
FILE = "s3://shop/events/a.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(str(tmp_path / "store"))


def put(store: Any, columns: Any, key: str = "events/a.parquet") -> EventSchema:
    buffer = pa.BufferOutputStream()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer)
    store.put_once(key, buffer.getvalue().to_pybytes())
    return inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def events(count: int = 4, **changed: list[Any]) -> dict[str, Any]:
    plain = {"user_id": ["ada"] * count, "item_id": ["tea"] * count, "rating": [5.0] * count}
    return {**plain, "timestamp": [NOON_S] * count, **changed}


def rules_broken(schema: EventSchema) -> list[str | None]:
    return scan_file(schema.files[0], schema, SETTINGS).collect()["rule"].to_list()


# ---- how many are too many


@pytest.mark.parametrize(("refused", "stops"), [(10, False), (49, False), (50, True), (51, True), (10_000, True)])
def test_a_night_stops_where_refused_rows_reach_half_a_percent(refused: int, stops: bool) -> None:
    found = {FILE: {"null_user_id": refused - 3, "absurd_rating": 3}}
    if not stops:
        ensure_contract(found, 10_000, SETTINGS)
        return
    with pytest.raises(ContractViolation, match=rf"{refused:,} of 10,000 rows .*null_user_id .*absurd_rating 3") as end:
        ensure_contract(found, 10_000, SETTINGS)
    assert f"{FILE} ({refused:,})" in str(end.value)


def test_the_worst_files_are_named_and_the_share_is_of_all_rows() -> None:
    found = {f"{FILE}{number}": {"null_item_id": number} for number in range(9)}
    with pytest.raises(ContractViolation) as end:
        ensure_contract(found, 36 * 200, SETTINGS)
    assert [f"{FILE}{number} ({number})" in str(end.value) for number in (8, 7, 6, 5)] == [True, True, True, False]
    ensure_contract(found, 36 * 200 + 1, SETTINGS)


def test_no_refused_row_stops_nothing_and_none_may_be_allowed() -> None:
    strict = IngestConfig(quarantine_share_at_most=0.0)
    ensure_contract({FILE: {}}, 10, strict)
    ensure_contract({}, 0, strict)
    with pytest.raises(ContractViolation):
        ensure_contract({FILE: {"null_item_id": 1}}, 1_000_000, strict)


# ---- single rules


def test_the_future_begins_a_day_after_the_file_was_written_whatever_night_it_is(store: Any) -> None:
    schema = put(store, events(1))
    written = schema.files[0].modified_at
    at = [written + CLOCK_SLACK + timedelta(microseconds=step) for step in (-1, 0, 1)]
    schema = put(store, events(3, timestamp=pa.array(at, pa.timestamp("us", "UTC"))), "events/b.parquet")
    (file,) = (file for file in schema.files if file.key == "events/b.parquet")
    bound = microseconds_of(file.modified_at + CLOCK_SLACK)
    found = scan_file(file, schema, SETTINGS).collect()
    assert found["rule"].to_list() == ["timestamp_in_future" if us > bound else None for us in found["timestamp_us"]]


def test_the_year_10000_is_out_in_every_unit_and_raises_nothing(store: Any) -> None:
    schema = put(store, events(3, timestamp=[253_402_300_799, 253_402_300_800, 2**62]))
    assert rules_broken(schema) == ["timestamp_in_future", "timestamp_after_9999", "timestamp_after_9999"]


def test_text_that_is_not_utf8_is_refused_row_by_row_and_the_rest_is_read_as_it_was(store: Any) -> None:
    good = put(store, events(4, user_id=["ada", "042", "42", "zoë"]))
    before = scan_file(good.files[0], good, SETTINGS).collect()
    users = pa.array([b"ada", b"042", b"a\xff\xfeb", None, "zoë".encode()]).view(pa.string())
    schema = put(store, pa.table(events(5, user_id=users)), "events/b.parquet")
    with pytest.raises(InputCorrupt) as refused, naming_read_errors(schema.files):
        pl.concat([scan_file(file, schema, SETTINGS).select("rule") for file in schema.files]).collect()
    files = with_text_as_bytes(schema.files, refused.value)
    assert files is not None
    assert [file.text_as_bytes for file in files] == [False, True]
    found = scan_file(files[1], schema, SETTINGS).collect()
    assert found["rule"].to_list() == [None, None, "malformed_user_id", "null_user_id", None]
    assert found.filter(pl.col("rule").is_null())["user_id"].to_list() == ["ada", "042", "zoë"]
    assert scan_file(files[0], schema, SETTINGS).collect().equals(before)
    kept = as_they_came(found.lazy().filter(pl.col("rule").is_not_null()), files).collect()
    assert kept["user_id"].to_list() == ["\0a\\xff\\xfeb", None]


def test_a_unit_with_such_text_is_digested_with_its_rows_refused(store: Any, tmp_path: Path) -> None:
    users = pa.array([b"ada", b"042", b"a\xff\xfeb", "zoë".encode()]).view(pa.string())
    schema = put(store, pa.table(events(4, user_id=users)))
    (counted,) = read_unit(schema, tmp_path / "unit", settings=SETTINGS)
    assert (counted.rows, counted.valid, counted.quarantined) == (4, 3, {"malformed_user_id": 1})


def test_another_corrupt_file_is_not_read_again(store: Any) -> None:
    schema = put(store, events(9))
    other = InputCorrupt("its pages cannot be read")
    assert with_text_as_bytes(schema.files, other) is None


@pytest.mark.parametrize("rows_at_once", [1 << 21, 4])
def test_a_bot_is_a_user_with_too_many_events_on_one_day_and_only_for_that_day(
    rows_at_once: int, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "SUSPECTS_AT_ONCE", rows_at_once)
    busy = [("ada", "tea", NOON_S + second) for second in range(4)]
    quieter = [("ada", "jam", NOON_S + 86_400 + second) for second in range(2)]
    other = [("ben", item, NOON_S + second) for second, item in enumerate(["tea", "jam", "tea"])]
    users, items, times = zip(*busy, *quieter, *other, strict=True)
    for name in ("a", "b"):  # what is delivered twice makes no bot
        rows = events(9, user_id=list(users), item_id=list(items), timestamp=list(times))
        put(store, rows, f"events/dt=2026-11-22/{name}.parquet")
    night = read_night(store, tmp_path, as_of=date(2026, 11, 25), bot_events_per_day=3)
    assert night.set_aside == {"bot": 4, "duplicate": 9, "older": 2}
    left = pairs_of(night)
    assert left.select("user_id", "item_id").rows() == [("ada", "jam"), ("ben", "jam"), ("ben", "tea")]


def test_refused_rows_of_files_that_disagree_go_into_one_table(store: Any) -> None:
    put(store, events(1, user_id=pa.array([None], pa.string()), rating=pa.array([3], pa.int8())))
    schema = put(
        store,
        events(1, user_id=pa.array([None], pa.string()), timestamp=pa.array([0], pa.timestamp("ms"))),
        "events/b.parquet",
    )
    rows = pl.concat([as_they_came(scan_file(file, schema, SETTINGS), schema.files) for file in schema.files]).collect()
    assert rows.schema["rating"] == pl.Float64
    assert rows["timestamp"].to_list() == [str(NOON_S), "1970-01-01 00:00:00.000"]
