"""Recall and NDCG against the reference's, and an interval that is what it says."""

import numpy as np
import pytest
import torch

from models.graph import interactions_by_user
from models.metrics import (
    PER_USER,
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_means,
    gini,
    hits,
    is_head,
    ndcg,
    novelty,
    recall,
)
from models.selection import NO_ITEM
from tests.worlds import random_likes

USERS, ITEMS = 30, 50


@pytest.mark.parametrize("k", [1, 5, 20])
def test_what_a_list_is_worth_is_what_the_reference_says(k: int) -> None:
    from torch_geometric.metrics import LinkPredHitRatio, LinkPredMAP, LinkPredMRR, LinkPredNDCG, LinkPredRecall

    rng = np.random.default_rng(k)
    target_UI = random_likes(rng, USERS, ITEMS, 0.1)
    target_UI[:, 0] |= ~target_UI.any(axis=1)  # everybody who is judged has a target
    target = interactions_by_user(*np.nonzero(target_UI), num_users=USERS)
    item_BK = np.argsort(rng.random((USERS, ITEMS)), axis=1)[:, :k].astype(np.int32)
    hit_BK = hits(item_BK, np.arange(USERS), target, ITEMS)
    references = {
        "recall": LinkPredRecall(k),
        "ndcg": LinkPredNDCG(k),
        "map": LinkPredMAP(k),
        "hit_rate": LinkPredHitRatio(k),
        "mrr": LinkPredMRR(k),
    }
    assert references.keys() == PER_USER.keys()
    for name, reference in references.items():
        edges = torch.from_numpy(np.stack(np.nonzero(target_UI)))
        reference.update(torch.from_numpy(item_BK.astype(np.int64)), edges)
        mine = PER_USER[name](hit_BK, target.counts()).mean()
        assert mine == pytest.approx(reference.compute().item(), abs=1e-6), name


def test_a_hit_is_a_target_of_that_user_whatever_the_order_of_users() -> None:
    rng = np.random.default_rng(1)
    target_UI = random_likes(rng, USERS, ITEMS, 0.1)
    users = rng.permutation(USERS)[:11]
    item_BK = rng.integers(0, ITEMS, (11, 7)).astype(np.int32)
    target = interactions_by_user(*np.nonzero(target_UI), num_users=USERS)
    np.testing.assert_array_equal(hits(item_BK, users, target, ITEMS), target_UI[users[:, None], item_BK])


def test_a_missing_item_is_no_hit() -> None:
    """Not even where the row before it ends with the catalogue's last item."""
    target = interactions_by_user(np.array([0, 1]), np.array([ITEMS - 1, 3]), num_users=2)
    item_BK = np.array([[NO_ITEM, NO_ITEM], [NO_ITEM, 3]], dtype=np.int32)
    assert hits(item_BK, np.array([0, 1]), target, ITEMS).tolist() == [[False, False], [False, True]]


def test_a_perfect_list_has_ndcg_one_even_if_it_is_too_short_for_all_targets() -> None:
    assert ndcg(np.ones((1, 3), dtype=bool), np.array([10])).tolist() == [1.0]
    assert recall(np.ones((1, 3), dtype=bool), np.array([10])).tolist() == [0.3]


def test_the_interval_covers_the_mean_and_is_the_same_every_time() -> None:
    value_B = np.random.default_rng(0).random(200)
    mean, low, high = bootstrap_interval(value_B, resamples=300, seed=1)
    assert low < mean < high
    assert mean == pytest.approx(value_B.mean())
    assert (mean, low, high) == bootstrap_interval(value_B, resamples=300, seed=1)


def test_the_interval_is_as_wide_as_statistics_says() -> None:
    value_B = np.random.default_rng(0).normal(size=2000)
    _, low, high = bootstrap_interval(value_B, resamples=1000, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * value_B.std() / np.sqrt(2000), rel=0.1)


def test_a_constant_has_no_width() -> None:
    assert bootstrap_interval(np.full(10, 0.25), resamples=100, seed=0) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(np.array([0.5]), resamples=100, seed=0) == (0.5, 0.5, 0.5)


def test_columns_are_resampled_together_so_that_a_difference_has_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(3)
    one_B = rng.normal(size=400)
    other_B = one_B + rng.normal(size=400) * 0.1
    means_RM = bootstrap_means(np.stack([one_B, other_B, other_B - one_B], axis=1), resamples=200, seed=5)
    np.testing.assert_allclose(means_RM[:, 1] - means_RM[:, 0], means_RM[:, 2], atol=1e-12)
    assert means_RM[:, 2].std() < 0.2 * means_RM[:, 0].std(), "what users have in common is no noise of the difference"


def test_nobody_has_no_width_either() -> None:
    assert bootstrap_intervals(np.zeros((0, 2)), resamples=100, seed=0) == [(0.0, 0.0, 0.0)] * 2


def test_gini_is_the_mean_difference_of_all_pairs_over_twice_the_mean() -> None:
    count_I = np.random.default_rng(2).integers(0, 30, 40)
    by_definition = np.abs(count_I[:, None] - count_I[None, :]).mean() / (2 * count_I.mean())
    assert gini(count_I) == pytest.approx(by_definition)
    assert gini(np.full(5, 3)) == 0.0
    assert gini(np.array([0, 0, 0, 9])) == 0.75
    assert gini(np.zeros(4, np.int64)) == 0.0


def test_novelty_is_in_bits_and_what_nobody_likes_is_the_newest() -> None:
    popularity_I = np.array([8, 2, 0])
    assert novelty(np.array([5, 0, 0]), popularity_I, 8) == 0.0
    assert novelty(np.array([1, 1, 0]), popularity_I, 8) == 1.0
    assert novelty(np.array([0, 0, 1]), popularity_I, 8) == 4.0


def test_the_head_is_the_fewest_items_with_that_share_of_all_likes() -> None:
    popularity_I = np.array([1, 50, 10, 30, 9])
    assert np.flatnonzero(is_head(popularity_I, 0.5)).tolist() == [1]
    assert np.flatnonzero(is_head(popularity_I, 0.51)).tolist() == [1, 3]
    assert np.flatnonzero(is_head(np.array([5, 5, 5, 5]), 0.5)).tolist() == [0, 1], "ties by row"
    assert not is_head(np.zeros(3, np.int64), 0.5).any()
