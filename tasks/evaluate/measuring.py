"""Lists of some users by one scorer, held against what they liked next: numbers a user, and what is made of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.graph import Csr, load_csr
from models.metrics import bootstrap_interval, hits, ndcg, recall
from models.scorers import GroupScores, Scorer
from models.topk import top_k
from tasks.config import EvaluateConfig
from tasks.contracts import Graph, Measured

SEED = 7


@dataclass(frozen=True)
class PerUser:
    """One model on one part, a number a user: what means, intervals and paired differences are made of."""

    recall: np.ndarray
    ndcg: np.ndarray
    coverage: float


def measure(
    graph: Graph,
    scorer: Scorer,
    fill: GroupScores,
    target: Csr,
    users: np.ndarray,
    part: str,
    k: int,
    block_bytes: int,
) -> PerUser:
    """`fill`, what is popular, takes what the scorer leaves; what the users had met before the part is left out."""
    recalls, ndcgs = [np.zeros(0)], [np.zeros(0)]
    listed = np.zeros(graph.num_items, dtype=bool)
    for block in top_k(
        [scorer, fill],
        users=users,
        excluded=load_csr(graph.folder, f"seen_before_{part}"),
        k=k,
        item_rank_I=np.load(Path(graph.folder) / "item_rank.npy"),
        block_bytes=block_bytes,
    ):
        hit_BK = hits(block.item_BK, block.users, target, graph.num_items)
        num_targets_B = target.counts()[block.users]
        recalls.append(recall(hit_BK, num_targets_B))
        ndcgs.append(ndcg(hit_BK, num_targets_B))
        listed[block.item_BK[block.item_BK >= 0]] = True
    return PerUser(np.concatenate(recalls), np.concatenate(ndcgs), float(listed.mean()))


def interval(value_B: np.ndarray, settings: EvaluateConfig) -> Measured:
    """The mean with its 95 % interval."""
    return Measured(*bootstrap_interval(value_B, resamples=settings.resamples, seed=SEED))
