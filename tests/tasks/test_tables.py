"""What a night makes of the optional tables beside the events."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.config import IngestConfig, NightlyConfig
from tasks.contracts import Run, Tables
from tasks.errors import InputCorrupt, InputUnstable, NothingAllowed, SchemaDrift, TableInvalid
from tasks.ingest.inspection import inspect_files
from tasks.ingest.opening import plan_run
from tasks.ingest.planner import Machine
from tasks.ingest.readiness import Clock
from tasks.ingest.sources import pin_inputs, pin_tables
from tasks.ingest.tables import MOST_SEGMENTS, digest_tables, inspect_tables
from tasks.ingest.task import ingest, read_tables
from tasks.registry import forget, open_registry
from tasks.store import LocalStore, open_store

SETTINGS = IngestConfig()
AS_OF = date(2026, 11, 23)
NOON_S = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp())
EVENTS = {
    "user_id": ["ada", "ada", "ben", "ben", "cleo"],
    "item_id": ["tea", "rye", "tea", "jam", "rye"],
    "rating": [5.0, 4.0, 4.0, 2.0, 5.0],
    "timestamp": [NOON_S + second for second in range(5)],
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = open_store(str(tmp_path / "store"))
    put(store, "events/a.parquet", EVENTS)
    return store  # type: ignore[return-value]


def put(store: Any, key: str, columns: Any) -> None:
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer)
    store.put_once(key, buffer.getvalue().to_pybytes())


def read(store: Any, folder: Path) -> Tables:
    folder.mkdir(parents=True, exist_ok=True)
    schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
    seen = pl.DataFrame(EVENTS if schema.user_id == pl.String else _numbered())
    for name in ("user", "item"):  # as ingest leaves them
        seen.select(f"{name}_id").unique(maintain_order=True).write_parquet(tmp_events(folder) / f"{name}s.parquet")
    return digest_tables(
        inspect_tables(store, pin_tables(store), schema, settings=SETTINGS),
        tmp_events(folder),
        folder,
        open_registry(store),
    )


def tmp_events(folder: Path) -> Path:
    events = folder.with_name(f"{folder.name}-events")
    events.mkdir(exist_ok=True)
    return events


def _numbered() -> dict[str, list[int]]:
    return {"user_id": [1, 1, 2], "item_id": [10, 11, 10]}


def rows(tables: Tables, table: str) -> list[tuple[Any, ...]]:
    return pl.read_parquet(Path(tables.folder) / f"{table}.parquet").rows()


def plan(store: Any, tmp_path: Path) -> Run:
    return plan_run(
        store,
        NightlyConfig(),
        as_of=AS_OF,
        scheduled_on=None,
        work_root=str(tmp_path / "work"),
        code_version="code",
        force=False,
        machine=Machine(1 << 40, 1 << 40, threads=2),
        clock=Clock(read=lambda: datetime(2026, 11, 23, tzinfo=UTC), sleep=lambda seconds: None),
    )


# ---- what comes out


def test_a_store_without_tables_has_none(store: Any, tmp_path: Path) -> None:
    run = plan(store, tmp_path)
    tables = read_tables.fn(run, ingest.fn(run))
    assert (tables.rows, tables.ignored) == ({}, {})


def test_tables_are_pinned_with_the_events_and_read_apart(store: Any, tmp_path: Path) -> None:
    before = plan(store, tmp_path)
    put(store, "items/a.parquet", {"item_id": ["tea", "rye"], "available": [True, False]})
    put(store, "users/of/today.parquet", {"user_id": ["zoe", "ada"]})
    put(store, "blocked/a.parquet", {"user_id": ["ada", "zoe"], "item_id": ["jam", "tea"]})
    put(store, "segments/a.parquet", {"user_id": ["zoe", "ben"], "segment": ["new", "old"]})
    store.put_once("items/_SUCCESS", b"")
    run = plan(store, tmp_path)
    assert run.run_key != before.run_key
    assert (before.num_files, run.num_files) == (1, 5)
    tables = read_tables.fn(run, ingest.fn(run))
    assert tables.rows == {"items": 2, "users": 2, "blocked": 2, "segments": 2}
    assert rows(tables, "items") == [("rye", False), ("tea", True)]
    assert rows(tables, "users") == [("ada",), ("zoe",)]
    assert rows(tables, "blocked") == [("ada", "jam"), ("zoe", "tea")]
    assert rows(tables, "segments") == [("ben", "old"), ("zoe", "new")]


def test_a_table_that_changes_under_the_night_ends_it(store: Any, tmp_path: Path) -> None:
    put(store, "users/a.parquet", {"user_id": ["zoe"]})
    run = plan(store, tmp_path)
    interactions = ingest.fn(run)
    Path(store.uri.removeprefix("file://"), "users/a.parquet").unlink()
    with pytest.raises(InputUnstable, match=r"users/a\.parquet vanished"):
        read_tables.fn(run, interactions)


def test_what_files_say_about_an_item_is_put_together(store: Any, tmp_path: Path) -> None:
    """The order of files, rows and list entries decides nothing."""
    put(store, "items/1.parquet", {"item_id": ["tea", "jam"], "title": ["Tea", "Jam"], "genres": ["B|A|B", None]})
    put(store, "items/2.parquet", {"item_id": ["rye", "tea"], "available": [True, False], "published_at": [7, None]})
    put(store, "items/3.parquet", {"item_id": ["tea"], "segments": [["new", "", None, "new"]], "available": [False]})
    tables = read(store, tmp_path / "a")
    assert pl.read_parquet(Path(tables.folder) / "items.parquet").to_dicts() == [
        {"item_id": "jam", "available": None, "categories": [], "segments": [], "published_at": None},
        {"item_id": "rye", "available": True, "categories": [], "segments": [], "published_at": 7_000_000},
        {"item_id": "tea", "available": False, "categories": ["A", "B"], "segments": ["new"], "published_at": None},
    ]


@pytest.mark.parametrize(
    ("column", "values", "categories"),
    [
        ("categories", ["one thing", "", None], [["one thing"], [], []]),
        ("categories", [["b", "a"], [], None], [["a", "b"], [], []]),
        ("genres", ["Film-Noir|Drama", "(no genres listed)", None], [["Drama", "Film-Noir"], [], []]),
        ("genres", ["Film-Noir Drama", "War", None], [["Drama", "Film-Noir"], ["War"], []]),
    ],
)
def test_categories_are_lists_however_they_are_written(
    column: str, values: list[Any], categories: list[list[str]], store: Any, tmp_path: Path
) -> None:
    put(store, "items/1.parquet", {"item_id": ["jam", "rye", "tea"], column: values})
    assert [entry for _, entry in rows(read(store, tmp_path / "a"), "items")] == categories


@pytest.mark.parametrize(
    "moments",
    [
        pa.array([1_767_225_600], pa.int64()),
        pa.array([datetime(2026, 1, 1)], pa.timestamp("ms")),
        pa.array([date(2026, 1, 1)], pa.date32()),
    ],
)
def test_a_day_of_birth_may_be_seconds_an_instant_or_a_date(moments: pa.Array, store: Any, tmp_path: Path) -> None:
    put(store, "items/1.parquet", pa.table({"item_id": ["tea"], "published_at": moments}))
    assert rows(read(store, tmp_path / "a"), "items") == [("tea", 1_767_225_600_000_000)]


def test_rows_that_cannot_be_used_are_counted_and_left_out(store: Any, tmp_path: Path) -> None:
    put(store, "items/a.parquet", {"item_id": ["tea", "unheard-of", None], "title": ["T", "U", "N"]})
    put(store, "users/a.parquet", {"user_id": ["zoe", None, "", "two\nlines", "x" * 300, '🦉 "o\'wl"', "zoe"]})
    put(store, "blocked/a.parquet", {"user_id": ["ada", "nobody", "ada", None], "item_id": ["tea", "tea", "no", "tea"]})
    put(
        store,
        "segments/a.parquet",
        {"user_id": ["ada", "nobody", "ben", None, "cleo"], "segment": ["a", "a", None, "a", ""]},
    )
    tables = read(store, tmp_path / "a")
    assert rows(tables, "users") == [("zoe",), ('🦉 "o\'wl"',)]
    assert rows(tables, "blocked") == [("ada", "tea")]
    assert rows(tables, "segments") == [("ada", "a")]
    assert tables.ignored == {
        "items: no id, or one that no event can have": 1,
        "users: null_user_id": 1,
        "users: malformed_user_id": 3,
        "blocked: no id, or one that no event can have": 1,
        "segments: no id, or one that no event can have": 1,
        "segments: no segment": 2,
        "items: item without events": 1,
        "blocked: unknown user": 1,
        "blocked: item without events": 1,
        "segments: unknown user": 1,
    }


def test_a_user_of_the_table_alone_can_be_blocked_and_be_in_a_segment(store: Any, tmp_path: Path) -> None:
    put(store, "users/a.parquet", {"user_id": ["zoe"]})
    put(store, "blocked/a.parquet", {"user_id": ["zoe"], "item_id": ["tea"]})
    put(store, "segments/a.parquet", {"user_id": ["zoe"], "segment": ["new"]})
    tables = read(store, tmp_path / "a")
    assert (tables.rows, tables.ignored) == ({"users": 1, "blocked": 1, "segments": 1}, {})


def test_number_ids_keep_the_events_width_or_grow_with_the_users_table(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "numbers"))
    ids = pa.array([1, 1, 2], pa.int32())
    put(store, "events/a.parquet", pa.table({"user_id": ids, "item_id": ids, "rating": ids, "timestamp": ids}))
    put(store, "users/a.parquet", pa.table({"user_id": pa.array([2, 5_000_000_000], pa.int64())}))
    put(store, "blocked/a.parquet", {"user_id": [5_000_000_000, 2], "item_id": [10, 5_000_000_000]})
    tables = read(store, tmp_path / "a")
    assert pl.read_parquet(Path(tables.folder) / "users.parquet").schema == {"user_id": pl.Int64}
    assert pl.read_parquet(Path(tables.folder) / "blocked.parquet").schema == {"user_id": pl.Int64, "item_id": pl.Int32}
    assert rows(tables, "blocked") == [(5_000_000_000, 10)]
    assert tables.ignored == {"blocked: no id, or one that no event can have": 1}


# ---- what no night can go on with


@pytest.mark.parametrize(
    ("key", "columns", "found"),
    [
        ("items/a.parquet", {"title": ["x"]}, "column 'item_id': found no such column"),
        ("items/a.parquet", {"item_id": ["tea"], "available": [1]}, "'available': found int64, wanted true or false"),
        ("items/a.parquet", {"item_id": ["tea"], "Available": [True]}, "found the name 'Available', wanted exactly"),
        (
            "items/a.parquet",
            {"item_id": ["tea"], "categories": [3]},
            "'categories': found int64, wanted text, or lists",
        ),
        ("items/a.parquet", {"item_id": ["tea"], "segments": ["a"]}, "'segments': found text, wanted lists of text"),
        ("items/a.parquet", {"item_id": ["tea"], "published_at": ["x"]}, "'published_at': found text, wanted"),
        ("items/a.parquet", {"item_id": [1]}, "'item_id': found a number, wanted text, as in the events"),
        ("users/a.parquet", {"user_id": [1]}, "'user_id': found a number, wanted text, as in the events"),
        ("users/a.parquet", {"user": ["x"]}, "column 'user_id': found no such column"),
        ("blocked/a.parquet", {"user_id": ["ada"]}, "column 'item_id': found no such column"),
        ("segments/a.parquet", {"user_id": ["ada"], "segment": [1]}, "'segment': found int64, wanted text"),
    ],
)
def test_a_table_of_another_shape_ends_the_night_at_its_start(
    key: str, columns: dict[str, list[Any]], found: str, store: Any, tmp_path: Path
) -> None:
    put(store, key, columns)
    with pytest.raises(SchemaDrift, match=found) as caught:
        plan(store, tmp_path)
    assert key in str(caught.value)


def test_an_item_that_stands_twice_in_a_file_is_named_with_the_file(store: Any, tmp_path: Path) -> None:
    put(store, "items/a.parquet", {"item_id": ["tea", "rye", "tea"], "available": [True, True, True]})
    with pytest.raises(TableInvalid, match=r"items/a\.parquet: 2 of 3 rows share their item_id"):
        read(store, tmp_path / "a")


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [("available", True, False), ("categories", ["a"], ["a", "b"]), ("segments", ["a"], []), ("published_at", 1, 2)],
)
def test_files_that_say_different_things_about_an_item_are_refused(
    column: str, one: Any, other: Any, store: Any, tmp_path: Path
) -> None:
    for number, fact in enumerate((one, other)):
        put(store, f"items/{number}.parquet", {"item_id": ["tea"], column: [fact]})
    with pytest.raises(TableInvalid, match=f"different things about {column} of 1 items"):
        read(store, tmp_path / "a")


def test_the_same_facts_in_two_files_are_one_item(store: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        put(store, f"items/{number}.parquet", {"item_id": ["tea"], "title": [f"Tea {number}"], "available": [True]})
    assert rows(read(store, tmp_path / "a"), "items") == [("tea", True)]


def test_a_user_in_two_segments_is_refused_and_the_same_row_twice_is_not(store: Any, tmp_path: Path) -> None:
    put(store, "segments/a.parquet", {"user_id": ["ada", "ben", "ben"], "segment": ["a", "b", "b"]})
    assert read(store, tmp_path / "a").rows == {"segments": 2}
    put(store, "segments/b.parquet", {"user_id": ["ada"], "segment": ["b"]})
    with pytest.raises(TableInvalid, match="segments/ puts 1 users into more than one segment") as caught:
        read(store, tmp_path / "a")
    assert "ada" not in str(caught.value)


def test_more_segments_than_a_night_can_take_are_refused(store: Any, tmp_path: Path) -> None:
    users = [f"u{number}" for number in range(MOST_SEGMENTS + 1)]
    put(store, "users/a.parquet", {"user_id": users})
    put(store, "segments/a.parquet", {"user_id": users, "segment": users})
    with pytest.raises(TableInvalid, match=r"1,001 different segments, and a night can take 1,000"):
        read(store, tmp_path / "a")


@pytest.mark.parametrize("items", [{"item_id": ["tea", "rye"], "available": [False, None]}, {"item_id": ["other"]}])
def test_a_table_that_leaves_nothing_available_ends_the_night(
    items: dict[str, list[Any]], store: Any, tmp_path: Path
) -> None:
    put(store, "items/a.parquet", {"available": [True] * len(items["item_id"]), **items})
    with pytest.raises(NothingAllowed, match=r"true for none of the 3 items that have events"):
        read(store, tmp_path / "a")


def test_a_damaged_table_is_named(store: Any, tmp_path: Path) -> None:
    store.put_once("blocked/cut.parquet", b"PAR1 and no more")
    with pytest.raises(InputCorrupt, match=r"blocked/cut\.parquet cannot be read as Parquet"):
        plan(store, tmp_path)


def test_a_table_with_damaged_pages_is_named_by_the_night_that_reads_it(store: Any, tmp_path: Path) -> None:
    buffer = pa.BufferOutputStream()
    names = [f"user-{number}" for number in range(5000)]
    pa.parquet.write_table(pa.table({"user_id": names}), buffer, compression="zstd", use_dictionary=False)
    content = bytearray(buffer.getvalue().to_pybytes())
    content[40 : len(content) // 2] = b"\xff" * (len(content) // 2 - 40)
    store.put_once("users/torn.parquet", bytes(content))
    run = plan(store, tmp_path)
    with pytest.raises(InputCorrupt, match=r"users/torn\.parquet"):
        read_tables.fn(run, ingest.fn(run))


def test_who_was_forgotten_gets_no_list_for_standing_in_users(store: Any, tmp_path: Path) -> None:
    put(store, "users/all.parquet", {"user_id": ["zoe", "yan"]})
    put(store, "segments/all.parquet", {"user_id": ["zoe"], "segment": ["a"]})
    forget(store, "users", pl.Series(["zoe"]))
    tables = read(store, tmp_path / "tables")
    assert pl.read_parquet(tmp_path / "tables/users.parquet")["user_id"].to_list() == ["yan"]
    assert tables.ignored == {"users: forgotten": 1, "segments: unknown user": 1}
