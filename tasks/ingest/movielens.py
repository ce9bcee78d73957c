"""Ratings and titles as a team or GroupLens hands them over, put into the store once.

A file is known by its first line, not by its name. Its key holds the hash of its bytes, so importing it again finds
it there and changes nothing.
"""

import hashlib
import io
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, InputMissing, ObjectExists, RunConfigError, SchemaDrift
from tasks.ingest.inspection import check_footer, read_footer
from tasks.ingest.sources import pin_inputs
from tasks.store import Store

ITEMS = "items"
RATINGS_ACCEPTED = (
    "Parquet with user_id, item_id, rating, timestamp; ratings.csv with userId,movieId,rating,timestamp; "
    "u.data (tabs); ratings.dat (::)"
)
TITLES_ACCEPTED = (
    "Parquet with item_id and any of title, available, categories, segments, published_at; movies.csv with "
    "movieId,title,genres; u.item (|); movies.dat (::)"
)
RATING_FILES = ("ratings.csv", "u.data", "ratings.dat", "ratings.parquet")
TITLE_FILES = ("movies.csv", "u.item", "movies.dat", "movies.parquet", "items.parquet")

# How types are called towards people, by the first letters of what Arrow and Polars call them.
KINDS = {
    "int": "whole numbers",
    "uint": "whole numbers",
    "float": "decimal numbers",
    "double": "decimal numbers",
    "halffloat": "decimal numbers",
    "decimal": "decimal numbers",
    "string": "text",
    "large_string": "text",
    "bool": "true or false",
    "timestamp": "moments",
    "date": "dates",
}

# GroupLens's names in the order of its genre flags, u.item's last 19 columns.
U_ITEM_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class Imported:
    key: str
    num_rows: int
    is_new: bool  # False: the same bytes had been imported before


# ---- ratings


def import_ratings(source: Path, store: Store, settings: IngestConfig = IngestConfig()) -> Imported:
    """Into the first of ingest.prefixes. Parquet goes in byte by byte, the rest as int64 and float64.

    Raises InputMissing, InputCorrupt, SchemaDrift.
    """
    check = partial(_check_events, settings=settings)
    return _import(source, store, _folder_of(settings), _read_ratings, check, RATINGS_ACCEPTED)


def _folder_of(settings: IngestConfig) -> str:
    return settings.prefixes[0].rstrip("/")


def _read_ratings(source: Path, start: str) -> pl.DataFrame | None:
    names = ["user_id", "item_id", "rating", "timestamp"]
    types = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
    if start.rstrip() == "userId,movieId,rating,timestamp":
        return pl.read_csv(source, has_header=True, new_columns=names, schema_overrides=list(types.values()))
    if re.match(r"\d+\t\d+\t[\d.]+\t\d+\s", start):
        return pl.read_csv(source, has_header=False, separator="\t", schema=types)
    if re.match(r"\d+::\d+::[\d.]+::\d+\s", start):
        tabs = source.read_bytes().replace(b"::", b"\t")
        return pl.read_csv(io.BytesIO(tabs), has_header=False, separator="\t", schema=types)
    return None


def ensure_alone(source: Path, store: Store, settings: IngestConfig = IngestConfig()) -> None:
    """Two data sets in one store would be read as one. Raises RunConfigError where other events lie in it already."""
    key = _key(_folder_of(settings), source, content_hash(source))
    try:
        others = [found.key for found in pin_inputs(store, settings) if found.key != key]
    except InputMissing:
        return
    if others:
        files = "file" if len(others) == 1 else "files"
        raise RunConfigError(
            f"{store.uri}/{_folder_of(settings)} holds {len(others):,} other Parquet {files} ({others[0]}"
            f"{', ...' if len(others) > 1 else ''}), and a night reads all of them together with {source}. Nothing was "
            "imported or started. Give another STORE; or, if they are one data set, move your file as Parquet into "
            "that folder yourself and run with STORE alone."
        )


# ---- titles


def titles_beside(ratings: Path) -> Path | None:
    """The titles that GroupLens ships in the same folder, if they are there."""
    return next((ratings.parent / name for name in TITLE_FILES if (ratings.parent / name).is_file()), None)


