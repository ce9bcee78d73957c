"""The thirty-six corrupt inputs of the failure catalogue, each made here from one good file of events.

`HOSTILE` is name -> (the bytes, made when asked for; what the night has to say of them).
"""

import gzip
import io
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tasks.thrift import I32, I64, LIST, Struct, read_struct, write_struct

CORRUPT, TOO_LARGE, DRIFT = "InputCorrupt", "InputTooLarge", "SchemaDrift"
HARMLESS, UNNOTICED, ROWS_REFUSED = "harmless", "unnoticed without a checksum", "rows quarantined"
CORRUPT_OR_HARMLESS = "InputCorrupt or harmless"

NOON_S = 1_795_348_800  # 2026-11-22 12:00 UTC
USERS, ITEMS = 40, 25
ROWS = 400

# Fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader and DataPageHeader.
NUM_ROWS, ROW_GROUPS = 3, 4
COLUMNS, GROUP_ROWS = 1, 3
META = 3
CODEC, VALUES, UNCOMPRESSED, COMPRESSED, DATA_AT, DICTIONARY_AT, STATISTICS = 4, 5, 6, 7, 9, 11, 12
PAGE_UNCOMPRESSED, PAGE_COMPRESSED, DATA_PAGE = 2, 3, 5
PAGE_VALUES = 1
LZO = 3


def columns() -> dict[str, list[Any]]:
    """Every user has events with several items, at times of their own."""
    numbers = range(ROWS)
    return {
        "user_id": [f"user-{number % USERS:03d}" for number in numbers],
        "item_id": [f"item-{(number * 7 + number // USERS) % ITEMS:03d}" for number in numbers],
        "rating": [float(1 + number * 3 % 5) for number in numbers],
        "timestamp": [NOON_S - number for number in numbers],
    }


def parquet(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), buffer, **options)
    return buffer.getvalue()


def plain(**options: Any) -> bytes:
    """Without compression and dictionaries, so that a test knows where each value lies."""
    return parquet(columns(), compression="none", use_dictionary=False, **options)


# ---- bending a footer


def footer_of(file: bytes) -> tuple[bytes, Struct]:
    """What stands before the footer, and the footer."""
    length = int.from_bytes(file[-8:-4], "little")
    return file[: -8 - length], read_struct(file[-8 - length : -8])[0]


def with_footer(pages: bytes, footer: Struct | bytes) -> bytes:
    written = footer if isinstance(footer, bytes) else write_struct(footer)
    return pages + written + len(written).to_bytes(4, "little") + b"PAR1"


def chunk_of(footer: Struct, column: int, group: int = 0) -> Struct:
    """Its ColumnMetaData."""
    found: Struct = footer[ROW_GROUPS][1][1][group][COLUMNS][1][1][column][META][1]
    return found


def bent(bend: Callable[[Struct], None], file: bytes | None = None) -> bytes:
    pages, footer = footer_of(file or plain())
    bend(footer)
    return with_footer(pages, footer)


def with_first_page(column: int, change: Callable[[Struct, bytes], tuple[Struct, bytes]], file: bytes) -> bytes:
    """`column`'s first data page, changed, at the end of all pages; the footer knows, and finds it there."""
    pages, footer = footer_of(file)
    chunk = chunk_of(footer, column)
    at = chunk[DATA_AT][1]
    header, end = read_struct(pages, at)
    header, body = change(header, pages[end : end + header[PAGE_COMPRESSED][1]])
    header[PAGE_COMPRESSED] = (I32, len(body))
    written = write_struct(header) + body
    # A dictionary has to stand right before the page.
    before = pages[chunk[DICTIONARY_AT][1] : at] if DICTIONARY_AT in chunk else b""
    if before:
        chunk[DICTIONARY_AT] = (I64, len(pages))
    chunk[DATA_AT] = (I64, len(pages) + len(before))
    chunk[COMPRESSED] = (I64, len(before) + len(written))
    chunk.pop(STATISTICS, None)
    return with_footer(pages + before + written, footer)


# ---- the files


