"""Which users a step sees, and which items stand against their likes.

Drawn from (seed, epoch, step) alone: every rank draws the same global batch and takes its share of the users, so the
number of ranks changes nothing but rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.graph import Csr


@dataclass(frozen=True)
class Batch:
    """One step's share of users with all their likes, and the negatives that all ranks share."""

    users: Tensor  # (B,) rows of the user table
    liked_position: Tensor  # (E,) which of the B users a like belongs to
    liked_item: Tensor  # (E,)
    negatives: Tensor  # (M,) item rows
    negative_log_weight: Tensor  # (M,) -log of how often each is expected among the negatives (logQ correction)
    weight: float  # each like's share of the loss, so that the ranks' mean gradient is the whole batch's


class BatchSampler:
    """Passes over all users who like something, in `batches_per_epoch` steps of whole users with all their likes."""

    def __init__(
        self, liked: Csr, num_items: int, *, batches_per_epoch: int, negatives: int, seed: int, device: torch.device
    ) -> None:
        self.liked = liked
        self.users = np.flatnonzero(liked.counts() > 0)
        self.num_steps = min(batches_per_epoch, len(self.users))
        self.seed = seed
        self.device = device
        popularity_I = np.bincount(liked.indices, minlength=num_items).astype(np.float64)
        self.candidates = np.flatnonzero(popularity_I > 0)
        self.num_negatives = negatives
        # Between uniform (too easy) and by popularity (too hard): the square root.
        share = np.sqrt(popularity_I[self.candidates])
        self.probability = share / share.sum()
        self.cumulative = np.cumsum(self.probability)

    def epoch(self, epoch: int, *, rank: int, world: int) -> Iterator[Batch]:
        """The epoch's steps, each holding this rank's share of the step's users."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.users)
        for step, users in enumerate(np.array_split(order, self.num_steps)):
            negatives, log_weight = self._draw_negatives(epoch, step)
            mine = users[rank::world]
            position, item = self.liked.rows_of(mine)
            likes_in_step = int((self.liked.indptr[users + 1] - self.liked.indptr[users]).sum())
            yield Batch(
                users=self._tensor(mine),
                liked_position=self._tensor(position),
                liked_item=self._tensor(item.astype(np.int64)),
                negatives=self._tensor(negatives),
                negative_log_weight=torch.from_numpy(log_weight).to(self.device),
                # The ranks' gradients are averaged, hence times world; over all ranks each like weighs the same.
                weight=world / likes_in_step,
            )

    def _draw_negatives(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(M,) item rows and -log of each one's expected count. A small catalogue is taken whole: no sampling noise.

        A like of the batch can be among them, and then stands twice below the fraction of its softmax: as itself, and
        as a negative of its own.
        """
        if len(self.candidates) <= self.num_negatives:
            return self.candidates, np.zeros(len(self.candidates), dtype=np.float32)
        draw = np.random.default_rng([self.seed, epoch, step, 1]).random(self.num_negatives)
        chosen = np.minimum(np.searchsorted(self.cumulative, draw, side="right"), len(self.candidates) - 1)
        log_weight = -np.log(self.num_negatives * self.probability[chosen])
        return self.candidates[chosen], log_weight.astype(np.float32)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)
