"""Recall on the validation likes: what chooses the number of epochs. Ranks share out the users."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.distributed import Ranks
from models.graph import load_csr
from models.metrics import hits, recall
from models.rivals import popularity
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from models.topk import top_k

USERS_AT_MOST = 20_000  # a seeded sample beyond; the epoch choice needs no more, the evaluation takes all


class Validation:
    """Recall@k on the validation likes, full catalogue, what the users had met by then left out of their lists."""

    def __init__(self, graph_folder: str, *, num_items: int, k: int, seed: int) -> None:
        self.target = load_csr(graph_folder, "liked_validation")
        self.seen = load_csr(graph_folder, "seen_before_validation")
        self.train = load_csr(graph_folder, "liked_train")
        self.item_rank_I = np.load(Path(graph_folder) / "item_rank.npy")
        self.num_items, self.k = num_items, k
        users = np.flatnonzero(self.target.counts() > 0)
        if len(users) > USERS_AT_MOST:
            users = np.sort(np.random.default_rng(seed).choice(users, USERS_AT_MOST, replace=False))
        self.users = users

    def recall(self, tables: tuple[Tensor, ...], ranks: Ranks, beat: Callable[[], None] = lambda: None) -> float:
        """The mean over all users, the same number on every rank and whatever their number."""
        if len(self.users) == 0:
            return 0.0
        recall_U = torch.zeros(len(self.users), dtype=torch.float64)
        recall_U[ranks.rank :: ranks.world] = torch.from_numpy(
            self.recall_of(tables, self.users[ranks.rank :: ranks.world], beat)
        )
        return float(ranks.total(recall_U.to(ranks.device)).cpu().numpy().mean())

    def recall_of(
        self, tables: tuple[Tensor, ...], users: np.ndarray, beat: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """(B,) recall of each of these users. The first two tables score."""
        popularity_I = popularity(self.train, self.num_items)
        scorer = InnerProduct(tables[0], tables[1], rows_where(self.train.counts() > 0), popularity_I > 0)
        tiers: list[Scorer] = [scorer, for_everybody(popularity_I, self.train.num_rows)]
        recalls = []
        for block in top_k(tiers, users=users, excluded=self.seen, k=self.k, item_rank_I=self.item_rank_I):
            hit_BK = hits(block.item_BK, block.users, self.target, self.num_items)
            recalls.append(recall(hit_BK, self.target.counts()[block.users]))
            beat()
        return np.concatenate(recalls) if recalls else np.zeros(0)
