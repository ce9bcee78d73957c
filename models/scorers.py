"""What gives scores to a user's items. models/topk.py takes any of them, and knows two better than by their scores.

A scorer is called with users' rows and answers (B, I) float32 scores in fresh memory that may be written to; -inf is no
opinion.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Scorer = Callable[[npt.NDArray[np.int64]], Tensor]
PAIRS_AT_ONCE = 16384  # few enough that their D products stay in the cache


@dataclass(frozen=True)
class InnerProduct:
    """Scores are inner products of two tables' rows. Users and items without a row have no opinion: -inf.

    A matrix product rounds by its shape, so the last bits of a score would follow the block, the threads and the
    library. Hence a product only finds candidates; what is ordered and handed out is added up in one fixed order.
    """

    user_RD: Tensor
    item_ID: Tensor
    row_U: npt.NDArray[np.int64]  # (U,) each user's row of user_RD; -1: none
    has_row_I: npt.NDArray[np.bool_]

    def __call__(self, users: npt.NDArray[np.int64]) -> Tensor:
        """All items' scores by a matrix product: fast, and right but for rounding."""
        score_BI = self.user_BD(users) @ self.item_ID.T
        score_BI[:, torch.from_numpy(np.flatnonzero(~self.has_row_I)).to(score_BI.device)] = -torch.inf
        score_BI[torch.from_numpy(np.flatnonzero(self.row_U[users] < 0)).to(score_BI.device)] = -torch.inf
        return score_BI

    def user_BD(self, users: npt.NDArray[np.int64]) -> Tensor:
        """The users' rows; any row for those who have none."""
        return self.user_RD[torch.from_numpy(np.maximum(self.row_U[users], 0)).to(self.user_RD.device)]

    def on_gpu_if_it_fits(self, block_bytes: int) -> "InnerProduct":
        """The same scores from tables on the current GPU, where there is one with room for them and a block."""
        if self.item_ID.device.type != "cpu" or not torch.cuda.is_available():
            return self
        free_bytes, _ = torch.cuda.mem_get_info()
        if self.user_RD.nbytes + self.item_ID.nbytes + 2 * block_bytes > free_bytes:
            return self
        return replace(self, user_RD=self.user_RD.cuda(), item_ID=self.item_ID.cuda())

    def exact(self, users: npt.NDArray[np.int64], item_BC: Tensor) -> Tensor:
        """(B, C) scores of chosen items, the same bits in every shape, on every device, on any number of threads."""
        user_BD = self.user_BD(users)
        score_BC = torch.empty(item_BC.shape, device=user_BD.device)
        columns = min(item_BC.shape[1], PAIRS_AT_ONCE)
        for row in slices(len(users), PAIRS_AT_ONCE // columns):
            for column in slices(item_BC.shape[1], columns):
                item_bcD = self.item_ID[item_BC[row, column]]
                score_BC[row, column] = sum_by_halves(item_bcD.mul_(user_BD[row, None]))
        return score_BC

    def rounding_B(self, users: npt.NDArray[np.int64]) -> Tensor:
        """How far the product and `exact` can lie apart at most: twice D x 2^-24 x |user| x the longest |item|.

        Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1: it holds for any order of adding.
        """
        user_B = torch.linalg.vector_norm(self.user_BD(users), dim=1)
        return 2.1 * self.item_ID.shape[1] * 2.0**-24 * user_B.double() * self.longest_item

    @cached_property
    def longest_item(self) -> float:
        return float(torch.linalg.vector_norm(self.item_ID, dim=1).max())


@dataclass(frozen=True)
class GroupScores:
    """One list of scores for all users of a group, as popularity has. Both -inf and the group -1 are no opinion."""

    score_GI: npt.NDArray[np.float32]
    group_U: npt.NDArray[np.int64]

    def __call__(self, users: npt.NDArray[np.int64]) -> Tensor:
        group_B = self.group_U[users]
        score_BI = torch.from_numpy(self.score_GI[group_B])
        score_BI[torch.from_numpy(group_B < 0)] = -torch.inf
        return score_BI


def for_everybody(score_I: npt.NDArray[np.float32], num_users: int) -> GroupScores:
    return GroupScores(score_I[None].astype(np.float32), np.zeros(num_users, dtype=np.int64))


def rows_where(has_row_U: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """`InnerProduct.row_U` of tables that have a row for every user, some of them untrained."""
    return np.where(has_row_U, np.arange(len(has_row_U)), -1)


def sum_by_halves(term_D: Tensor) -> Tensor:
    """Sums over the last dimension by additions of whole columns: IEEE additions in an order that only D decides."""
    while (width := term_D.shape[-1]) > 1:
        half = width // 2
        odd = term_D[..., 2 * half :]  # one column, or none
        term_D = term_D[..., :half].add_(term_D[..., half : 2 * half])
        term_D[..., : odd.shape[-1]] += odd
    return term_D[..., 0]


def slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, start + size)
