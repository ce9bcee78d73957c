"""The sampled softmax against its definition, written out like by like."""

import math

import pytest
import torch

from models.losses import sampled_softmax_loss
from models.sampling import Batch


def batch_of(users: int, items: int, negatives: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    liked = torch.nonzero(torch.rand(users, items, generator=generator) < 0.4)
    batch = Batch(
        users=torch.arange(users),
        liked_position=liked[:, 0],
        liked_item=liked[:, 1],
        negatives=torch.randint(0, items, (negatives,), generator=generator),
        negative_log_weight=torch.randn(negatives, generator=generator),
        weight=1.0,
    )
    return torch.randn(users, 5, generator=generator), torch.randn(items, 5, generator=generator), batch


def test_the_loss_is_its_definition() -> None:
    user_BD, item_ID, batch = batch_of(4, 9, 6)
    bias_I = torch.linspace(-1, 1, 9)
    expected = 0.0
    for position, liked in zip(batch.liked_position.tolist(), batch.liked_item.tolist(), strict=True):
        score = [float(user_BD[position] @ item_ID[item]) + float(bias_I[item]) for item in range(9)]
        against = sum(
            math.exp(score[item] + weight)
            for item, weight in zip(batch.negatives.tolist(), batch.negative_log_weight.tolist(), strict=True)
        )
        expected += -math.log(math.exp(score[liked]) / (math.exp(score[liked]) + against))
    assert float(sampled_softmax_loss(user_BD, item_ID, bias_I, batch)) == pytest.approx(expected, rel=1e-5)


def test_scores_far_outside_the_range_of_exp_are_no_problem() -> None:
    user_BD, item_ID, batch = batch_of(4, 9, 6)
    user_BD = (1000 * user_BD).requires_grad_()
    loss = sampled_softmax_loss(user_BD, item_ID, torch.zeros(9), batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(user_BD.grad).all()


def test_nobody_costs_nothing_and_still_has_a_gradient() -> None:
    """A rank whose share of a step is empty must take part in the exchange of gradients all the same."""
    nobody = torch.zeros(0, dtype=torch.int64)
    batch = Batch(nobody, nobody, nobody, torch.tensor([0, 1]), torch.zeros(2), weight=1.0)
    user_BD, item_ID = torch.zeros(0, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    loss = sampled_softmax_loss(user_BD, item_ID, torch.zeros(3), batch)
    loss.backward()
    assert loss.item() == 0.0
    assert float(item_ID.grad.abs().sum()) == 0.0


def test_the_correction_makes_drawn_negatives_stand_for_the_whole_catalogue() -> None:
    """logQ: the expected sum over the drawn, corrected by their expected count, is the sum over everything."""
    generator = torch.Generator().manual_seed(1)
    score_I = torch.randn(50, generator=generator, dtype=torch.float64)
    probability_I = torch.softmax(torch.randn(50, generator=generator, dtype=torch.float64), dim=0)
    drawn = torch.multinomial(probability_I, 400_000, replacement=True, generator=generator)
    corrected = torch.exp(score_I[drawn] - torch.log(400_000 * probability_I[drawn])).sum()
    assert float(corrected) == pytest.approx(float(torch.exp(score_I).sum()), rel=0.01)
