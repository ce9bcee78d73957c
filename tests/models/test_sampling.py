"""Steps of users: every rank draws the same step and takes its share."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from models.graph import Csr, interactions_by_user, normalised_adjacency
from models.lightgcn import LightGCN, adjacency_tensor
from models.sampling import Batch, BatchSampler
from tests.worlds import random_likes

USERS, ITEMS = 23, 31
CPU = torch.device("cpu")


@pytest.fixture
def liked() -> Csr:
    likes_UI = random_likes(np.random.default_rng(2), USERS, ITEMS, 0.2)
    likes_UI[[3, 11]] = False  # two users like nothing
    likes_UI[:, 5] = False
    return interactions_by_user(*np.nonzero(likes_UI), num_users=USERS)


def sampler_of(liked: Csr, **changes: int) -> BatchSampler:
    settings = {"batches_per_epoch": 4, "negatives": 8, "seed": 1} | changes
    return BatchSampler(liked, ITEMS, device=CPU, **settings)


def likes_in(batch: Batch) -> set[tuple[int, int]]:
    users = batch.users[batch.liked_position].tolist()
    pairs = list(zip(users, batch.liked_item.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_shares_are_the_whole_step(liked: Csr, world: int) -> None:
    whole = list(sampler_of(liked).epoch(1, rank=0, world=1))
    shares = [list(sampler_of(liked).epoch(1, rank=rank, world=world)) for rank in range(world)]
    assert {len(steps) for steps in shares} == {len(whole)}, "a rank with fewer steps leaves the others waiting"
    for step, batch in enumerate(whole):
        parts = [likes_in(steps[step]) for steps in shares]
        assert set().union(*parts) == likes_in(batch)
        assert sum(map(len, parts)) == len(likes_in(batch)), "no like counts twice"
        for steps in shares:
            assert torch.equal(steps[step].negatives, batch.negatives)
            assert torch.equal(steps[step].negative_log_weight, batch.negative_log_weight)


def test_the_same_seed_draws_the_same_steps_and_another_epoch_others(liked: Csr) -> None:
    first, second = (list(sampler_of(liked).epoch(2, rank=0, world=1)) for _ in range(2))
    other = list(sampler_of(liked).epoch(3, rank=0, world=1))
    for one, same in zip(first, second, strict=True):
        assert torch.equal(one.users, same.users)
        assert torch.equal(one.negatives, same.negatives)
    assert not all(torch.equal(a.negatives, b.negatives) for a, b in zip(first, other, strict=True))
    assert not all(torch.equal(a.users, b.users) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(a.negatives, b.negatives) for a, b in pairwise(first))


def test_an_epoch_meets_every_user_with_likes_once_and_all_their_likes(liked: Csr) -> None:
    batches = list(sampler_of(liked).epoch(1, rank=0, world=1))
    users = torch.cat([batch.users for batch in batches]).tolist()
    assert sorted(users) == np.flatnonzero(liked.counts() > 0).tolist()
    assert sum(len(likes_in(batch)) for batch in batches) == len(liked.indices)


def test_there_are_no_more_steps_than_users(liked: Csr) -> None:
    batches = list(sampler_of(liked, batches_per_epoch=1000).epoch(1, rank=0, world=1))
    assert len(batches) == (liked.counts() > 0).sum()
    assert all(len(batch.users) == 1 for batch in batches)


def test_a_small_catalogue_is_taken_whole(liked: Csr) -> None:
    batch = next(iter(sampler_of(liked, negatives=ITEMS).epoch(1, rank=0, world=1)))
    assert batch.negatives.tolist() == np.unique(liked.indices).tolist()
    assert batch.negative_log_weight.abs().max() == 0.0


def test_negatives_are_drawn_by_the_root_of_popularity_and_corrected_for_it(liked: Csr) -> None:
    sampler = sampler_of(liked, negatives=10, batches_per_epoch=20)
    drawn, weights = [], {}
    for epoch in range(1, 400):
        for batch in sampler.epoch(epoch, rank=0, world=1):
            drawn.append(batch.negatives.numpy())
            weights |= dict(zip(batch.negatives.tolist(), batch.negative_log_weight.tolist(), strict=True))
    root_I = np.sqrt(np.bincount(liked.indices, minlength=ITEMS))
    share_I = root_I / root_I.sum()
    found_I = np.bincount(np.concatenate(drawn), minlength=ITEMS) / sum(map(len, drawn))
    np.testing.assert_allclose(found_I, share_I, atol=0.004)
    assert found_I[5] == 0.0, "an item that nobody likes is no negative"
    for item, log_weight in weights.items():
        assert log_weight == pytest.approx(-np.log(10 * share_I[item]), rel=1e-5)


@pytest.mark.parametrize("world", [2, 3, 40])
def test_the_ranks_mean_gradient_is_that_of_one_rank(liked: Csr, world: int) -> None:
    """With 40 ranks most shares are empty: a step has fewer users than ranks."""
    adjacency = adjacency_tensor(normalised_adjacency(liked, ITEMS))
    table_ND = torch.randn(USERS + ITEMS, 8, generator=torch.Generator().manual_seed(0))

    def gradient(batch: Batch) -> torch.Tensor:
        model = LightGCN(table_ND.clone(), adjacency, torch.zeros(ITEMS), num_users=USERS, layers=2, temperature=0.2)
        model(batch).backward()
        assert model.table.grad is not None
        return model.table.grad

    whole = gradient(next(iter(sampler_of(liked).epoch(1, rank=0, world=1))))
    shares = [next(iter(sampler_of(liked).epoch(1, rank=rank, world=world))) for rank in range(world)]
    mean = torch.stack([gradient(batch) for batch in shares]).mean(dim=0)
    assert (mean - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_a_like_weighs_the_same_whoever_computes_it(liked: Csr) -> None:
    whole = next(iter(sampler_of(liked).epoch(1, rank=0, world=1)))
    assert whole.weight * len(whole.liked_item) == pytest.approx(1.0)
    shares = [next(iter(sampler_of(liked).epoch(1, rank=rank, world=2))) for rank in range(2)]
    assert sum(share.weight / 2 * len(share.liked_item) for share in shares) == pytest.approx(1.0)
