"""The losses against their definitions, written out like by like; their gradients against autograd's."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.graph import Csr, interactions_by_user
from models.losses import USERS_AT_ONCE, bpr_loss, sampled_softmax_loss, temperature_of
from models.sampling import Share, TripletSampler, UserSampler
from tests.worlds import random_likes

CPU = torch.device("cpu")


def share_of(users: int, items: int, *, negatives: int, liked_share: float = 0.3, seed: int = 0) -> tuple[Csr, Share]:
    """A step with everybody in it, and the likes it is made of."""
    liked = interactions_by_user(
        *np.nonzero(random_likes(np.random.default_rng(seed), users, items, liked_share)), num_users=users
    )
    sampler = UserSampler(liked, items, batches_per_epoch=1, negatives=negatives, seed=seed, device=CPU)
    return liked, next(iter(sampler.epoch(1, rank=0, world=1))).share


def rows_of(share: Share, width: int = 5) -> torch.Tensor:
    return torch.randn(len(share.nodes), width, generator=torch.Generator().manual_seed(3))


def plain_loss(row_WD: torch.Tensor, bias_I: torch.Tensor, share: Share, temperature: float) -> torch.Tensor:
    """The same loss, one term after another, with autograd's gradient."""
    unit_WD = F.normalize(row_WD, dim=1)
    score_BW = unit_WD[: share.num_users] @ unit_WD[share.num_users :].T / temperature + bias_I[share.items]
    total = row_WD.new_zeros(())
    for user in range(share.num_users):
        own = share.liked_item[share.liked_indptr[user] : share.liked_indptr[user + 1]].tolist()
        against = [
            score_BW[user, place] + weight
            for place, weight in zip(share.negatives.tolist(), share.negative_log_weight, strict=True)
            if place not in own
        ]
        for liked in own:
            every = torch.stack([score_BW[user, liked], *against])
            total = total + torch.logsumexp(every, 0) - score_BW[user, liked]
    return total / share.num_likes_of_step


@pytest.mark.parametrize("negatives", [4, 50])
def test_the_sampled_softmax_and_its_gradient_are_the_definitions(negatives: int) -> None:
    _, share = share_of(7, 12, negatives=negatives)
    bias_I = torch.linspace(-1, 1, 12)
    ours, plain = rows_of(share).requires_grad_(), rows_of(share).requires_grad_()
    loss = sampled_softmax_loss(ours, bias_I, share, temperature=0.2)
    expected = plain_loss(plain, bias_I, share, 0.2)
    (3 * loss).backward()
    (3 * expected).backward()
    assert len(share.collision_user) > 0, "a user meets likes of theirs among the negatives"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_a_step_larger_than_one_block_of_users_gives_the_same_sums() -> None:
    users = USERS_AT_ONCE + 3
    _, share = share_of(users, 30, negatives=10, liked_share=0.1)
    ours, plain = rows_of(share).requires_grad_(), rows_of(share).requires_grad_()
    loss = sampled_softmax_loss(ours, torch.zeros(30), share, temperature=0.5)
    expected = plain_loss(plain, torch.zeros(30), share, 0.5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-6)


def test_a_temperature_that_spreads_scores_beyond_exp_gives_the_same_sums() -> None:
    """Cosines of 1 and -1 are 200 apart then: exp of what is missing to a common ceiling would be zero."""
    _, share = share_of(30, 40, negatives=20)
    ours, plain = rows_of(share).requires_grad_(), rows_of(share).requires_grad_()
    loss = sampled_softmax_loss(ours, torch.zeros(40), share, temperature=0.01)
    expected = plain_loss(plain, torch.zeros(40), share, 0.01)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("users", "items", "likes", "temperature"),
    [(943, 1682, 44_000, 0.15), (671, 9066, 50_000, 0.15), (29_858, 40_981, 810_128, 0.1), (1000, 1000, 3000, 0.15)],
)
def test_few_likes_among_all_pairs_make_the_softmax_sharper(
    users: int, items: int, likes: int, temperature: float
) -> None:
    assert temperature_of(users=users, items=items, likes=likes) == temperature


