"""Exact top-K in blocks of users: never a matrix of users x items, the same answer whatever the block size.

The order is (score descending, item id ascending). Items are compared by their rank in id order, not by their row.

A matrix product rounds by its shape, so the last bits of a score would follow the block, the threads and the library.
Hence the product only finds candidates; what is ordered and handed out is added up once more in one fixed order
(`InnerProduct.exact`), and where the product cannot rule the other items out, the whole row is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.graph import Csr

# Users' rows in, (B, I) float32 scores out, fresh memory that may be written to; -inf where there is no opinion.
Scorer = Callable[[npt.NDArray[np.int64]], Tensor]
NO_ITEM = -1
BYTES_PER_SCORE = 12
PARTS = 16  # of a block: what needs several numbers a score is done for so many users at a time
SPARE = 16  # candidates beyond K; more make whole rows rarer and every row dearer
PAIRS_AT_ONCE = 16384  # few enough that their D products stay in the cache


@dataclass(frozen=True)
class Lists:
    """K items for each of B users, best first. Missing ends hold NO_ITEM and -inf."""

    users: npt.NDArray[np.int64]  # (B,)
    item_BK: npt.NDArray[np.int32]
    score_BK: npt.NDArray[np.float32]
    filled_BK: npt.NDArray[np.bool_]  # True where the fallback's item stands


@dataclass(frozen=True)
class InnerProduct:
    """Scores are inner products of two tables' rows. Users and items without a trained row have no opinion: -inf."""

    user_UD: Tensor
    item_ID: Tensor
    has_row_U: np.ndarray
    has_row_I: np.ndarray

    def __call__(self, users: npt.NDArray[np.int64]) -> Tensor:
        """All items' scores by a matrix product: fast, and right but for rounding."""
        score_BI = self.user_UD[torch.from_numpy(users)] @ self.item_ID.T
        score_BI[:, torch.from_numpy(np.flatnonzero(~self.has_row_I))] = -torch.inf
        score_BI[torch.from_numpy(np.flatnonzero(~self.has_row_U[users]))] = -torch.inf
        return score_BI

    def exact(self, users: npt.NDArray[np.int64], item_BC: Tensor) -> Tensor:
        """(B, C) scores of chosen items, the same bits in every shape, on every CPU, on any number of threads."""
        user_BD = self.user_UD[torch.from_numpy(users)]
        score_BC = torch.empty(item_BC.shape)
        columns = min(item_BC.shape[1], PAIRS_AT_ONCE)
        for row in _slices(len(users), PAIRS_AT_ONCE // columns):
            for column in _slices(item_BC.shape[1], columns):
                item_bcD = self.item_ID[item_BC[row, column]]
                score_BC[row, column] = _sum_by_halves(item_bcD.mul_(user_BD[row, None]))
        return score_BC

    def rounding_B(self, users: npt.NDArray[np.int64]) -> Tensor:
        """How far the product and `exact` can lie apart at most: twice D x 2^-24 x |user| x the longest |item|.

        Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1: it holds for any order of adding.
        """
        user_B = torch.linalg.vector_norm(self.user_UD[torch.from_numpy(users)], dim=1)
        return 2.1 * self.item_ID.shape[1] * 2.0**-24 * user_B.double() * self._longest_item

    @cached_property
    def _longest_item(self) -> float:
        return float(torch.linalg.vector_norm(self.item_ID, dim=1).max())


def _sum_by_halves(term_D: Tensor) -> Tensor:
    """Sums over the last dimension by additions of whole columns: IEEE additions in an order that only D decides."""
    while (width := term_D.shape[-1]) > 1:
        half = width // 2
        odd = term_D[..., 2 * half :]  # one column, or none
        term_D = term_D[..., :half].add_(term_D[..., half : 2 * half])
        term_D[..., : odd.shape[-1]] += odd
    return term_D[..., 0]


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, max(1, size)):
        yield slice(start, start + size)


def users_per_block(num_items: int, block_bytes: int) -> int:
    """A block's peak is at most BYTES_PER_SCORE x users x items: the scores, their copy in id order, one part more.

    Ties, fallback lists and the item-kNN rival included; a test measures it. A block holds one user at least, and
    beside it stand the lists themselves (K + SPARE a user). Blocks under 100 MiB can cost some 10 MiB more: malloc
    keeps small pieces that were freed.
    """
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
        item_BK, score_BK = _best(scorer, rows, seen, k, by_rank)
        filled_BK = np.zeros_like(item_BK, dtype=bool)
        for position in _parts(np.flatnonzero((item_BK == NO_ITEM).any(axis=1)), of=len(rows)):
            _fill(position, item_BK, score_BK, filled_BK, fallback_score_I, rows, seen, by_rank)
        yield Lists(rows, item_BK, score_BK, filled_BK)


