"""The user-item graph as arrays: interactions by user, and the symmetric normalised adjacency, both in CSR.

Arrays are stored as .npy and opened memory-mapped, so that all ranks of a machine share one page cache.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Csr:
    """The items of every user: `indices[indptr[u]:indptr[u + 1]]`, ascending. indptr is int64, indices int32."""

    indptr: npt.NDArray[np.int64]
    indices: Int32

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1

    def counts(self) -> npt.NDArray[np.int64]:
        return np.diff(self.indptr)

    def rows_of(self, rows: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], Int32]:
        """The entries of the chosen rows, one after another: (position in `rows`, column) for each entry."""
        starts = self.indptr[rows]
        counts = self.indptr[np.asarray(rows) + 1] - starts
        position = np.repeat(np.arange(len(rows)), counts)
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.indices[np.repeat(starts, counts) + offset]


@dataclass(frozen=True)
class Adjacency:
    """D^-1/2 A D^-1/2 of the bipartite graph in CSR: N = U + I rows, both directions of each edge (2E entries).

    LightGCN has no self-loops (He et al. 2020, eq. 7). A node without edges has an empty row, hence no NaN.
    """

    indptr: Int32
    indices: Int32
    values: Float32

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1


def interactions_by_user(user_E: npt.NDArray[np.integer], item_E: npt.NDArray[np.integer], num_users: int) -> Csr:
    """CSR of distinct (user, item) pairs in any order."""
    # One number a pair sorts several times faster than two keys, and both come out of it again.
    pair_E = np.sort(user_E.astype(np.int64) << 32 | item_E.astype(np.int64))
    indptr = np.zeros(num_users + 1, dtype=np.int64)
    np.cumsum(np.bincount(user_E, minlength=num_users), out=indptr[1:])
    return Csr(indptr, (pair_E & 0xFFFFFFFF).astype(np.int32))


def normalised_adjacency(liked: Csr, num_items: int) -> Adjacency:
    """The adjacency of the users' likes, each edge weighted 1 / sqrt(degree of its user x degree of its item).

    Raises OverflowError where 2E does not fit int32 (more than 1.07 billion likes).
    """
    num_users, num_edges = liked.num_rows, len(liked.indices)
    if 2 * num_edges > np.iinfo(np.int32).max:
        raise OverflowError(
            f"{num_edges:,} likes make {2 * num_edges:,} entries, int32 row pointers hold 2,147,483,647"
        )
    user_degree, item_degree = liked.counts(), np.bincount(liked.indices, minlength=num_items)
    root_U, root_I = np.sqrt(np.maximum(user_degree, 1.0)), np.sqrt(np.maximum(item_degree, 1.0))
    weight_E = (1.0 / (np.repeat(root_U, user_degree) * root_I[liked.indices])).astype(np.float32)
    by_user = sp.csr_matrix((weight_E, liked.indices, liked.indptr), shape=(num_users, num_items))
    by_item = by_user.tocsc()  # a counting sort: users stay ascending within an item
    indptr = np.concatenate([liked.indptr, num_edges + by_item.indptr[1:]]).astype(np.int32)
    indices = np.concatenate([liked.indices + np.int32(num_users), by_item.indices]).astype(np.int32, copy=False)
    return Adjacency(indptr, indices, np.concatenate([weight_E, by_item.data]))


def save_arrays(folder: str | Path, name: str, arrays: Csr | Adjacency) -> None:
    """Write `<name>.<field>.npy` for each field."""
    for field, array in vars(arrays).items():
        np.save(Path(folder) / f"{name}.{field}.npy", array)


def load_csr(folder: str | Path, name: str) -> Csr:
    return Csr(*(_open(folder, name, field) for field in ("indptr", "indices")))


def load_adjacency(folder: str | Path, name: str) -> Adjacency:
    return Adjacency(*(_open(folder, name, field) for field in ("indptr", "indices", "values")))


def _open(folder: str | Path, name: str, field: str) -> np.ndarray:
    path = Path(folder) / f"{name}.{field}.npy"
    # An empty array cannot be mapped; it costs nothing to read.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)
