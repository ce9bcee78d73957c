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


def bootstrap_interval(value_B: Float64, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean and the 95 % percentile interval over resampled users (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = np.array([value_B[rng.integers(0, len(value_B), len(value_B))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(value_B.mean()), float(low), float(high)
