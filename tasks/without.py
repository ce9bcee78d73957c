"""Whatever nights have written, once more without somebody's rows: what forgetting does to Parquet files.

Who was forgotten stands in a file by id, or by row of the registry. `Theirs` says of the columns that a file may have
whose rows have to go; a column that it does not have says nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import ObjectNotFound, UploadCorrupt
from tasks.registry import Registry
from tasks.store import Store, StoredObject

# Column -> of its values, which belong to somebody who was forgotten: as many booleans, none of them null.
Theirs: TypeAlias = dict[str, Callable[[pl.Series], pl.Series]]


def theirs_of(registry: Registry) -> Theirs:
    """Of every user who was forgotten until now. Lists and refused rows have ids, digested days the registry's rows."""
    rows = registry.ids["users"].is_null().arg_true().cast(pl.Int32)
    return {
        "user_id": lambda ids: registry.is_forgotten("users", ids),
        "user_row": lambda found: found.is_in(rows.implode()),
    }


def holds(store: Store, key: str, theirs: Theirs) -> bool:
    """Whether a row of theirs is in there. Reads those columns, a row group at a time.

    Raises UploadCorrupt where it cannot be read as Parquet, ObjectNotFound.
    """
    with _naming_damage(store, key), store.open(key) as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
        columns = [name for name in theirs if name in file.schema_arrow.names]
        groups = range(file.num_row_groups) if columns else range(0)
        return any(
            theirs[name](values.unique()).any()
            for group in groups
            for name, values in _columns(file.read_row_group(group, columns), columns)
        )


def still_holding(
    store: Store, folders: Iterable[str], theirs: Theirs, *, in_use: frozenset[str], failed: dict[str, str]
) -> list[StoredObject]:
    """What holds somebody and nothing leads to. What cannot be looked into is noted in `failed`."""
    found = []
    for stored in (one for folder in folders for one in store.list(folder)):
        if stored.key in in_use or not stored.key.endswith(".parquet"):
            continue
        try:
            if holds(store, stored.key, theirs):
                found.append(stored)
        except (UploadCorrupt, ObjectNotFound) as error:
            failed[stored.key] = f"{type(error).__name__}: {error}"
    return found


def write_without(source: Path, target: Path, theirs: Theirs) -> pl.DataFrame:
    """Everything else as it was: columns, types, order, borders of row groups. Returns the rows that were left out."""
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        columns = [name for name in theirs if name in schema.names]
        left_out = [schema.empty_table()]
        with pq.ParquetWriter(target, schema, compression="zstd") as written:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                is_out = pl.Series([False]).new_from_index(0, rows.num_rows)
                for name, values in _columns(rows, columns):
                    is_out = is_out | theirs[name](values)
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
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the machine's word, not that of who decodes
            raise
        raise damaged(store, key, "it cannot be read as Parquet") from None


def _columns(rows: pa.Table, names: list[str]) -> Iterator[tuple[str, pl.Series]]:
    for name in names:
        values: Any = pl.from_arrow(rows[name])
        yield name, values
