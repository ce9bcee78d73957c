"""How good lists are, one number a user. In models because the ranks stop early by them.

Full catalogue, no sampled negatives: a list was chosen among all items the user had not seen.
"""

import numpy as np
import numpy.typing as npt

from models.graph import Csr

Float64 = npt.NDArray[np.float64]


def hits(
    item_BK: npt.NDArray[np.int32], users: npt.NDArray[np.int64], target: Csr, num_items: int
) -> npt.NDArray[np.bool_]:
    """(B, K): does the list's item stand among the user's targets? A missing item (-1) is no hit."""
    position, item = target.rows_of(users)
    wanted = position * np.int64(num_items) + item  # ascending: positions ascend, and items within a position
    asked = np.arange(len(users))[:, None] * np.int64(num_items) + item_BK
    found = np.searchsorted(wanted, asked)
    hit = np.zeros(item_BK.shape, dtype=bool)
    inside = found < len(wanted)
    hit[inside] = wanted[found[inside]] == asked[inside]
    return hit & (item_BK >= 0)


def recall(hit_BK: npt.NDArray[np.bool_], num_targets_B: npt.NDArray[np.integer]) -> Float64:
    """Share of a user's targets that stand in the list."""
    return hit_BK.sum(axis=1) / num_targets_B


def ndcg(hit_BK: npt.NDArray[np.bool_], num_targets_B: npt.NDArray[np.integer]) -> Float64:
    """Discounted gain over the best possible one (Jarvelin and Kekalainen 2002), gains 0 or 1, log base 2."""
    k = hit_BK.shape[1]
    discount_K = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discount_K)])[np.minimum(num_targets_B, k)]
    return (hit_BK * discount_K).sum(axis=1) / best


def average_precision(hit_BK: npt.NDArray[np.bool_], num_targets_B: npt.NDArray[np.integer]) -> Float64:
    """Precision at each hit, averaged over the hits that a list of K could have; its mean over users is MAP@K."""
    k = hit_BK.shape[1]
    precision_BK = np.cumsum(hit_BK, axis=1) / np.arange(1, k + 1)
    best_B = np.minimum(num_targets_B, k)
    return (precision_BK * hit_BK).sum(axis=1) / best_B


def hit_rate(hit_BK: npt.NDArray[np.bool_], num_targets_B: npt.NDArray[np.integer]) -> Float64:
    """1 where any target stands in the list."""
    return np.asarray(hit_BK.any(axis=1), np.float64)


def reciprocal_rank(hit_BK: npt.NDArray[np.bool_], num_targets_B: npt.NDArray[np.integer]) -> Float64:
    """1 / the rank of the first target in the list, 0 where there is none; its mean over users is MRR@K."""
    return np.where(hit_BK.any(axis=1), 1.0 / (hit_BK.argmax(axis=1) + 1.0), 0.0)


# What a list is worth to one user, by the name that reports give it.
PER_USER = {
    "recall": recall,
    "ndcg": ndcg,
    "map": average_precision,
    "hit_rate": hit_rate,
    "mrr": reciprocal_rank,
}


def gini(exposure_I: npt.NDArray[np.integer]) -> float:
    """How unequally lists show items: 0 where all stand in equally many, near 1 where one stands in all of them.

    The Gini coefficient of the counts, items in no list included (Fleder and Hosanagar 2009).
    """
    count_I = np.sort(exposure_I).astype(np.float64)
    if not count_I.sum():
        return 0.0
    weight_I = 2.0 * np.arange(1, len(count_I) + 1) - len(count_I) - 1.0
    return float((weight_I * count_I).sum() / (len(count_I) * count_I.sum()))


def novelty(exposure_I: npt.NDArray[np.integer], popularity_I: npt.NDArray[np.number], num_users: int) -> float:
    """Mean self-information of a listed item in bits: -log2 of the share of users who like it (Zhou et al. 2010).

    An item that nobody likes counts as liked by half a person.
    """
    bits_I = -np.log2(np.maximum(popularity_I, 0.5) / max(1, num_users))
    return float((bits_I * exposure_I).sum() / max(1, exposure_I.sum()))


def is_head(popularity_I: npt.NDArray[np.number], share: float) -> npt.NDArray[np.bool_]:
    """(I,): the fewest items that together have `share` of all likes, the most liked first, ties by row."""
    order = np.lexsort((np.arange(len(popularity_I)), -popularity_I.astype(np.float64)))
    before = np.cumsum(popularity_I[order]) - popularity_I[order]
    head_I = np.zeros(len(popularity_I), dtype=bool)
    head_I[order] = before < share * popularity_I.sum()
    return head_I


# ---- what chance can do


def bootstrap_means(value_BM: Float64, *, resamples: int, seed: int) -> Float64:
    """(resamples, M): the means of each of M columns over the same resampled users (Efron 1979).

    Columns that are differences between two models on the same users give the paired bootstrap (Sakai 2006).
    """
    rng = np.random.default_rng(seed)
    num_users = len(value_BM)
    means_RM = np.empty((resamples, value_BM.shape[1]))
    for row in range(resamples):
        times_B = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
        means_RM[row] = times_B @ value_BM / num_users
    return means_RM


def bootstrap_intervals(value_BM: Float64, *, resamples: int, seed: int) -> list[tuple[float, float, float]]:
    """Mean and 95 % percentile interval of each column; 0, 0, 0 of nobody."""
    if not len(value_BM):
        return [(0.0, 0.0, 0.0)] * value_BM.shape[1]
    low_M, high_M = np.percentile(bootstrap_means(value_BM, resamples=resamples, seed=seed), [2.5, 97.5], axis=0)
    return [
        (float(mean), float(low), float(high))
        for mean, low, high in zip(value_BM.mean(axis=0), low_M, high_M, strict=True)
    ]


def bootstrap_interval(value_B: Float64, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """The same of one column."""
    return bootstrap_intervals(value_B[:, None], resamples=resamples, seed=seed)[0]
