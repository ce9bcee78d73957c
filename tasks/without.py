"""Whatever nights have written, once more without somebody's rows.

Lists and refused rows have ids, digested days and the tables to start from rows of the registry.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import ObjectNotFound, UploadCorrupt
from tasks.registry import Registry
from tasks.store import Store, StoredObject
from tasks.warm import read_user_rows

BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Theirs:
    """Which rows are of people who were forgotten. A column that a file does not have says nothing."""

    # Column -> of its values, which are theirs: as many booleans, none of them null.
    by_column: dict[str, Callable[[pl.Series], pl.Series]]
    rows: npt.NDArray[np.int64]  # of the registry
    epoch: int  # of the registry that these rows are of


def theirs_of(registry: Registry) -> Theirs:
    """Of every user who was forgotten until now."""
    rows = registry.forgotten_rows("users")
    by_column = {
        "user_id": lambda ids: registry.is_forgotten("users", ids),
        "user_row": lambda found: pl.Series(np.isin(found.to_numpy(), rows)),
    }
    return Theirs(by_column, rows, registry.version.epoch)


def holds(store: Store, key: str, theirs: Theirs) -> bool:
    """Whether a row of theirs is in there, a Parquet file or the tables to start from. Reads no more than it must.

    Tables from before a compaction may hold anybody, and no night starts from them any more.
    Raises UploadCorrupt where it cannot be read, ObjectNotFound.
    """
    with _naming_damage(store, key), store.open(key) as stream:
        if key.endswith(".safetensors"):
            epoch, rows = read_user_rows(stream)
            return epoch < theirs.epoch or (epoch == theirs.epoch and bool(np.isin(rows, theirs.rows).any()))
        with pq.ParquetFile(stream, pre_buffer=True) as file:
            columns = [name for name in theirs.by_column if name in file.schema_arrow.names]
            groups = range(file.num_row_groups) if columns else range(0)
            return any(
                theirs.by_column[name](values.unique()).any()
                for group in groups
                for name, values in _columns(file.read_row_group(group, columns), columns)
            )


def still_holding(
    store: Store, folders: Iterable[str], theirs: Theirs, *, in_use: frozenset[str], failed: dict[str, str]
) -> list[StoredObject]:
    """What holds somebody and nothing leads to. What cannot be looked into is noted in `failed`."""
    found = []
    for stored in (one for folder in folders for one in store.list(folder)):
        if stored.key in in_use or not stored.key.endswith((".parquet", ".safetensors")):
            continue
        try:
            if holds(store, stored.key, theirs):
                found.append(stored)
        except (UploadCorrupt, ObjectNotFound) as error:
            failed[stored.key] = f"{type(error).__name__}: {error}"
    return found


def fetch(store: Store, key: str, path: Path) -> str:
    """A copy at `path`, and the SHA-256 of what came. Raises ObjectNotFound."""
    digest = hashlib.sha256()
    with store.open(key) as stream, open(path, "wb") as target:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            target.write(block)
    return digest.hexdigest()


def write_without(source: Path, target: Path, theirs: Theirs) -> pl.DataFrame:
    """Everything else as it was: columns, types, order, borders of row groups. Returns the rows that were left out."""
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        columns = [name for name in theirs.by_column if name in schema.names]
        left_out = [schema.empty_table()]
        with pq.ParquetWriter(target, schema, compression="zstd") as written:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                is_out = pl.Series([False]).new_from_index(0, rows.num_rows)
                for name, values in _columns(rows, columns):
                    is_out = is_out | theirs.by_column[name](values)
                left_out.append(rows.filter(is_out.to_arrow()))
                kept = rows.filter(pc.invert(is_out.to_arrow()))
                if kept.num_rows:
                    written.write_table(kept, row_group_size=kept.num_rows)
    frame = pl.from_arrow(pa.concat_tables(left_out))
    assert isinstance(frame, pl.DataFrame)
    return frame


def damaged(store: Store, key: str, what: str) -> UploadCorrupt:
    return UploadCorrupt(
        f"{store.uri_of(key)} is not what was written: {what}, so nobody's rows can be left out of it. If a live night "
        "names it, publish its date again with FORCE=1; else move it away. Then forget again."
    )


@contextmanager
def _naming_damage(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the machine's word, not that of who decodes
            raise
        raise damaged(store, key, "it cannot be read") from None


def _columns(rows: pa.Table, names: list[str]) -> Iterator[tuple[str, pl.Series]]:
    for name in names:
        values: Any = pl.from_arrow(rows[name])
        yield name, values
