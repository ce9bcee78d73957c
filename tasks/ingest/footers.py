"""What footers say of ids without a page being read: how many rows, and about how many different ids.

A column chunk with a dictionary holds each of its ids once there, and a number of as many bits as that takes for each
row, so its uncompressed size tells how many there are. Whole numbers are not more than their range is wide.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DICTIONARIES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
TEXT_LENGTH_BYTES = 4  # stands before each text
USUAL_TEXT_BYTES = 12  # where there are no statistics
# What days of events have in common, and row groups of one file: more.
GROWTH, GROWTH_WITHIN = 1 / 3, 1 / 6


@dataclass(frozen=True)
class ColumnHint:
    """Of one column of one file."""

    rows: int
    distinct: float  # at most, about
    num_bytes: int  # compressed, what a reader fetches
    low: int | None = None  # of whole numbers
    high: int | None = None


def column_hint(footer: bytes, column: str) -> ColumnHint:
    """`footer` begins with the footer and ends with the file. The column is there: it has been checked."""
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
    place = next(at for at in range(metadata.num_columns) if metadata.schema.column(at).path == column)
    chunks = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups)]
    values = [bound for chunk in chunks for bound in _bounds(chunk)]
    numbers = [bound for bound in values if isinstance(bound, int)]
    counts = [_distinct(chunk) for chunk in chunks if chunk.num_values]
    distinct = sum(counts) if _lie_apart(chunks) else union_of(counts, GROWTH_WITHIN)
    return ColumnHint(
        rows=metadata.num_rows,
        distinct=min(distinct, max(numbers) - min(numbers) + 1) if numbers else distinct,
        num_bytes=sum(chunk.total_compressed_size for chunk in chunks),
        low=min(numbers, default=None),
        high=max(numbers, default=None),
    )


def ids_of_all(hints: Sequence[ColumnHint], known: int) -> int:
    """About how many different ids the column has in all files. `known`: what a registry has of earlier nights."""
    hints = [hint for hint in hints if hint.rows]
    found = union_of([hint.distinct for hint in hints], GROWTH)
    if hints and all(hint.low is not None for hint in hints):
        lows, highs = [hint.low or 0 for hint in hints], [hint.high or 0 for hint in hints]
        found = min(found, max(highs) - min(lows) + 1)
    return max(1, round(max(found, min(known, sum(hint.rows for hint in hints)))))


def union_of(counts: Sequence[float], growth: float) -> float:
    """Of parts that share their ids: at least the largest, at most the sum, as a sample that grows finds less and less
    that is new. `growth`: how far from the one to the other, on a scale of logarithms."""
    most = max(counts, default=0.0)
    return most * (sum(counts) / most) ** growth if most else 0.0


def _lie_apart(chunks: Sequence[pq.ColumnChunkMetaData]) -> bool:
    """A sorted column: each row group begins where the one before it ends."""
    bounds = [_bounds(chunk) for chunk in chunks if chunk.num_values]
    return all(bounds) and all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))


def _distinct(chunk: pq.ColumnChunkMetaData) -> float:
    rows = chunk.num_values
    statistics = chunk.statistics
    if statistics is not None and statistics.has_distinct_count and statistics.distinct_count:
        return float(min(statistics.distinct_count, rows))
    most = float(rows)
    bounds = _bounds(chunk)
    numbers = [bound for bound in bounds if isinstance(bound, int)]
    if numbers and max(numbers) - min(numbers) < rows:
        return float(max(numbers) - min(numbers) + 1)  # numbers that close together are numbered one by one
    if not chunk.has_dictionary_page or not DICTIONARIES & set(chunk.encodings):
        return most
    each = _bytes_each(chunk, bounds)
    # Numbers in no order hardly compress. In a sorted column they take next to nothing, and the dictionary is the rest.
    numbers_bytes = chunk.total_compressed_size - (chunk.data_page_offset - chunk.dictionary_page_offset)
    apart = (chunk.total_uncompressed_size - numbers_bytes) / each
    if numbers_bytes < rows * math.log2(max(2.0, apart)) / 16:
        return min(most, apart)
    return min(most, _in_dictionary(chunk.total_uncompressed_size, rows, each))


def _in_dictionary(num_bytes: int, rows: int, bytes_each: float) -> float:
    """The n for which n ids and `rows` numbers of log2(n) bits take so many bytes."""
    low, high = 1.0, float(rows)
    for _ in range(40):
        middle = (low + high) / 2
        takes = middle * bytes_each + rows * max(1, math.ceil(math.log2(middle + 1))) / 8
        low, high = (middle, high) if takes < num_bytes else (low, middle)
    return low


def _bytes_each(chunk: pq.ColumnChunkMetaData, bounds: list[Any]) -> float:
    width = {"INT32": 4, "INT64": 8}.get(chunk.physical_type)
    if width:
        return width
    lengths = [len(bound) for bound in bounds if isinstance(bound, str | bytes)]
    return TEXT_LENGTH_BYTES + (sum(lengths) / len(lengths) if lengths else USUAL_TEXT_BYTES)


def _bounds(chunk: pq.ColumnChunkMetaData) -> list[Any]:
    try:
        statistics = chunk.statistics
        return [statistics.min, statistics.max] if statistics is not None and statistics.has_min_max else []
    except (pa.ArrowException, ValueError, UnicodeDecodeError):
        return []  # bounds of a kind that nothing here can read
