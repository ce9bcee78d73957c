"""Anything that reads Parquet reads what is live, and no reader ever sees half a night."""

import re
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tasks.contracts import LATEST_KEY, Part
from tasks.errors import ManifestInvalid, NightStale, ObjectNotFound, UploadCorrupt
from tasks.publish.reader import open_latest
from tasks.run import file_sha256
from tasks.store import Store

REASONS = [{"kind": "liked", "item_id": "item 1/0", "share": 0.5}]
REASONS_TYPE = pl.List(pl.Struct({"kind": pl.String, "item_id": pl.String, "share": pl.Float32}))
SNIPPETS = dict(
    re.findall(
        r"\*\*(.+?)\*\*.*?```python\n(.+?)```", Path(__file__).with_name("reader_snippets.md").read_text(), re.DOTALL
    )
)


def as_polars(lists: object) -> pl.DataFrame:
    """What each reader made of the columns, as one kind of table."""
    if isinstance(lists, pl.LazyFrame):
        lists = lists.collect()
    if isinstance(lists, ds.Dataset):
        lists = lists.to_table()
    if type(lists).__module__.startswith("pyspark"):
        lists = lists.orderBy("user_id", "rank").toArrow()  # type: ignore[attr-defined]
    if isinstance(lists, duckdb.DuckDBPyRelation):
        lists = lists.to_arrow_table()
    if isinstance(lists, pd.DataFrame):
        # What lists hold is Python's in pandas, and Python's floats have 64 bits.
        lists = pl.DataFrame(pa.Table.from_pandas(lists, preserve_index=False)).cast({"reasons": REASONS_TYPE})
    if isinstance(lists, pa.Table):
        lists = pl.from_arrow(lists)
    assert isinstance(lists, pl.DataFrame)
    return lists


@pytest.mark.parametrize("reader", SNIPPETS)
def test_every_reader_gets_the_same_rows_in_three_lines(make_night, store_uri, reader):
    make_night(store_uri, as_of=date(2026, 11, 22), mark=1.0, outputs=True).publish()
    make_night(store_uri, mark=2.0, outputs=True).publish()
    skip_spark_where_it_is_not(reader, store_uri)
    names: dict[str, object] = {"store": store_uri, "user_id": 4}
    exec(without_age_limit(SNIPPETS[reader]), names)  # noqa: S102  the very text that users are shown
    lists, mine = as_polars(names["lists"]), as_polars(names["mine"])
    assert lists.schema == {
        "user_id": pl.Int64,
        "rank": pl.Int32,
        "item_id": pl.String,
        "score": pl.Float32,
        "tier": pl.String,
        "reasons": REASONS_TYPE,
    }
    assert lists.height == 24
    assert lists["score"].unique().to_list() == [2.0]
    assert lists["reasons"].to_list() == [REASONS] * 24
    assert lists.sort("user_id", "rank").equals(lists)
    assert mine.equals(lists.filter(pl.col("user_id") == 4))
    assert mine.height == 4


def skip_spark_where_it_is_not(reader: str, store_uri: str = "") -> None:
    """It is 450 MB and needs Java, so it is nobody's dependency; install pyspark, and these lines are run too."""
    if reader == "Spark":
        pytest.importorskip("pyspark")
        if store_uri.startswith("s3:"):
            pytest.skip("Spark reads S3 with a jar of Hadoop's")


def without_age_limit(snippet: str) -> str:
    """The nights of these tests are published in 2026, whenever the tests run."""
    return snippet.replace("hours=36", "days=36500")


def test_a_folder_with_a_space_and_an_umlaut_in_its_name_is_read_by_all(make_night, tmp_path):
    store = str(tmp_path / "my störe")
    make_night(store).publish()
    for reader, snippet in SNIPPETS.items():
        if reader == "Spark":
            continue
        names: dict[str, object] = {"store": store, "user_id": 1}
        exec(without_age_limit(snippet), names)  # noqa: S102
        assert as_polars(names["lists"]).height == 24


# ---- one person's list


def test_one_users_list_comes_in_order(make_night, store_uri):
    make_night(store_uri).publish()
    night = open_latest(store_uri)
    everybody = night.scan().collect()
    for user in range(1, 7):
        mine = night.for_user(user)
        assert mine["rank"].to_list() == [1, 2, 3, 4]
        assert mine.equals(everybody.filter(pl.col("user_id") == user))
    assert night.for_user(pd.Series([4])[0]).height == 4, "an integer of NumPy's"


def test_whom_the_night_does_not_know_gets_no_rows_of_the_same_columns(make_night, store_uri):
    make_night(store_uri).publish()
    night = open_latest(store_uri)
    for nobody in (99, 0, -1, 2**70):
        assert night.for_user(nobody).is_empty()
        assert night.for_user(nobody).schema == night.scan().collect_schema()


