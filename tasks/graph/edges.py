"""The arrays that ranks and evaluation read, one .npy a field, memory-mapped by who reads them:

liked_train, liked_all             CSR of likes by user: what the judged and the served fit learn from
liked_validation, liked_test       CSR of the likes that choose the epochs, and that judge
seen_before_validation, _test      CSR of what a user had met before: left out of the lists that are judged
seen_all                           CSR of everything a user has met: left out of the lists that are served
adjacency_train, adjacency_all     the normalised graphs of the two fits
seen_at, liked_at                  the latest event of each entry of seen_all and liked_all, microseconds since 1970 UTC
liked_train_at                     the first like of each entry of liked_train, likewise: a later event may be of after
                                   the cut, and what is measured must not know of it
item_first_seen                    each item's first event, likewise
item_rank                          each item row's place in the order of ids: equal scores are ordered by it
"""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from models.graph import Csr, interactions_by_user, normalised_adjacency, save_arrays


def write_graph(parted: pl.DataFrame, folder: Path, *, num_users: int, num_items: int) -> str:
    """Write every array of the split pairs (tasks/graph/split.py) and return their fingerprint."""

    def csr(keep: pl.Expr) -> Csr:
        pairs = parted.filter(keep)
        return interactions_by_user(pairs["user_index"].to_numpy(), pairs["item_index"].to_numpy(), num_users)

    part = pl.col("part")
    interactions = {
        "liked_train": csr(part == "train"),
        "liked_validation": csr(part == "validation"),
        "liked_test": csr(part == "test"),
        "liked_all": csr(pl.col("liked")),
        "seen_before_validation": csr(pl.col("seen_before_validation")),
        "seen_before_test": csr(pl.col("seen_before_test")),
        "seen_all": csr(pl.lit(True)),
    }
    for name, arrays in interactions.items():
        save_arrays(folder, name, arrays)
    _save_times(parted, folder)
    for fit in ("train", "all"):
        save_arrays(folder, f"adjacency_{fit}", normalised_adjacency(interactions[f"liked_{fit}"], num_items))
    # Rows are numbered in the order of ids today; readers of this array need not know that.
    np.save(folder / "item_rank.npy", np.arange(num_items, dtype=np.int32))
    return _fingerprint(folder)


def _save_times(parted: pl.DataFrame, folder: Path) -> None:
    by_pair = parted.sort("user_index", "item_index")  # the order of a CSR's entries
    np.save(folder / "seen_at.npy", by_pair["timestamp_us"].to_numpy())
    np.save(folder / "liked_at.npy", by_pair.filter("liked")["timestamp_us"].to_numpy())
    in_train = by_pair.filter(pl.col("part") == "train")
    np.save(folder / "liked_train_at.npy", in_train["first_liked_us"].to_numpy())
    first = parted.group_by("item_index").agg(pl.col("first_seen_us").min()).sort("item_index")
    np.save(folder / "item_first_seen.npy", first["first_seen_us"].to_numpy())


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