def import_titles(source: Path, store: Store) -> Imported:
    """Raises InputMissing, InputCorrupt, SchemaDrift. GroupLens's ids become int64, as in its ratings."""
    return _import(source, store, ITEMS, _read_titles, _check_titles, TITLES_ACCEPTED)


def _read_titles(source: Path, start: str) -> pl.DataFrame | None:
    if start.rstrip() == "movieId,title,genres":
        types = {"item_id": pl.Int64, "title": pl.String, "genres": pl.String}
        return pl.read_csv(source, has_header=True, new_columns=list(types), schema_overrides=list(types.values()))
    if re.match(r"\d+::.+::", start):
        rows = [line.split("::") for line in _lines(source)]
        return _titles([(row[0], row[1], row[2]) for row in rows])
    if re.match(r"\d+\|[^|]*\|", start):
        rows = [line.split("|") for line in _lines(source)]
        return _titles([(row[0], row[1], _u_item_genres(row)) for row in rows])
    return None


def _lines(source: Path) -> list[str]:
    return [line for line in source.read_text(encoding="latin-1").split("\n") if line.strip()]


def _u_item_genres(row: list[str]) -> str:
    flags = row[-len(U_ITEM_GENRES) :] if len(row) >= 5 + len(U_ITEM_GENRES) else []
    return "|".join(genre for genre, flag in zip(U_ITEM_GENRES, flags, strict=False) if flag.strip() == "1")


