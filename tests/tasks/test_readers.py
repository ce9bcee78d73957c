"""Anything that reads Parquet reads what is live, and no reader ever sees half a night."""

import re
import threading
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tasks.contracts import LATEST_KEY
from tasks.errors import ManifestInvalid, ObjectNotFound, UploadCorrupt
from tasks.publish.reader import open_latest

SNIPPETS = dict(
    re.findall(
        r"\*\*(.+?)\*\*.*?```python\n(.+?)```", Path(__file__).with_name("reader_snippets.md").read_text(), re.DOTALL
    )
)


def as_polars(lists: object) -> pl.DataFrame:
    """What each reader made of the columns, as one kind of table."""
    if isinstance(lists, duckdb.DuckDBPyRelation):
        lists = lists.to_arrow_table()
    if isinstance(lists, pd.DataFrame):
        lists = pa.Table.from_pandas(lists, preserve_index=False)
    if isinstance(lists, pa.Table):
        lists = pl.from_arrow(lists)
    assert isinstance(lists, pl.DataFrame)
    return lists


@pytest.mark.parametrize("reader", SNIPPETS)
def test_every_reader_gets_the_same_rows_in_three_lines(make_night, store_uri, reader):
    make_night(store_uri, as_of=date(2026, 11, 22), mark=1.0).publish()
    make_night(store_uri, mark=2.0).publish()
    names: dict[str, object] = {"store": store_uri}
    exec(SNIPPETS[reader], names)  # noqa: S102  the very text that users are shown
    lists = as_polars(names["lists"])
    assert lists.schema == {
        "user_id": pl.Int64,
        "rank": pl.Int32,
        "item_id": pl.String,
        "score": pl.Float32,
        "tier": pl.String,
    }
    assert lists.height == 24
    assert lists["score"].unique().to_list() == [2.0]
    assert lists.sort("user_id", "rank").equals(lists)


def test_a_folder_with_a_space_and_an_umlaut_in_its_name_is_read_by_all(make_night, tmp_path):
    store = str(tmp_path / "my störe")
    make_night(store).publish()
    for snippet in SNIPPETS.values():
        names: dict[str, object] = {"store": store}
        exec(snippet, names)  # noqa: S102
        assert as_polars(names["lists"]).height == 24


def test_one_users_list_comes_in_order(make_night, store_uri):
    make_night(store_uri).publish()
    night = open_latest(store_uri)
    assert night.for_user(4)["rank"].to_list() == [1, 2, 3, 4]
    assert night.for_user(4)["user_id"].unique().to_list() == [4]
    assert night.for_user(99).is_empty()
    with pytest.raises(TypeError, match="user ids are numbers here, and '4' is not"):
        night.for_user("4")


def test_a_store_where_nothing_was_published_says_so(store_uri):
    with pytest.raises(ObjectNotFound, match="nothing has been published"):
        open_latest(store_uri)


def test_damage_that_parquet_does_not_notice_is_found_by_the_reader_that_verifies(make_night, tmp_path):
    published = make_night(str(tmp_path / "store")).publish()
    damaged = Path(published.files[1].removeprefix("file://"))
    content = bytearray(damaged.read_bytes())
    content[8] ^= 1
    damaged.write_bytes(content)
    open_latest(str(tmp_path / "store"))
    with pytest.raises(UploadCorrupt, match="part-00001"):
        open_latest(str(tmp_path / "store"), verify=True)
    damaged.write_bytes(content[:-1])
    with pytest.raises(UploadCorrupt, match=r"part-00001.*bytes"):
        open_latest(str(tmp_path / "store"), verify=True)
    damaged.unlink()
    with pytest.raises(UploadCorrupt, match=r"part-00001.*does not exist"):
        open_latest(str(tmp_path / "store"), verify=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "no format"),
        (b'{"format": 1}', "fields are missing"),
        (b'{"format": 2}', "format 2"),
    ],
)
def test_a_latest_that_cannot_be_read_is_named_and_left_alone(make_night, tmp_path, content, says):
    store = str(tmp_path / "store")
    make_night(store, mark=1.0).publish()
    (tmp_path / "store" / LATEST_KEY).write_bytes(content)
    with pytest.raises(ManifestInvalid, match=rf"LATEST\.json.*{says}"):
        open_latest(store)
    with pytest.raises(ManifestInvalid, match=r"LATEST\.json"):
        make_night(store, mark=2.0).publish()
    assert (tmp_path / "store" / LATEST_KEY).read_bytes() == content


def test_a_local_store_can_be_moved(make_night, tmp_path):
    make_night(str(tmp_path / "before")).publish()
    (tmp_path / "before").rename(tmp_path / "after")
    assert open_latest(str(tmp_path / "after"), verify=True).scan().collect().height == 24


def test_readers_never_see_a_half_published_night(make_night, store_uri):
    nights = [make_night(store_uri, as_of=date(2026, 11, 1) + timedelta(days=day), mark=float(day)) for day in range(6)]
    nights[0].publish()
    seen: list[float] = []
    anomalies: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            night = open_latest(store_uri, verify=True)
            lists = night.scan().collect()
            marks = lists["score"].unique().to_list()
            if lists.height != night.manifest.rows or len(marks) != 1:
                anomalies.append(f"{lists.height} rows of the nights {marks}")
            if marks[0] != night.manifest.as_of.day - 1 or (seen and marks[0] < seen[-1]):
                anomalies.append(f"{night.manifest.as_of} has the rows of night {marks[0]} after {seen[-1:]}")
            seen.append(marks[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for night in nights[1:]:
        night.publish()
    while watcher.is_alive() and 5.0 not in seen:
        done.wait(0.01)
    done.set()
    watcher.join()
    assert anomalies == []
    assert seen[-1] == 5.0
    assert len(set(seen)) > 1
