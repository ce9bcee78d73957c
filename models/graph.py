"""The user-item graph as arrays: interactions by user, and the symmetric normalised adjacency, both in CSR.

Arrays are stored as .npy and opened memory-mapped, so that all ranks of a machine share one page cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from models.arrays import let_go, open_array

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

LIKES_AT_ONCE = 4_000_000


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
    indptr, pieces = adjacency_pieces(liked, num_items)
    indices, values = zip(*pieces, strict=True) if len(liked.indices) else ((), ())
    none = np.empty(0, np.int32)
    return Adjacency(indptr, np.concatenate([none, *indices]), np.concatenate([none.astype(np.float32), *values]))


def adjacency_pieces(
    liked: Csr, num_items: int, likes_at_once: int = LIKES_AT_ONCE
) -> tuple[Int32, Iterator[tuple[Int32, Float32]]]:
    """Its row pointers, and piece by piece its indices and values: first the users' rows, then the items'.

    Memory: 8 bytes a node, and about 60 for each like at once; the items' rows of so many likes are gathered in one
    pass over all likes. Raises OverflowError as normalised_adjacency.
    """
    num_edges = len(liked.indices)
    if 2 * num_edges > np.iinfo(np.int32).max:
        raise OverflowError(
            f"{num_edges:,} likes make {2 * num_edges:,} entries, int32 row pointers hold 2,147,483,647"
        )
    degree_I = np.zeros(num_items, np.int64)
    for entries in _slices(num_edges, likes_at_once):
        degree_I += np.bincount(liked.indices[entries], minlength=num_items)
    indptr_I = np.append(0, np.cumsum(degree_I))
    root_U, root_I = (np.sqrt(np.maximum(degree, 1.0)) for degree in (liked.counts(), degree_I))

    def pieces() -> Iterator[tuple[Int32, Float32]]:
        for users, likes in by_users(liked, likes_at_once):
            weight = 1.0 / (np.repeat(root_U[users], np.diff(likes.indptr)) * root_I[likes.indices])
            yield likes.indices + np.int32(liked.num_rows), weight.astype(np.float32)
        for items in _ranges(indptr_I, 4 * likes_at_once):
            user_e = _users_of(items, liked, indptr_I, likes_at_once)
            weight = 1.0 / (root_U[user_e] * np.repeat(root_I[items], degree_I[items]))
            yield user_e, weight.astype(np.float32)

    return np.concatenate([liked.indptr, num_edges + indptr_I[1:]]).astype(np.int32), pieces()


def _users_of(items: slice, liked: Csr, indptr_I: npt.NDArray[np.int64], likes_at_once: int) -> Int32:
    """Who likes these neighbouring items, item after item, ascending within an item: a counting sort."""
    next_I = indptr_I[items].copy() - indptr_I[items.start]
    user_e = np.empty(int(indptr_I[items.stop] - indptr_I[items.start]), np.int32)
    for users, likes in by_users(liked, likes_at_once):
        ones = np.broadcast_to(np.int8(1), len(likes.indices))
        block = sp.csr_matrix((ones, likes.indices, likes.indptr), shape=(likes.num_rows, len(indptr_I) - 1))
        by_item = block.tocsc()
        starts, ends = by_item.indptr[items.start : items.stop], by_item.indptr[items.start + 1 : items.stop + 1]
        counts = ends - starts
        own = by_item.indices[starts[0] : ends[-1]]
        user_e[np.repeat(next_I - (starts - starts[0]), counts) + np.arange(len(own))] = own + np.int32(users.start)
        next_I += counts
    return user_e


def by_users(liked: Csr, likes_at_once: int = LIKES_AT_ONCE) -> Iterator[tuple[slice, Csr]]:
    """Neighbouring users, and their rows: so many likes together, or one user's."""
    for users in _ranges(liked.indptr, likes_at_once):
        entries = slice(int(liked.indptr[users.start]), int(liked.indptr[users.stop]))
        indptr = liked.indptr[users.start : users.stop + 1] - liked.indptr[users.start]
        yield users, Csr(indptr, np.array(liked.indices[entries]))
        let_go(liked.indices)


def _ranges(indptr: npt.NDArray[np.int64], at_once: int) -> Iterator[slice]:
    """Neighbouring rows that have so many entries together at most, but one row at least."""
    start, num_rows = 0, len(indptr) - 1
    while start < num_rows:
        stop = int(np.searchsorted(indptr, indptr[start] + at_once, side="right")) - 1
        stop = min(max(stop, start + 1), num_rows)
        yield slice(start, stop)
        start = stop


def _slices(count: int, at_once: int) -> Iterator[slice]:
    return (slice(start, start + at_once) for start in range(0, count, at_once))


def save_arrays(folder: str | Path, name: str, arrays: Csr | Adjacency) -> None:
    """Write `<name>.<field>.npy` for each field."""
    for field, array in vars(arrays).items():
        np.save(Path(folder) / f"{name}.{field}.npy", array)


def load_csr(folder: str | Path, name: str) -> Csr:
    return Csr(*(open_array(Path(folder) / f"{name}.{field}.npy") for field in ("indptr", "indices")))


def load_adjacency(folder: str | Path, name: str) -> Adjacency:
    return Adjacency(*(open_array(Path(folder) / f"{name}.{field}.npy") for field in ("indptr", "indices", "values")))


def load_likes(folder: str | Path, fit: str) -> tuple[Csr, npt.NDArray[np.int64]]:
    """Every like of `train` or `all`, and its moment (E,) in microseconds: what popular lists and rivals count.

    liked_<fit> is what the fit learns from, which may be less (tasks/graph/core.py).
    """
    name = f"popular_{fit}" if (Path(folder) / f"popular_{fit}.indptr.npy").exists() else f"liked_{fit}"
    at = "liked_at" if fit == "all" else f"liked_{fit}_at"
    return load_csr(folder, name), open_array(Path(folder) / f"{at}.npy")
