"""Where a mean hides something: the test users by their history and segment, and the items they like by popularity.

new     without a like before the cut        light, heavy  up to the median of the others' likes, and above it
head    recall of the most liked items       tail          of all others (evaluate.head_share)
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tasks.config import EvaluateConfig
from tasks.contracts import SliceScore
from tasks.evaluate.measuring import PerUser, interval

SEGMENTS_AT_MOST = 20


def score_slices(
    ours: PerUser,
    by_popularity: PerUser,
    num_likes_B: npt.NDArray[np.integer],
    segment_B: npt.NDArray[np.int64] | None,
    segment_names: Sequence[str],
    settings: EvaluateConfig,
) -> tuple[SliceScore, ...]:
    """B users, as in `ours` and `by_popularity`; segment_B: -1 is none. Slices without a user are left out."""
    scores = [
        _score(name, ours.recall[which_B], by_popularity.recall[which_B], settings)
        for name, which_B in _of_users(num_likes_B, segment_B, segment_names)
    ]
    for name, recall_B in ours.by_items.items():
        has_B = ~np.isnan(recall_B)
        scores.append(_score(f"items: {name}", recall_B[has_B], by_popularity.by_items[name][has_B], settings))
    return tuple(score for score in scores if score.num_users)


def _of_users(
    num_likes_B: npt.NDArray[np.integer], segment_B: npt.NDArray[np.int64] | None, segment_names: Sequence[str]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    has_B = num_likes_B > 0
    median = float(np.median(num_likes_B[has_B])) if has_B.any() else 0.0
    yield "users: new", ~has_B
    yield "users: light", has_B & (num_likes_B <= median)
    yield "users: heavy", has_B & (num_likes_B > median)
    if segment_B is None:
        return
    segments, counts = np.unique(segment_B[segment_B >= 0], return_counts=True)
    for segment in segments[np.lexsort((segments, -counts))][:SEGMENTS_AT_MOST]:
        yield f"segment: {segment_names[segment]}", segment_B == segment


def _score(name: str, ours_B: np.ndarray, popularity_B: np.ndarray, settings: EvaluateConfig) -> SliceScore:
    return SliceScore(name, len(ours_B), interval(ours_B, settings), interval(ours_B - popularity_B, settings))
