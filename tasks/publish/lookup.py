"""One id's rows out of a sorted table of many Parquet files, by reading a row group or two and a few footers.

Files are sorted by the id, and ids of a later file sort behind those of an earlier one: a bisection over the files'
smallest ids, which stand in their footers, finds the one file; the statistics of its row groups find the group, or the
two neighbours that the rows lie across.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import UploadCorrupt
from tasks.store import Store


@dataclass(frozen=True)
class SortedTable:
    """Files that never change, so a footer is read once. Not empty: an id is looked for in the files that have rows."""

    store: Store
    keys: tuple[str, ...]
    column: str  # the id they are sorted by
    _footers: dict[int, pq.FileMetaData] = field(default_factory=dict, repr=False)

    def rows_of(self, wanted: int | str) -> pl.DataFrame:
        """As they stand in the file; none where the id is not there. Raises UploadCorrupt and the Store* errors."""
        number = self._file_that_may_hold(wanted)
        footer = self._footer(number)
        groups = [group for group in range(footer.num_row_groups) if self._may_hold(footer, group, wanted)]
        rows = self._read(number, groups) if groups else footer.schema.to_arrow_schema().empty_table()
        if groups:
            rows = rows.filter(pc.equal(rows[self.column], pa.scalar(wanted, rows[self.column].type)))
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _file_that_may_hold(self, wanted: int | str) -> int:
        """The last one that does not begin behind it. Python orders text as Parquet does: UTF-8 keeps that order."""
        low, high = 0, len(self.keys)
        while high - low > 1:
            middle = (low + high) // 2
            first: Any = self._first_id(middle)  # of the kind that `wanted` has
            low, high = (middle, high) if first <= wanted else (low, middle)
        return low

    def _first_id(self, number: int) -> int | str:
        statistics = self._footer(number).row_group(0).column(0).statistics
        if statistics is not None and statistics.has_min_max:
            return statistics.min
        return self._read(number, [0], columns=[self.column])[self.column][0].as_py()

    def _may_hold(self, footer: pq.FileMetaData, group: int, wanted: int | str) -> bool:
        statistics = footer.row_group(group).column(0).statistics
        return statistics is None or not statistics.has_min_max or statistics.min <= wanted <= statistics.max

    def _footer(self, number: int) -> pq.FileMetaData:
        if number not in self._footers:
            with self._named(number), self.store.open(self.keys[number]) as stream:
                self._footers[number] = pq.read_metadata(stream)
        return self._footers[number]

    def _read(self, number: int, groups: list[int], columns: list[str] | None = None) -> pa.Table:
        footer = self._footer(number)
        with self._named(number), self.store.open(self.keys[number]) as stream:
            return pq.ParquetFile(stream, metadata=footer, pre_buffer=True).read_row_groups(groups, columns)

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise UploadCorrupt(
                f"{self.store.uri_of(self.keys[number])} cannot be read as Parquet: it is not what was written. "
                "Publish its date again with FORCE=1."
            ) from error
