"""Steps of users and of likes: every rank draws the same step and takes its share."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from models.distributed import Ranks, Whole
from models.graph import Csr, interactions_by_user, normalised_adjacency
from models.lightgcn import LightGCN, Matrix
from models.sampling import Share, Step, TripletSampler, UserSampler
from tests.worlds import random_likes

USERS, ITEMS = 23, 31
CPU = torch.device("cpu")


@pytest.fixture
def liked() -> Csr:
    likes_UI = random_likes(np.random.default_rng(2), USERS, ITEMS, 0.2)
    likes_UI[[3, 11]] = False  # two users like nothing
    likes_UI[:, 5] = False
    return interactions_by_user(*np.nonzero(likes_UI), num_users=USERS)


def sampler_of(liked: Csr, **changes: int) -> UserSampler:
    settings = {"batches_per_epoch": 4, "negatives": 8, "seed": 1} | changes
    return UserSampler(liked, ITEMS, device=CPU, **settings)


def epoch_of(sampler: UserSampler | TripletSampler, epoch: int, world: int) -> Iterator[list[Any]]:
    """The epoch's steps as the shares of all ranks, each drawn by its rank alone."""
    for steps in zip(*(sampler.epoch(epoch, rank, world) for rank in range(world)), strict=True):
        for step in steps:
            assert [nodes.tolist() for nodes in step.wanted] == [other.share.nodes.tolist() for other in steps]
        yield [step.share for step in steps]


def pairs_of(liked: Csr) -> set[tuple[int, int]]:
    return set(zip(np.repeat(np.arange(USERS), liked.counts()).tolist(), liked.indices.tolist(), strict=True))


def users_in(share: Share) -> list[int]:
    return share.nodes[: share.num_users].tolist()


def negatives_in(share: Share) -> list[int]:
    return share.items[share.negatives].tolist()


