"""What the graph must beat, held against its definition in dense matrices."""

import numpy as np
import pytest
import torch

from models.graph import Csr, interactions_by_user
from models.rivals import item_knn_scorer, popularity, popularity_scorer
from tests.worlds import random_likes

USERS, ITEMS = 25, 18


@pytest.fixture
def likes_UI() -> np.ndarray:
    likes_UI = random_likes(np.random.default_rng(1), USERS, ITEMS, 0.25)
    likes_UI[3] = False
    likes_UI[:, 7] = False
    return likes_UI


@pytest.fixture
def liked(likes_UI: np.ndarray) -> Csr:
    return interactions_by_user(*np.nonzero(likes_UI), num_users=USERS)


def dense_knn(likes_UI: np.ndarray, neighbours: int, shrink: float) -> np.ndarray:
    """(U, I) scores; -inf where an item is near none of the user's."""
    likes_UI = likes_UI.astype(np.float64)
    common_II = likes_UI.T @ likes_UI
    norm_I = np.sqrt(likes_UI.sum(axis=0))
    similarity_II = np.divide(
        common_II, np.outer(norm_I, norm_I) + shrink, out=np.zeros_like(common_II), where=common_II > 0
    )
    np.fill_diagonal(similarity_II, 0.0)
    similarity_II = similarity_II.astype(np.float32).astype(np.float64)
    for row_I in similarity_II:
        far = np.lexsort((np.arange(len(row_I)), -row_I))[neighbours:]
        row_I[far] = 0.0
    score_UI = likes_UI @ similarity_II.T
    score_UI[score_UI == 0] = -np.inf
    return score_UI


@pytest.mark.parametrize("shrink", [0.0, 10.0])
@pytest.mark.parametrize("neighbours", [1, 4, 100])
@pytest.mark.parametrize("block_bytes", [1, 80 * 60, 2**20])
def test_item_knn_is_its_definition(
    likes_UI: np.ndarray, liked: Csr, neighbours: int, shrink: float, block_bytes: int
) -> None:
    scorer = item_knn_scorer(liked, ITEMS, neighbours=neighbours, shrink=shrink, block_bytes=block_bytes)
    users = np.array([8, 0, 3, 24])
    np.testing.assert_allclose(
        scorer(users).numpy(), dense_knn(likes_UI, neighbours, shrink)[users], rtol=1e-5, atol=1e-6
    )


def test_a_user_without_likes_has_no_scores(liked: Csr) -> None:
    scorer = item_knn_scorer(liked, ITEMS, neighbours=5, shrink=0.0)
    assert torch.isneginf(scorer(np.array([3]))).all()


def test_the_same_graph_gives_the_same_scores(liked: Csr) -> None:
    first, second = (item_knn_scorer(liked, ITEMS, neighbours=3, shrink=1.0)(np.arange(USERS)) for _ in range(2))
    assert torch.equal(first, second)


def test_shrinking_distrusts_what_rests_on_few_users() -> None:
    """Items 0 and 1 share their only user; items 2 and 3 share twenty of their twenty-two."""
    likes_UI = np.zeros((26, 4), dtype=bool)
    likes_UI[0, [0, 1]] = True
    likes_UI[1:21, [2, 3]] = True
    likes_UI[21:23, 2] = likes_UI[23:25, 3] = True
    likes_UI[25, [0, 2]] = True
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=26)
    trusted, shrunk = (item_knn_scorer(liked, 4, neighbours=3, shrink=s)(np.array([25]))[0] for s in (0.0, 50.0))
    assert shrunk[1] / trusted[1] < 0.1 < shrunk[3] / trusted[3]


def test_popularity_counts_likes_and_is_the_same_for_everybody(likes_UI: np.ndarray, liked: Csr) -> None:
    assert popularity(liked, ITEMS).tolist() == likes_UI.sum(axis=0).tolist()
    score_BI = popularity_scorer(liked, ITEMS)(np.array([1, 2]))
    assert torch.equal(score_BI[0], score_BI[1])
    assert score_BI[0].tolist() == likes_UI.sum(axis=0).tolist()


def test_scores_are_fresh_memory_because_top_k_writes_into_them(liked: Csr) -> None:
    for scorer in (popularity_scorer(liked, ITEMS), item_knn_scorer(liked, ITEMS, neighbours=3, shrink=1.0)):
        before = scorer(np.array([0])).clone()
        scorer(np.array([0])).fill_(-torch.inf)
        assert torch.equal(scorer(np.array([0])), before)


@pytest.mark.parametrize(
    ("shrink", "to_b", "to_c"),
    [
        (0.0, 2 / 6**0.5, 1 / 3**0.5),
        (1.0, 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)),
        (10.0, 2 / (6**0.5 + 10), 1 / (3**0.5 + 10)),
    ],
)
def test_the_similarity_is_the_common_users_over_both_norms_and_the_shrink(
    shrink: float, to_b: float, to_c: float
) -> None:
    """Three users like a, two of them b, one of them c; nobody likes both b and c."""
    likes_UI = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=3)
    scorer = item_knn_scorer(liked, 3, neighbours=3, shrink=shrink)
    score_BI = scorer(np.arange(3))
    # Who likes a and b gets to c what a is to c: b and c have no user in common.
    assert score_BI[0, 2].item() == pytest.approx(to_c, rel=1e-6)
    # Who likes a and c gets to b what a is to b.
    assert score_BI[2, 1].item() == pytest.approx(to_b, rel=1e-6)
    # a has both neighbours.
    assert score_BI[0, 0].item() == pytest.approx(to_b, rel=1e-6)
    assert score_BI[2, 0].item() == pytest.approx(to_c, rel=1e-6)
