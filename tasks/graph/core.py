"""Which likes the fits learn from: a user's latest ones, and of those the k-core.

A user with thousands of likes says little with each of them, and their row costs as much as a thousand others'. An item
that few ever liked teaches the graph noise, and users with too few likes are better folded in. The k-core is what is
left when users with fewer than user_core likes and items with fewer than item_core go, again and again until nothing
changes: the largest subgraph in which everybody has so many. What goes here goes from the graph alone: it stays met,
it stays in popular lists and in what is judged.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph import Csr, by_users
from tasks.config import GraphConfig


@dataclass(frozen=True)
class LeftOut:
    """Of those who have a like. `likes` are all that the graph lacks, `over_cap` those beyond a user's latest."""

    users: int = 0
    items: int = 0
    likes: int = 0
    over_cap: int = 0
    capped_users: int = 0


def likes_to_learn(
    likes: Csr, at_E: npt.NDArray[np.int64], num_items: int, settings: GraphConfig
) -> tuple[npt.NDArray[np.bool_], LeftOut]:
    """(E,) which likes the graph has. Memory: a byte a like, 60 for each of those who have more than the cap."""
    is_kept_E = np.ones(len(likes.indices), np.bool_)
    all_U, all_I = _degrees(is_kept_E, likes, num_items)
    capped_users = _keep_latest(is_kept_E, likes, at_E, settings.likes_per_user_at_most)
    over_cap = len(is_kept_E) - int(np.count_nonzero(is_kept_E))
    while True:
        degree_U, degree_I = _degrees(is_kept_E, likes, num_items)
        stays_U, stays_I = degree_U >= settings.user_core, degree_I >= settings.item_core
        if stays_U[degree_U > 0].all() and stays_I[degree_I > 0].all():
            break
        for users, block in by_users(likes):
            of_block = slice(int(likes.indptr[users.start]), int(likes.indptr[users.stop]))
            is_kept_E[of_block] &= np.repeat(stays_U[users], block.counts()) & stays_I[block.indices]
    return is_kept_E, LeftOut(
        users=int(np.count_nonzero((all_U > 0) & (degree_U == 0))),
        items=int(np.count_nonzero((all_I > 0) & (degree_I == 0))),
        likes=len(is_kept_E) - int(np.count_nonzero(is_kept_E)),
        over_cap=over_cap,
        capped_users=capped_users,
    )


def _keep_latest(is_kept_E: npt.NDArray[np.bool_], likes: Csr, at_E: npt.NDArray[np.int64], at_most: int) -> int:
    """Of one instant the items of smaller rows. How many users had more."""
    over = np.flatnonzero(likes.counts() > at_most)
    counts = likes.counts()[over]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    entry = np.repeat(likes.indptr[over], counts) + within
    newest_first = np.lexsort((likes.indices[entry], -at_E[entry], np.repeat(over, counts)))
    is_kept_E[entry[newest_first[within >= at_most]]] = False
    return len(over)


def _degrees(is_kept_E: npt.NDArray[np.bool_], likes: Csr, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """How many kept likes each user and each item has."""
    degree_U, degree_I = np.zeros(likes.num_rows, np.int64), np.zeros(num_items, np.int64)
    for users, block in by_users(likes):
        kept = is_kept_E[int(likes.indptr[users.start]) : int(likes.indptr[users.stop])]
        user = np.repeat(np.arange(block.num_rows), block.counts())[kept]
        degree_U[users] = np.bincount(user, minlength=block.num_rows)
        degree_I += np.bincount(block.indices[kept], minlength=num_items)
    return degree_U, degree_I