def _best(scorer: Scorer, rows: np.ndarray, seen: Csr, k: int, by_rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K best finite scores of each row, ties by id."""
    score_BI = scorer(rows)
    position, item = seen.rows_of(rows)
    score_BI[torch.from_numpy(position), torch.from_numpy(item.astype(np.int64))] = -torch.inf
    if not np.array_equal(by_rank, np.arange(len(by_rank))):
        score_BI = score_BI[:, torch.from_numpy(by_rank)]
    width = min(k, score_BI.shape[1])
    if isinstance(scorer, InnerProduct):
        score_BK, column_BK = _select_exactly(scorer, score_BI, rows, width, by_rank)
    else:
        score_BK, column_BK = _select(score_BI, width)
    item_BK = by_rank[column_BK.numpy()].astype(np.int32)
    item_BK[torch.isneginf(score_BK).numpy()] = NO_ITEM
    padding = ((0, 0), (0, k - width))
    return (
        np.pad(item_BK, padding, constant_values=NO_ITEM),
        np.pad(score_BK.numpy(), padding, constant_values=-np.inf),
    )


def _select_exactly(
    scorer: InnerProduct, score_BI: Tensor, rows: np.ndarray, k: int, by_rank: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(B, K) best exact scores with their columns, from approximate ones.

    Every item that is no candidate scores at most what the last candidate does. Where that, and the rounding, is below
    the exact K-th, nobody else can be in the list; elsewhere (many like items) the whole row is scored exactly.
    """
    item_of_column = torch.from_numpy(by_rank)
    candidates = min(k + SPARE, score_BI.shape[1])
    rough_BC, column_BC = torch.topk(score_BI, candidates, dim=1)
    exact_BC = scorer.exact(rows, item_of_column[column_BC])
    exact_BC[torch.isneginf(rough_BC)] = -torch.inf
    value_BK, column_BK = _ordered(exact_BC, column_BC, k)
    if candidates == score_BI.shape[1]:
        return value_BK, column_BK
    last_B = rough_BC[:, -1].double()
    sure_B = torch.isneginf(last_B) | (value_BK[:, -1].double() > last_B + scorer.rounding_B(rows))
    for part in _parts(torch.nonzero(~sure_B).flatten().numpy(), of=len(rows)):
        whole_BI = scorer.exact(rows[part], item_of_column.expand(len(part), -1))
        whole_BI[torch.isneginf(score_BI[part])] = -torch.inf
        value_BK[part], column_BK[part] = _select(whole_BI, k)
    return value_BK, column_BK


def _select(score_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, K) best scores with their columns; equal scores in ascending order of column.

    torch.topk picks any of several equal scores (pytorch#27542). One more than K shows where the K-th is tied with
    the next; only those rows pay for a full stable sort.
    """
    score_BI += 0.0  # -0.0 becomes 0.0, or the two would not count as a tie
    one_more = min(k + 1, score_BI.shape[1])
    value, column = torch.topk(score_BI, one_more, dim=1)
    if one_more > k:
        tied = torch.nonzero((value[:, k - 1] == value[:, k]) & torch.isfinite(value[:, k])).flatten()
        for part in _parts(tied.numpy(), of=len(score_BI)):
            exact_value, exact_column = torch.sort(score_BI[part], dim=1, descending=True, stable=True)
            value[part], column[part] = exact_value[:, :one_more], exact_column[:, :one_more]
        value, column = value[:, :k], column[:, :k]
    return _ordered(value, column, k)


def _ordered(value: Tensor, column: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best of each row's entries: by value, equal ones in ascending order of column."""
    value = value + 0.0  # -0.0, as above
    by_column = torch.argsort(column, dim=1)
    value, column = value.gather(1, by_column), column.gather(1, by_column)
    by_value = torch.argsort(value, dim=1, descending=True, stable=True)[:, :k]
    return value.gather(1, by_value), column.gather(1, by_value)


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
    listed_row, listed_column = np.nonzero(own != NO_ITEM)

    def unlisted(_: npt.NDArray[np.int64]) -> Tensor:
        score_BI = torch.from_numpy(np.tile(fallback_score_I, (len(position), 1)))
        listed = torch.from_numpy(own[listed_row, listed_column].astype(np.int64))
        score_BI[torch.from_numpy(listed_row), listed] = -torch.inf
        return score_BI

    extra_item, extra_score = _best(unlisted, rows[position], seen, k, by_rank)
    for line, row in enumerate(position):
        length = int((own[line] != NO_ITEM).sum())
        item_BK[row, length:] = extra_item[line, : k - length]
        score_BK[row, length:] = extra_score[line, : k - length]
        filled_BK[row, length:] = extra_item[line, : k - length] != NO_ITEM


def _parts(array: np.ndarray, *, of: int) -> Iterator[np.ndarray]:
    """The chosen rows of a block of so many, a part of the block at a time."""
    size = max(1, of // PARTS)
    for start in range(0, len(array), size):
        yield array[start : start + size]
