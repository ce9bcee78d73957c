"""What is popular lately: of everybody, and in each group. What lists end with, and what newcomers begin with.

The newest like counts 1, and one that is half_life_days older half as much; never less than a millionth, so that what
nobody has liked for years is still ordered by how many ever did. From the newest like, not from the night's date: the
order is the same, and events that stopped long ago do not all end at a millionth.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph import Csr
from models.scorers import GroupScores

DAY_US = 86_400_000_000
LEAST_WEIGHT = 2.0**-20
LIKES_AT_ONCE = 1_000_000
# No fixed number of days serves both a source with 260 likes a day and one with 9 (benchmarks/README.md, "Popular").
LIKES_OF_A_HALF_LIFE = 5_000
LEAST_HALF_LIFE_DAYS = 7.0  # a whole week, or Sunday's taste would make Monday's lists


@dataclass(frozen=True)
class Popular:
    """Scores are sums of weighted likes; total_G is their sum over all items. Memory: 4 bytes x groups x items."""

    scores: GroupScores
    total_G: npt.NDArray[np.float64]

    def shares(self, users: npt.NDArray[np.int64], score: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Each user's and score's part of all likes of their group: what a reason says."""
        return (score / np.maximum(self.total_G[self.scores.group_U[users]], LEAST_WEIGHT)).astype(np.float32)


@dataclass(frozen=True)
class Likes:
    """Every like by person, and its moment (E,) in microseconds; looked at some people at a time.

    half_life_days: none: as the data has it; 0: all count the same.
    """

    by_person: Csr
    at_E: npt.NDArray[np.int64]
    half_life_days: float | None

    def weigh(self) -> Iterator[tuple[slice, npt.NDArray[np.int32], npt.NDArray[np.float64]]]:
        """People, and of their likes one after another the item and how much it counts."""
        indptr = self.by_person.indptr
        if not (num_likes := int(indptr[-1])):
            return
        newest, half_life_days = half_life_of(self.at_E, self.half_life_days)
        ends = np.searchsorted(indptr, np.arange(LIKES_AT_ONCE, num_likes + LIKES_AT_ONCE, LIKES_AT_ONCE))
        for start, stop in itertools.pairwise(np.unique([0, *np.minimum(ends, self.by_person.num_rows)])):
            entries = slice(int(indptr[start]), int(indptr[stop]))
            weight_e = _weights(self.at_E[entries], newest, half_life_days)
            yield slice(int(start), int(stop)), self.by_person.indices[entries], weight_e


def weight_of_likes(liked_at_E: np.ndarray, half_life_days: float | None) -> npt.NDArray[np.float64]:
    """(E,) how much each like counts."""
    return _weights(liked_at_E, *half_life_of(liked_at_E, half_life_days))


def _weights(liked_at_E: np.ndarray, newest_us: int, half_life_days: float) -> npt.NDArray[np.float64]:
    if half_life_days == 0.0:
        return np.ones(len(liked_at_E))
    age_days_E = (newest_us - liked_at_E) / DAY_US
    return np.maximum(np.exp2(-age_days_E / half_life_days), LEAST_WEIGHT)


def half_life_of(liked_at_E: np.ndarray, half_life_days: float | None) -> tuple[int, float]:
    """The newest like's moment, and the half-life in days."""
    if half_life_days == 0.0 or not len(liked_at_E):
        return 0, 0.0
    newest = np.zeros(0, dtype=np.int64)  # so many of them, in any order
    for start in range(0, len(liked_at_E), LIKES_AT_ONCE):
        newest = np.concatenate([newest, liked_at_E[start : start + LIKES_AT_ONCE]])
        if len(newest) > LIKES_OF_A_HALF_LIFE:
            newest = np.partition(newest, -LIKES_OF_A_HALF_LIFE)[-LIKES_OF_A_HALF_LIFE:]
    if half_life_days is None:
        half_life_days = max(LEAST_HALF_LIFE_DAYS, float((newest.max() - newest.min()) / DAY_US))
    return int(newest.max()), half_life_days


def popular_of_everybody(likes: Likes, num_items: int) -> Popular:
    """An opinion on every item, so that a list is short only where nothing is left."""
    score_I = np.zeros(num_items)
    for _, item_e, weight_e in likes.weigh():
        np.add.at(score_I, item_e, weight_e)  # one by one, in the order of likes, whatever the pieces
    everybody_P = np.zeros(likes.by_person.num_rows, dtype=np.int64)
    return Popular(GroupScores(score_I[None].astype(np.float32), everybody_P), score_I.sum(keepdims=True))


def popular_in_groups(likes: Likes, num_items: int, group_P: npt.NDArray[np.int64], *, num_groups: int) -> Popular:
    """No opinion for people without a group (-1), nor on what nobody in the group likes."""
    score_GI = np.zeros((num_groups, num_items))
    count_P = likes.by_person.counts()
    for some, item_e, weight_e in likes.weigh():
        group_e = np.repeat(group_P[some], count_P[some])
        has_one = group_e >= 0
        np.add.at(score_GI, (group_e[has_one], item_e[has_one]), weight_e[has_one])
    total_G = score_GI.sum(axis=1)
    score_GI[score_GI == 0.0] = -np.inf
    return Popular(GroupScores(score_GI.astype(np.float32), group_P), total_G)