def _footer_flipped() -> bytes:
    good = plain()
    length = int.from_bytes(good[-8:-4], "little")
    return flipped(good, len(good) - 8 - length // 2)


def flipped(file: bytes, at: int, bit: int = 0x10) -> bytes:
    return file[:at] + bytes([file[at] ^ bit]) + file[at + 1 :]


def _data_flipped() -> bytes:
    """In the middle of the last ratings: a number stays a number."""
    good = plain()
    return flipped(good, good.index(struct.pack("<d", 4.0)) + 6)


def _zeroed() -> bytes:
    good = plain()
    at = good.index(struct.pack("<d", 4.0)) + 8
    return good[:at] + bytes(200) + good[at + 200 :]


def _garbage_footer() -> bytes:
    good = plain()
    return good[:-200] + b"\xa5" * 192 + good[-8:]


def _dictionary_index_out_of_range() -> bytes:
    """The indices' bit width says 8, and each index 255."""

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        levels = 4 + int.from_bytes(body[:4], "little")  # definition levels, their length before them
        indices = bytes([8]) + b"\x90\x07\xff"  # a run of 456 times 255
        header[PAGE_UNCOMPRESSED] = (I32, levels + len(indices))
        return header, body[:levels] + indices

    return with_first_page(0, change, parquet(columns(), compression="none"))


def _wrong_levels() -> bytes:
    """Definition levels that claim to be longer than their page."""

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        return header, (2**31 - 2).to_bytes(4, "little") + body[4:]

    return with_first_page(0, change, plain())


def _billion_values() -> bytes:
    """A page that says 10^9 values, and a column chunk and row group that agree."""
    many = 10**9

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        header[DATA_PAGE][1][PAGE_VALUES] = (I32, many)
        return header, body

    return with_first_page(0, change, plain())


def _lzo() -> bytes:
    return bent(lambda footer: chunk_of(footer, 0).update({CODEC: (I32, LZO)}))


def _nested_ids() -> bytes:
    return parquet({**columns(), "user_id": pa.array([[one] for one in columns()["user_id"]])})


def _twice_named() -> bytes:
    table = pa.table(columns())
    return parquet(table.append_column("rating", table["rating"]))


def _named_by_case() -> bytes:
    table = pa.table(columns())
    return parquet(table.append_column("USER_ID", table["user_id"]))


def _extension_type(payload: bytes = b"cos\nsystem\n(S'touch /tmp/nightgraph-was-here'\ntR.") -> bytes:
    """A column whose metadata says that it is an extension type whose description is a pickle (CVE-2023-47248)."""
    table = pa.table({**columns(), "extra": [1] * ROWS})
    at = table.schema.get_field_index("extra")
    said = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    return parquet(table.cast(table.schema.set(at, table.schema.field(at).with_metadata(said))))


def _ten_thousand_columns() -> bytes:
    table = pa.table({**columns(), **{f"c{number}": pa.nulls(ROWS, pa.int8()) for number in range(10_000)}})
    return parquet(table, compression="none", use_dictionary=False)


def _million_row_groups() -> bytes:
    """One row group, a million times: a footer of more than 100 MB."""
    pages, footer = footer_of(plain(write_statistics=False))
    many = b"\xfc\xc0\x84\x3d"  # the head of a list of 1,000,000 structs
    [group] = footer[ROW_GROUPS][1][1]
    before = write_struct({field: footer[field] for field in footer if field < ROW_GROUPS})[:-1]
    after = write_struct({field: footer[field] for field in footer if field <= NUM_ROWS or field > ROW_GROUPS})
    after = after[len(before) :]
    # The field after the list says how far its number is from the one before it, which was the rows'.
    after = bytes([after[0] - 16]) + after[1:]
    return with_footer(pages, before + b"\x19" + many + write_struct(group) * 1_000_000 + after)


def _most_rows_there_are() -> bytes:
    def bend(footer: Struct) -> None:
        footer[NUM_ROWS] = (I64, 2**63 - 1)
        footer[ROW_GROUPS][1][1][0][GROUP_ROWS] = (I64, 2**63 - 1)

    return bent(bend)


def _bomb(rows: int = 400_000_000) -> bytes:
    """A run of one value, in an honest footer: a few bytes a column, gigabytes in memory."""
    one = {"user_id": [1], "item_id": [1], "rating": [5.0], "timestamp": [NOON_S]}
    pages, footer = footer_of(parquet(one, compression="none"))
    for column in range(4):
        at = chunk_of(footer, column)[DATA_AT][1]
        header, _ = read_struct(pages, at)
        header[DATA_PAGE][1][PAGE_VALUES] = (I32, rows)
        run = _varint(rows << 1)
        levels = run + b"\x01"
        body = len(levels).to_bytes(4, "little") + levels + b"\x01" + run + b"\0"
        header[PAGE_UNCOMPRESSED] = header[PAGE_COMPRESSED] = (I32, len(body))
        chunk = chunk_of(footer, column)
        dictionary = pages[chunk[DICTIONARY_AT][1] : at]
        chunk[DICTIONARY_AT] = (I64, len(pages))
        chunk[DATA_AT] = (I64, len(pages) + len(dictionary))
        written = dictionary + write_struct(header) + body
        chunk[VALUES] = (I64, rows)
        chunk[UNCOMPRESSED] = chunk[COMPRESSED] = (I64, len(written))
        chunk.pop(STATISTICS, None)
        pages += written
    footer[NUM_ROWS] = footer[ROW_GROUPS][1][1][0][GROUP_ROWS] = (I64, rows)
    return with_footer(pages, footer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _claimed_over_and_over() -> bytes:
    """Its row groups all point at the same pages."""

    def bend(footer: Struct) -> None:
        kind, [group] = footer[ROW_GROUPS][1]
        footer[ROW_GROUPS] = (LIST, (kind, [group] * 5_000))
        footer[NUM_ROWS] = (I64, ROWS * 5_000)

    return bent(bend)


class _Kept(io.BytesIO):
    """Whoever writes it closes it."""

    def close(self) -> None:
        pass


def _value_of_two_gigabytes() -> bytes:
    """One user id of 2 GB of the same letter, which are 65 kB compressed."""
    size = (1 << 31) - 64
    packed = _Kept()
    with pa.CompressedOutputStream(pa.PythonFile(packed, mode="w"), "zstd") as stream:
        stream.write(b"\x02\0\0\0\x02\x01" + size.to_bytes(4, "little"))
        letters = b"x" * (1 << 20)
        for _ in range(size >> 20):
            stream.write(letters)
        stream.write(letters[: size & ((1 << 20) - 1)])

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        header[PAGE_UNCOMPRESSED] = (I32, size + 10)
        return header, packed.getvalue()

    one = {name: values[:1] for name, values in columns().items()}
    file = with_first_page(0, change, parquet(one, compression="zstd", use_dictionary=False))
    return bent(lambda footer: chunk_of(footer, 0).update({UNCOMPRESSED: (I64, size + 10)}), file)


def _lying_statistics() -> bytes:
    """Of each column, the least is said to be more than the most."""

    def bend(footer: Struct) -> None:
        for column in range(4):
            statistics = chunk_of(footer, column)[STATISTICS][1]
            for least, most in ((2, 1), (6, 5)):
                if least in statistics and most in statistics:
                    statistics[least], statistics[most] = statistics[most], statistics[least]

    return bent(bend)


def _not_utf8() -> bytes:
    good = plain(write_statistics=False)
    return good.replace(b"user-007", b"user\xff\xfe07", 1)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", CORRUPT),
    "last byte missing": (lambda: plain()[:-1], CORRUPT),
    "last 4 bytes missing": (lambda: plain()[:-4], CORRUPT),
    "half file": (lambda: plain()[: len(plain()) // 2], CORRUPT),
    "first 4 bytes missing": (lambda: plain()[4:], CORRUPT),
    "PAR1 only": (lambda: b"PAR1", CORRUPT),
    "PAR1PAR1": (lambda: b"PAR1PAR1", CORRUPT),
    "error page": (lambda: b"<html><body><h1>503 Slow Down</h1></body></html>", CORRUPT),
    "gzip of a Parquet": (lambda: gzip.compress(plain(), mtime=0), CORRUPT),
    "CSV": (lambda: b"user_id,item_id,rating,timestamp\n1,2,3,4\n", CORRUPT),
    "footer length 0": (lambda: plain()[:-8] + bytes(4) + b"PAR1", CORRUPT),
    "footer length 4 GiB": (lambda: plain()[:-8] + b"\xff" * 4 + b"PAR1", CORRUPT),
    "footer garbage": (_garbage_footer, CORRUPT),
    "bit flip in the footer": (_footer_flipped, CORRUPT_OR_HARMLESS),
    "bit flip in data": (_data_flipped, UNNOTICED),
    "200 zeroed bytes": (_zeroed, UNNOTICED),
    "trailing junk": (lambda: plain() + b"junk", CORRUPT),
    "file after itself": (lambda: plain() * 2, CORRUPT_OR_HARMLESS),
    "dictionary index out of range": (_dictionary_index_out_of_range, CORRUPT),
    "wrong levels": (_wrong_levels, CORRUPT),
    "encrypted footer": (lambda: plain()[:-4] + b"PARE", CORRUPT),
    "unsupported codec": (_lzo, CORRUPT),
    "nested ids": (_nested_ids, DRIFT),
    "duplicate column names": (_twice_named, DRIFT),
    "names that differ by case": (_named_by_case, DRIFT),
    "extension type with a pickle": (_extension_type, HARMLESS),
    "10,000 columns": (_ten_thousand_columns, TOO_LARGE),
    "a million row groups": (_million_row_groups, TOO_LARGE),
    "2^63 - 1 rows": (_most_rows_there_are, TOO_LARGE),
    "decompression bomb": (_bomb, TOO_LARGE),
    "row groups that share their pages": (_claimed_over_and_over, TOO_LARGE),
    "a page of 10^9 values": (_billion_values, CORRUPT),
    "lying statistics": (_lying_statistics, HARMLESS),
    "a text of 2 GB": (_value_of_two_gigabytes, TOO_LARGE),
    "invalid UTF-8": (_not_utf8, ROWS_REFUSED),
}


def verdict_is_right(wanted: str, found: str) -> bool:
    """`found`: an error's name, HARMLESS or ROWS_REFUSED."""
    return found in (CORRUPT, HARMLESS) if wanted == CORRUPT_OR_HARMLESS else found == wanted
