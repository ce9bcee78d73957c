"""Files as a team or GroupLens hands them over."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, InputMissing, RunConfigError, SchemaDrift
from tasks.ingest.events import last_event_at
from tasks.ingest.inspection import inspect_files
from tasks.ingest.movielens import (
    content_hash,
    ensure_alone,
    import_ratings,
    import_titles,
    read_titles,
    titles_beside,
)
from tasks.ingest.sources import pin_inputs
from tasks.run import decide_date
from tasks.store import open_store
from tests.worlds import pairs_of, read_night

SETTINGS = IngestConfig()
RATINGS = {
    "ratings.csv": b"userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n2,1029,5.0,1260759179\n",
    "u.data": b"1\t31\t2.5\t1260759144\n2\t1029\t5\t1260759179\n",
    "ratings.dat": b"1::31::2.5::1260759144\n2::1029::5::1260759179\n",
    "windows.csv": b"userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n2,1029,5.0,1260759179\r\n",
}
FLAGS = "|".join(["0"] * 5 + ["1"] + ["0"] * 2 + ["1"] + ["0"] * 10)
TITLES = {
    "movies.csv": 'movieId,title,genres\n1,"Leon, the Café",Comedy|Drama\n2,Plain,Drama\n'.encode(),
    "u.item": f"1|Leon, the Café|01-Jan-1994||http://x|{FLAGS}\n2|Plain|||http://x|{FLAGS}\n".encode("latin-1"),
    "movies.dat": "1::Leon, the Café::Comedy|Drama\n2::Plain::Drama\n".encode("latin-1"),
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(str(tmp_path / "store"))


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", RATINGS)
def test_every_known_ratings_file_becomes_the_same_events(name: str, store: Any, tmp_path: Path) -> None:
    imported = import_ratings(write(tmp_path, name, RATINGS[name]), store)
    content, _ = store.read(imported.key)
    frame = pl.read_parquet(content)
    assert frame.schema == {
        "user_id": pl.Int64,
        "item_id": pl.Int64,
        "rating": pl.Float64,
        "timestamp": pl.Int64,
    }
    assert frame.rows() == [(1, 31, 2.5, 1260759144), (2, 1029, 5.0, 1260759179)]
    assert imported.num_rows == 2
    assert inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS).num_rows == 2


@pytest.mark.parametrize("name", TITLES)
def test_every_known_titles_file_becomes_the_same_titles(name: str, store: Any, tmp_path: Path) -> None:
    import_titles(write(tmp_path, name, TITLES[name]), store)
    titles = read_titles(store)
    assert titles is not None
    assert titles.select("item_id", "title").rows() == [(1, "Leon, the Café"), (2, "Plain")]
    assert titles["genres"][0] == "Comedy|Drama"
    assert titles.schema["item_id"] == pl.Int64


def test_importing_the_same_bytes_again_changes_nothing(store: Any, tmp_path: Path) -> None:
    source = write(tmp_path, "u.data", RATINGS["u.data"])
    first, again = import_ratings(source, store), import_ratings(source, store)
    assert (first.is_new, again.is_new) == (True, False)
    assert first.key == again.key
    assert len(store.list("events/")) == 1
    assert import_ratings(write(tmp_path, "u.data", RATINGS["u.data"] + b"3\t31\t1\t5\n"), store).is_new
    assert len(store.list("events/")) == 2


def test_ratings_are_not_imported_beside_other_events(store: Any, tmp_path: Path) -> None:
    source = write(tmp_path, "u.data", RATINGS["u.data"])
    ensure_alone(source, store)
    import_ratings(source, store)
    store.put_once("events/_SUCCESS", b"")
    ensure_alone(source, store)  # the same bytes: imported before

    edited = write(tmp_path, "u.data", RATINGS["u.data"] + b"3\t31\t1\t5\n")
    with pytest.raises(RunConfigError, match=r"holds 1 other Parquet file \(events/u-\w+\.parquet\).*another STORE"):
        ensure_alone(edited, store)
    import_ratings(edited, store)
    store.put_once("events/dt=2026-11-22/part.parquet", b"x")
    with pytest.raises(RunConfigError, match=r"holds 2 other Parquet files \(events/dt=2026-11-22/part\.parquet, ..."):
        ensure_alone(edited, store)


def test_the_hash_is_of_the_content_wherever_the_file_lies(tmp_path: Path) -> None:
    first = content_hash(write(tmp_path, "u.data", RATINGS["u.data"]))
    assert content_hash(write(tmp_path, "copy", RATINGS["u.data"])) == first
    assert content_hash(write(tmp_path, "u.data", RATINGS["u.data"] + b"3\t31\t1\t5\n")) != first
    with pytest.raises(InputMissing, match="there is no file"):
        content_hash(tmp_path / "nowhere.csv")


def test_a_team_s_own_parquet_goes_in_byte_by_byte(store: Any, tmp_path: Path) -> None:
    source = tmp_path / "our events (1).parquet"
    pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1], "device": ["web"]}).write_parquet(source)
    imported = import_ratings(source, store)
    assert imported.key.startswith("events/our-events-1-")
    assert store.read(imported.key)[0] == source.read_bytes()


@pytest.mark.parametrize("name", ["_hidden.csv", ".csv", "--.csv", "日本.csv"])
def test_an_odd_file_name_never_becomes_a_key_that_the_night_overlooks(name: str, store: Any, tmp_path: Path) -> None:
    import_ratings(write(tmp_path, name, RATINGS["ratings.csv"]), store)
    assert len(pin_inputs(store, SETTINGS)) == 1


@pytest.mark.parametrize("read", [import_ratings, import_titles])
def test_a_file_that_is_not_there_is_missing_input(read: Any, store: Any, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match=r"there is no file .*nowhere\.csv.*Accepted: Parquet"):
        read(tmp_path / "nowhere.csv", store)


@pytest.mark.parametrize("read", [import_ratings, import_titles])
def test_a_folder_is_called_a_folder_and_the_files_in_it_are_named(read: Any, store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    with pytest.raises(InputMissing, match=r"ml is a folder, not a file.*Accepted: Parquet"):
        read(folder, store)
    for name in ("ratings.csv", "movies.csv", "notes.txt"):
        write(folder, name, b"x")
    with pytest.raises(InputMissing, match=r"Give one file of it; it holds movies\.csv, ratings\.csv\."):
        read(folder, store)


@pytest.mark.parametrize("name", ["none.parquet", "ratings.csv"])
def test_a_file_without_a_row_says_that_it_holds_none(name: str, store: Any, tmp_path: Path) -> None:
    source = write(tmp_path, name, b"userId,movieId,rating,timestamp\n")
    if name.endswith(".parquet"):
        pl.DataFrame(schema=dict.fromkeys(["user_id", "item_id", "timestamp"], pl.Int64)).write_parquet(source)
    with pytest.raises(InputMissing, match="holds no rows"):
        import_ratings(source, store)
    assert store.list("") == []


@pytest.mark.parametrize("read", [import_ratings, import_titles])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"a,b,c\n1,2,3\n", bytes(range(256)), b"<html>"])
def test_a_file_of_no_known_kind_is_named_with_what_is_accepted(
    read: Any, content: bytes, store: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputCorrupt, match=r"odd\.txt is none of the files we can read.*Accepted: Parquet"):
        read(write(tmp_path, "odd.txt", content), store)
    assert store.list("") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", b"userId,movieId,rating,timestamp\n1,31,2.5,1260759144\nx,y,z,w\n"),
        ("u.data", b"1\t31\t2.5\t1260759144\n1\tthirty\t2.5\t7\n"),
        ("ratings.dat", b"1::31::2.5::1260759144\n1::\n::::::x\n"),
    ],
)
def test_a_file_that_breaks_off_its_format_is_named(name: str, content: bytes, store: Any, tmp_path: Path) -> None:
    with pytest.raises(InputCorrupt, match="does not go on like one"):
        import_ratings(write(tmp_path, name, content), store)
    assert store.list("") == []


def test_parquet_without_the_needed_columns_is_drift_and_a_cut_one_corrupt(store: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.parquet"
    pl.DataFrame({"user": [1], "item": [1]}).write_parquet(wrong)
    with pytest.raises(SchemaDrift, match=r"wrong\.parquet: column 'user_id'"):
        import_ratings(wrong, store)
    with pytest.raises(SchemaDrift, match=r"wrong\.parquet: column 'item_id'"):
        import_titles(wrong, store)
    counted = tmp_path / "counted.parquet"
    pl.DataFrame({"item_id": [1.5], "title": [7]}).write_parquet(counted)
    with pytest.raises(SchemaDrift, match="'item_id': found decimal numbers, wanted whole numbers or text"):
        import_titles(counted, store)
    cut = write(tmp_path, "cut.parquet", wrong.read_bytes()[:-9])
    for read in (import_ratings, import_titles):
        with pytest.raises(InputCorrupt, match=r"cut\.parquet"):
            read(cut, store)
    rated_in_words = tmp_path / "words.parquet"
    pl.DataFrame({"user_id": [1], "item_id": [1], "rating": ["good"], "timestamp": [1]}).write_parquet(rated_in_words)
    with pytest.raises(SchemaDrift, match="column 'rating'"):
        import_ratings(rated_in_words, store)


def test_titles_beside_the_ratings_are_found(tmp_path: Path) -> None:
    ratings = write(tmp_path, "u.data", RATINGS["u.data"])
    assert titles_beside(ratings) is None
    item = write(tmp_path, "u.item", TITLES["u.item"])
    assert titles_beside(ratings) == item


def test_a_store_without_titles_has_none(store: Any) -> None:
    store.put_once("items/_SUCCESS", b"")
    assert read_titles(store) is None


def test_titles_keep_their_other_columns_and_stand_once(store: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    pl.DataFrame({"item_id": [2, 1], "title": ["b", "a"], "year": [1999, 2001]}).write_parquet(first)
    pl.DataFrame({"item_id": [2, 3, None], "title": ["B", "c", "?"]}).write_parquet(second)
    store.put_once("items/1.parquet", first)
    store.put_once("items/2.parquet", second)
    titles = read_titles(store)
    assert titles is not None
    assert titles.rows() == [(1, "a", 2001), (2, "B", None), (3, "c", None)]


def test_titles_that_cannot_be_read_are_named(store: Any, tmp_path: Path) -> None:
    store.put_once("items/broken.parquet", b"PAR1 no more")
    with pytest.raises(InputCorrupt, match=r"items/broken\.parquet"):
        read_titles(store)


def test_number_ids_beside_text_ids_are_drift(store: Any, tmp_path: Path) -> None:
    for name, ids in [("1", [1]), ("2", ["1"])]:
        pl.DataFrame({"item_id": ids, "title": ["x"]}).write_parquet(tmp_path / name)
        store.put_once(f"items/{name}.parquet", tmp_path / name)
    with pytest.raises(SchemaDrift, match=r"items/2\.parquet: column 'item_id': found text, wanted whole numbers"):
        read_titles(store)


@pytest.mark.parametrize(
    ("name", "rows", "users", "items", "as_of"),
    [("movielens-small", 100_004, 671, 9_066, "2016-10-17"), ("movielens-100k", 100_000, 943, 1_682, "1998-04-23")],
)
def test_movielens_comes_in_as_grouplens_counts_it(
    name: str, rows: int, users: int, items: int, as_of: str, shared_data: Path, store: Any, tmp_path: Path
) -> None:
    source = shared_data / name / "ratings.parquet"
    titles_source = titles_beside(source)
    assert titles_source is not None
    import_ratings(source, store)
    import_titles(titles_source, store)
    schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
    decided = decide_date(as_of=None, scheduled_on=None, last_event_at=last_event_at(schema, SETTINGS))
    night = read_night(store, tmp_path, as_of=decided)
    assert decided.isoformat() == as_of
    assert (night.rows_in, night.num_users, night.num_items, night.quarantined) == (rows, users, items, {})
    titles = read_titles(store)
    assert titles is not None
    seen = pairs_of(night)
    assert seen.join(titles, on="item_id", how="anti").is_empty()
