"""Which users a step sees, and which items stand against their likes.

Drawn from (seed, epoch, step) alone: every rank draws the same global batch and takes its share of the users, so the
number of ranks changes nothing but rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from models.graph import Csr


@dataclass(frozen=True)
class Share:
    """One rank's share of a step: whole users with all their likes, and the negatives that all ranks share.

    `nodes` are the W rows of the embedding table that the share needs: its B users, then its distinct items, both
    ascending. Everything else speaks of positions in these: users 0..B-1, items 0..W-B-1.
    """

    nodes: Tensor  # (W,) int64
    num_users: int  # B
    items: Tensor  # (W - B,) int64, the same items as rows of the item table
    liked_indptr: Tensor  # (B + 1,) int32: the likes by user
    liked_item: Tensor  # (E,) int32
    by_item_indptr: Tensor  # (W - B + 1,) int32: the same likes by item
    by_item_user: Tensor  # (E,) int32
    by_item_like: Tensor  # (E,) int32, which like of the first order stands here
    negatives: Tensor  # (M,) int64, distinct
    negative_log_weight: Tensor  # (M,) log of each one's copies over their expected number (logQ correction)
    collision_user: Tensor  # (C,) int64 ascending: here a user meets a like of theirs ...
    collision_negative: Tensor  # (C,) ... among the negatives
    num_likes_of_step: int  # of all ranks together


@dataclass(frozen=True)
class Triplets:
    """One rank's share of a BPR step: users, an item that each likes, and one that they do not."""

    nodes: Tensor  # (W,) int64 ascending, the rows of the embedding table that the share needs
    user: Tensor  # (B,) positions in `nodes`
    liked: Tensor  # (B,)
    other: Tensor  # (B,)
    num_likes_of_step: int


@dataclass(frozen=True)
class Step:
    """One step as a rank sees it: its own share, and which rows of the table each rank needs for its own."""

    share: Share | Triplets
    wanted: list[Tensor]  # by rank, (W,) int64 ascending


