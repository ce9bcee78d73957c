"""Exactly K items for everybody, from the best scorer that has an opinion: in blocks, never a matrix of users x items.

Rows of a list stand by tier (the scorer's position), then (score descending, item id ascending): the same bytes
whatever the block size, the number of threads, the device, and the path that selects (models/selection.py). Items are
compared by their rank in id order, not by their row.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from models.compiled import AVAILABLE, compiled
from models.graph import Csr
from models.scorers import GroupScores, InnerProduct, Scorer
from models.selection import NO_ITEM, Allowed, ByGroup, ByProduct, ByScores, ByTorch, Forbidden, Ranking

BYTES_PER_SCORE = 12
USERS_AT_ONCE = 8192  # of an inner product or a ready list: what a thread takes at a time
BYTES_PER_PLACE = 128  # of a list, for those that a thread is at and the finished ones that wait
RANKED_AT_ONCE = 500_000  # entries of rankings that a thread has in memory at a time, BYTES_PER_RANKED each
BYTES_PER_RANKED = 64  # noted and ordered 24, as items 20, the parts and their whole 16
DEEPER = 4  # times as many candidates where a cap used up those that there were


@dataclass(frozen=True)
class CategoryCap:
    """At most so many items of each category in a list, taken in the list's order, over all its tiers.

    category_IC: the categories of each item. One without any is never left out.
    """

    at_most: int
    category_IC: Csr


@dataclass(frozen=True)
class Lists:
    """K items for each of B users, best first. Missing ends hold NO_ITEM, -inf and tier -1."""

    users: npt.NDArray[np.int64]  # (B,)
    item_BK: npt.NDArray[np.int32]
    score_BK: npt.NDArray[np.float32]
    tier_BK: npt.NDArray[np.int8]  # position of the scorer in `tiers`
    wished_BK: npt.NDArray[np.int32]  # what the first tier with an opinion would give if nothing were forbidden


def top_k(
    tiers: Sequence[Scorer],
    *,
    users: npt.NDArray[np.int64],
    k: int,
    excluded: Csr,
    item_rank_I: npt.NDArray[np.integer],
    allowed: Allowed | None = None,
    cap: CategoryCap | None = None,
    wishes: bool = False,
    block_bytes: int = 256 * 2**20,
    threads: int | None = None,
) -> Iterator[Lists]:
    """Blocks of lists for `users`, in their order. Nothing excluded, or not allowed, or beyond the cap is in a list.

    Where a tier has an opinion on fewer than K such items, the next tier's best fill the list; it is shorter than K
    only if they cannot either. Inner products are taken to a GPU where there is one. `block_bytes` is shared out
    among the threads (none: as many as torch has) where blocks run beside each other, and is one block's where they
    do not: so much for products or scores, and so much again for lists.
    """
    top = TopK(
        tiers,
        k=k,
        excluded=excluded,
        item_rank_I=item_rank_I,
        allowed=allowed,
        cap=cap,
        wishes=wishes,
        block_bytes=block_bytes,
        threads=threads,
    )
    return top.lists(users)


class TopK:
    """`top_k` for callers who come again: what is made of the items alone is made once, here.

    Memory: the copies of items that models/selection.ByProduct keeps, each group's items in order, and the rules.
    """

    def __init__(
        self,
        tiers: Sequence[Scorer],
        *,
        k: int,
        excluded: Csr,
        item_rank_I: npt.NDArray[np.integer],
        allowed: Allowed | None = None,
        cap: CategoryCap | None = None,
        wishes: bool = False,
        block_bytes: int = 256 * 2**20,
        threads: int | None = None,
    ) -> None:
        """Parameters are those of `top_k`."""
        self.k, self.cap, self.wishes = k, cap, wishes
        self.tiers = [
            scorer.on_gpu_if_it_fits(block_bytes) if isinstance(scorer, InnerProduct) else scorer for scorer in tiers
        ]
        threads = max(1, torch.get_num_threads() if threads is None else threads)
        # Others come one after another, each with torch's own threads: there is one block at a time.
        self.threads = threads if not any(_writes_out_scores(scorer) for scorer in self.tiers) else 1
        self.block_bytes = block_bytes // self.threads
        self.by_rank = np.argsort(item_rank_I, kind="stable")
        forbidden = Forbidden(excluded, allowed, self.by_rank)
        products = sum(isinstance(scorer, InnerProduct) for scorer in self.tiers)  # a thread keeps a tile of each
        tile_bytes = self.block_bytes // max(1, products)
        self.rankings = [ranking_of(scorer, forbidden, tile_bytes) for scorer in self.tiers]

    def without_rules(self, excluded: Csr) -> "TopK":
        """The same scorers, from the same copies of the items, where nothing but `excluded` is forbidden."""
        other = copy(self)
        other.cap, other.wishes = None, False
        forbidden = Forbidden(excluded, None, self.by_rank)
        other.rankings = [ranking.under(forbidden) for ranking in self.rankings]
        return other

    def lists(self, users: npt.NDArray[np.int64]) -> Iterator[Lists]:
        """Blocks of lists for `users`, in their order."""
        lists_at_most = max(1, self.block_bytes // (BYTES_PER_PLACE * max(1, self.k)))
        at_most = min(-(-len(users) // self.threads), lists_at_most)
        size = users_per_block(self.tiers, len(self.by_rank), self.block_bytes, at_most)
        blocks = [users[start : start + size] for start in range(0, len(users), size)]
        if self.threads == 1 or len(blocks) <= 1:
            yield from map(self._block, blocks)
        else:
            yield from _in_threads(self._block, blocks, self.threads)

    def _block(self, users: npt.NDArray[np.int64]) -> Lists:
        return _fill_in_turn(self.rankings, users, self.k, self.cap, self.wishes)


def ranking_of(scorer: Scorer, forbidden: Forbidden, tile_bytes: int) -> Ranking:
    """The fastest way to this scorer's best items on this machine."""
    if isinstance(scorer, GroupScores):
        return ByGroup(scorer, forbidden)
    if not _writes_out_scores(scorer):
        assert isinstance(scorer, InnerProduct)
        return ByProduct(scorer, forbidden, tile_bytes=tile_bytes)
    return (
        ByScores(scorer, forbidden)
        if AVAILABLE and not isinstance(scorer, InnerProduct)
        else ByTorch(scorer, forbidden)
    )


