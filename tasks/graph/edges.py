"""The arrays that ranks and evaluation read, one .npy a field, memory-mapped by who reads them:

liked_train, liked_all             CSR of likes by user: what the judged and the served fit learn from
liked_validation, liked_test       CSR of the likes that choose the epochs, and that judge
popular_train, popular_all         CSR of every like, only where settings keep some of them out of what fits learn from
                                   (tasks/graph/core.py): what popular lists and rivals count
seen_before_validation, _test      CSR of what a user had met before: left out of the lists that are judged
seen_all                           CSR of everything a user has met: left out of the lists that are served
adjacency_train, adjacency_all     the normalised graphs of the two fits
seen_at, liked_at                  the latest event of each entry of seen_all and of every like, microseconds since 1970
liked_train_at                     the first like of each train like, likewise: a later event may be of after the cut,
                                   and what is measured must not know of it
item_first_seen                    each item's first event, likewise
item_rank                          each item row's place in the order of ids: equal scores are ordered by it
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from models.arrays import GrowingArrays
from models.graph import Csr, adjacency_pieces, by_users, load_csr, load_likes
from tasks.config import GraphConfig
from tasks.errors import GraphTooSmall, InputTooLarge
from tasks.graph.core import LeftOut, likes_to_learn
from tasks.graph.pairs import REGISTRY_ROWS

FITS = ("train", "all")
PART = pl.col("part")
PAIRS_OF = {
    "liked_train": PART == "train",
    "liked_validation": PART == "validation",
    "liked_test": PART == "test",
    "liked_all": pl.col("liked"),
    "seen_before_validation": pl.col("seen_before_validation"),
    "seen_before_test": pl.col("seen_before_test"),
    "seen_all": pl.lit(True),
}
TIMES_OF = {
    "seen_at": ("timestamp_us", pl.lit(True)),
    "liked_at": ("timestamp_us", pl.col("liked")),
    "liked_train_at": ("first_liked_us", PART == "train"),
}


def write_interactions(
    blocks: Iterator[tuple[range, pl.DataFrame]], folder: Path, *, num_users: int, num_items: int
) -> None:
    """All arrays but those of the graph, from users and their split pairs (tasks/graph/split.py), by row."""
    counts = {name: np.zeros(num_users + 1, np.int64) for name in PAIRS_OF}
    first_seen_I = np.full(num_items, np.iinfo(np.int64).max)
    types: dict[str, type[np.generic]] = {f"{name}.indices": np.int32 for name in PAIRS_OF}
    with GrowingArrays(folder, types | dict.fromkeys(TIMES_OF, np.int64)) as arrays:
        for users, parted in blocks:
            for name, condition in PAIRS_OF.items():
                pairs = parted.filter(condition)
                arrays.append(f"{name}.indices", pairs["item_index"].to_numpy())
                per_user = np.bincount(pairs["user_index"].to_numpy() - users.start, minlength=len(users))
                counts[name][users.start + 1 : users.stop + 1] = per_user
            for name, (time, condition) in TIMES_OF.items():
                arrays.append(name, parted.filter(condition)[time].to_numpy())
            first = parted.group_by("item_index").agg(pl.col("first_seen_us").min())
            items = first["item_index"].to_numpy()
            first_seen_I[items] = np.minimum(first_seen_I[items], first["first_seen_us"].to_numpy())
    for name, count_U in counts.items():
        np.save(folder / f"{name}.indptr.npy", np.cumsum(count_U))
    np.save(folder / "item_first_seen.npy", first_seen_I)
    # Rows are numbered in the order of ids today; readers of this array need not know that.
    np.save(folder / "item_rank.npy", np.arange(num_items, dtype=np.int32))


def leave_out(folder: Path, num_items: int, settings: GraphConfig) -> dict[str, LeftOut]:
    """Take from each fit's likes what settings keep out of the graph. Raises GraphTooSmall where nothing is left."""
    left_out = {}
    for fit in FITS:
        likes, at_E = load_likes(folder, fit)
        is_kept_E, left_out[fit] = likes_to_learn(likes, at_E, num_items, settings)
        if not left_out[fit].likes:
            continue
        if not is_kept_E.any():
            raise GraphTooSmall(
                f"of {len(at_E):,} likes none is left where every user has {settings.user_core:,} and every item "
                f"{settings.item_core:,}. Nothing was published. Lower graph.user_core or graph.item_core."
            )
        for field in ("indptr", "indices"):
            (folder / f"liked_{fit}.{field}.npy").rename(folder / f"popular_{fit}.{field}.npy")
        _write_some(folder, f"liked_{fit}", likes, is_kept_E)
    return left_out


def _write_some(folder: Path, name: str, likes: Csr, is_kept_E: np.ndarray) -> None:
    counts = [np.zeros(1, np.int64)]
    with GrowingArrays(folder, {f"{name}.indices": np.int32}) as arrays:
        for users, block in by_users(likes):
            kept = is_kept_E[int(likes.indptr[users.start]) : int(likes.indptr[users.stop])]
            arrays.append(f"{name}.indices", block.indices[kept])
            user = np.repeat(np.arange(block.num_rows), block.counts())[kept]
            counts.append(np.bincount(user, minlength=block.num_rows))
    np.save(folder / f"{name}.indptr.npy", np.cumsum(np.concatenate(counts)))


def write_adjacencies(folder: Path, num_items: int) -> None:
    """Raises InputTooLarge where a graph has more edges than its row pointers can count."""
    for fit in FITS:
        name = f"adjacency_{fit}"
        try:
            indptr, pieces = adjacency_pieces(load_csr(folder, f"liked_{fit}"), num_items)
        except OverflowError as error:
            raise InputTooLarge(
                f"{error}. Nothing was published. Set ingest.window_days lower, or graph.user_core, graph.item_core or "
                "graph.likes_per_user_at_most so that fewer likes are in the graph."
            ) from None
        with GrowingArrays(folder, {f"{name}.indices": np.int32, f"{name}.values": np.float32}) as arrays:
            for indices, values in pieces:
                arrays.append(f"{name}.indices", indices)
                arrays.append(f"{name}.values", values)
        np.save(folder / f"{name}.indptr.npy", indptr)


def fingerprint_of_graph(folder: Path) -> str:
    """SHA-256 over every file's name and SHA-256, but for what the registry calls the rows: the same events give the
    same graph whatever nights were before."""
    paths = sorted(path for path in folder.iterdir() if not path.name.endswith(REGISTRY_ROWS))
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(_sha256, paths))
    names = (path.name.encode() + b"\0" + digest for path, digest in zip(paths, digests, strict=True))
    return hashlib.sha256(b"".join(names)).hexdigest()


def _sha256(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