class UserSampler:
    """Passes over all users who like something, in `batches_per_epoch` steps of whole users with all their likes."""

    def __init__(
        self,
        liked: Csr,
        num_items: int,
        *,
        batches_per_epoch: int,
        negatives: int,
        seed: int,
        device: torch.device,
        likeness_U: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """`likeness_U`: users with near numbers like the same items; a rank's share are neighbours by it."""
        self.liked = liked
        self.likeness_U = np.zeros(liked.num_rows, np.float32) if likeness_U is None else likeness_U
        self.num_items = num_items
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

    def epoch(self, epoch: int, rank: int, world: int) -> Iterator[Step]:
        """The epoch's steps. A rank may be left without users, never without items."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.users)
        for step, users in enumerate(np.array_split(order, self.num_steps)):
            negatives, log_weight = self._draw_negatives(epoch, step)
            likes = int((self.liked.indptr[users + 1] - self.liked.indptr[users]).sum())
            shared_out = self._shared_out(users, world)
            share = self._share(shared_out[rank], negatives, log_weight, likes)
            wanted = [
                share.nodes if other == rank else self._rows(self._nodes(theirs, self._items(theirs, negatives)))
                for other, theirs in enumerate(shared_out)
            ]
            yield Step(share, wanted)

    def _shared_out(self, users: np.ndarray, world: int) -> list[np.ndarray]:
        """Each rank's users, with about the same number of scores. Neighbours need fewer rows than strangers would."""
        ordered = np.sort(users)[np.argsort(self.likeness_U[np.sort(users)], kind="stable")]
        against = min(self.num_negatives, len(self.candidates))
        scores = np.cumsum(self.liked.indptr[ordered + 1] - self.liked.indptr[ordered] + against)
        pieces = np.split(ordered, np.searchsorted(scores, scores[-1] * np.arange(1, world) / world))
        return [np.sort(piece) for piece in pieces]

    def _draw_negatives(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(M,) distinct item rows, and log of copies / expected copies. A small catalogue is taken whole, no noise."""
        if len(self.candidates) <= self.num_negatives:
            return self.candidates, np.zeros(len(self.candidates), dtype=np.float32)
        draw = np.random.default_rng([self.seed, epoch, step, 1]).random(self.num_negatives)
        place = np.minimum(np.searchsorted(self.cumulative, draw, side="right"), len(self.candidates) - 1)
        chosen, copies = np.unique(place, return_counts=True)
        log_weight = np.log(copies / (self.num_negatives * self.probability[chosen]))
        return self.candidates[chosen], log_weight.astype(np.float32)

    def _share(self, users: np.ndarray, negatives: np.ndarray, log_weight: np.ndarray, likes: int) -> Share:
        position, item = self.liked.rows_of(users)
        items = self._items(users, negatives)
        place_of_item = np.empty(self.num_items, dtype=np.int32)
        place_of_item[items] = np.arange(len(items), dtype=np.int32)
        negative_at = np.full(len(items), -1, dtype=np.int32)
        negative_at[place_of_item[negatives]] = np.arange(len(negatives), dtype=np.int32)
        counts = self.liked.indptr[users + 1] - self.liked.indptr[users]
        by_user = sp.csr_matrix(
            (
                np.arange(len(item), dtype=np.int32),
                place_of_item[item],
                np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            ),
            shape=(len(users), len(items)),
        )
        by_item = by_user.tocsc()
        met = negative_at[by_user.indices]
        collides = met >= 0
        return Share(
            nodes=self._rows(self._nodes(users, items)),
            num_users=len(users),
            items=self._rows(items),
            liked_indptr=self._tensor(by_user.indptr),
            liked_item=self._tensor(by_user.indices),
            by_item_indptr=self._tensor(by_item.indptr),
            by_item_user=self._tensor(by_item.indices),
            by_item_like=self._tensor(by_item.data),
            negatives=self._rows(place_of_item[negatives]),
            negative_log_weight=self._tensor(log_weight),
            collision_user=self._rows(position[collides]),
            collision_negative=self._rows(met[collides]),
            num_likes_of_step=likes,
        )

    def _items(self, users: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """The distinct items that a share of these users meets, ascending."""
        wanted = np.zeros(self.num_items, dtype=bool)
        wanted[self.liked.rows_of(users)[1]] = True
        wanted[negatives] = True
        return np.flatnonzero(wanted)

    def _nodes(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.concatenate([users, items + self.liked.num_rows])

    def _rows(self, array: np.ndarray) -> Tensor:
        return self._tensor(array.astype(np.int64, copy=False))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class TripletSampler:
    """Passes over all likes in steps of `likes_per_step`, each like against a random item that is none.

    Rendle et al. 2009 as LightGCN's authors train (section 4.1.2): a pass is as many triplets as there are likes.
    """

    def __init__(self, liked: Csr, num_items: int, *, likes_per_step: int, seed: int, device: torch.device) -> None:
        self.num_users, self.num_items = liked.num_rows, num_items
        self.user_E = np.repeat(np.arange(liked.num_rows), liked.counts())
        self.item_E = np.asarray(liked.indices, dtype=np.int64)
        self.liked_pairs = self.user_E * np.int64(num_items) + self.item_E  # ascending
        self.likes_per_step = min(likes_per_step, len(self.item_E))
        self.num_steps = -(-len(self.item_E) // self.likes_per_step)
        self.seed = seed
        self.device = device

    def epoch(self, epoch: int, rank: int, world: int) -> Iterator[Step]:
        """The epoch's steps."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.item_E))
        for step in range(self.num_steps):
            likes = order[step * self.likes_per_step : (step + 1) * self.likes_per_step]
            other = self._draw_others(self.user_E[likes], np.random.default_rng([self.seed, epoch, step, 1]))
            shares = [self._share(likes[r::world], other[r::world], len(likes)) for r in range(world)]
            yield Step(shares[rank], [share.nodes for share in shares])

    def _draw_others(self, user_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Uniform among what a user does not like; who likes nearly everything gets a like after ten draws."""
        other_B = rng.integers(0, self.num_items, len(user_B))
        for _ in range(9):
            pair_B = user_B * np.int64(self.num_items) + other_B
            place_B = np.minimum(np.searchsorted(self.liked_pairs, pair_B), len(self.liked_pairs) - 1)
            liked = np.flatnonzero(self.liked_pairs[place_B] == pair_B)
            if len(liked) == 0:
                break
            other_B[liked] = rng.integers(0, self.num_items, len(liked))
        return other_B

    def _share(self, likes: np.ndarray, other_B: np.ndarray, likes_of_step: int) -> Triplets:
        rows_3B = np.stack([self.user_E[likes], self.item_E[likes] + self.num_users, other_B + self.num_users])
        nodes, place_3B = np.unique(rows_3B, return_inverse=True)
        user, liked, other = torch.from_numpy(place_3B.reshape(3, -1)).to(self.device)
        return Triplets(torch.from_numpy(nodes).to(self.device), user, liked, other, likes_of_step)