def _writes_out_scores(scorer: Scorer) -> bool:
    """Whether its way holds a block of users x all items."""
    if isinstance(scorer, GroupScores):
        return False
    return not (isinstance(scorer, InnerProduct) and AVAILABLE and scorer.item_ID.device.type == "cpu")


def users_per_block(tiers: Sequence[Scorer], num_items: int, block_bytes: int, at_most: int) -> int:
    """A block's peak is at most BYTES_PER_SCORE x users x items where scores are written out.

    That is: the scores, their copy in id order, one part more; ties and the item-kNN rival included; a test measures
    it. A block holds one user at least, and beside it stand the lists themselves. Blocks under 100 MiB can cost some
    10 MiB more: malloc keeps small pieces that were freed.
    """
    if any(_writes_out_scores(scorer) for scorer in tiers):
        return max(1, block_bytes // (BYTES_PER_SCORE * max(1, num_items)))
    return max(1, min(USERS_AT_ONCE, at_most))


def _in_threads(
    lists_of: Callable[[npt.NDArray[np.int64]], Lists], blocks: list[npt.NDArray[np.int64]], threads: int
) -> Iterator[Lists]:
    """In order, with at most one finished block waiting for each thread."""
    # torch's own threads would fight for the same cores; the setting is the thread's, not the process's.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Lists]] = deque()
        try:
            for block in blocks:
                waiting.append(pool.submit(lists_of, block))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fill_in_turn(
    rankings: Sequence[Ranking], users: npt.NDArray[np.int64], k: int, cap: CategoryCap | None, wishes: bool
) -> Lists:
    shape = (len(users), k)
    lists = Lists(
        users,
        np.full(shape, NO_ITEM, dtype=np.int32),
        np.full(shape, -np.inf, dtype=np.float32),
        np.full(shape, -1, dtype=np.int8),
        np.full(shape if wishes else (len(users), 0), NO_ITEM, dtype=np.int32),
    )
    for tier, ranking in enumerate(rankings):
        short = np.flatnonzero(lists.item_BK[:, -1] == NO_ITEM)
        if len(short) == 0:
            break
        _fill(lists, short, tier, ranking, cap, wishes and tier == 0)
        if wishes and tier > 0:
            _wish(lists, ranking)
    return lists


def _fill(
    lists: Lists, short: npt.NDArray[np.int64], tier: int, ranking: Ranking, cap: CategoryCap | None, wishes: bool
) -> None:
    """Append the tier's best to the lists of `short`; deeper and deeper where a cap leaves them short."""
    k = lists.item_BK.shape[1]
    depth = k if tier == 0 else 2 * k  # what an earlier tier has listed may come first again
    of_item = cap.category_IC if cap else Csr(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    categories = (np.asarray(of_item.indptr), np.asarray(of_item.indices))
    while len(short):
        left = []
        for some in np.split(short, range(0, len(short), max(1, RANKED_AT_ONCE // depth))):
            if len(some) == 0:
                continue
            ranked = ranking.ranked(lists.users[some], depth, wishes=wishes)
            if ranked.wished_BK is not None:
                lists.wished_BK[some] = ranked.wished_BK[:, :k]
            found = (lists.item_BK, lists.score_BK, lists.tier_BK, some, tier, ranked.item_BK, ranked.score_BK)
            _append(*found, cap.at_most if cap else 0, *categories)
            left.append(some[(lists.item_BK[some, -1] == NO_ITEM) & (ranked.item_BK[:, -1] != NO_ITEM)])
        if cap is None or depth >= of_item.num_rows:
            return
        short, depth, wishes = np.concatenate(left), min(DEEPER * depth, of_item.num_rows), False


def _wish(lists: Lists, ranking: Ranking) -> None:
    """For those on whom no earlier tier had an opinion."""
    without = np.flatnonzero((lists.wished_BK == NO_ITEM).all(axis=1))
    if len(without):
        wished_BK = ranking.ranked(lists.users[without], lists.item_BK.shape[1], wishes=True).wished_BK
        assert wished_BK is not None
        lists.wished_BK[without] = wished_BK


@compiled
def _append(
    item_BK: np.ndarray,
    score_BK: np.ndarray,
    tier_BK: np.ndarray,
    short: np.ndarray,
    tier: int,
    ranked_SD: np.ndarray,
    ranked_score_SD: np.ndarray,
    at_most: int,
    indptr: np.ndarray,
    category: np.ndarray,
) -> None:
    """Walk each ranking and take what is not listed yet and goes beyond no cap (0: there is none)."""
    k = item_BK.shape[1]
    for s in range(len(short)):
        b = short[s]
        length = 0
        while length < k and item_BK[b, length] >= 0:
            length += 1
        for place in range(ranked_SD.shape[1]):
            item = ranked_SD[s, place]
            if item < 0 or length == k:
                break
            takes = True
            for other in range(length):
                if item_BK[b, other] == item:
                    takes = False
            if takes and at_most > 0:
                for at in range(indptr[item], indptr[item + 1]):
                    count = 0
                    for other in range(length):
                        listed = item_BK[b, other]
                        for there in range(indptr[listed], indptr[listed + 1]):
                            if category[there] == category[at]:
                                count += 1
                    if count >= at_most:
                        takes = False
            if takes:
                item_BK[b, length], score_BK[b, length], tier_BK[b, length] = item, ranked_score_SD[s, place], tier
                length += 1


def joined(blocks: Sequence[Lists]) -> Lists:
    """Blocks of lists as one."""
    return Lists(*(np.concatenate([getattr(block, field.name) for block in blocks]) for field in fields(Lists)))
