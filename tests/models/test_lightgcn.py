"""LightGCN: the propagation is the reference's, its gradient is autograd's, the inner product is the score."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.clock import Clock
from models.distributed import Ranks, Whole
from models.graph import Csr, interactions_by_user, normalised_adjacency
from models.lightgcn import (
    COLUMNS_AT_ONCE,
    LightGCN,
    Matrix,
    _MeanOfLayers,
    leading_singular_vectors,
    mean_of_layers,
    spectral_start,
)
from models.sampling import UserSampler
from tests.worlds import random_likes

USERS, ITEMS, WIDTH, LAYERS = 13, 17, 6, 3


@pytest.fixture
def likes_UI() -> np.ndarray:
    likes_UI = random_likes(np.random.default_rng(1), USERS, ITEMS, 0.25)
    likes_UI[4] = False  # a user and an item without an edge
    likes_UI[:, 9] = False
    return likes_UI


@pytest.fixture
def liked(likes_UI: np.ndarray) -> Csr:
    return interactions_by_user(*np.nonzero(likes_UI), num_users=USERS)


@pytest.fixture
def adjacency(liked: Csr) -> Matrix:
    return Matrix.of(normalised_adjacency(liked, ITEMS))


@pytest.fixture
def edge_index(likes_UI: np.ndarray) -> torch.Tensor:
    """Both directions, as torch_geometric wants them."""
    user_E, item_E = np.nonzero(likes_UI)
    there = np.stack([user_E, item_E + USERS])
    return torch.from_numpy(np.concatenate([there, there[::-1]], axis=1))


def table() -> torch.Tensor:
    return torch.randn(USERS + ITEMS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_propagation_is_that_of_stacked_lgconv(adjacency: Matrix, edge_index: torch.Tensor) -> None:
    from torch_geometric.nn import LGConv

    layer_ND, total_ND = table(), table()
    for _ in range(LAYERS):
        layer_ND = LGConv()(layer_ND, edge_index)
        total_ND = total_ND + layer_ND
    ours_ND = mean_of_layers(table(), adjacency.__matmul__, LAYERS)
    torch.testing.assert_close(ours_ND, total_ND / (LAYERS + 1), atol=1e-6, rtol=0)


def test_propagation_is_that_of_torch_geometrics_lightgcn(adjacency: Matrix, edge_index: torch.Tensor) -> None:
    from torch_geometric.nn import LightGCN as Reference

    reference = Reference(USERS + ITEMS, WIDTH, LAYERS)
    with torch.no_grad():
        reference.embedding.weight.copy_(table())
        theirs_ND = reference.get_embedding(edge_index)
    torch.testing.assert_close(mean_of_layers(table(), adjacency.__matmul__, LAYERS), theirs_ND, atol=1e-6, rtol=0)


def test_no_layers_propagate_nothing(adjacency: Matrix) -> None:
    torch.testing.assert_close(mean_of_layers(table(), adjacency.__matmul__, 0), table())


def test_a_table_wider_than_a_strip_of_columns_is_propagated_like_its_columns(adjacency: Matrix) -> None:
    wide_ND = torch.randn(USERS + ITEMS, 2 * COLUMNS_AT_ONCE + 5, generator=torch.Generator().manual_seed(0))
    ours_ND = mean_of_layers(wide_ND, adjacency.__matmul__, LAYERS)
    for column in (0, COLUMNS_AT_ONCE, 2 * COLUMNS_AT_ONCE + 4):
        alone_N1 = mean_of_layers(wide_ND[:, column : column + 1], adjacency.__matmul__, LAYERS)
        torch.testing.assert_close(ours_ND[:, column : column + 1], alone_N1)


def test_the_gradient_is_autograds_through_dense_matrices(adjacency: Matrix) -> None:
    dense_NN = adjacency @ torch.eye(USERS + ITEMS, dtype=torch.float64)
    coefficient_ND = torch.randn(USERS + ITEMS, WIDTH, dtype=torch.float64)
    ours_ND = table().double().requires_grad_()
    (_MeanOfLayers.apply(ours_ND, adjacency.__matmul__, LAYERS, Clock()) ** 2 * coefficient_ND).sum().backward()
    theirs_ND = table().double().requires_grad_()
    layer_ND, total_ND = theirs_ND, theirs_ND
    for _ in range(LAYERS):
        layer_ND = dense_NN @ layer_ND
        total_ND = total_ND + layer_ND
    ((total_ND / (LAYERS + 1)) ** 2 * coefficient_ND).sum().backward()
    torch.testing.assert_close(ours_ND.grad, theirs_ND.grad, atol=1e-12, rtol=1e-10)


def test_the_gradient_passes_gradcheck(adjacency: Matrix) -> None:
    small_ND = table()[:, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda table_ND: _MeanOfLayers.apply(table_ND, adjacency.__matmul__, 2, Clock()), small_ND
    )


def model_of(adjacency: Matrix, bias_I: torch.Tensor, loss: str = "softmax") -> LightGCN:
    layout = Whole(Ranks(0, 1, torch.device("cpu")), adjacency)
    return LightGCN(table(), layout, bias_I, num_users=USERS, layers=LAYERS, loss=loss, temperature=0.3)


def test_the_inner_product_of_the_tables_is_the_score(adjacency: Matrix) -> None:
    bias_I = torch.linspace(-1, 2, ITEMS)
    model = model_of(adjacency, bias_I)
    user_UD, item_ID, _ = model.tables(model.propagated())
    propagated_ND = mean_of_layers(table(), adjacency.__matmul__, LAYERS)
    cosine_UI = F.cosine_similarity(propagated_ND[:USERS, None], propagated_ND[None, USERS:], dim=2)
    torch.testing.assert_close(user_UD @ item_ID.T, cosine_UI / 0.3 + bias_I, atol=1e-5, rtol=1e-5)
    assert (user_UD.shape, item_ID.shape) == ((USERS, WIDTH + 1), (ITEMS, WIDTH + 1))


def test_with_bpr_the_score_is_the_papers_inner_product(adjacency: Matrix) -> None:
    model = model_of(adjacency, torch.zeros(ITEMS), loss="bpr")
    user_UD, item_ID, _ = model.tables(model.propagated())
    propagated_ND = mean_of_layers(table(), adjacency.__matmul__, LAYERS)
    torch.testing.assert_close(user_UD @ item_ID.T, propagated_ND[:USERS] @ propagated_ND[USERS:].T)


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_users_row_is_their_own_term_and_the_first_hop_of_their_likes(
    adjacency: Matrix, likes_UI: np.ndarray, loss: str, layers: int
) -> None:
    layout = Whole(Ranks(0, 1, torch.device("cpu")), adjacency)
    model = LightGCN(table(), layout, torch.zeros(ITEMS), num_users=USERS, layers=layers, loss=loss, temperature=0.3)
    found = model.tables(model.propagated())
    edge_UI = torch.from_numpy((likes_UI / np.sqrt(np.outer(likes_UI.sum(1), likes_UI.sum(0)).clip(1))).astype("f"))
    sum_UD = table()[:USERS] / (layers + 1) + edge_UI @ model.hop()[USERS:]
    torch.testing.assert_close(found.user_UD[:, :-1], found.scale_U[:, None] * sum_UD, atol=1e-5, rtol=1e-5)


def test_what_is_handed_out_is_propagated_in_full_precision(adjacency: Matrix) -> None:
    plain, low = model_of(adjacency, torch.zeros(ITEMS)), model_of(adjacency, torch.zeros(ITEMS))
    low.low_precision = True
    assert torch.equal(low.propagated(), plain.propagated())
    assert torch.equal(low.hop(), plain.hop())


def test_the_loss_is_the_softmax_over_the_scores_that_are_served(adjacency: Matrix, liked: Csr) -> None:
    """Training and serving must agree on what a score is."""
    bias_I = torch.linspace(0, 1, ITEMS)
    model = model_of(adjacency, bias_I)
    sampler = UserSampler(liked, ITEMS, batches_per_epoch=1, negatives=ITEMS, seed=0, device=torch.device("cpu"))
    step = next(iter(sampler.epoch(1, rank=0, world=1)))
    user_UD, item_ID, _ = model.tables(model.propagated())
    score_UI = user_UD @ item_ID.T
    everything = torch.from_numpy(np.unique(liked.indices)).long()
    expected = torch.zeros(())
    for user in range(USERS):
        own = torch.from_numpy(liked.indices[liked.indptr[user] : liked.indptr[user + 1]]).long()
        others = everything[~torch.isin(everything, own)]
        for item in own:
            against = torch.cat([score_UI[user, item].reshape(1), score_UI[user, others]])
            expected += -torch.log_softmax(against, dim=0)[0]
    torch.testing.assert_close(model(step), expected / len(liked.indices))


def test_the_start_is_the_same_every_time_and_another_for_another_seed(adjacency: Matrix) -> None:
    first, second, other = (spectral_start(adjacency, USERS, WIDTH, seed) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_start_is_the_same_whatever_the_number_of_threads() -> None:
    """Factorisations and the sum over the table; the sparse product adds up row by row anyway."""
    likes_UI = random_likes(np.random.default_rng(2), 900, 700, 0.03)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=900)
    adjacency = Matrix.of(normalised_adjacency(liked, 700))
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
def test_the_start_is_finite_and_whole_even_when_it_is_wider_than_the_graph(adjacency: Matrix, width: int) -> None:
    start_ND = spectral_start(adjacency, USERS, width, 1)
    assert start_ND.shape == (USERS + ITEMS, width)
    assert torch.isfinite(start_ND).all()
    assert (start_ND.square().mean(dim=0) > 0).all(), "a column of zeros would never be trained out of zero"


@pytest.mark.parametrize(("users", "items"), [(1, 1), (1, 6), (6, 1), (3, 40)])
def test_the_start_of_a_tiny_graph_is_finite(users: int, items: int) -> None:
    liked = interactions_by_user(*np.nonzero(np.ones((users, items))), num_users=users)
    start_ND = spectral_start(Matrix.of(normalised_adjacency(liked, items)), users, 16, 1)
    assert start_ND.shape == (users + items, 16)
    assert torch.isfinite(start_ND).all()


def test_the_start_spans_the_leading_singular_vectors() -> None:
    """Two tastes that share nothing have two equal leading values; the third is far below."""
    likes_UI = np.kron(np.eye(2), np.ones((10, 8))).astype(bool)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=20)
    adjacency = Matrix.of(normalised_adjacency(liked, 16))
    start_ND = spectral_start(adjacency, 20, 2, 0)
    unit_ND = F.normalize(start_ND, dim=1)
    cosine_UI = unit_ND[:20] @ unit_ND[20:].T
    assert cosine_UI[torch.from_numpy(likes_UI)].min() > 0.9
    assert cosine_UI[torch.from_numpy(~likes_UI)].max() < 0.5


def test_a_library_that_gives_the_opposite_vectors_changes_no_start(
    adjacency: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_ND = spectral_start(adjacency, USERS, 8, 1)
    svd = torch.linalg.svd

    def opposite(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        left, values, right = svd(*args, **kwargs)
        return -left, values, -right

    monkeypatch.setattr(torch.linalg, "svd", opposite)
    assert torch.equal(spectral_start(adjacency, USERS, 8, 1), start_ND)


def test_the_singular_vectors_are_numpys() -> None:
    """Of a matrix whose values fall slowly, where a single product would find other directions."""
    likes_UI = random_likes(np.random.default_rng(3), 120, 90, 0.15)
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=120)
    left_UC, value_C, right_IC = leading_singular_vectors(Matrix.of(normalised_adjacency(liked, 90)), 120, 8, seed=1)
    normal_UI = likes_UI / np.sqrt(likes_UI.sum(1, keepdims=True)) / np.sqrt(likes_UI.sum(0))
    expected = np.linalg.svd(normal_UI, compute_uv=False)[:8]
    np.testing.assert_allclose(value_C.numpy(), expected, rtol=0.02)
    np.testing.assert_allclose(
        np.abs((left_UC.T.numpy() @ normal_UI @ right_IC.numpy()).diagonal()), value_C, rtol=1e-3
    )
