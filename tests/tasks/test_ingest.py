"""What a night makes of the event files it finds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import registry
from tasks.config import IngestConfig, NightlyConfig
from tasks.contracts import Interactions, Run
from tasks.errors import (
    CountsDisagree,
    GraphTooSmall,
    InputCorrupt,
    InputMissing,
    InputTooLarge,
    InputUnstable,
    NothingLiked,
    ReaderFailed,
    RunConfigError,
    SchemaDrift,
)
from tasks.ingest.child import digest_apart
from tasks.ingest.events import last_event_at
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest, ensure_counts_add_up
from tasks.ingest.opening import plan_run, read_pinned, write_pinned
from tasks.ingest.planner import Machine
from tasks.ingest.readiness import Clock
from tasks.ingest.rules import rules
from tasks.ingest.sources import ensure_unchanged, input_fingerprint, pin_inputs, pinned_while_reading
from tasks.store import LocalStore, open_store
from tests import worlds
from tests.worlds import pairs_of

SETTINGS = IngestConfig()
AS_OF = date(2026, 11, 23)
MIDNIGHT_S = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp())
NOON_S = MIDNIGHT_S - 43_200
PLAIN: dict[str, list[Any]] = {
    "user_id": ["ada", "ada", "ben", "ben", "cleo"],
    "item_id": ["tea", "rye", "tea", "jam", "rye"],
    "rating": [5.0, 4.0, 4.0, 2.0, 5.0],
    "timestamp": [NOON_S, NOON_S + 1, NOON_S + 2, NOON_S + 3, NOON_S + 4],
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return open_store(str(tmp_path / "store"))  # type: ignore[return-value]


def folder_of(store: Any) -> Path:
    return Path(store.uri.removeprefix("file://"))


def put(store: Any, table: pa.Table | dict[str, list[Any]], key: str = "events/a.parquet", **options: Any) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), buffer, **options)
    store.put_once(key, buffer.getvalue().to_pybytes())


def plain_table(**types: pa.DataType) -> pa.Table:
    return pa.table({name: pa.array(values, types.get(name)) for name, values in PLAIN.items()})


def read_night(store: Any, folder: Path, *, as_of: date = AS_OF, **settings: Any) -> Interactions:
    return worlds.read_night(store, folder, as_of=as_of, **settings)


def refused_rows(store: Any, night: Interactions) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(store.uri_of(key).removeprefix("file://")) for key in night.quarantine_files])


def bytes_of(night: Interactions) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(night.folder).iterdir() if path.is_file()}


def with_rows(*rows: tuple[Any, Any, Any, Any]) -> dict[str, list[Any]]:
    """The plain events and these after them."""
    return {name: [*PLAIN[name], *(row[place] for row in rows)] for place, name in enumerate(PLAIN)}


# ---- what comes out


def test_every_pair_becomes_one_row_sorted_by_user_and_item(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    night = read_night(store, tmp_path)
    seen = pairs_of(night)
    assert seen.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp_us": pl.Int64,
        "liked": pl.Boolean,
        "first_seen_us": pl.Int64,
        "first_liked_us": pl.Int64,
    }
    assert seen.select("user_id", "item_id", "timestamp_us", "liked").rows() == [
        ("ada", "rye", (NOON_S + 1) * 1_000_000, True),
        ("ada", "tea", NOON_S * 1_000_000, True),
        ("ben", "jam", (NOON_S + 3) * 1_000_000, False),
        ("ben", "tea", (NOON_S + 2) * 1_000_000, True),
        ("cleo", "rye", (NOON_S + 4) * 1_000_000, True),
    ]
    assert (night.rows_in, night.kept, night.below_threshold, night.set_aside) == (5, 4, 1, {})
    assert (night.num_users, night.num_items) == (3, 3)
    assert night.first_event_at == datetime.fromtimestamp(NOON_S, UTC)
    assert night.last_event_at == datetime.fromtimestamp(NOON_S + 4, UTC)


def test_the_latest_event_of_a_pair_counts_and_the_best_rated_of_simultaneous_ones(store: Any, tmp_path: Path) -> None:
    put(
        store,
        with_rows(
            ("ada", "tea", 1.0, NOON_S + 60),  # changed their mind
            ("ben", "jam", 5.0, NOON_S + 3),  # at the same second as the 2.0
            ("cleo", "rye", 1.0, NOON_S - 60),  # older
        ),
    )
    night = read_night(store, tmp_path)
    liked = {(row[0], row[1]): row[3] for row in pairs_of(night).iter_rows()}
    assert liked[("ada", "tea")] is False
    assert liked[("ben", "jam")] is True
    assert liked[("cleo", "rye")] is True
    assert night.set_aside == {"older": 3}


def test_a_pair_keeps_when_it_was_first_met_and_first_liked(store: Any, tmp_path: Path) -> None:
    put(
        store,
        with_rows(
            ("ada", "tea", 5.0, NOON_S + 60),  # liked again
            ("ben", "jam", 5.0, NOON_S + 30),  # met at 3 and rated 2, liked now
            ("cleo", "rye", 1.0, NOON_S + 60),  # liked at 4, not any more
        ),
    )
    night = read_night(store, tmp_path)
    first = {row[:2]: row[2:] for row in pairs_of(night).iter_rows()}
    second = 1_000_000

    def times(latest: int, liked: bool, seen: int, first_liked: int | None) -> tuple[int | bool | None, ...]:
        since = [(NOON_S + at) * second if at is not None else None for at in (latest, seen, first_liked)]
        return (since[0], liked, since[1], since[2])

    assert first[("ada", "tea")] == times(60, True, 0, 0)
    assert first[("ben", "jam")] == times(30, True, 3, 30)
    assert first[("cleo", "rye")] == times(60, False, 4, 4)
    assert first[("ben", "tea")] == times(2, True, 2, 2)
    assert night.first_event_at == datetime.fromtimestamp(NOON_S, UTC), "of all events, not of the latest of each pair"


def test_without_a_threshold_every_event_is_a_like_and_no_rating_is_needed(store: Any, tmp_path: Path) -> None:
    put(store, {name: values for name, values in PLAIN.items() if name != "rating"})
    night = read_night(store, tmp_path, like_threshold=None)
    assert (night.kept, night.below_threshold) == (5, 0)


def test_a_float32_rating_equal_to_the_threshold_is_a_like(store: Any, tmp_path: Path) -> None:
    put(store, pa.table({**PLAIN, "rating": pa.array([3.3] * 5, pa.float32())}))
    assert read_night(store, tmp_path, like_threshold=3.3).kept == 5


# ---- the rules

WORLD_END_S = 10**18
YEAR_2999_S = 32_472_144_000
BAD_ROWS: dict[str, tuple[Any, Any, Any, Any]] = {
    "null_user_id": (None, "tea", 5.0, NOON_S),
    "null_item_id": ("ada", None, 5.0, NOON_S),
    "malformed_user_id": ("", "tea", 5.0, NOON_S),
    "malformed_item_id": ("ada", "t\x00a", 5.0, NOON_S),
    "null_rating": ("ada", "tea", None, NOON_S),
    "not_finite_rating": ("ada", "tea", float("nan"), NOON_S),
    "absurd_rating": ("ada", "tea", 1e30, NOON_S),
    "null_timestamp": ("ada", "tea", 5.0, None),
    "timestamp_before_1970": ("ada", "tea", 5.0, -1),
    "timestamp_after_9999": ("ada", "tea", 5.0, WORLD_END_S),
    "timestamp_in_future": ("ada", "tea", 5.0, YEAR_2999_S),
}


def test_every_rule_has_its_bad_row_here(store: Any) -> None:
    put(store, PLAIN)
    schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
    assert [rule.name for rule in rules(schema.files[0], schema, SETTINGS)] == list(BAD_ROWS)


@pytest.mark.parametrize("rule", BAD_ROWS)
def test_a_bad_row_is_refused_under_its_rule_and_changes_no_byte_of_the_rest(rule: str, tmp_path: Path) -> None:
    clean, dirty = open_store(str(tmp_path / "clean")), open_store(str(tmp_path / "dirty"))
    put(clean, PLAIN)
    put(dirty, with_rows(BAD_ROWS[rule]))
    without, night = read_night(clean, tmp_path / "1"), read_night(dirty, tmp_path / "2")
    assert night.quarantined == {rule: 1}
    assert bytes_of(night) == bytes_of(without)
    assert night.fingerprint == without.fingerprint
    refused = refused_rows(dirty, night)
    assert refused.columns == ["user_id", "item_id", "rating", "timestamp", "rule", "file"]
    assert [str(value) for value in refused.row(0)] == [
        str(value) for value in (*BAD_ROWS[rule], rule, "events/a.parquet")
    ]


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("malformed_user_id", ("x" * 257, "tea", 5.0, NOON_S)),
        ("malformed_user_id", ("é" * 129, "tea", 5.0, NOON_S)),  # 258 bytes
        ("malformed_user_id", ("a\nb", "tea", 5.0, NOON_S)),
        ("malformed_item_id", ("ada", "\x7f", 5.0, NOON_S)),
        ("malformed_item_id", ("ada", "\x85", 5.0, NOON_S)),
        ("not_finite_rating", ("ada", "tea", float("inf"), NOON_S)),
        ("not_finite_rating", ("ada", "tea", float("-inf"), NOON_S)),
        ("absurd_rating", ("ada", "tea", -1e7, NOON_S)),
        ("timestamp_after_9999", ("ada", "tea", 5.0, 2**63 - 1)),
        ("timestamp_before_1970", ("ada", "tea", 5.0, -(2**63))),
        ("null_user_id", (None, None, None, None)),  # the first rule names the row
    ],
)
def test_absurd_values_are_refused_and_raise_nothing(
    rule: str, row: tuple[Any, Any, Any, Any], store: Any, tmp_path: Path
) -> None:
    put(store, with_rows(row))
    assert read_night(store, tmp_path).quarantined == {rule: 1}


def test_the_last_microsecond_before_the_date_is_in_and_the_date_itself_is_not(store: Any, tmp_path: Path) -> None:
    before = datetime(2026, 11, 22, 23, 59, 59, 999_999)
    table = pa.table(
        {
            **with_rows(("dan", "tea", 5.0, 0), ("eve", "tea", 5.0, 0)),
            "timestamp": pa.array([before] * 6 + [before + timedelta(microseconds=1)], pa.timestamp("us")),
        }
    )
    put(store, table)
    night = read_night(store, tmp_path)
    assert (night.quarantined, night.set_aside) == ({}, {"later": 1})
    assert "eve" not in pairs_of(night)["user_id"].to_list()


def test_all_bad_rows_together_are_counted_and_the_counts_add_up(store: Any, tmp_path: Path) -> None:
    put(store, with_rows(*BAD_ROWS.values(), *BAD_ROWS.values(), ("ada", "tea", 5.0, NOON_S - 9)))
    night = read_night(store, tmp_path)
    assert night.quarantined == dict.fromkeys(BAD_ROWS, 2)
    assert night.rows_in == (
        night.kept + night.below_threshold + sum(night.set_aside.values()) + sum(night.quarantined.values())
    )
    assert (night.rows_in, night.set_aside) == (28, {"older": 1})


def test_counts_that_do_not_add_up_end_the_night(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    night = read_night(store, tmp_path)
    with pytest.raises(CountsDisagree, match="6 rows came in"):
        ensure_counts_add_up(Interactions(**{**night.__dict__, "rows_in": 6}))


def test_extreme_but_good_ratings_pass(store: Any, tmp_path: Path) -> None:
    put(store, with_rows(("dan", "tea", 1e6, NOON_S), ("dan", "jam", -1e6, NOON_S)))
    night = read_night(store, tmp_path)
    assert (night.kept, night.below_threshold, night.quarantined) == (5, 2, {})


LEGAL_IDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=64).filter(
    lambda text: len(text.encode()) <= 256
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(users=st.sets(LEGAL_IDS, min_size=2, max_size=20), item=LEGAL_IDS)
def test_every_legal_id_comes_out_as_it_came_sorted_by_its_bytes(
    users: set[str], item: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    store = open_store(str(folder / "store"))
    names = list(users)
    both = {"user_id": names * 2, "item_id": [item] * len(names) + [item + "2"] * len(names)}
    put(store, {**both, "timestamp": [NOON_S] * len(names) * 2})
    seen = pairs_of(read_night(store, folder, like_threshold=None))
    assert seen["user_id"].unique(maintain_order=True).to_list() == sorted(users, key=str.encode)
    assert set(seen["item_id"]) == {item, item + "2"}


def test_ids_that_only_look_alike_stay_different(store: Any, tmp_path: Path) -> None:
    alike = ["42", "42 ", " 042", "\uff14\uff12", "\u200b42", "042"]
    put(store, {"user_id": alike, "item_id": ["a", "b"] * 3, "timestamp": [NOON_S] * 6})
    seen = pairs_of(read_night(store, tmp_path, like_threshold=None))
    assert set(seen["user_id"]) == set(alike)


# ---- determinism

SPREAD = """
import sys
from datetime import date
from pathlib import Path
from tasks.store import open_store
from tests.worlds import read_night
read_night(open_store(sys.argv[1]), Path(sys.argv[2]), as_of=date(2026, 11, 23))
"""


def many_events(rows: int = 150_000) -> pl.DataFrame:
    number = pl.int_range(rows, eager=True)
    spread = number.hash(seed=1)
    return pl.DataFrame(
        {
            "user_id": "user-" + (spread % 4_000).cast(pl.String),
            "item_id": "item-" + (spread // 4_000 % 900).cast(pl.String),
            "rating": (spread // 7 % 6).cast(pl.Float64).replace(0.0, float("nan")),
            "timestamp": NOON_S - (spread // 11 % 50).cast(pl.Int64),
        }
    )


def test_file_order_row_order_and_threads_change_no_byte(tmp_path: Path) -> None:
    events = many_events()
    first, second = open_store(str(tmp_path / "first")), open_store(str(tmp_path / "second"))
    put(first, events.to_arrow(), "events/a.parquet")
    shuffled = events.sample(fraction=1.0, shuffle=True, seed=3)
    for part, name in enumerate(["z", "b/c", "a"]):
        put(
            second,
            shuffled[part * 50_000 : (part + 1) * 50_000].to_arrow(),
            f"events/{name}.parquet",
            row_group_size=9_999,
        )
    written = []
    for place, threads in [("first", "1"), ("first", "2"), ("second", "2")]:
        folder = tmp_path / f"{place}-{threads}"
        folder.mkdir()
        environment = {**os.environ, "POLARS_MAX_THREADS": threads}
        command = [sys.executable, "-c", SPREAD, str(tmp_path / place), str(folder)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert written[0] == written[1] == written[2]


# ---- which files


def test_control_files_and_hidden_names_do_no_harm(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN, "events/dt=2026-11-22/events.parquet")
    for key in ("events/dt=2026-11-22/_SUCCESS", "events/manifest.json", "events/_tmp/x.parquet", "events/.x.parquet"):
        store.put_once(key, b"not an event")
    store.put_once("elsewhere/x.parquet", b"not an event")
    assert [found.key for found in pin_inputs(store, SETTINGS)] == ["events/dt=2026-11-22/events.parquet"]
    assert read_night(store, tmp_path).rows_in == 5


def test_a_folder_name_is_no_column_even_beside_a_column_of_that_name(store: Any, tmp_path: Path) -> None:
    put(store, {**PLAIN, "dt": [1] * 5}, "events/dt=2026-11-22/a.parquet")
    put(store, {**PLAIN, "timestamp": [NOON_S + 9] * 5}, "events/user_id=x/b.parquet")
    assert read_night(store, tmp_path).set_aside == {"older": 5}


@pytest.mark.parametrize("name", ["a b", "a%20b", "a[1]", "a*", "a?", "a#b", "ä"])
def test_odd_file_names_are_read_as_they_are(name: str, store: Any, tmp_path: Path) -> None:
    put(store, PLAIN, f"events/{name}.parquet")
    assert read_night(store, tmp_path).rows_in == 5


def test_no_event_files_says_where_and_what_to_put(store: Any) -> None:
    store.put_once("events/_SUCCESS", b"")
    with pytest.raises(InputMissing, match=r"store/events.*user_id, item_id, rating and timestamp"):
        pin_inputs(store, SETTINGS)


def test_the_fingerprint_names_keys_sizes_and_versions_in_any_order(store: Any) -> None:
    put(store, PLAIN, "events/a.parquet")
    put(store, PLAIN, "events/b.parquet")
    pinned = pin_inputs(store, SETTINGS)
    before = input_fingerprint(pinned)
    assert input_fingerprint(pinned[::-1]) == before
    (folder_of(store) / "events/b.parquet").write_bytes(b"other")
    assert input_fingerprint(pin_inputs(store, SETTINGS)) != before


# ---- files that are not what they seem


def parquet_bytes() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(PLAIN), buffer)
    return bytes(buffer.getvalue().to_pybytes())


def deadly_parquet() -> bytes:
    """One byte of a page's length changed: decoding asks for more memory than there is, which is no exception."""
    good = parquet_bytes()
    return good[:50] + b"\x03" + good[51:]


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "no bytes": lambda good: b"",
    "magic only": lambda good: b"PAR1",
    "magic twice": lambda good: b"PAR1PAR1",
    "last byte missing": lambda good: good[:-1],
    "last four bytes missing": lambda good: good[:-4],
    "half": lambda good: good[: len(good) // 2],
    "an error page": lambda good: b"<html><body>503 Slow Down</body></html>",
    "csv": lambda good: b"user_id,item_id,rating,timestamp\n1,2,3,4\n",
    "trailing junk": lambda good: good + b"junk",
    "encrypted footer": lambda good: good[:-4] + b"PARE",
    "footer length zero": lambda good: good[:-8] + bytes(4) + b"PAR1",
    "footer length four gigabytes": lambda good: good[:-8] + b"\xff" * 4 + b"PAR1",
    "footer garbage": lambda good: good[:-200] + b"\xa5" * 192 + good[-8:],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_file_that_is_no_parquet_is_named(corruption: str, store: Any) -> None:
    put(store, PLAIN, "events/a.parquet")
    store.put_once("events/broken.parquet", CORRUPTIONS[corruption](parquet_bytes()))
    with pytest.raises(InputCorrupt, match=r"events/broken\.parquet"):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def test_broken_pages_under_a_good_footer_are_named(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN, "events/a.parquet")
    good = parquet_bytes()
    store.put_once("events/broken.parquet", good[:4] + b"\xff" * 300 + good[304:])
    with pytest.raises(InputCorrupt, match=r"events/broken\.parquet has a good footer"):
        read_night(store, tmp_path)


def test_a_fault_while_reading_has_a_name_and_a_place_and_quotes_no_row(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    with pytest.raises(ReaderFailed, match=r"1 input files ended in AssertionError \(child\.py:\d+\)") as fault:
        digest_apart(store.uri, pin_inputs(store, SETTINGS), tmp_path, as_of=None, settings=SETTINGS)  # type: ignore[arg-type]
    assert "ada" not in str(fault.value)


def test_a_footer_that_claims_more_rows_than_its_file_can_hold_is_refused(store: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tasks.ingest.bounds.ROWS_ALWAYS_ALLOWED", 1_000)
    monkeypatch.setattr("tasks.ingest.bounds.MOST_ROWS_A_BYTE", 8)
    many = 400_000
    same = {"user_id": [1], "item_id": [1], "rating": [5.0], "timestamp": [NOON_S]}
    put(store, pa.table({name: values * many for name, values in same.items()}))
    with pytest.raises(InputTooLarge, match=r"claims 400,000 rows"):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def test_a_file_that_kills_its_reader_is_found_among_good_ones_and_named(store: Any, tmp_path: Path) -> None:
    for name in "abdef":
        put(store, PLAIN, f"events/{name}.parquet")
    store.put_once("events/c.parquet", deadly_parquet())
    with pytest.raises(InputCorrupt, match=r"events/c\.parquet ends every process that reads it \(SIGABRT\)"):
        digest_apart(store.uri, pin_inputs(store, SETTINGS), tmp_path, as_of=AS_OF, settings=SETTINGS)


# ---- schemas


@pytest.mark.parametrize("column", ["user_id", "item_id", "rating", "timestamp"])
@pytest.mark.parametrize("position", ["a", "m", "z"])
def test_a_missing_column_is_named_with_its_file(column: str, position: str, store: Any) -> None:
    for name in "amz":
        table = plain_table()
        put(store, table.drop_columns(column) if name == position else table, f"events/{name}.parquet")
    with pytest.raises(SchemaDrift, match=rf"events/{position}\.parquet: column '{column}': found no such column"):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        ("user_id", pa.float64(), [1.0]),
        ("user_id", pa.list_(pa.int64()), [[1]]),
        ("user_id", pa.binary(), [b"x"]),
        ("item_id", pa.bool_(), [True]),
        ("rating", pa.string(), ["5"]),
        ("rating", pa.bool_(), [True]),
        ("timestamp", pa.float64(), [1.0]),
        ("timestamp", pa.string(), ["2026-11-22"]),
        ("timestamp", pa.date32(), [1]),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_what_was_found_and_wanted(
    column: str, kind: pa.DataType, values: list[Any], store: Any
) -> None:
    put(store, pa.table({**PLAIN, column: pa.array(values * 5, kind)}))
    with pytest.raises(SchemaDrift, match=rf"events/a\.parquet: column '{column}': found .*, wanted (an|a) "):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def test_names_that_differ_by_case_or_stand_twice_are_drift(tmp_path: Path) -> None:
    renamed, both, twice = (open_store(str(tmp_path / name)) for name in ("renamed", "both", "twice"))
    table = plain_table()
    put(renamed, table.rename_columns(["User_ID", "item_id", "rating", "timestamp"]))
    put(both, table.append_column("ITEM_ID", table["item_id"]))
    put(twice, table.append_column("rating", table["rating"]))
    for store, found in [(renamed, "the name 'User_ID'"), (both, "the name 'ITEM_ID'"), (twice, "2 times")]:
        with pytest.raises(SchemaDrift, match=found):
            inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def test_extra_columns_may_come_and_go(store: Any, tmp_path: Path) -> None:
    put(store, plain_table().append_column("device", pa.array(["web"] * 5)), "events/a.parquet")
    put(store, plain_table().select(["timestamp", "rating", "item_id", "user_id"]), "events/b.parquet")
    put(store, plain_table().append_column("device", pa.array([[{"n": 1}]] * 5)), "events/c.parquet")
    night = read_night(store, tmp_path)
    assert (night.rows_in, night.set_aside) == (15, {"duplicate": 10})


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_string_is_the_same_id(kind: pa.DataType, store: Any, tmp_path: Path) -> None:
    encoded = pa.array(PLAIN["user_id"]).dictionary_encode() if pa.types.is_dictionary(kind) else None
    column = encoded if encoded is not None else pa.array(PLAIN["user_id"], kind)
    put(store, pa.table({**PLAIN, "user_id": column}), "events/a.parquet")
    put(store, PLAIN, "events/b.parquet")
    night = read_night(store, tmp_path)
    assert night.set_aside == {"duplicate": 5}
    assert pairs_of(night).schema["user_id"] == pl.String


NUMBERS = {**PLAIN, "user_id": [3, 1, 2, 2, 1], "item_id": [10, 10, 9, 8, 9]}


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()])
def test_one_integer_type_in_all_files_is_kept(kind: pa.DataType, store: Any, tmp_path: Path) -> None:
    for key in ("events/a.parquet", "events/b.parquet"):
        put(store, pa.table({**NUMBERS, "user_id": pa.array(NUMBERS["user_id"], kind)}), key)
    seen = pairs_of(read_night(store, tmp_path))
    assert str(seen.schema["user_id"]).lower() == str(kind)
    assert seen["user_id"].to_list() == [1, 1, 2, 2, 3]


def test_integers_of_several_widths_widen_and_text_beside_them_is_drift(store: Any, tmp_path: Path) -> None:
    put(store, pa.table({**NUMBERS, "user_id": pa.array(NUMBERS["user_id"], pa.int32())}), "events/a.parquet")
    put(store, pa.table({**NUMBERS, "user_id": pa.array(NUMBERS["user_id"], pa.int64())}), "events/b.parquet")
    night = read_night(store, tmp_path)
    assert (night.rows_in, night.set_aside) == (10, {"duplicate": 5})
    assert pairs_of(night).schema["user_id"] == pl.Int64
    put(store, {**NUMBERS, "user_id": ["3", "1", "2", "2", "1"]}, "events/c.parquet")
    with pytest.raises(
        SchemaDrift, match=r"c\.parquet: column 'user_id': found String, wanted Int32, as in .*a\.parquet"
    ):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


def test_each_file_has_a_verdict_by_name_also_in_a_night_that_does_not_open_it(store: Any, tmp_path: Path) -> None:
    """Also seen in a process of its own, as a night does it."""
    plain = {**NUMBERS, "timestamp": pa.array([NOON_S * 1000] * 5, pa.timestamp("ms"))}
    put(store, pa.table({**NUMBERS, "user_id": pa.array(NUMBERS["user_id"], pa.int32())}), "events/a.parquet")
    put(store, pa.table(NUMBERS), "events/b.parquet")
    put(store, pa.table(plain), "events/c.parquet")
    store.put_once("events/d.parquet", b"no Parquet")
    settings = IngestConfig(max_bad_files=1)
    for night in ("first", "second"):
        (tmp_path / night).mkdir()
        pinned = pin_inputs(store, settings)
        found = digest_apart(store.uri, pinned, tmp_path / night, as_of=AS_OF, settings=settings).inspection
        assert found.accepted == 1
        assert found.widened == {
            "events/a.parquet": ["user_id Int32 -> Int64"],
            "events/c.parquet": ["timestamp ms -> us"],
        }
        assert list(found.set_aside) == ["events/d.parquet"]


def test_a_uint64_beside_signed_ids_is_drift_because_widening_would_change_ids(store: Any) -> None:
    put(store, NUMBERS, "events/a.parquet")
    put(store, pa.table({**NUMBERS, "user_id": pa.array([2**64 - 1] * 5, pa.uint64())}), "events/b.parquet")
    with pytest.raises(SchemaDrift, match="found UInt64, wanted Int64"):
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)