def _titles(rows: list[tuple[str, str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(int(item_id), title, genres.strip()) for item_id, title, genres in rows],
        schema={"item_id": pl.Int64, "title": pl.String, "genres": pl.String},
        orient="row",
    )


def read_titles(store: Store) -> pl.DataFrame | None:
    """Every item that has a title, once, sorted by item_id; of two titles the one in the last file. None: no files.

    Raises InputCorrupt, and SchemaDrift where one file's ids are numbers and another's text.
    """
    frames: list[pl.DataFrame] = []
    for found in store.list(f"{ITEMS}/"):
        if not found.key.endswith(".parquet") or any(name.startswith(("_", ".")) for name in found.key.split("/")):
            continue
        content, _ = store.read(found.key)
        frame = _titles_in(content, store.uri_of(found.key))
        if frame is None:
            continue
        if frames and (frame["item_id"].dtype == pl.String) != (frames[0]["item_id"].dtype == pl.String):
            raise SchemaDrift(
                f"{store.uri_of(found.key)}: column 'item_id': found {_in_words(frame['item_id'].dtype)}, wanted "
                f"{_in_words(frames[0]['item_id'].dtype)}, as in the files before. Put titles there with the ids of "
                "the events."
            )
        frames.append(frame)
    if not frames:
        return None
    together = pl.concat(frames, how="diagonal_relaxed")
    return together.unique("item_id", keep="last", maintain_order=True).sort("item_id")


def _titles_in(content: bytes, place: str) -> pl.DataFrame | None:
    """None where the table has no titles: it says other things about the items."""
    if "title" not in _check_titles_schema(content, place):
        return None
    try:
        frame = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise InputCorrupt(f"{place} has a good footer and pages that cannot be read. Write it again.") from error
    if not frame["item_id"].dtype.is_integer():
        frame = frame.with_columns(pl.col("item_id").cast(pl.String))
    return frame.with_columns(pl.col("title").cast(pl.String)).drop_nulls(["item_id", "title"])


def _check_titles_schema(content: bytes, place: str) -> list[str]:
    """The columns' names. What else an items table may say is checked where it is used: tasks/ingest/tables.py."""
    try:
        schema = pq.read_schema(pa.BufferReader(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputCorrupt(
            f"{place} cannot be read as Parquet. Write it again. Accepted: {TITLES_ACCEPTED}."
        ) from error
    wanted = {"item_id": "whole numbers or text", "title": "text"}
    for column, kind in wanted.items():
        if column == "title" and column not in schema.names:
            continue
        found = str(schema.field(column).type) if schema.names.count(column) == 1 else "no such column, or several"
        text = "string" in found and not found.startswith(("list", "large_list", "struct", "map"))
        if not text and not (column == "item_id" and found.startswith(("int", "uint"))):
            raise SchemaDrift(
                f"{place}: column {column!r}: found {_in_words(found)}, wanted {kind}. Nothing was imported."
            )
    return list(schema.names)


def _in_words(kind: object) -> str:
    """`large_string` and `Int64` mean something to programmers only; what has no word here stays as it is."""
    name = str(kind)
    first_letters = re.match(r"[a-z_]+", name.lower())
    return KINDS.get(first_letters.group(), name) if first_letters else name


# ---- one file into the store, once


def _import(
    source: Path,
    store: Store,
    folder: str,
    read: Callable[[Path, str], pl.DataFrame | None],
    check_parquet: Callable[[Path], int],
    accepted: str,
) -> Imported:
    _ensure_file(source, accepted)
    key = _key(folder, source, content_hash(source))
    with open(source, "rb") as stream:
        start = stream.read(4096)
    if start.startswith(b"PAR1"):
        num_rows = check_parquet(source)
        _ensure_rows(source, folder, num_rows)
        return Imported(key, num_rows, is_new=_put(store, key, source))
    try:
        frame = read(source, start.decode("latin-1").split("\n")[0] + "\n")
    except (pl.exceptions.PolarsError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputCorrupt(
            f"{source} begins like a file we know and does not go on like one ({type(error).__name__}). Nothing was "
            f"imported. Accepted: {accepted}."
        ) from error
    if frame is None:
        raise InputCorrupt(
            f"{source} is none of the files we can read. Nothing was imported. Accepted: {accepted}. For "
            "anything else, write Parquet with these columns."
        )
    _ensure_rows(source, folder, frame.height)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "import.parquet"
        frame.write_parquet(written, compression="zstd", row_group_size=100_000)
        return Imported(key, frame.height, is_new=_put(store, key, written))


def content_hash(source: Path) -> str:
    """SHA-256 of the file's bytes. Raises InputMissing."""
    _ensure_file(source, RATINGS_ACCEPTED)
    with open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ensure_file(source: Path, accepted: str) -> None:
    if source.is_dir():
        known = sorted(name for name in (*RATING_FILES, *TITLE_FILES) if (source / name).is_file())
        hint = f"Give one file of it; it holds {', '.join(known)}." if known else "Give one file."
        raise InputMissing(f"{source} is a folder, not a file. Nothing was imported. {hint} Accepted: {accepted}.")
    if not source.is_file():
        raise InputMissing(f"there is no file {source}. Nothing was imported. Accepted: {accepted}.")


def _ensure_rows(source: Path, folder: str, num_rows: int) -> None:
    """A catalogue without titles does no harm; a night without events cannot be."""
    if folder != ITEMS and num_rows == 0:
        raise InputMissing(
            f"{source} holds no rows, only the names of its columns. Nothing was imported. Give a file with ratings in "
            "it: whoever wrote this one may have filtered everything away."
        )


def _key(folder: str, source: Path, hash_of_content: str) -> str:
    return f"{folder}/{_plain_stem(source)}-{hash_of_content[:16]}.parquet"


def _plain_stem(source: Path) -> str:
    """Only what every store and reader takes in a key, and never a hidden name."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", source.stem).strip("-.") or "file"


def _put(store: Store, key: str, source: Path) -> bool:
    try:
        store.put_once(key, source)
    except ObjectExists:
        return False
    return True


def _check_titles(source: Path) -> int:
    content = source.read_bytes()
    _check_titles_schema(content, str(source))
    return int(pq.read_metadata(pa.BufferReader(content)).num_rows)


def _check_events(source: Path, settings: IngestConfig) -> int:
    num_bytes = source.stat().st_size
    with open(source, "rb") as stream:
        footer = read_footer(stream, str(source), num_bytes=num_bytes)
    num_rows, _ = check_footer(
        footer,
        str(source),
        num_bytes=num_bytes,
        required=["user_id", "item_id", "timestamp"],
        optional=("rating",),
        names=settings.columns.model_dump(),
    )
    return num_rows
