"""What the graph must beat, held against its definition in dense matrices."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.distributed import Ranks
from models.graph import Csr, interactions_by_user, normalised_adjacency, save_arrays
from models.rivals import ease_scorer, graph_filter_scorer, item_knn_scorer, popularity, popularity_scorer
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from models.topk import top_k
from models.train import fit
from tasks.contracts import Graph
from tests.worlds import random_likes, spec_for

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


# ---- one behaviour for all of them


def lightgcn_scorer(liked: Csr, num_items: int) -> Scorer:
    """A short fit of the model that the rivals stand beside."""
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(folder, "liked_all", liked)
        save_arrays(folder, "adjacency_all", normalised_adjacency(liked, num_items))
        world = Graph(folder, "", "", liked.num_rows, num_items, *([0] * 7))
        spec = spec_for(world, Path(folder), max_epochs=10)
        fit(spec, Ranks(0, 1, torch.device("cpu")), "served", epochs=10, validation=None, identity="")
        tables = load_file(Path(folder) / "served.safetensors")
    return InnerProduct(
        tables["user_UD"], tables["item_ID"], rows_where(liked.counts() > 0), popularity(liked, num_items) > 0
    )


RIVALS = {
    "LightGCN": lightgcn_scorer,
    "popularity": lambda liked, items: popularity_scorer(liked, items),
    "item-kNN": lambda liked, items: item_knn_scorer(liked, items, neighbours=10, shrink=1.0),
    "EASE": lambda liked, items: ease_scorer(liked, items, regularisation=5.0),
    "graph filter": lambda liked, items: graph_filter_scorer(liked, items, width=4, low_pass=0.3),
}
PERSONAL = [name for name in RIVALS if name != "popularity"]


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_scores_every_item_for_whomever_is_asked_in_their_order(name: str, liked: Csr) -> None:
    scorer: Scorer = RIVALS[name](liked, ITEMS)
    score_BI = scorer(np.array([8, 0, 24]))
    assert (score_BI.shape, score_BI.dtype) == ((3, ITEMS), torch.float32)
    assert not torch.isnan(score_BI).any()
    torch.testing.assert_close(scorer(np.array([24, 8]))[[1, 0]], score_BI[[0, 2]])


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_gives_fresh_memory_and_the_same_scores_for_the_same_graph(name: str, liked: Csr) -> None:
    scorer: Scorer = RIVALS[name](liked, ITEMS)
    before = scorer(np.arange(USERS)).clone()
    scorer(np.arange(USERS)).fill_(-torch.inf)
    assert torch.equal(scorer(np.arange(USERS)), before)
    assert torch.equal(RIVALS[name](liked, ITEMS)(np.arange(USERS)), before)


@pytest.mark.parametrize("name", PERSONAL)
def test_a_personal_rival_finds_the_users_taste(name: str) -> None:
    """Even users like even items. Everybody keeps their taste's other items to find."""
    rng = np.random.default_rng(0)
    likes_UI = np.zeros((40, 30), dtype=bool)
    for user in range(40):
        likes_UI[user, rng.permutation(np.arange(user % 2, 30, 2))[:7]] = True
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=40)
    tiers = [RIVALS[name](liked, 30), for_everybody(popularity(liked, 30), 40)]
    (block,) = top_k(tiers, users=np.arange(40), excluded=liked, k=5, item_rank_I=np.arange(30), threads=1)
    assert (block.item_BK % 2 == block.users[:, None] % 2).mean() > 0.97


@pytest.mark.parametrize("name", PERSONAL)
def test_a_personal_rival_has_no_more_to_say_about_a_stranger_than_popularity(name: str, liked: Csr) -> None:
    score_I = RIVALS[name](liked, ITEMS)(np.array([3]))[0]
    assert torch.isneginf(score_I).all()


def test_ease_is_its_definition(likes_UI: np.ndarray, liked: Csr) -> None:
    likes = likes_UI.astype(np.float64)
    inverse_II = np.linalg.inv(likes.T @ likes + 5.0 * np.eye(ITEMS))
    weight_II = -inverse_II / np.diag(inverse_II)
    np.fill_diagonal(weight_II, 0.0)
    users = np.array([8, 0, 24])
    scores = ease_scorer(liked, ITEMS, regularisation=5.0)(users)
    np.testing.assert_allclose(scores.numpy(), (likes @ weight_II)[users], rtol=1e-4, atol=1e-5)


def test_the_graph_filter_is_its_definition(likes_UI: np.ndarray, liked: Csr) -> None:
    likes = likes_UI.astype(np.float64)
    root_U, root_I = (np.sqrt(np.maximum(likes.sum(axis=axis), 1)) for axis in (1, 0))
    normal_UI = likes / root_U[:, None] / root_I
    smooth_IC = np.linalg.svd(normal_UI)[2][:4].T
    filter_II = normal_UI.T @ normal_UI + 0.3 * (smooth_IC / root_I[:, None]) @ (smooth_IC * root_I[:, None]).T
    users = np.array([8, 0, 24])
    scores = graph_filter_scorer(liked, ITEMS, width=4, low_pass=0.3)(users)
    np.testing.assert_allclose(scores.numpy(), (likes @ filter_II)[users], rtol=1e-3, atol=1e-4)
