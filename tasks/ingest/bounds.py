"""Bounds on what a footer may claim: a small file can unpack to more than a machine holds, which ends its reader.

What a footer says of sizes may be a lie as well, and pages are decoded in a process with a limit (limits.py). The rows
are the honest measure: 400 million of them fit into 3.6 MB, in "3.1 MB uncompressed", and take 6.4 GB in memory.
"""

import pyarrow.parquet as pq

from tasks.errors import InputTooLarge

LARGEST_FOOTER_BYTES = 16 << 20
MOST_COLUMNS = 2_000
MOST_ROW_GROUPS = 100_000
ROWS_ALWAYS_ALLOWED = 50_000_000
MOST_ROWS_A_BYTE = 64
# Of a column that is read, in one row group, which is decoded at once: real ids have at most 256 bytes.
CHUNK_BYTES_ALWAYS_ALLOWED = 512 << 20
MOST_BYTES_A_VALUE = 1_024


def ensure_bounded(metadata: pq.FileMetaData, place: str, *, num_bytes: int, columns: set[str]) -> None:
    """`columns` are those that are read. Raises InputTooLarge naming `place`."""
    if metadata.num_columns > MOST_COLUMNS:
        raise too_large(place, f"it has {metadata.num_columns:,} columns, and more than {MOST_COLUMNS:,} are not read")
    if metadata.num_row_groups > MOST_ROW_GROUPS:
        raise too_large(place, f"it has {metadata.num_row_groups:,} row groups, of a few rows or none each")
    if metadata.num_rows > max(ROWS_ALWAYS_ALLOWED, MOST_ROWS_A_BYTE * num_bytes):
        raise too_large(place, f"it claims {metadata.num_rows:,} rows in {num_bytes:,} bytes, which no real events do")
    compressed = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for place_of_column in range(metadata.num_columns):
            chunk = row_group.column(place_of_column)
            compressed += max(0, chunk.total_compressed_size)
            most = max(CHUNK_BYTES_ALWAYS_ALLOWED, MOST_BYTES_A_VALUE * chunk.num_values)
            if chunk.path_in_schema in columns and chunk.total_uncompressed_size > most:
                raise too_large(
                    place,
                    f"{chunk.num_values:,} values of column {chunk.path_in_schema!r} unpack to "
                    f"{chunk.total_uncompressed_size:,} bytes",
                )
    if compressed > num_bytes:
        raise too_large(place, f"its {num_bytes:,} bytes are claimed several times over, as {compressed:,} bytes")


def too_large(place: str, why: str) -> InputTooLarge:
    return InputTooLarge(
        f"{place} is larger than any file of events: {why}. No row was read and nothing was published. Look at who "
        "wrote it; move it out of the folder, or let ingest.max_bad_files set it aside."
    )
