"""Lists of some users by one scorer, held against what they liked next: numbers a user, and what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.graph import Csr, load_csr
from models.metrics import PER_USER, bootstrap_interval, bootstrap_intervals, hits
from models.scorers import GroupScores, Scorer
from models.topk import top_k
from tasks.config import EvaluateConfig
from tasks.contracts import Graph, Measured

SEED = 7
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PerUser:
    """One model on one part, a number a user: what means, intervals and paired differences are made of."""

    recall: Float64
    ndcg: Float64
    exposure_I: npt.NDArray[np.int64]  # in how many lists of evaluate.k each item stands
    at: dict[tuple[str, int], Float64] = field(default_factory=dict)  # (metric, length of the list)
    by_items: dict[str, Float64] = field(default_factory=dict)  # recall of head and tail targets, nan: has none

    @property
    def coverage(self) -> float:
        return float((self.exposure_I > 0).mean())


def measure(
    graph: Graph,
    scorer: Scorer,
    fill: GroupScores,
    target: Csr,
    users: np.ndarray,
    part: str,
    k: int,
    block_bytes: int,
    *,
    also_at: Sequence[int] = (),
    head_I: npt.NDArray[np.bool_] | None = None,
) -> PerUser:
    """`fill`, what is popular, takes what the scorer leaves; what the users had met before the part is left out.

    Memory: 8 bytes x users x 5 metrics x lengths of lists.
    """
    lengths = sorted({k, *also_at})
    at: dict[tuple[str, int], list[Float64]] = {(name, length): [] for name in PER_USER for length in lengths}
    by_items: dict[str, list[Float64]] = {"head": [], "tail": []} if head_I is not None else {}
    exposure_I = np.zeros(graph.num_items, dtype=np.int64)
    for block in top_k(
        [scorer, fill],
        users=users,
        excluded=load_csr(graph.folder, f"seen_before_{part}"),
        k=lengths[-1],
        item_rank_I=np.load(Path(graph.folder) / "item_rank.npy"),
        block_bytes=block_bytes,
    ):
        hit_BK = hits(block.item_BK, block.users, target, graph.num_items)
        num_targets_B = target.counts()[block.users]
        for (name, length), values in at.items():
            values.append(PER_USER[name](hit_BK[:, :length], num_targets_B))
        item_BK = block.item_BK[:, :k]
        exposure_I += np.bincount(item_BK[item_BK >= 0], minlength=graph.num_items)
        if head_I is not None:
            for name, which_I in (("head", head_I), ("tail", ~head_I)):
                by_items[name].append(_recall_among(which_I, item_BK, hit_BK[:, :k], target, block.users))
    whole = {key: np.concatenate([np.zeros(0), *values]) for key, values in at.items()}
    of_items = {name: np.concatenate([np.zeros(0), *values]) for name, values in by_items.items()}
    return PerUser(whole["recall", k], whole["ndcg", k], exposure_I, whole, of_items)


def _recall_among(
    which_I: npt.NDArray[np.bool_],
    item_BK: npt.NDArray[np.int32],
    hit_BK: npt.NDArray[np.bool_],
    target: Csr,
    users: npt.NDArray[np.int64],
) -> Float64:
    """Recall of those targets alone; nan for users who have none of them."""
    position, item = target.rows_of(users)
    targets_B = np.bincount(position[which_I[item]], minlength=len(users))
    found_B = (hit_BK & which_I[item_BK]).sum(axis=1)  # a missing item, -1, is no hit
    return np.where(targets_B > 0, found_B / np.maximum(targets_B, 1), np.nan)


def interval(value_B: np.ndarray, settings: EvaluateConfig) -> Measured:
    """The mean with its 95 % interval."""
    return Measured(*bootstrap_interval(value_B, resamples=settings.resamples, seed=SEED))


def intervals(values: dict[tuple[str, int], Float64], settings: EvaluateConfig) -> dict[str, dict[int, Measured]]:
    """Metric -> length of the list -> the same, over the same resampled users."""
    found = bootstrap_intervals(np.stack(list(values.values()), axis=1), resamples=settings.resamples, seed=SEED)
    by_metric: dict[str, dict[int, Measured]] = {}
    for (metric, length), measured in zip(values, found, strict=True):
        by_metric.setdefault(metric, {})[length] = Measured(*measured)
    return by_metric