def likes_in(share: Share) -> set[tuple[int, int]]:
    owner = torch.repeat_interleave(torch.arange(share.num_users), share.liked_indptr.diff())
    pairs = list(zip(share.nodes[owner].tolist(), share.items[share.liked_item.long()].tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_shares_are_the_whole_step(liked: Csr, world: int) -> None:
    for (whole,), shares in zip(epoch_of(sampler_of(liked), 1, 1), epoch_of(sampler_of(liked), 1, world), strict=True):
        parts = [likes_in(share) for share in shares]
        assert set().union(*parts) == likes_in(whole)
        assert sum(map(len, parts)) == len(likes_in(whole)) == whole.num_likes_of_step, "no like counts twice"
        for share in shares:
            assert negatives_in(share) == negatives_in(whole)
            assert torch.equal(share.negative_log_weight, whole.negative_log_weight)
            assert share.num_likes_of_step == whole.num_likes_of_step
        assert sum(len(share.collision_user) for share in shares) == len(whole.collision_user)


def test_neighbours_share_a_rank_and_the_ranks_have_about_the_same_to_score(liked: Csr) -> None:
    likeness_U = np.random.default_rng(0).random(USERS).astype(np.float32)
    sampler = UserSampler(liked, ITEMS, batches_per_epoch=1, negatives=8, seed=1, device=CPU, likeness_U=likeness_U)
    (shares,) = epoch_of(sampler, 1, 3)
    places = [likeness_U[users_in(share)] for share in shares]
    assert places[0].max() < places[1].min() <= places[1].max() < places[2].min()
    scores = [share.num_users * len(share.negatives) + len(share.liked_item) for share in shares]
    assert max(scores) < 1.5 * min(scores)


def test_a_share_names_the_rows_that_it_needs_and_no_others(liked: Csr) -> None:
    for shares in epoch_of(sampler_of(liked), 1, world=2):
        for share in shares:
            users, items = users_in(share), share.items.tolist()
            assert share.nodes.tolist() == users + [USERS + item for item in items]
            assert users == sorted(users)
            assert set(items) == {item for _, item in likes_in(share)} | set(negatives_in(share))
            assert items == sorted(set(items))


def test_the_likes_by_item_are_the_likes_by_user(liked: Csr) -> None:
    (share,) = next(iter(epoch_of(sampler_of(liked), 1, world=1)))
    owner = torch.repeat_interleave(torch.arange(share.num_users), share.liked_indptr.diff())
    item = torch.repeat_interleave(torch.arange(len(share.items)), share.by_item_indptr.diff())
    like = share.by_item_like.long()
    assert torch.equal(owner[like], share.by_item_user.long())
    assert torch.equal(share.liked_item.long()[like], item)


def test_a_collision_is_a_negative_that_the_user_likes(liked: Csr) -> None:
    found, expected = 0, 0
    for (share,) in epoch_of(sampler_of(liked), 1, world=1):
        users, negatives = users_in(share), negatives_in(share)
        pairs = {
            (users[user], negatives[place])
            for user, place in zip(share.collision_user.tolist(), share.collision_negative.tolist(), strict=True)
        }
        assert pairs == likes_in(share) & {(user, item) for user in users for item in negatives}
        assert share.collision_user.tolist() == sorted(share.collision_user.tolist())
        found, expected = found + len(share.collision_user), expected + len(pairs)
    assert found == expected > 0


def test_the_same_seed_draws_the_same_steps_and_another_epoch_others(liked: Csr) -> None:
    first, second = ([share for (share,) in epoch_of(sampler_of(liked), 2, world=1)] for _ in range(2))
    other = [share for (share,) in epoch_of(sampler_of(liked), 3, world=1)]
    for one, same in zip(first, second, strict=True):
        assert torch.equal(one.nodes, same.nodes)
        assert torch.equal(one.negatives, same.negatives)
    assert not all(negatives_in(a) == negatives_in(b) for a, b in zip(first, other, strict=True))
    assert not all(users_in(a) == users_in(b) for a, b in zip(first, other, strict=True))
    assert not any(negatives_in(a) == negatives_in(b) for a, b in pairwise(first))


def test_an_epoch_meets_every_user_with_likes_once_and_all_their_likes(liked: Csr) -> None:
    shares = [share for (share,) in epoch_of(sampler_of(liked), 1, world=1)]
    users = [user for share in shares for user in users_in(share)]
    assert sorted(users) == np.flatnonzero(liked.counts() > 0).tolist()
    assert set().union(*(likes_in(share) for share in shares)) == pairs_of(liked)


def test_there_are_no_more_steps_than_users(liked: Csr) -> None:
    shares = [share for (share,) in epoch_of(sampler_of(liked, batches_per_epoch=1000), 1, world=1)]
    assert len(shares) == (liked.counts() > 0).sum()
    assert all(share.num_users == 1 for share in shares)


def test_a_small_catalogue_is_taken_whole(liked: Csr) -> None:
    (share,) = next(iter(epoch_of(sampler_of(liked, negatives=ITEMS), 1, world=1)))
    assert negatives_in(share) == np.unique(liked.indices).tolist()
    assert share.negative_log_weight.abs().max() == 0.0


def test_negatives_are_drawn_by_the_root_of_popularity_and_corrected_for_it(liked: Csr) -> None:
    sampler = sampler_of(liked, negatives=10, batches_per_epoch=20)
    root_I = np.sqrt(np.bincount(liked.indices, minlength=ITEMS))
    share_I = root_I / root_I.sum()
    copies_I, steps = np.zeros(ITEMS), 0
    for epoch in range(1, 400):
        for (share,) in epoch_of(sampler, epoch, world=1):
            items = negatives_in(share)
            copies = np.exp(share.negative_log_weight.numpy()) * 10 * share_I[items]
            assert copies == pytest.approx(np.round(copies), abs=1e-4), "a whole number of copies"
            assert len(set(items)) == len(items)
            copies_I[items] += np.round(copies)
            steps += 1
    np.testing.assert_allclose(copies_I / (10 * steps), share_I, atol=0.004)
    assert copies_I.sum() == 10 * steps
    assert copies_I[5] == 0.0, "an item that nobody likes is no negative"


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("world", [2, 3, 40])
def test_the_ranks_gradients_add_up_to_that_of_one_rank(liked: Csr, world: int, loss: str) -> None:
    """With 40 ranks most shares are empty: a step has fewer users than ranks."""
    layout = Whole(Ranks(0, 1, CPU), Matrix.of(normalised_adjacency(liked, ITEMS)))
    table_ND = torch.randn(USERS + ITEMS, 8, generator=torch.Generator().manual_seed(0))
    sampler = (
        sampler_of(liked) if loss == "softmax" else TripletSampler(liked, ITEMS, likes_per_step=20, seed=1, device=CPU)
    )

    def gradient(share: Share) -> torch.Tensor:
        model = LightGCN(
            table_ND.clone(), layout, torch.zeros(ITEMS), num_users=USERS, layers=2, loss=loss, temperature=0.2
        )
        model(Step(share, [share.nodes])).backward()
        assert model.table.grad is not None
        return model.table.grad

    whole = gradient(next(iter(epoch_of(sampler, 1, 1)))[0])
    total = torch.stack([gradient(share) for share in next(iter(epoch_of(sampler, 1, world)))]).sum(dim=0)
    assert (total - whole).abs().max() <= 1e-5 * whole.abs().max()


# ---- triplets


def test_a_pass_of_triplets_holds_each_like_once_against_something_not_liked(liked: Csr) -> None:
    sampler = TripletSampler(liked, ITEMS, likes_per_step=10, seed=1, device=CPU)
    steps = list(epoch_of(sampler, 1, world=2))
    assert len(steps) == sampler.num_steps == -(-len(liked.indices) // 10)
    likes, others = [], []
    for shares in steps:
        assert sum(len(share.user) for share in shares) == shares[0].num_likes_of_step
        for share in shares:
            user, yes, no = (share.nodes[place] for place in (share.user, share.liked, share.other))
            likes += zip(user.tolist(), (yes - USERS).tolist(), strict=True)
            others += zip(user.tolist(), (no - USERS).tolist(), strict=True)
            assert share.nodes.tolist() == sorted(set(share.nodes.tolist()))
    assert len(likes) == len(liked.indices)
    assert set(likes) == pairs_of(liked)
    assert not set(others) & pairs_of(liked)


def test_who_likes_everything_gets_a_like_as_the_other(liked: Csr) -> None:
    everything = interactions_by_user(np.zeros(3, int), np.arange(3), num_users=1)
    (share,) = next(iter(epoch_of(TripletSampler(everything, 3, likes_per_step=9, seed=0, device=CPU), 1, 1)))
    assert len(share.other) == 3
