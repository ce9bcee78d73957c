"""The served model's tables, opened by every process that recommends, and refused where they hold no numbers."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import ModelNotFinite

NUMBERS_AT_ONCE = 4 * 2**20


def load_tables(path: str) -> dict[str, Tensor]:
    """Every table of the file, mapped, not copied. Raises ModelNotFinite, which names how many rows of which."""
    tables = load_file(path)
    broken = {name: count for name, table in tables.items() if (count := rows_not_finite(table))}
    if broken:
        found = ", ".join(f"{count:,} of the {len(tables[name]):,} rows of {name}" for name, count in broken.items())
        raise ModelNotFinite(
            f"the served model holds numbers that are none or infinite: {found}. Every list that they enter would be "
            "wrong. Nothing was published; the live recommendations stay. Remove the work folder's train-* and run "
            "again; if it stays so, lower train.learning_rate."
        )
    return tables


def rows_not_finite(table: Tensor) -> int:
    """How many rows hold a number that is none or infinite; a few rows at a time."""
    table_RD = table.reshape(len(table), -1)
    rows = max(1, NUMBERS_AT_ONCE // max(1, table_RD.shape[1]))
    return sum(int((~torch.isfinite(part).all(dim=1)).sum()) for part in table_RD.split(rows))
