"""Exact top-K in blocks of users: never a matrix of users x items.

The order is (score descending, item id ascending). Items are compared by their rank in id order, not by their row.
The lists are exact for the scores of their block. A matrix product's last bit can depend on the block's shape, so
another block size can order two scores differently that differ by rounding alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.graph import Csr

# Users' rows in, (B, I) float32 scores out, fresh memory that may be written to; -inf where there is no opinion.
Scorer = Callable[[npt.NDArray[np.int64]], Tensor]
NO_ITEM = -1


@dataclass(frozen=True)
class Lists:
    """K items for each of B users, best first. Missing ends hold NO_ITEM and -inf."""

    users: npt.NDArray[np.int64]  # (B,)
    item_BK: npt.NDArray[np.int32]
    score_BK: npt.NDArray[np.float32]
    filled_BK: npt.NDArray[np.bool_]  # True where the fallback's item stands


# Peak memory of a block, per user and item: the scores (4), their copy in id order or the fallback's (4), and where
# ties at the K-th place are sorted a quarter of the users at a time (4); item-kNN needs 17 for its scores alone,
# a sparse product of float32 and int64, the dense copy and a mask. Held to it by a test that measures.
BYTES_PER_SCORE = 20


def users_per_block(num_items: int, block_bytes: int) -> int:
    return max(1, block_bytes // (BYTES_PER_SCORE * max(1, num_items)))


def top_k(
    scorer: Scorer,
    fallback_score_I: npt.NDArray[np.float32],
    *,
    users: npt.NDArray[np.int64],
    seen: Csr,
    k: int,
    item_rank_I: npt.NDArray[np.integer],
    block_bytes: int = 256 * 2**20,
) -> Iterator[Lists]:
    """Blocks of lists for `users`, in their order. Seen items never stand in a list.

    Where the scorer has an opinion on fewer than K unseen items, the list is filled with the best of
    `fallback_score_I` (finite for every item), so it is shorter than K only if the user has seen nearly everything.
    """
    num_items = len(item_rank_I)
    by_rank = np.argsort(item_rank_I)
    block = users_per_block(num_items, block_bytes)
    for start in range(0, len(users), block):
        rows = users[start : start + block]
        score_BI = scorer(rows)
        item_BK, score_BK = _best(score_BI, rows, seen, k, by_rank)
        filled_BK = np.zeros_like(item_BK, dtype=bool)
        short = np.flatnonzero((item_BK == NO_ITEM).any(axis=1))
        for position in _chunks(short, block):
            _fill(position, item_BK, score_BK, filled_BK, fallback_score_I, rows, seen, by_rank)
        yield Lists(rows, item_BK, score_BK, filled_BK)


def _best(score_BI: Tensor, rows: np.ndarray, seen: Csr, k: int, by_rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K best finite scores of each row, ties by id."""
    position, item = seen.rows_of(rows)
    score_BI[torch.from_numpy(position), torch.from_numpy(item.astype(np.int64))] = -torch.inf
    if not np.array_equal(by_rank, np.arange(len(by_rank))):
        score_BI = score_BI[:, torch.from_numpy(by_rank)]
    score_BI += 0.0  # -0.0 becomes 0.0, or the two would not count as a tie
    width = min(k, score_BI.shape[1])
    score_BK, column_BK = _select(score_BI, width)
    item_BK = by_rank[column_BK].astype(np.int32)
    item_BK[np.isneginf(score_BK)] = NO_ITEM
    padding = ((0, 0), (0, k - width))
    return np.pad(item_BK, padding, constant_values=NO_ITEM), np.pad(score_BK, padding, constant_values=-np.inf)


def _select(score_BI: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) best scores with their columns; equal scores in ascending order of column.

    torch.topk picks any of several equal scores (pytorch#27542). One more than K shows where the K-th is tied with
    the next; only those rows pay for a full stable sort.
    """
    one_more = min(k + 1, score_BI.shape[1])
    value, column = torch.topk(score_BI, one_more, dim=1)
    if one_more > k:
        tied = torch.nonzero((value[:, k - 1] == value[:, k]) & torch.isfinite(value[:, k])).flatten()
        for some in tied.split(max(1, len(score_BI) // 4)):  # a sort takes 16 bytes a score
            exact_value, exact_column = torch.sort(score_BI[some], dim=1, descending=True, stable=True)
            value[some], column[some] = exact_value[:, :one_more], exact_column[:, :one_more]
        value, column = value[:, :k], column[:, :k]
    by_column = torch.argsort(column, dim=1)
    value, column = value.gather(1, by_column), column.gather(1, by_column)
    by_value = torch.argsort(value, dim=1, descending=True, stable=True)
    return value.gather(1, by_value).cpu().numpy(), column.gather(1, by_value).cpu().numpy()


def _fill(
    position: np.ndarray,
    item_BK: np.ndarray,
    score_BK: np.ndarray,
    filled_BK: np.ndarray,
    fallback_score_I: np.ndarray,
    rows: np.ndarray,
    seen: Csr,
    by_rank: np.ndarray,
) -> None:
    """Write the fallback's best unseen and unlisted items behind the short lists' own."""
    k = item_BK.shape[1]
    own = item_BK[position]
    score_BI = torch.from_numpy(np.tile(fallback_score_I, (len(position), 1)))
    listed_row, listed_column = np.nonzero(own != NO_ITEM)
    score_BI[
        torch.from_numpy(listed_row), torch.from_numpy(own[listed_row, listed_column].astype(np.int64))
    ] = -torch.inf
    extra_item, extra_score = _best(score_BI, rows[position], seen, k, by_rank)
    for line, row in enumerate(position):
        length = int((own[line] != NO_ITEM).sum())
        item_BK[row, length:] = extra_item[line, : k - length]
        score_BK[row, length:] = extra_score[line, : k - length]
        filled_BK[row, length:] = extra_item[line, : k - length] != NO_ITEM


def _chunks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def inner_product_scorer(user_UD: Tensor, item_ID: Tensor, has_row_U: np.ndarray, has_row_I: np.ndarray) -> Scorer:
    """Scores are inner products. Users and items without a trained row have no opinion: -inf."""
    untrained_item = torch.from_numpy(np.flatnonzero(~has_row_I))

    def score(users: npt.NDArray[np.int64]) -> Tensor:
        score_BI = user_UD[torch.from_numpy(users)] @ item_ID.T
        score_BI[:, untrained_item] = -torch.inf
        score_BI[torch.from_numpy(np.flatnonzero(~has_row_U[users]))] = -torch.inf
        return score_BI

    return score
