"""From what the business calls a user or an item to a row number, and back.

Row r is the r-th smallest id, so the same events give the same rows whatever their order. Strings sort by bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl


def read_pairs(folder: Path) -> pl.DataFrame:
    """The pairs of contracts.Interactions as one frame with the ids, sorted by them; null where nothing was liked."""
    columns = ("item_row", "timestamp_us", "liked", "first_seen_us", "first_liked_us")
    counts = np.diff(np.load(folder / "indptr.npy"))
    user_rows = np.repeat(np.load(folder / "user_rows.npy"), counts)
    pairs = pl.DataFrame({"user_row": user_rows, **{name: np.load(folder / f"{name}.npy") for name in columns}})
    for name in ("user", "item"):
        ids = pl.read_parquet(folder / f"{name}s.parquet")
        pairs = pairs.join(ids, on=f"{name}_row", how="left", maintain_order="left")
    first_liked = pl.when(pl.col("first_liked_us") >= 0).then("first_liked_us")
    return pairs.select("user_id", "item_id", *columns[1:4], first_liked).sort("user_id", "item_id")


def number_ids(seen: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """The pairs with user_index and item_index (int32) in place of the ids, in the same order; and the ids by row."""
    user_ids, item_ids = (seen[name].unique().sort() for name in ("user_id", "item_id"))
    pairs = seen
    for name, ids in (("user", user_ids), ("item", item_ids)):
        rows = pl.DataFrame({f"{name}_id": ids}).with_row_index(f"{name}_index").cast({f"{name}_index": pl.Int32})
        pairs = pairs.join(rows, on=f"{name}_id", how="left", maintain_order="left")
    return pairs.drop("user_id", "item_id"), user_ids, item_ids


def save_ids(folder: Path, user_ids: pl.Series, item_ids: pl.Series) -> None:
    for ids in (user_ids, item_ids):
        pl.DataFrame({ids.name: ids}).write_parquet(folder / f"{ids.name}s.parquet", compression="zstd")