@pytest.mark.parametrize(
    "kind",
    [
        pa.int32(),
        pa.uint32(),
        pa.uint64(),
        pa.timestamp("s"),
        pa.timestamp("ms"),
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("us", "UTC"),
        pa.timestamp("ms", "Asia/Kathmandu"),
    ],
)
def test_seconds_and_timestamps_of_every_unit_and_zone_are_the_same_instant(
    kind: pa.DataType, store: Any, tmp_path: Path
) -> None:
    seconds = pa.array(PLAIN["timestamp"], pa.int64())
    column = seconds.cast(pa.timestamp("s")).cast(kind) if pa.types.is_timestamp(kind) else seconds.cast(kind)
    put(store, PLAIN, "events/a.parquet")
    put(store, pa.table({**PLAIN, "timestamp": column}), "events/b.parquet")
    night = read_night(store, tmp_path)
    assert pairs_of(night)["timestamp_us"].to_list() == [(NOON_S + second) * 1_000_000 for second in (1, 0, 3, 2, 4)]
    assert night.set_aside == {"duplicate": 5}


def test_refused_rows_of_files_that_disagree_on_the_type_still_stand_in_one_file(store: Any, tmp_path: Path) -> None:
    put(store, with_rows(("ada", "tea", 5.0, WORLD_END_S)), "events/dt=2026-11-22/a.parquet")
    late = pa.array([*PLAIN["timestamp"][:4], YEAR_2999_S], pa.int64()).cast(pa.timestamp("s"))
    put(store, pa.table({**PLAIN, "rating": [5] * 5, "timestamp": late}), "events/dt=2026-11-22/b.parquet")
    refused = refused_rows(store, read_night(store, tmp_path))
    assert refused["timestamp"].to_list() == [str(WORLD_END_S), "2999-01-01 00:00:00.000"]
    assert refused["rating"].to_list() == [5.0, 5.0]
    assert [key.rpartition("/")[2] for key in refused["file"]] == ["a.parquet", "b.parquet"]


