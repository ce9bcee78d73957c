"""The K best allowed items of a block of users by one scorer: compiled, by torch (also on GPUs), or from a ready list.

All three give the same answer to the last bit; models/topk.py chooses. `Forbidden` is what no list may hold.
"""

import threading
import time
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import scan
from models.compiled import compiled
from models.graph import Csr
from models.scorers import GroupScores, InnerProduct, Scorer, slices

NO_ITEM = -1
LANES = 8  # columns of the products are filled up to a multiple
PARTS = 16  # of a block: what needs several numbers a score is done for so many users at a time
NOTED = 256  # columns that may wait for their exact score, beside 2 K
SPARE = 16  # torch's candidates beyond K; more make whole rows rarer and every row dearer
ROWS_AT_ONCE = 512  # compiled: users of one product
ITEMS_AT_ONCE = 8192  # compiled: items that are rounded at a time, in float64
TILE_BYTES = 16 * 2**20  # compiled: of one product, at most; larger ones leave the cache before they are read


@dataclass(frozen=True)
class Allowed:
    """What the items themselves forbid, by group of users: an item may stand in the list where its bit is set."""

    allowed_GI: npt.NDArray[np.bool_]
    group_U: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Forbidden:
    """`excluded`: each user's own items, ascending. `by_rank`: items in the order in which equal scores stand."""

    excluded: Csr
    allowed: Allowed | None
    by_rank: npt.NDArray[np.int64]

    def allowed_of(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """(G, C) of these items alone."""
        return self.allowed.allowed_GI[:, items] if self.allowed is not None else None

    @cached_property
    def ordered_by_row(self) -> bool:
        return bool((self.by_rank == np.arange(len(self.by_rank))).all())


@dataclass(frozen=True)
class Ranked:
    """(B, K) best allowed items, best first; NO_ITEM and -inf at the ends of lists that are short.

    wished_BK: the K best of all, forbidden or not.
    """

    item_BK: npt.NDArray[np.int32]
    score_BK: npt.NDArray[np.float32]
    wished_BK: npt.NDArray[np.int32] | None


class Ranking:
    """A way to one scorer's best items. `forbidden` may be changed for another, by which the items stand the same."""

    forbidden: Forbidden

    def ranked(self, users: npt.NDArray[np.int64], k: int, *, wishes: bool) -> Ranked:
        """`wishes`: whether to add them."""
        raise NotImplementedError

    def under(self, forbidden: Forbidden) -> Self:
        """The same items, not copied, where this is forbidden instead."""
        other = copy(self)
        other._forbid(forbidden)
        return other

    def _forbid(self, forbidden: Forbidden) -> None:
        self.forbidden = forbidden


class ByProduct(Ranking):
    """Compiled, for inner products: the product runs in 16 bits where that is faster, and never leaves the cache.

    Memory beyond the tables: the items in 16 or 32 bits, padded_width columns, once for all threads, and for each
    thread min(TILE_BYTES, tile_bytes), noted_bytes(K) and the lists.
    """

    def __init__(self, scorer: InnerProduct, forbidden: Forbidden, *, tile_bytes: int) -> None:
        self.scorer = scorer
        self.item_of_column = forbidden.by_rank[scorer.has_row_I[forbidden.by_rank]]
        self.column_of_item = np.full(len(forbidden.by_rank), -1, dtype=np.int64)
        self.column_of_item[self.item_of_column] = np.arange(len(self.item_of_column))
        self.dtype = torch.bfloat16 if half_is_faster(scorer.item_ID.shape[1]) else torch.float32
        self.columns_at_once = max(1, min(TILE_BYTES, tile_bytes) // (ROWS_AT_ONCE * self.dtype.itemsize))
        self.twice = _column_that_rounds_worst(self._items(slice(None, None, self._every())), self.dtype)
        width = padded_width(scorer.item_ID.shape[1] + (self.twice is not None))
        self.item_CD = torch.empty(len(self.item_of_column), width, dtype=self.dtype)
        self.longest_item = self.furthest_item = 0.0
        for columns in slices(len(self.item_CD), ITEMS_AT_ONCE):
            self.item_CD[columns], longest, furthest = self._rounded_items(self._items(columns))
            self.longest_item = max(self.longest_item, longest)
            self.furthest_item = max(self.furthest_item, furthest)
        self._forbid(forbidden)
        self.of_thread = threading.local()

    def ranked(self, users: npt.NDArray[np.int64], k: int, *, wishes: bool) -> Ranked:
        parts = [self._some(users[rows], k, wishes) for rows in slices(len(users), ROWS_AT_ONCE)]
        return _joined(parts)

    def _some(self, users: npt.NDArray[np.int64], k: int, wishes: bool) -> Ranked:
        user_BD = self.scorer.user_BD(users)
        rough_BD, stands_for_BD = self._rounded_users(user_BD)
        slack_B = self._slack(user_BD.double(), stands_for_BD)
        best = _Best(len(users), k)
        wished = _Best(len(users), k) if wishes else None
        excluded = _own_rows(self.forbidden.excluded, users)
        opinion_B = self.scorer.row_U[users] >= 0
        num_columns = len(self.item_of_column)
        block = self._own_block()
        tables = (user_BD.numpy(), self.scorer.item_ID.numpy(), self.item_of_column)
        for columns in slices(num_columns if opinion_B.any() else 0, self.columns_at_once):
            item_cD = self.item_CD[columns]
            score_Bc = block[: len(users) * len(item_cD)].view(len(users), len(item_cD))
            torch.mm(rough_BD, item_cD.T, out=score_Bc)
            bits_Bc = score_Bc.view(torch.int16 if self.dtype.itemsize == 2 else torch.int32).numpy()
            run = _run(len(item_cD), k)
            if wished is not None:
                scan.collect(bits_Bc, columns.start, run, slack_B, *tables, wished.found)
            scan.mask_pairs(bits_Bc, columns.start, self.column_of_item, *excluded)
            _mask_groups(bits_Bc, columns.start, self.allowed_GC, self.forbidden.allowed, users)
            scan.collect(bits_Bc, columns.start, run, slack_B, *tables, best.found)
        return _ranked(best, wished, 16 if self.dtype.itemsize == 2 else 0, tables, opinion_B)

    def _forbid(self, forbidden: Forbidden) -> None:
        self.forbidden, self.allowed_GC = forbidden, forbidden.allowed_of(self.item_of_column)

    def _items(self, columns: slice) -> Tensor:
        return self.scorer.item_ID[torch.from_numpy(self.item_of_column[columns])]

    def _every(self) -> int:
        """One item of so many shows which column rounds worst."""
        return max(1, len(self.item_of_column) // 4096)

    def _rounded_items(self, item_CD: Tensor) -> tuple[Tensor, float, float]:
        """The product's operand, its longest row, and the longest way that a row was moved by rounding.

        One column stands twice where that pays, rounded and what rounding took from it: a popularity bias of 5 beside
        columns of 0.1 would otherwise be most of the error. Zeros fill up to whole vector registers.
        """
        rough_CD = item_CD.to(self.dtype)
        norm = torch.linalg.vector_norm
        stands_for_CD = rough_CD.double()
        if self.twice is not None:
            rest_C1 = (item_CD[:, self.twice, None] - rough_CD[:, self.twice, None].float()).to(self.dtype)
            stands_for_CD[:, self.twice] += rest_C1[:, 0].double()
            rough_CD = torch.cat([rough_CD, rest_C1], dim=1)
        moved = item_CD.double() - stands_for_CD
        rough_CD = torch.nn.functional.pad(rough_CD, (0, -rough_CD.shape[1] % LANES))
        return rough_CD, float(norm(stands_for_CD, dim=1).max()), float(norm(moved, dim=1).max())

    def _rounded_users(self, user_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The product's other operand, and the rows that it stands for."""
        rough_BD = user_BD.to(self.dtype)
        stands_for_BD = rough_BD.double()
        if self.twice is not None:
            rough_BD = torch.cat([rough_BD, rough_BD[:, self.twice, None]], dim=1)
        return torch.nn.functional.pad(rough_BD, (0, -rough_BD.shape[1] % LANES)), stands_for_BD

    def _own_block(self) -> Tensor:
        """The calling thread's, kept: the system takes as long to hand out fresh pages as the product takes."""
        if not hasattr(self.of_thread, "block"):
            size = ROWS_AT_ONCE * min(len(self.item_of_column), self.columns_at_once)
            self.of_thread.block = torch.empty(size, dtype=self.dtype)
        block: Tensor = self.of_thread.block
        return block

    def _slack(self, user_BD: Tensor, stands_for_BD: Tensor) -> npt.NDArray[np.float32]:
        """How far a product of rounded rows, added up in any order, can lie from the exact score.

        |u v - u' v'| <= |u| |v - v'| + |u - u'| |v'| (Cauchy-Schwarz), and the rounding of three sums of D terms.
        """
        length_B = torch.linalg.vector_norm(user_BD, dim=1)
        moved_B = torch.linalg.vector_norm(user_BD - stands_for_BD, dim=1)
        longest = self.longest_item + self.furthest_item
        sums = 4 * (self.item_CD.shape[1] + 4) * 2.0**-24
        slack_B = length_B * self.furthest_item + moved_B * longest + sums * (length_B + moved_B) * longest
        return (1.001 * slack_B).float().numpy()


class ByScores(Ranking):
    """Compiled, for any scorer: its own values are the scores."""

    def __init__(self, scorer: Scorer, forbidden: Forbidden) -> None:
        self.scorer = scorer
        self.column_of_item = np.empty(len(forbidden.by_rank), dtype=np.int64)
        self.column_of_item[forbidden.by_rank] = np.arange(len(forbidden.by_rank))
        self._forbid(forbidden)

    def _forbid(self, forbidden: Forbidden) -> None:
        self.forbidden, self.allowed_GC = forbidden, forbidden.allowed_of(forbidden.by_rank)

    def ranked(self, users: npt.NDArray[np.int64], k: int, *, wishes: bool) -> Ranked:
        score_BI = _in_rank_order(self.scorer(users), self.forbidden)
        score_BI += 0.0  # -0.0 becomes 0.0, or the two would not count as a tie
        score_BI[torch.isnan(score_BI)] = torch.nan  # the positive one: it orders before all numbers
        bits_BI = score_BI.view(torch.int32).numpy()
        best = _Best(len(users), k)
        wished = _Best(len(users), k) if wishes else None
        nothing = np.zeros((len(users), 0), dtype=np.float32)
        exact = np.zeros(len(users), dtype=np.float32)
        tables = (nothing, nothing, self.forbidden.by_rank)
        run = _run(bits_BI.shape[1], k)
        if wished is not None:
            scan.collect(bits_BI, 0, run, exact, *tables, wished.found)
        scan.mask_pairs(bits_BI, 0, self.column_of_item, *_own_rows(self.forbidden.excluded, users))
        _mask_groups(bits_BI, 0, self.allowed_GC, self.forbidden.allowed, users)
        scan.collect(bits_BI, 0, run, exact, *tables, best.found)
        return _ranked(best, wished, 0, tables, np.ones(len(users), dtype=bool))


class ByTorch(Ranking):
    """torch alone, on whatever device the scores are."""

    def __init__(self, scorer: Scorer, forbidden: Forbidden) -> None:
        self.scorer, self.forbidden = scorer, forbidden

    def ranked(self, users: npt.NDArray[np.int64], k: int, *, wishes: bool) -> Ranked:
        forbidden = self.forbidden
        score_BI = self.scorer(users)
        wished = self._best(score_BI.clone(), users, k)[0] if wishes else None
        position, item = forbidden.excluded.rows_of(users)
        device = score_BI.device
        score_BI[torch.from_numpy(position).to(device), torch.from_numpy(item.astype(np.int64)).to(device)] = -torch.inf
        if forbidden.allowed is not None:
            group_B = forbidden.allowed.group_U[users]
            for part in slices(len(users), len(users) // PARTS):
                forbidden_BI = ~forbidden.allowed.allowed_GI[group_B[part]]
                score_BI[part].masked_fill_(torch.from_numpy(forbidden_BI).to(device), -torch.inf)
        item_BK, score_BK = self._best(score_BI, users, k)
        return Ranked(item_BK, score_BK, wished)

    def _best(self, score_BI: Tensor, users: npt.NDArray[np.int64], k: int) -> tuple[np.ndarray, np.ndarray]:
        by_rank = self.forbidden.by_rank
        score_BI = _in_rank_order(score_BI, self.forbidden)
        width = min(k, score_BI.shape[1])
        if isinstance(self.scorer, InnerProduct):
            score_BK, column_BK = _select_exactly(self.scorer, score_BI, users, width, by_rank)
        else:
            score_BK, column_BK = _select(score_BI, width)
        item_BK = by_rank[column_BK.cpu().numpy()].astype(np.int32)
        item_BK[torch.isneginf(score_BK).cpu().numpy()] = NO_ITEM
        padding = ((0, 0), (0, k - width))
        return (
            np.pad(item_BK, padding, constant_values=NO_ITEM),
            np.pad(score_BK.cpu().numpy(), padding, constant_values=-np.inf),
        )


class ByGroup(Ranking):
    """From each group's items, sorted once: a list is the first K that the user may have."""

    def __init__(self, scorer: GroupScores, forbidden: Forbidden) -> None:
        self.scorer, self.forbidden = scorer, forbidden
        score_GI = scorer.score_GI[:, forbidden.by_rank] + np.float32(0.0)
        order_GI = np.argsort(-score_GI, axis=1, kind="stable")
        self.item_GI = forbidden.by_rank[order_GI]
        self.length_G = (score_GI != -np.inf).sum(axis=1)

    def ranked(self, users: npt.NDArray[np.int64], k: int, *, wishes: bool) -> Ranked:
        group_B = self.scorer.group_U[users]
        found, excluded = np.full((len(users), k), NO_ITEM, dtype=np.int32), _own_rows(self.forbidden.excluded, users)
        allowed = self.forbidden.allowed
        if allowed is None:
            allowed_GI, allowed_B = np.ones((1, len(self.forbidden.by_rank)), dtype=bool), np.zeros_like(users)
        else:
            allowed_GI, allowed_B = allowed.allowed_GI, allowed.group_U[users]
        _walk_groups(self.item_GI, self.length_G, group_B, *excluded, allowed_GI, allowed_B, found)
        wished = None
        if wishes:
            wished = np.full((len(users), k), NO_ITEM, dtype=np.int32)
            nothing = (np.zeros(len(users) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
            everything = np.ones((1, len(self.forbidden.by_rank)), dtype=bool)
            _walk_groups(self.item_GI, self.length_G, group_B, *nothing, everything, np.zeros_like(users), wished)
        score_BK = self.scorer.score_GI[group_B[:, None], found] + np.float32(0.0)
        return Ranked(found, np.where(found == NO_ITEM, np.float32(-np.inf), score_BK), wished)


@compiled
def _walk_groups(
    item_GI: np.ndarray,
    length_G: np.ndarray,
    group_B: np.ndarray,
    indptr: np.ndarray,
    excluded: np.ndarray,
    allowed_GI: np.ndarray,
    allowed_B: np.ndarray,
    found_BK: np.ndarray,
) -> None:
    for b in range(len(group_B)):
        if group_B[b] < 0:
            continue
        own = excluded[indptr[b] : indptr[b + 1]]
        count = 0
        for item in item_GI[group_B[b], : length_G[group_B[b]]]:
            if count == found_BK.shape[1]:
                break
            at = np.searchsorted(own, item)
            if (at < len(own) and own[at] == item) or not allowed_GI[allowed_B[b], item]:
                continue
            found_BK[b, count] = item
            count += 1


def padded_width(columns: int) -> int:
    """Of the product's operands: whole vector registers."""
    return columns + -columns % LANES


def noted_bytes(k: int) -> int:
    """What a thread holds of its users beside the product: columns and scores, of the lists and of the wishes."""
    return 2 * ROWS_AT_ONCE * 8 * (3 * k + NOTED)


class _Best:
    """What scan.collect notes and scan.finish orders; 8 x (3 K + NOTED) bytes a user."""

    def __init__(self, num_users: int, k: int) -> None:
        room = 2 * k + NOTED
        self.score_BK = np.full((num_users, k), -np.inf, dtype=np.float32)
        self.column_BK = np.zeros((num_users, k), dtype=np.int32)
        self.size_B = np.zeros(num_users, dtype=np.int64)
        self.found: scan.Found = (
            self.score_BK,
            self.column_BK,
            self.size_B,
            np.empty((num_users, room), dtype=np.int32),
            np.empty((num_users, room), dtype=np.int32),
            np.zeros(num_users, dtype=np.int64),
            np.full(num_users, np.iinfo(np.int64).min),
        )

    def item_BK(self, item_of_column: np.ndarray, opinion_B: np.ndarray) -> npt.NDArray[np.int32]:
        """NO_ITEM behind the end, and for users without an opinion; their scores become -inf."""
        missing = (np.arange(self.score_BK.shape[1]) >= self.size_B[:, None]) | ~opinion_B[:, None]
        self.score_BK[missing] = -np.inf
        item_BK = item_of_column[self.column_BK] if len(item_of_column) else self.column_BK
        return np.where(missing, NO_ITEM, item_BK).astype(np.int32)


def _ranked(
    best: _Best,
    wished: _Best | None,
    shift: int,
    tables: tuple[np.ndarray, np.ndarray, np.ndarray],
    opinion_B: np.ndarray,
) -> Ranked:
    for found in (best, wished):
        if found is not None:
            scan.finish(shift, *tables, found.found)
    item_BK = best.item_BK(tables[2], opinion_B)
    return Ranked(item_BK, best.score_BK, None if wished is None else wished.item_BK(tables[2], opinion_B))


def _joined(parts: list[Ranked]) -> Ranked:
    wished = [part.wished_BK for part in parts if part.wished_BK is not None]
    return Ranked(
        np.concatenate([part.item_BK for part in parts]),
        np.concatenate([part.score_BK for part in parts]),
        np.concatenate(wished) if wished else None,
    )


def _own_rows(excluded: Csr, users: npt.NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray]:
    """indptr and items of these users alone."""
    if len(users) and users[-1] - users[0] == len(users) - 1 and (np.diff(users) == 1).all():
        start = excluded.indptr[users[0]]
        indptr = excluded.indptr[users[0] : users[-1] + 2] - start
        return np.asarray(indptr), np.asarray(excluded.indices[start : start + indptr[-1]])
    counts = excluded.indptr[users + 1] - excluded.indptr[users]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.asarray(excluded.rows_of(users)[1])


def _mask_groups(
    bits: np.ndarray, first: int, allowed_GC: np.ndarray | None, allowed: Allowed | None, users: np.ndarray
) -> None:
    if allowed_GC is not None and allowed is not None:
        scan.mask_groups(bits, first, allowed_GC, allowed.group_U[users])


def _run(num_columns: int, k: int) -> int:
    """Columns of a run: whole vector registers, and runs enough that the K-th of their largest is a good bar."""
    return int(np.clip(num_columns // (4 * k) // 32 * 32, 32, 128))


def _column_that_rounds_worst(item_CD: Tensor, dtype: torch.dtype) -> int | None:
    """None where no column loses clearly more than the others."""
    if dtype == torch.float32 or len(item_CD) == 0:
        return None
    lost_D = (item_CD - item_CD.to(dtype).float()).square().mean(dim=0)
    worst = int(lost_D.argmax())
    return worst if lost_D[worst] > 4 * lost_D.median() else None


@cache
def half_is_faster(width: int) -> bool:
    """Whether this CPU multiplies in 16 bits clearly faster: measured, once a process. Either gives the same lists."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        user_BD, item_CD = torch.ones(256, width, dtype=dtype), torch.ones(4096, width, dtype=dtype)
        score_BC = torch.empty(256, 4096, dtype=dtype)
        runs = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(user_BD, item_CD.T, out=score_BC)
            runs.append(time.perf_counter() - started)
        seconds[dtype] = min(runs)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def _in_rank_order(score_BI: Tensor, forbidden: Forbidden) -> Tensor:
    if forbidden.ordered_by_row:
        return score_BI
    return score_BI[:, torch.from_numpy(forbidden.by_rank).to(score_BI.device)]


def _select_exactly(
    scorer: InnerProduct, score_BI: Tensor, users: np.ndarray, k: int, by_rank: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(B, K) best exact scores with their columns, from approximate ones.

    Every item that is no candidate scores at most what the last candidate does. Where that, and the rounding, is below
    the exact K-th, nobody else can be in the list; elsewhere (many like items) the whole row is scored exactly.
    """
    item_of_column = torch.from_numpy(by_rank).to(score_BI.device)
    candidates = min(k + SPARE, score_BI.shape[1])
    rough_BC, column_BC = torch.topk(score_BI, candidates, dim=1)
    exact_BC = scorer.exact(users, item_of_column[column_BC])
    exact_BC[torch.isneginf(rough_BC)] = -torch.inf
    value_BK, column_BK = _ordered(exact_BC, column_BC, k)
    if candidates == score_BI.shape[1]:
        return value_BK, column_BK
    last_B = rough_BC[:, -1].double()
    sure_B = torch.isneginf(last_B) | (value_BK[:, -1].double() > last_B + scorer.rounding_B(users))
    for part in _parts(torch.nonzero(~sure_B).flatten().cpu().numpy(), of=len(users)):
        whole_BI = scorer.exact(users[part], item_of_column.expand(len(part), -1))
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
        for part in _parts(tied.cpu().numpy(), of=len(score_BI)):
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


def _parts(array: np.ndarray, *, of: int) -> "list[np.ndarray]":
    """The chosen rows of a block of so many, a part of the block at a time."""
    size = max(1, of // PARTS)
    return [array[start : start + size] for start in range(0, len(array), size)]
