"""The same night from object storage: the same bytes, and every trouble under its name."""

import io
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import s3fs
from fsspec.asyn import sync

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, InputUnstable, StoreUnavailable
from tasks.ingest.events import last_event_at, naming_read_errors
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.sources import ensure_unchanged, pin_inputs, pinned_while_reading
from tasks.ingest.town import write_town
from tasks.store import open_store
from tests.worlds import read_night

SETTINGS = IngestConfig()
AS_OF = date(2026, 11, 23)


def put_plain(store: Any, key: str = "events/a.parquet", *, repeat: int = 1) -> None:
    frame = pl.DataFrame(
        {"user_id": [1, 1, 2], "item_id": [5, 6, 5], "rating": [5, 4, 4], "timestamp": [1_790_000_000] * 3}
    )
    buffer = io.BytesIO()
    pl.concat([frame] * repeat).write_parquet(buffer)
    store.put_once(key, buffer.getvalue())


def past_the_store(store: Any, operation: str, key: str, **parameters: Any) -> None:
    """The store itself never overwrites and never deletes."""
    bucket, _, name = store.uri_of(key).removeprefix("s3://").partition("/")
    s3 = s3fs.S3FileSystem(skip_instance_cache=True)
    sync(s3.loop, s3._call_s3, operation, Bucket=bucket, Key=name, **parameters)


def test_the_town_read_from_s3_and_from_a_folder_gives_the_same_bytes(s3_store: str, tmp_path: Path) -> None:
    written = []
    for number, uri in enumerate([s3_store, str(tmp_path / "store")]):
        store, folder = open_store(uri), tmp_path / str(number)
        folder.mkdir()
        write_town(store)
        schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
        night = read_night(store, folder, as_of=AS_OF)
        assert last_event_at(schema, SETTINGS).date() == date(2026, 11, 22)
        written.append({path.name: path.read_bytes() for path in Path(night.folder).iterdir() if path.is_file()})
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["a b", "part=22/a", "a%20b", "ä+&", "a[1]", "a*", "a?", "a#b"])
def test_odd_keys_are_read_as_they_are(name: str, s3_store: str, tmp_path: Path) -> None:
    store = open_store(s3_store)
    put_plain(store, f"events/{name}.parquet")
    assert read_night(store, tmp_path, as_of=AS_OF).rows_in == 3


def test_an_object_swapped_during_the_night_is_noticed(s3_store: str) -> None:
    store = open_store(s3_store)
    put_plain(store)
    put_plain(store, "events/other.parquet", repeat=2)
    pinned = pin_inputs(store, SETTINGS)
    ensure_unchanged(store, pinned)
    other, _ = store.read("events/other.parquet")
    past_the_store(store, "put_object", "events/a.parquet", Body=other)
    with pytest.raises(InputUnstable, match=r"events/a\.parquet was replaced"), pinned_while_reading(store, pinned):
        inspect_files(store, pinned[1:], SETTINGS)
    past_the_store(store, "put_object", "events/a.parquet", Body=other[:-99])
    with pytest.raises(InputUnstable, match=r"events/a\.parquet was replaced"), pinned_while_reading(store, pinned):
        inspect_files(store, pinned, SETTINGS)


def test_an_object_deleted_between_the_listing_and_the_scan_is_unstable(s3_store: str, tmp_path: Path) -> None:
    store = open_store(s3_store)
    put_plain(store)
    put_plain(store, "events/b.parquet")
    pinned = pin_inputs(store, SETTINGS)
    schema = inspect_files(store, pinned, SETTINGS)
    past_the_store(store, "delete_object", "events/b.parquet")
    with pytest.raises(InputUnstable, match=r"events/b\.parquet vanished"):
        inspect_files(store, pinned, SETTINGS)
    with pytest.raises(InputUnstable, match="vanished while"):
        digest(store, pinned, schema, tmp_path, as_of=AS_OF, settings=SETTINGS)


def test_broken_pages_in_an_object_are_named(s3_store: str, tmp_path: Path) -> None:
    store = open_store(s3_store)
    put_plain(store)
    good, _ = store.read("events/a.parquet")
    store.put_once("events/broken.parquet", good[:4] + b"\xff" * 100 + good[104:])
    pinned = pin_inputs(store, SETTINGS)
    schema = inspect_files(store, pinned, SETTINGS)
    with pytest.raises(InputCorrupt, match=r"s3://.*events/broken\.parquet"):
        digest(store, pinned, schema, tmp_path, as_of=AS_OF, settings=SETTINGS)


def test_a_store_that_falls_silent_during_the_scan_is_unavailable_not_corrupt(s3_store: str) -> None:
    store = open_store(s3_store)
    put_plain(store)
    schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
    # What the engine raises after seven seconds of tries.
    refused = ConnectionRefusedError("object-store error: Generic S3 error: Error performing GET")
    with pytest.raises(StoreUnavailable, match="stopped answering"), naming_read_errors(schema):
        raise refused
