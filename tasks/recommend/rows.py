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
    line, column = np.nonzero(block.item_BK != NO_ITEM)
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(block.users[line]),
            "rank": pl.Series((column + 1).astype(np.int32)),
            "item_id": item_ids.gather(block.item_BK[line, column]),
            "score": pl.Series(block.score_BK[line, column].astype(np.float32)),
            "tier": pl.Series(TIERS, dtype=pl.String).gather(block.tier_BK[line, column]),
            "reasons": _reasons(why, line, column, item_ids),
        }
    )


def _reasons(why: Why, line: np.ndarray, column: np.ndarray, item_ids: pl.Series) -> pl.Series:
    share_NR = why.share_BKR[line, column]
    row, place = np.nonzero(share_NR > 0.0)
    item = why.item_BKR[line, column][row, place]
    structs = pl.DataFrame(
        {
            "kind": pl.Series(KINDS, dtype=pl.String).gather(why.kind_BKR[line, column][row, place]),
            "item_id": item_ids.gather(pl.Series(np.maximum(item, 0))).zip_with(
                pl.Series(item != NO_ITEM), pl.Series([None], dtype=item_ids.dtype)
            ),
            "share": pl.Series(share_NR[row, place], dtype=pl.Float32),
        }
    ).to_struct("reasons")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(line)))]).astype(np.int64)
    lists = pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), structs.to_arrow())))
    return lists.cast(pl.List(structs.dtype))


def counts_of(block: Lists, rules: Rules) -> dict[str, dict[str, int]]:
    """rows_by_tier, users_by_tier (of the first row), removed_by_rule, short_by_reason; names that do not occur are 0
    or left out."""
    listed_BK = block.item_BK != NO_ITEM
    return {
        "rows_by_tier": _named(TIERS, block.tier_BK[listed_BK]),
        "users_by_tier": _named(TIERS, block.tier_BK[listed_BK[:, 0], 0]),
        "removed_by_rule": _named(RULES, _removed(block, rules)),
        "short_by_reason": _short(block.users[~listed_BK[:, -1]], block.item_BK.shape[1], rules),
    }


def _named(names: tuple[str, ...], position: np.ndarray) -> dict[str, int]:
    counts = np.bincount(position, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _removed(block: Lists, rules: Rules) -> np.ndarray:
    """The rule of each wished item that is in no list. What no other rule took, the cap on categories did."""
    rule_BK = rules.forbidding(block.users, block.wished_BK)
    if rules.cap is not None:
        line = np.arange(len(block.users))[:, None] * np.int64(rules.rule_GI.shape[1] + 1)
        stands_BK = np.isin(line + block.wished_BK + 1, line + block.item_BK + 1)
        capped = (rule_BK == NONE) & (block.wished_BK != NO_ITEM) & ~stands_BK
        rule_BK = np.where(capped, RULES.index("category"), rule_BK)
    return rule_BK[rule_BK != NONE]


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