@pytest.mark.parametrize("wrong", ["4", 4.0, True, None, b"4"])
def test_an_id_of_another_kind_is_told_so_and_never_an_empty_list(make_night, tmp_path, wrong):
    make_night(str(tmp_path / "store"), outputs=True).publish()
    night = open_latest(str(tmp_path / "store"))
    with pytest.raises(TypeError, match=r"user ids are numbers here, and .+ is not"):
        night.for_user(wrong)
    with pytest.raises(TypeError, match="item ids are text here, and 4 is not: ask for '4' if you mean that"):
        night.similar_to(4)


ODD_IDS = ["", "a", "z", "'", '"; DROP', "two\nlines", "\t", "é", "😀", "😀😀", "\uffff", "𐀀", "%2F/..", "a" * 256]


def lists_of(ids: list[object]) -> pl.DataFrame:
    """Three rows for each, in order of id."""
    ids = sorted(ids)  # type: ignore[type-var]
    return pl.DataFrame(
        {
            "user_id": [user for user in ids for _ in range(3)],
            "rank": pl.Series([1, 2, 3] * len(ids), dtype=pl.Int32),
            "item_id": [f"{user}" for user in ids for _ in range(3)],
            "score": pl.Series([1.0] * 3 * len(ids), dtype=pl.Float32),
            "tier": "graph",
            "reasons": pl.Series([REASONS] * 3 * len(ids), dtype=REASONS_TYPE),
        }
    )