# ---- nights without anything to learn from


def test_files_without_rows_are_missing_input(store: Any, tmp_path: Path) -> None:
    put(store, plain_table().slice(0, 0))
    with pytest.raises(InputMissing, match="hold no rows at all"):
        read_night(store, tmp_path)


def test_an_empty_file_beside_a_full_one_does_no_harm(store: Any, tmp_path: Path) -> None:
    put(store, plain_table().slice(0, 0), "events/a.parquet")
    put(store, PLAIN, "events/b.parquet")
    assert read_night(store, tmp_path).rows_in == 5


def test_only_refused_rows_are_missing_input_with_the_count_of_each_rule(store: Any, tmp_path: Path) -> None:
    put(store, {**PLAIN, "user_id": [None, None, "ada", "ada", "ada"], "rating": [5.0, 5.0, None, None, None]})
    with pytest.raises(InputMissing, match="null_rating 3, null_user_id 2") as caught:
        read_night(store, tmp_path)
    assert "ada" not in str(caught.value)


def test_milliseconds_where_seconds_are_wanted_are_guessed_aloud(store: Any, tmp_path: Path) -> None:
    put(store, {**PLAIN, "timestamp": [second * 1_000 for second in PLAIN["timestamp"]]})
    with pytest.raises(InputMissing, match=r"timestamp_after_9999 5.*milliseconds where seconds"):
        read_night(store, tmp_path)