def test_a_user_who_likes_all_the_negatives_costs_nothing_and_is_finite() -> None:
    _, share = share_of(3, 4, negatives=4, liked_share=1.0)
    rows = rows_of(share).requires_grad_()
    loss = sampled_softmax_loss(rows, torch.zeros(4), share, temperature=0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_bfloat16_is_the_same_loss_to_three_digits() -> None:
    _, share = share_of(40, 60, negatives=30)
    exact, rough = rows_of(share, 32).requires_grad_(), rows_of(share, 32).requires_grad_()
    loss = sampled_softmax_loss(exact, torch.zeros(60), share, temperature=0.2)
    low = sampled_softmax_loss(rough, torch.zeros(60), share, temperature=0.2, low_precision=True)
    loss.backward()
    low.backward()
    assert low.item() != loss.item()
    assert low.item() == pytest.approx(loss.item(), rel=2e-3)
    assert F.cosine_similarity(exact.grad.flatten(), rough.grad.flatten(), dim=0) > 0.999


def test_scores_far_outside_the_range_of_exp_are_no_problem() -> None:
    _, share = share_of(4, 9, negatives=6)
    rows = (1000 * rows_of(share)).requires_grad_()
    loss = sampled_softmax_loss(rows, torch.zeros(9), share, temperature=1e-4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()


def test_nobody_costs_nothing_and_still_has_a_gradient() -> None:
    """A rank whose share of a step is empty must take part in the exchange of gradients all the same."""
    liked = interactions_by_user(np.array([0, 0]), np.array([0, 1]), num_users=1)
    sampler = UserSampler(liked, 3, batches_per_epoch=1, negatives=3, seed=0, device=CPU)
    share = next(iter(sampler.epoch(1, rank=0, world=2))).share
    assert share.num_users == 0
    rows = rows_of(share).requires_grad_()
    loss = sampled_softmax_loss(rows, torch.zeros(3), share, temperature=0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert float(rows.grad.abs().sum()) == 0.0


def test_the_correction_makes_drawn_negatives_stand_for_the_whole_catalogue() -> None:
    """logQ: the expected sum over the drawn, weighted by copies / expected copies, is the sum over everything."""
    liked = interactions_by_user(
        *np.nonzero(random_likes(np.random.default_rng(1), 60, 40, 0.2) | (np.arange(40) < 5)), num_users=60
    )
    sampler = UserSampler(liked, 40, batches_per_epoch=60, negatives=10, seed=1, device=CPU)
    score_I = torch.randn(40, generator=torch.Generator().manual_seed(1))
    sums = [
        float(torch.exp(score_I[step.share.items[step.share.negatives]] + step.share.negative_log_weight).sum())
        for epoch in range(1, 200)
        for step in sampler.epoch(epoch, rank=0, world=1)
    ]
    assert np.mean(sums) == pytest.approx(float(torch.exp(score_I).sum()), rel=0.01)


def test_bpr_is_its_definition() -> None:
    liked = interactions_by_user(*np.nonzero(random_likes(np.random.default_rng(0), 6, 9, 0.4)), num_users=6)
    sampler = TripletSampler(liked, 9, likes_per_step=5, seed=1, device=CPU)
    share = next(iter(sampler.epoch(1, rank=0, world=1))).share
    generator = torch.Generator().manual_seed(0)
    row_WD, start_WD = (torch.randn(len(share.nodes), 4, generator=generator) for _ in range(2))
    expected = 0.0
    for user, yes, no in zip(share.user.tolist(), share.liked.tolist(), share.other.tolist(), strict=True):
        margin = float(row_WD[user] @ row_WD[yes] - row_WD[user] @ row_WD[no])
        expected += -math.log(1 / (1 + math.exp(-margin)))
        expected += 0.01 / 2 * sum(float(start_WD[place].square().sum()) for place in (user, yes, no))
    assert float(bpr_loss(row_WD, start_WD, share, decay=0.01)) == pytest.approx(expected / 5, rel=1e-5)