def publish_lists(make_night, store_uri: str, rows: pl.DataFrame, *, users_a_file: int, rows_a_group: int) -> None:
    one = make_night(store_uri)
    folder = Path(one.recommendations.folder)
    parts = []
    for number, start in enumerate(range(0, len(rows), 3 * users_a_file)):
        path = folder / f"mine-{number}.parquet"
        piece = rows[start : start + 3 * users_a_file]
        piece.write_parquet(path, row_group_size=rows_a_group)
        parts.append(Part(str(path), len(piece), len(piece) // 3, path.stat().st_size, file_sha256(path)))
    lists = replace(one.recommendations, parts=tuple(parts), rows=len(rows), users=len(rows) // 3)
    replace(one, recommendations=lists).publish()


@pytest.mark.parametrize(("users_a_file", "rows_a_group"), [(1, 3), (4, 3), (4, 7), (100, 100)])
def test_ids_with_emoji_quotes_and_newlines_find_their_own_list(make_night, tmp_path, users_a_file, rows_a_group):
    store = str(tmp_path / "store")
    publish_lists(make_night, store, lists_of(ODD_IDS), users_a_file=users_a_file, rows_a_group=rows_a_group)
    night = open_latest(store)
    for user in ODD_IDS:
        assert night.for_user(user)["item_id"].to_list() == [user] * 3
        assert night.for_user(user + "!").is_empty()
    for reader, snippet in SNIPPETS.items():
        if reader == "Spark":
            continue
        names: dict[str, object] = {"store": store, "user_id": '"; DROP'}
        exec(without_age_limit(snippet), names)  # noqa: S102
        assert as_polars(names["mine"])["item_id"].to_list() == ['"; DROP'] * 3, reader


def test_numbers_beyond_what_has_a_sign_find_their_own_list(make_night, tmp_path):
    store, ids = str(tmp_path / "store"), [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    rows = lists_of(ids).with_columns(user_id=pl.Series([i for i in ids for _ in range(3)], dtype=pl.UInt64))
    publish_lists(make_night, store, rows, users_a_file=2, rows_a_group=3)
    for user in ids:
        assert open_latest(store).for_user(user)["item_id"].to_list() == [str(user)] * 3
    assert open_latest(store).for_user(-1).is_empty()


class Counted:
    """A store that notes how many bytes of each file were asked for."""

    def __init__(self, store: Store) -> None:
        self.store, self.bytes_of = store, dict[str, int]()

    def open(self, key: str) -> BinaryIO:
        stream = self.store.open(key)
        read = stream.read

        def counting(size: int = -1) -> bytes:
            content = read(size)
            self.bytes_of[key] = self.bytes_of.get(key, 0) + len(content)
            return content

        stream.read = counting  # type: ignore[method-assign]
        return stream


def test_one_persons_list_costs_one_row_group_and_a_few_footers_however_many_files_there_are(make_night, store_uri):
    random = np.random.default_rng(0)
    words = [random.bytes(200).hex() for _ in range(6000)]  # what does not compress: groups of 15 KB, files of 300 KB
    rows = lists_of(list(range(2000))).with_columns(item_id=pl.Series(words))
    publish_lists(make_night, store_uri, rows, users_a_file=250, rows_a_group=75)
    opened = open_latest(store_uri)
    store = Counted(opened.store)
    night = replace(opened, store=store)
    keys = [part.key for part in night.manifest.parts]
    assert min(part.bytes for part in night.manifest.parts) > 150_000
    footer = 65_536  # what Arrow reads of a file's end at once
    assert night.for_user(1100)["item_id"].to_list() == words[3300:3303]
    assert len(store.bytes_of) <= 4, "of 8 files"
    assert max(store.bytes_of[key] for key in store.bytes_of if key != keys[4]) <= footer
    store.bytes_of.clear()
    assert night.for_user(1101)["item_id"].to_list() == words[3303:3306]
    assert list(store.bytes_of) == [keys[4]], "footers are remembered"
    assert store.bytes_of[keys[4]] < 150_000 / 5, "one group of ten"
    store.bytes_of.clear()
    assert night.for_user(-5).is_empty()
    assert night.for_user(4000).is_empty()
    assert max(store.bytes_of.values()) <= footer, "nobody's list costs footers alone"


def test_a_file_without_statistics_is_read_all_the_same(make_night, tmp_path):
    store = str(tmp_path / "store")
    one = make_night(store)
    parts = []
    for part in one.recommendations.parts:
        pl.read_parquet(part.path).write_parquet(part.path, statistics=False, row_group_size=4)
        parts.append(replace(part, num_bytes=Path(part.path).stat().st_size, sha256=file_sha256(part.path)))
    replace(one, recommendations=replace(one.recommendations, parts=tuple(parts))).publish()
    assert [open_latest(store).for_user(user).height for user in (0, 1, 3, 4, 6, 7)] == [0, 4, 4, 4, 4, 0]


def test_a_file_that_is_no_parquet_any_more_is_named_by_the_lookup(make_night, tmp_path):
    published = make_night(str(tmp_path / "store")).publish()
    Path(published.files[0].removeprefix("file://")).write_bytes(b"no Parquet at all")
    with pytest.raises(UploadCorrupt, match=r"part-00000.*cannot be read as Parquet"):
        open_latest(str(tmp_path / "store")).for_user(1)


# ---- what stands beside the lists


def test_similar_items_and_embeddings_are_read_from_the_same_night(make_night, store_uri):
    make_night(store_uri, as_of=date(2026, 11, 22), mark=1.0, outputs=True).publish()
    make_night(store_uri, mark=2.0, outputs=True).publish()
    night = open_latest(store_uri, verify=True)
    similar = night.output("similar_items").collect()
    assert similar.height == 12
    assert similar["score"].unique().to_list() == [2.0]
    assert night.similar_to("c").equals(similar.filter(pl.col("item_id") == "c"))
    assert night.similar_to("nobody's").is_empty()
    embeddings = night.output("item_embeddings").collect()
    assert embeddings.schema == {"item_id": pl.String, "embedding": pl.Array(pl.Float32, 2)}
    assert embeddings["embedding"].to_list() == [[2.0, 1.0]] * 4
    with pytest.raises(ObjectNotFound, match=r"no 'user_embeddings'.*it has item_embeddings, similar_items"):
        night.output("user_embeddings")


def test_a_night_without_outputs_says_how_to_get_them(make_night, tmp_path):
    make_night(str(tmp_path / "store")).publish()
    with pytest.raises(ObjectNotFound, match=r"beside its lists it has nothing. recommend\.similar_items"):
        open_latest(str(tmp_path / "store")).similar_to("a")


def test_damage_to_an_output_is_found_by_the_reader_that_verifies(make_night, tmp_path):
    make_night(str(tmp_path / "store"), outputs=True).publish()
    damaged = next((tmp_path / "store/outputs/item_embeddings").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    open_latest(str(tmp_path / "store")).output("item_embeddings")
    night = open_latest(str(tmp_path / "store"), verify=True)
    assert night.similar_to("a").height == 3, "who asks for the others is not held up"
    for _ in range(2):
        with pytest.raises(UploadCorrupt, match="item_embeddings"):
            night.output("item_embeddings")


# ---- what is too old, damaged or half there


def test_a_night_older_than_its_reader_allows_is_refused_by_name(make_night, store_uri):
    make_night(store_uri).publish()  # on 24 November, 03:12:05
    morning = datetime(2026, 11, 25, 3, 13, tzinfo=UTC)
    assert open_latest(store_uri, max_age=timedelta(days=2), now=morning).manifest.version == 1
    with pytest.raises(NightStale, match=r"2026-11-23, version 1, published 1 d ago .*max_age is 23 h 30 min"):
        open_latest(store_uri, max_age=timedelta(hours=23.5), now=morning)
    assert open_latest(store_uri, max_age=timedelta(days=36500)).manifest.version == 1
    with pytest.raises(NightStale, match=r"longer max_age"):
        open_latest(store_uri, max_age=timedelta(seconds=-36500 * 86400))


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
