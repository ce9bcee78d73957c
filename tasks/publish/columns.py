"""What columns a published table has, read from the footers of the finished files before anything is uploaded."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import CountsDisagree, GateRefused
from tasks.publish.manifest import OUTPUT_FORMAT, Column

LISTS = "recommendations"
# Patterns of type names. An id has the type it came with; SAME stands for the one that item_id has.
ID = r"u?int(8|16|32|64)|string"
SAME = "SAME"
COLUMNS = {
    LISTS: {
        "user_id": ID,
        "rank": "int32",
        "item_id": ID,
        "score": "float32",
        "tier": "string",
        "reasons": f"list<struct<kind: string, item_id: {SAME}, share: float32>>",
    },
    "similar_items": {"item_id": ID, "rank": "int32", "similar_item_id": SAME, "score": "float32"},
    "user_embeddings": {"user_id": ID, "embedding": r"float32\[\d+\]"},
    "item_embeddings": {"item_id": ID, "embedding": r"float32\[\d+\]"},
}


def columns_of(table: str, files: Sequence[tuple[str, int]]) -> tuple[Column, ...]:
    """The columns that all `files` of a table have, given as (path, rows that were counted).

    Raises GateRefused where they are not those of the format or not alike, CountsDisagree where rows went missing.
    """
    found = set()
    for path, rows in files:
        with pq.ParquetFile(path) as file:
            found.add(tuple((field.name, type_name(field.type)) for field in file.schema_arrow))
            if file.metadata.num_rows != rows:
                raise CountsDisagree(
                    f"{path} has {file.metadata.num_rows} rows, {rows} were counted. Nothing was published."
                )
    columns = found.pop() if len(found) == 1 else ()
    if not _as_of_the_format(table, dict(columns)):
        raise GateRefused(
            f"the {len(files)} files of {table} do not all have the columns of output format {OUTPUT_FORMAT}, "
            f"{', '.join(COLUMNS[table])}, with the types it says. Nothing was published; the live recommendations "
            "stay. This is a fault in the job: report it."
        )
    return tuple(Column(name=name, type=kind) for name, kind in columns)


def _as_of_the_format(table: str, columns: dict[str, str]) -> bool:
    item = columns.get("item_id", "")
    wanted = {name: kind.replace(SAME, item) for name, kind in COLUMNS[table].items()}
    return list(columns) == list(wanted) and all(re.fullmatch(wanted[name], kind) for name, kind in columns.items())


def type_name(kind: pa.DataType) -> str:
    """As in int64, string, list<struct<kind: string>>, float32[129]: the same whoever wrote the file."""
    if pa.types.is_fixed_size_list(kind):
        return f"{type_name(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {type_name(field.type)}' for field in kind)}>"
    return {"large_string": "string", "string_view": "string", "float": "float32", "double": "float64"}.get(
        str(kind), str(kind)
    )
