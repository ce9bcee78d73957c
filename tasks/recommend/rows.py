"""A block of lists as rows of output format 2, and what was counted over them.

user_id and item_id as they came, rank int32 from 1, score float32, tier string; reasons, a list of (kind, item_id,
share).

tier is a property of the row (tasks/contracts.TIERS). Scores are comparable within a user and a tier only. A reason's
kind is liked or met (with the item of the person's own that speaks for this one), segment or popular (without one: how
much of what the segment, or everybody, liked lately is this item). share: its part of what speaks for the item.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from models.selection import NO_ITEM
from models.topk import Lists
from tasks.contracts import RULES, TIERS
from tasks.recommend.rules import NONE, SMALL_CATALOGUE, Rules

KINDS = ("liked", "met", "segment", "popular")


@dataclass(frozen=True)
class Why:
    """(B, K, R) reasons of a block's rows, the strongest first; a share of 0 is no reason, NO_ITEM no item."""

    kind_BKR: npt.NDArray[np.int8]  # position in KINDS
    item_BKR: npt.NDArray[np.int32]
    share_BKR: npt.NDArray[np.float32]

    @classmethod
    def nothing(cls, shape: tuple[int, int, int]) -> "Why":
        return cls(np.zeros(shape, np.int8), np.full(shape, NO_ITEM, np.int32), np.zeros(shape, np.float32))


def rows_of(block: Lists, why: Why, user_ids: pl.Series, item_ids: pl.Series) -> pl.DataFrame:
    listed_BK = block.item_BK != NO_ITEM
    num_lists, k = listed_BK.shape
    rank_BK = np.broadcast_to(np.arange(1, k + 1, dtype=np.int32), (num_lists, k))
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(np.repeat(block.users, listed_BK.sum(axis=1))),
            "rank": pl.Series(rank_BK[listed_BK]),
            "item_id": item_ids.gather(block.item_BK[listed_BK]),
            "score": pl.Series(block.score_BK[listed_BK].astype(np.float32)),
            "tier": pl.Series(TIERS, dtype=pl.String).gather(block.tier_BK[listed_BK]),
            "reasons": _reasons(why, listed_BK, item_ids),
        }
    )


def _reasons(why: Why, listed_BK: npt.NDArray[np.bool_], item_ids: pl.Series) -> pl.Series:
    share_NR = why.share_BKR[listed_BK]
    is_one_NR = share_NR > 0.0
    item = why.item_BKR[listed_BK][is_one_NR]
    names = item_ids.gather(np.maximum(item, 0))
    if (item == NO_ITEM).any():
        names = names.zip_with(pl.Series(item != NO_ITEM), pl.Series([None], dtype=item_ids.dtype))
    structs = pl.DataFrame(
        {
            "kind": pl.Series(KINDS, dtype=pl.String).gather(why.kind_BKR[listed_BK][is_one_NR]),
            "item_id": names,
            "share": pl.Series(share_NR[is_one_NR], dtype=pl.Float32),
        }
    ).to_struct("reasons")
    offsets = np.concatenate([[0], np.cumsum(is_one_NR.sum(axis=1))]).astype(np.int64)
    lists = pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), structs.to_arrow())))
    return lists.cast(pl.List(structs.dtype))


def counts_of(block: Lists, would_be_BK: npt.NDArray[np.int32], rules: Rules) -> dict[str, dict[str, int]]:
    """rows_by_tier, users_by_tier (of the first row), removed_by_rule, short_by_reason; names that do not occur are 0
    or left out."""
    listed_BK = block.item_BK != NO_ITEM
    return {
        "rows_by_tier": _named(TIERS, block.tier_BK[listed_BK]),
        "users_by_tier": _named(TIERS, block.tier_BK[listed_BK[:, 0], 0]),
        "removed_by_rule": _named(RULES, _removed(block, would_be_BK, rules)),
        "short_by_reason": _short(block.users[~listed_BK[:, -1]], block.item_BK.shape[1], rules),
    }


def _named(names: tuple[str, ...], position: np.ndarray) -> dict[str, int]:
    counts = np.bincount(position, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _removed(block: Lists, would_be_BK: npt.NDArray[np.int32], rules: Rules) -> np.ndarray:
    """The rule of each recommendation that is none because of it.

    seen, of the K that the model would put first: mostly what people like already. Every other rule, of the K that
    were left if nothing but `seen` were forbidden, or the figures of all others would drown in it. What no other rule
    took of them, the cap on categories did.
    """
    is_seen = rules.forbidding(block.users, block.wished_BK) == RULES.index("seen")
    rule_BK = rules.forbidding(block.users, would_be_BK)
    if rules.cap is not None:
        line_B1 = np.arange(len(block.users))[:, None] * np.int64(rules.rule_GI.shape[1])
        allowed_BK = (rule_BK == NONE) & (would_be_BK != NO_ITEM)
        listed = (line_B1 + block.item_BK)[block.item_BK != NO_ITEM]
        stands = np.isin((line_B1 + would_be_BK)[allowed_BK], listed, assume_unique=True)
        rule_BK[allowed_BK] = np.where(stands, NONE, RULES.index("category"))
    return np.append(np.full(is_seen.sum(), RULES.index("seen")), rule_BK[rule_BK != NONE])


def _short(users: npt.NDArray[np.int64], k: int, rules: Rules) -> dict[str, int]:
    """Why fewer than K are left: the rule that, in their order, brought the number below K."""
    counts: dict[str, int] = {}
    if not len(users):
        return counts
    left_BR = np.hstack([np.full((len(users), 1), rules.rule_GI.shape[1]), rules.left_after(users)])
    below_BR = left_BR < k
    first_B = np.where(below_BR.any(axis=1), below_BR.argmax(axis=1), below_BR.shape[1])
    for position, count in zip(*np.unique(first_B, return_counts=True), strict=True):
        counts[(SMALL_CATALOGUE, *RULES)[position]] = int(count)
    return counts