def test_a_date_before_the_first_event_is_missing_input(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    with pytest.raises(InputMissing, match="the date is before the first event"):
        read_night(store, tmp_path, as_of=date(2020, 1, 1))


def test_no_like_names_the_threshold_and_the_highest_rating(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    with pytest.raises(NothingLiked, match=r"5 pairs none .* at least 8; the highest in all 5 valid events is 5"):
        read_night(store, tmp_path, like_threshold=8.0)


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_one_user_or_one_item_is_no_graph(column: str, store: Any, tmp_path: Path) -> None:
    put(store, {**PLAIN, column: ["same"] * 5})
    with pytest.raises(GraphTooSmall, match="at least 2 of each"):
        read_night(store, tmp_path)


# ---- files that change during the night


def test_a_file_swapped_during_the_night_is_noticed(store: Any) -> None:
    put(store, PLAIN, "events/a.parquet")
    pinned = pin_inputs(store, SETTINGS)
    path = folder_of(store) / "events/a.parquet"
    swapped = bytearray(path.read_bytes())
    swapped[20] ^= 1  # the same size, other bytes
    path.write_bytes(swapped)
    with pytest.raises(InputUnstable, match=r"events/a\.parquet was replaced"):
        ensure_unchanged(store, pinned)


def test_a_file_that_vanishes_is_noticed_and_a_new_one_is_welcome(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN, "events/a.parquet")
    put(store, PLAIN, "events/b.parquet")
    pinned = pin_inputs(store, SETTINGS)
    put(store, PLAIN, "events/c.parquet")
    ensure_unchanged(store, pinned)
    schema = inspect_files(store, pinned, SETTINGS)
    (folder_of(store) / "events/b.parquet").unlink()
    with pytest.raises(InputUnstable, match=r"events/b\.parquet vanished"):
        ensure_unchanged(store, pinned)
    with pytest.raises(InputUnstable, match=r"events/b\.parquet vanished"):
        inspect_files(store, pinned, SETTINGS)
    with pytest.raises(InputUnstable, match="vanished"):
        digest(store, pinned, schema, tmp_path, as_of=AS_OF, settings=SETTINGS)


def test_a_file_cut_off_under_the_reader_is_unstable_rather_than_corrupt(store: Any) -> None:
    put(store, PLAIN)
    pinned = pin_inputs(store, SETTINGS)
    (folder_of(store) / "events/a.parquet").write_bytes(parquet_bytes()[:-50])
    with pytest.raises(InputUnstable), pinned_while_reading(store, pinned):
        inspect_files(store, pinned, SETTINGS)


# ---- which night


def test_the_last_event_decides_when_nobody_gave_a_date(store: Any) -> None:
    put(store, PLAIN)
    set_modified_at(store, datetime(2026, 11, 22, 13, tzinfo=UTC))
    assert last_event_at(
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS), SETTINGS
    ) == datetime.fromtimestamp(NOON_S + 4, UTC)


def test_one_absurd_timestamp_does_not_choose_the_date(store: Any) -> None:
    put(store, with_rows(("ada", "tea", 5.0, NOON_S + 3 * 86_400), ("ada", "tea", 5.0, WORLD_END_S)))
    set_modified_at(store, datetime(2026, 11, 22, 13, tzinfo=UTC))
    assert last_event_at(
        inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS), SETTINGS
    ) == datetime.fromtimestamp(NOON_S + 4, UTC)


