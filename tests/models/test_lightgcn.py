"""LightGCN: the propagation is the reference's, its gradient is autograd's, the inner product is the score."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.graph import interactions_by_user, normalised_adjacency
from models.lightgcn import LightGCN, _MeanOfLayers, adjacency_tensor, mean_of_layers, spectral_start
from models.sampling import Batch
from tests.worlds import random_likes

USERS, ITEMS, WIDTH, LAYERS = 13, 17, 6, 3


@pytest.fixture
def likes_UI() -> np.ndarray:
    likes_UI = random_likes(np.random.default_rng(1), USERS, ITEMS, 0.25)
    likes_UI[4] = False  # a user and an item without an edge
    likes_UI[:, 9] = False
    return likes_UI


@pytest.fixture
def adjacency(likes_UI: np.ndarray) -> torch.Tensor:
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=USERS)
    return adjacency_tensor(normalised_adjacency(liked, ITEMS))


@pytest.fixture
def edge_index(likes_UI: np.ndarray) -> torch.Tensor:
    """Both directions, as torch_geometric wants them."""
    user_E, item_E = np.nonzero(likes_UI)
    there = np.stack([user_E, item_E + USERS])
    return torch.from_numpy(np.concatenate([there, there[::-1]], axis=1))


def table() -> torch.Tensor:
    return torch.randn(USERS + ITEMS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_propagation_is_that_of_stacked_lgconv(adjacency: torch.Tensor, edge_index: torch.Tensor) -> None:
    from torch_geometric.nn import LGConv

    layer_ND, total_ND = table(), table()
    for _ in range(LAYERS):
        layer_ND = LGConv()(layer_ND, edge_index)
        total_ND = total_ND + layer_ND
    ours_ND = mean_of_layers(table(), adjacency, LAYERS)
    torch.testing.assert_close(ours_ND, total_ND / (LAYERS + 1), atol=1e-6, rtol=0)


def test_propagation_is_that_of_torch_geometrics_lightgcn(adjacency: torch.Tensor, edge_index: torch.Tensor) -> None:
    from torch_geometric.nn import LightGCN as Reference

    reference = Reference(USERS + ITEMS, WIDTH, LAYERS)
    with torch.no_grad():
        reference.embedding.weight.copy_(table())
        theirs_ND = reference.get_embedding(edge_index)
    torch.testing.assert_close(mean_of_layers(table(), adjacency, LAYERS), theirs_ND, atol=1e-6, rtol=0)


def test_no_layers_propagate_nothing(adjacency: torch.Tensor) -> None:
    torch.testing.assert_close(mean_of_layers(table(), adjacency, 0), table())


def test_the_gradient_is_autograds_through_dense_matrices(adjacency: torch.Tensor) -> None:
    exact = _in_double(adjacency)
    dense_NN = exact.to_dense()
    coefficient_ND = torch.randn(USERS + ITEMS, WIDTH, dtype=torch.float64)
    ours_ND = table().double().requires_grad_()
    (_MeanOfLayers.apply(ours_ND, exact, LAYERS) ** 2 * coefficient_ND).sum().backward()
    theirs_ND = table().double().requires_grad_()
    layer_ND, total_ND = theirs_ND, theirs_ND
    for _ in range(LAYERS):
        layer_ND = dense_NN @ layer_ND
        total_ND = total_ND + layer_ND
    ((total_ND / (LAYERS + 1)) ** 2 * coefficient_ND).sum().backward()
    torch.testing.assert_close(ours_ND.grad, theirs_ND.grad, atol=1e-12, rtol=1e-10)


def test_the_gradient_passes_gradcheck(adjacency: torch.Tensor) -> None:
    exact = _in_double(adjacency)
    small_ND = table()[:, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda table_ND: _MeanOfLayers.apply(table_ND, exact, 2), small_ND)


def _in_double(adjacency: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state.*")
        return adjacency.double()


def test_the_inner_product_of_the_embeddings_is_the_score(adjacency: torch.Tensor) -> None:
    bias_I = torch.linspace(-1, 2, ITEMS)
    model = LightGCN(table(), adjacency, bias_I, num_users=USERS, layers=LAYERS, temperature=0.3)
    user_UD, item_ID = model.embeddings()
    propagated_ND = mean_of_layers(table(), adjacency, LAYERS)
    cosine_UI = F.cosine_similarity(propagated_ND[:USERS, None], propagated_ND[None, USERS:], dim=2)
    torch.testing.assert_close(user_UD @ item_ID.T, cosine_UI / 0.3 + bias_I, atol=1e-5, rtol=1e-5)
    assert (user_UD.shape, item_ID.shape) == ((USERS, WIDTH + 1), (ITEMS, WIDTH + 1))


def test_the_loss_is_the_softmax_over_the_scores_that_are_served(adjacency: torch.Tensor) -> None:
    """Training and serving must agree on what a score is."""
    bias_I = torch.linspace(0, 1, ITEMS)
    model = LightGCN(table(), adjacency, bias_I, num_users=USERS, layers=LAYERS, temperature=0.3)
    negatives = torch.tensor([0, 3, 5, 8])
    batch = Batch(
        users=torch.tensor([2, 7]),
        liked_position=torch.tensor([0, 1, 1]),
        liked_item=torch.tensor([1, 6, 2]),
        negatives=negatives,
        negative_log_weight=torch.zeros(4),
        weight=0.5,
    )
    user_UD, item_ID = model.embeddings()
    score_UI = user_UD @ item_ID.T
    expected = 0.0
    for user, item in ((2, 1), (7, 6), (7, 2)):
        against = torch.cat([score_UI[user, item].reshape(1), score_UI[user, negatives]])
        expected += -torch.log_softmax(against, dim=0)[0]
    torch.testing.assert_close(model(batch), 0.5 * expected)


def test_the_start_is_the_same_every_time_and_another_for_another_seed(adjacency: torch.Tensor) -> None:
    first, second, other = (spectral_start(adjacency, USERS, WIDTH, seed) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_start_is_the_same_whatever_the_number_of_threads() -> None:
    """Factorisations and the sum over the table; the sparse product adds up row by row anyway."""
    likes_UI = random_likes(np.random.default_rng(2), 900, 700, 0.03)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=900)
    adjacency = adjacency_tensor(normalised_adjacency(liked, 700))
    try:
        starts = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            starts.append(spectral_start(adjacency, 900, 64, 1))
            assert torch.get_num_threads() == threads, "the others' threads are left alone"
    finally:
        torch.set_num_threads(1)
    assert torch.equal(starts[1], starts[0])
    assert torch.equal(starts[2], starts[0])


@pytest.mark.parametrize("width", [1, 8, 13, 64])
def test_the_start_is_finite_and_whole_even_when_it_is_wider_than_the_graph(
    adjacency: torch.Tensor, width: int
) -> None:
    start_ND = spectral_start(adjacency, USERS, width, 1)
    assert start_ND.shape == (USERS + ITEMS, width)
    assert torch.isfinite(start_ND).all()
    assert (start_ND.square().mean(dim=0) > 0).all(), "a column of zeros would never be trained out of zero"


@pytest.mark.parametrize(("users", "items"), [(1, 1), (1, 6), (6, 1), (3, 40)])
def test_the_start_of_a_tiny_graph_is_finite(users: int, items: int) -> None:
    liked = interactions_by_user(*np.nonzero(np.ones((users, items))), num_users=users)
    start_ND = spectral_start(adjacency_tensor(normalised_adjacency(liked, items)), users, 16, 1)
    assert start_ND.shape == (users + items, 16)
    assert torch.isfinite(start_ND).all()


def test_the_start_spans_the_leading_singular_vectors() -> None:
    """Two tastes that share nothing have two equal leading values; the third is far below."""
    likes_UI = np.kron(np.eye(2), np.ones((10, 8))).astype(bool)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=20)
    adjacency = adjacency_tensor(normalised_adjacency(liked, 16))
    start_ND = spectral_start(adjacency, 20, 2, 0)
    unit_ND = F.normalize(start_ND, dim=1)
    cosine_UI = unit_ND[:20] @ unit_ND[20:].T
    assert cosine_UI[torch.from_numpy(likes_UI)].min() > 0.9
    assert cosine_UI[torch.from_numpy(~likes_UI)].max() < 0.5
