"""Tonight's pairs, from the registry's rows to rows of tonight: row r is the r-th smallest id of those with a pair.

The registry numbers ids for ever and in the order in which they came; tonight's tables hold only who and what is there
tonight, in the order of ids (strings sort by bytes). So the same events give the same graph whatever nights were
before, and a registry full of people who left costs no memory. user_registry_rows.npy and item_registry_rows.npy lead
back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import let_go, open_array

PAIRS_AT_ONCE = 2_000_000  # about 300 bytes each while they are split
REGISTRY_ROWS = "_registry_rows.npy"
OF_PAIRS = ("timestamp_us", "liked", "first_seen_us", "first_liked_us")


@dataclass(frozen=True)
class Pairs:
    """The arrays of contracts.Interactions, memory-mapped, and the order in which tonight reads them."""

    user_ids: pl.Series  # U, ascending
    item_ids: pl.Series  # I, ascending
    user_registry_rows: npt.NDArray[np.int32]  # of each user of tonight
    item_registry_rows: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]  # of the arrays, by the registry's order of users
    place_U: npt.NDArray[np.int64]  # where each user of tonight stands in it
    item_row: npt.NDArray[np.int32]
    columns: dict[str, np.ndarray]

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_row)

    def like_times(self) -> Iterator[npt.NDArray[np.int64]]:
        """When each liked pair was first liked, piece by piece, in no order of use."""
        for start in range(0, len(self), PAIRS_AT_ONCE):
            piece = slice(start, start + PAIRS_AT_ONCE)
            yield self.columns["first_liked_us"][piece][self.columns["liked"][piece]]
            let_go(*self.columns.values())

    def blocks(self, pairs_at_once: int = PAIRS_AT_ONCE) -> Iterator[tuple[range, pl.DataFrame]]:
        """Users, and their pairs as user_index, item_index (int32), timestamp_us, liked, first_seen_us and
        first_liked_us (null: never), sorted by the two rows. One user at least, however many pairs they have."""
        item_index = np.zeros(int(self.item_registry_rows.max(initial=-1)) + 1, dtype=np.int32)
        item_index[self.item_registry_rows] = np.arange(self.num_items, dtype=np.int32)
        counts_U = np.diff(self.indptr)[self.place_U]
        ends_U = np.cumsum(counts_U)
        start = 0
        while start < self.num_users:
            read = ends_U[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends_U, read + pairs_at_once, side="right")))
            yield range(start, stop), self._block(start, stop, counts_U[start:stop], item_index)
            let_go(self.item_row, *self.columns.values())
            start = stop

    def _block(self, start: int, stop: int, counts: npt.NDArray[np.int64], item_index: np.ndarray) -> pl.DataFrame:
        user = np.repeat(np.arange(start, stop, dtype=np.int32), counts)
        place = self._places(self.place_U[start:stop], counts)
        item = item_index[self.item_row[place]]
        frame = pl.DataFrame(
            {"user_index": user, "item_index": item, **{name: self.columns[name][place] for name in OF_PAIRS}}
        ).with_columns(first_liked_us=pl.when(pl.col("first_liked_us") >= 0).then("first_liked_us"))
        # Items stand in the order of the registry; where that is the order of ids, as in a first night, all is sorted.
        out_of_order = (item[1:] <= item[:-1]) & (user[1:] == user[:-1])
        return frame.sort("user_index", "item_index") if out_of_order.any() else frame

    def _places(self, users: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> "slice | npt.NDArray[np.int64]":
        """Of the pairs of some users, one user after another; a slice where they stand together already."""
        starts = self.indptr[users]
        if (np.diff(users) == 1).all():
            return slice(int(starts[0]), int(starts[0] + counts.sum()))
        return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def open_pairs(folder: Path) -> Pairs:
    """Of the folder of contracts.Interactions. Memory: the ids, and 30 bytes for each user and item."""
    users, items = (pl.read_parquet(folder / f"{name}s.parquet") for name in ("user", "item"))
    place_U = users["user_id"].arg_sort().to_numpy().astype(np.int64)
    order_I = items["item_id"].arg_sort()
    return Pairs(
        user_ids=users["user_id"].gather(place_U),
        item_ids=items["item_id"].gather(order_I),
        user_registry_rows=users["user_row"].to_numpy()[place_U],
        item_registry_rows=items["item_row"].gather(order_I).to_numpy(),
        indptr=np.load(folder / "indptr.npy"),
        place_U=place_U,
        item_row=open_array(folder / "item_row.npy"),
        columns={name: open_array(folder / f"{name}.npy") for name in OF_PAIRS},
    )


def write_pairs(seen: pl.DataFrame, folder: Path) -> Path:
    """The arrays of contracts.Interactions from a frame with user_id, item_id, timestamp_us, liked, first_seen_us and
    first_liked_us: for those who have pairs of their own, small enough for a frame. Rows are in the order of ids."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in ("user", "item"):
        ids = seen[f"{name}_id"].unique().sort()
        numbered = pl.DataFrame({f"{name}_row": np.arange(len(ids), dtype=np.int32), f"{name}_id": ids})
        numbered.write_parquet(folder / f"{name}s.parquet")
        rows[name] = numbered
    pairs = seen.join(rows["user"], on="user_id").join(rows["item"], on="item_id").sort("user_row", "item_row")
    pairs = pairs.with_columns(pl.col("first_liked_us").fill_null(-1))
    counts = np.bincount(pairs["user_row"].to_numpy(), minlength=len(rows["user"]))
    np.save(folder / "user_rows.npy", rows["user"]["user_row"].to_numpy())
    np.save(folder / "indptr.npy", np.append(0, np.cumsum(counts)))
    np.save(folder / "item_row.npy", pairs["item_row"].to_numpy())
    for name in OF_PAIRS:
        np.save(folder / f"{name}.npy", pairs[name].to_numpy())
    return folder


def save_ids(folder: Path, pairs: Pairs) -> None:
    """Who and what tonight's rows are, and which rows of the registry."""
    for name, ids, rows in (
        ("user", pairs.user_ids, pairs.user_registry_rows),
        ("item", pairs.item_ids, pairs.item_registry_rows),
    ):
        pl.DataFrame({f"{name}_id": ids}).write_parquet(folder / f"{name}_ids.parquet", compression="zstd")
        np.save(folder / f"{name}{REGISTRY_ROWS}", rows)
