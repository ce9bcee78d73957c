"""A Parquet file once more, without some of its rows: what forgetting does to whatever nights have written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Of a column's values, which belong to somebody who was forgotten; as many booleans, none of them null.
IsForgotten: TypeAlias = Callable[[pl.Series], pl.Series]


def holds(stream: Any, column: str, is_forgotten: IsForgotten) -> bool:
    """Whether a row of theirs is in there; not where there is no such column. Reads that one, a row group at a time."""
    with pq.ParquetFile(stream, pre_buffer=True) as file:
        return column in file.schema_arrow.names and any(
            is_forgotten(_series(file.read_row_group(group, [column])[column]).unique()).any()
            for group in range(file.num_row_groups)
        )


def write_without(source: Path, target: Path, column: str, is_forgotten: IsForgotten) -> pl.DataFrame:
    """Everything else as it was: columns, types, order, borders of row groups. Returns the rows that were left out."""
    left_out = []
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        left_out.append(schema.empty_table())
        with pq.ParquetWriter(target, schema, compression="zstd") as written:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                theirs = is_forgotten(_series(rows[column])).to_arrow()
                left_out.append(rows.filter(theirs))
                kept = rows.filter(pc.invert(theirs))
                if kept.num_rows:
                    written.write_table(kept, row_group_size=kept.num_rows)
    frame = pl.from_arrow(pa.concat_tables(left_out))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _series(column: pa.ChunkedArray) -> pl.Series:
    values = pl.from_arrow(column)
    assert isinstance(values, pl.Series)
    return values