def test_no_valid_event_gives_no_date(store: Any) -> None:
    put(store, {**PLAIN, "user_id": [""] * 5})
    with pytest.raises(InputMissing, match="there is no date to work for"):
        last_event_at(inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS), SETTINGS)


def set_modified_at(store: Any, instant: datetime) -> None:
    for path in folder_of(store).glob("events/*.parquet"):
        os.utime(path, (instant.timestamp(), instant.timestamp()))


def plan(store: Any, work: Path, **changed: Any) -> Run:
    settings_of_a_night: dict[str, Any] = {
        "config": NightlyConfig(),
        "as_of": None,
        "scheduled_on": None,
        "work_root": str(work),
        "code_version": "1",
        "force": False,
        "machine": Machine(1 << 40, 1 << 40, threads=2),
        "clock": Clock(read=lambda: datetime(2026, 11, 23, tzinfo=UTC), sleep=lambda seconds: None),
        **changed,
    }
    return plan_run(store, settings_of_a_night.pop("config"), **settings_of_a_night)


def test_a_date_goes_before_the_schedule_and_the_schedule_before_the_last_event(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    set_modified_at(store, datetime(2026, 11, 22, 13, tzinfo=UTC))
    scheduled = date(2026, 11, 24)
    assert plan(store, tmp_path, as_of=date(2026, 11, 20), scheduled_on=scheduled).as_of == date(2026, 11, 20)
    assert plan(store, tmp_path, scheduled_on=scheduled).as_of == scheduled
    assert plan(store, tmp_path).as_of == AS_OF


def test_the_key_of_a_night_is_its_date_inputs_settings_and_code(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    run = plan(store, tmp_path, as_of=AS_OF)
    assert plan(store, tmp_path / "elsewhere", as_of=AS_OF, force=True).run_key == run.run_key
    other = NightlyConfig(ingest=IngestConfig(like_threshold=3.0))
    keys = {
        run.run_key,
        plan(store, tmp_path, as_of=date(2026, 11, 24)).run_key,
        plan(store, tmp_path, as_of=AS_OF, code_version="2").run_key,
        plan(store, tmp_path, as_of=AS_OF, config=other).run_key,
    }
    put(store, PLAIN, "events/new.parquet")
    keys.add(plan(store, tmp_path, as_of=AS_OF).run_key)
    assert len(keys) == 5


def test_whoever_was_forgotten_and_a_compaction_make_another_key_and_new_ids_do_not(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    before = plan(store, tmp_path, as_of=AS_OF).run_key
    read_night(store, tmp_path)  # numbers everybody
    assert plan(store, tmp_path, as_of=AS_OF).run_key == before
    registry.forget(store, "users", pl.Series(["nobody's"]))
    after = plan(store, tmp_path, as_of=AS_OF).run_key
    known = registry.open_registry(store)
    registry.compact(store, known, {kind: np.ones(len(known.ids[kind]), np.bool_) for kind in registry.KINDS})
    assert len({before, after, plan(store, tmp_path, as_of=AS_OF).run_key}) == 3


def test_the_pinned_listing_is_written_down_and_read_back(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    run = plan(store, tmp_path, as_of=AS_OF)
    assert Path(run.inputs_path).parent == Path(run.work_folder)
    assert read_pinned(run.inputs_path) == pin_inputs(store, SETTINGS)
    assert json.loads(Path(run.inputs_path).read_text())[0]["key"] == "events/a.parquet"
    Path(run.inputs_path).unlink()
    with pytest.raises(InputUnstable, match="somebody emptied the work folder meanwhile"):
        read_pinned(run.inputs_path)
    (tmp_path / "a file").write_text("")
    with pytest.raises(RunConfigError, match=r"cannot be written \(File exists\).*Set NIGHTGRAPH_WORK"):
        write_pinned([], tmp_path / "a file" / "inputs.json")
    assert (run.num_files, run.num_input_bytes) == (1, pin_inputs(store, SETTINGS)[0].num_bytes)


def test_a_disk_that_fills_up_while_writing_is_a_full_disk(store: Any, tmp_path: Path) -> None:
    put(store, PLAIN)
    (tmp_path / "item_row.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"(?i)no space left"):
        read_night(store, tmp_path)


def test_no_message_of_a_refused_night_holds_an_id(store: Any, tmp_path: Path, caplog: Any) -> None:
    put(store, {**PLAIN, "user_id": ["secret-person"] * 5})
    with caplog.at_level("DEBUG", logger="nightgraph"), pytest.raises(GraphTooSmall) as caught:
        read_night(store, tmp_path)
    assert "secret-person" not in str(caught.value) + caplog.text
