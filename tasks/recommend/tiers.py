"""What is popular lately: of everybody, and in each segment. What lists end with, and what newcomers begin with.

The newest like counts 1, and one that is popular_half_life_days older half as much; never less than a millionth, so
that what nobody has liked for years is still ordered by how many ever did. From the newest like, not from the night's
date: the order is the same, and events that stopped long ago do not all end at a millionth.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph import Csr
from models.scorers import GroupScores
from tasks.recommend.rules import DAY_US, People

LEAST_WEIGHT = 2.0**-20
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


def weight_of_likes(liked_at_E: np.ndarray, half_life_days: float | None) -> npt.NDArray[np.float64]:
    """(E,) how much each like counts, from its moment in microseconds. None: as the data has it; 0: all the same."""
    if half_life_days == 0.0 or not len(liked_at_E):
        return np.ones(len(liked_at_E))
    age_days_E = (liked_at_E.max() - liked_at_E) / DAY_US
    if half_life_days is None:
        newest = min(len(age_days_E), LIKES_OF_A_HALF_LIFE)
        half_life_days = max(LEAST_HALF_LIFE_DAYS, float(np.partition(age_days_E, newest - 1)[newest - 1]))
    return np.maximum(np.exp2(-age_days_E / half_life_days), LEAST_WEIGHT)


def popular_of_everybody(liked: Csr, weight_E: np.ndarray, num_items: int) -> Popular:
    """An opinion on every item, so that a list is short only where nothing is left. `liked` is by person."""
    score_I = np.bincount(liked.indices, weights=weight_E, minlength=num_items)
    everybody_P = np.zeros(liked.num_rows, dtype=np.int64)
    return Popular(GroupScores(score_I[None].astype(np.float32), everybody_P), score_I.sum(keepdims=True))


def popular_in_segments(liked: Csr, weight_E: np.ndarray, num_items: int, people: People) -> Popular:
    """No opinion for people without a segment, nor on what nobody in the segment likes. `liked` is by person."""
    segment_E = np.repeat(people.segment_P, liked.counts())
    by_segment = np.argsort(segment_E, kind="stable")
    ends = np.searchsorted(segment_E[by_segment], np.arange(len(people.segments) + 1))
    score_GI = np.full((len(people.segments), num_items), -np.inf, dtype=np.float32)
    total_G = np.zeros(len(people.segments))
    for segment, (start, end) in enumerate(itertools.pairwise(ends)):
        likes = by_segment[start:end]
        score_I = np.bincount(liked.indices[likes], weights=weight_E[likes], minlength=num_items)
        score_GI[segment, score_I > 0.0] = score_I[score_I > 0.0]
        total_G[segment] = score_I.sum()
    return Popular(GroupScores(score_GI, people.segment_P), total_G)
