"""Fold-in: who has no row gets the one that training would have given them, or nearly so."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import models.fold_in
from models.fold_in import HALF_AT, Folded, fold_in, fold_table
from models.graph import Csr, interactions_by_user, load_csr
from models.lightgcn import Tables
from models.reasons import reasons
from models.rivals import popularity
from models.scorers import InnerProduct, rows_where
from models.topk import top_k
from tasks.contracts import Graph
from tests.worlds import build_graph_of, fit_here, random_likes, two_taste_world

HELD_BACK = np.arange(0, 40, 5)  # four of each taste


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(two_taste_world().seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The same world where some users have met everything and like nothing."""
    seen = two_taste_world().seen
    held = pl.col("user_id").is_in([f"u{user:03d}" for user in HELD_BACK])
    likes_nothing = seen.with_columns(
        liked=pl.col("liked") & ~held, first_liked_us=pl.when(~held).then("first_liked_us")
    )
    return build_graph_of(likes_nothing, tmp_path_factory.mktemp("without"))


def served(graph: Graph, folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    return load_file(fit_here(graph, folder, **changes).served_path)


def lists_of(tables: dict[str, torch.Tensor], user_RD: torch.Tensor, row_U: np.ndarray, graph: Graph) -> np.ndarray:
    """(B, 10) of the users that were held back."""
    has_row_I = popularity(load_csr(graph.folder, "liked_all"), graph.num_items) > 0
    (block,) = top_k(
        [InnerProduct(user_RD, tables["item_ID"], row_U, has_row_I)],
        users=HELD_BACK,
        k=10,
        excluded=load_csr(graph.folder, "seen_all"),
        item_rank_I=np.arange(graph.num_items),
    )
    return block.item_BK


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("layers", [0, 2])
def test_held_back_users_get_nearly_what_the_fit_that_knows_them_gives(
    graph: Graph, without: Graph, loss: str, layers: int, tmp_path: Path
) -> None:
    liked = load_csr(graph.folder, "liked_all")
    row_U = np.full(graph.num_users, -1)
    row_U[HELD_BACK] = np.arange(len(HELD_BACK))
    overlaps = []
    for seed in range(4):
        knows = served(graph, tmp_path / f"knows-{seed}", loss=loss, layers=layers, seed=seed)
        others = served(without, tmp_path / f"others-{seed}", loss=loss, layers=layers, seed=seed)
        folded = fold_in(liked, HELD_BACK, others["fold_ID"], others["fold_length"])
        theirs = lists_of(knows, knows["user_UD"], rows_where(liked.counts() > 0), graph)
        ours = lists_of(others, folded.user_RD, row_U, without)
        own_taste = ours % 2 == HELD_BACK[:, None] % 2
        assert own_taste.mean() > 0.95
        overlaps += [len(np.intersect1d(*pair)) / 10 for pair in zip(ours, theirs, strict=True)]
    assert np.mean(overlaps) > 0.68, "of 18 unseen items of a taste, ten by chance share 0.56; a start moves it by 0.04"


# ---- without a fit


def tables_at_random(likes_UI: np.ndarray, width: int) -> tuple[Tables, Csr, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_users, num_items = likes_UI.shape
    user_UD = torch.randn(num_users, width, generator=generator)
    item_ID = torch.randn(num_items, width + 1, generator=generator)
    tables = Tables(torch.cat([user_UD, torch.ones(num_users, 1)], dim=1), item_ID, torch.ones(num_users))
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=num_users)
    return tables, liked, torch.from_numpy(popularity(liked, num_items))


@pytest.fixture
def likes_UI() -> np.ndarray:
    likes_UI = random_likes(np.random.default_rng(4), 60, 30, 0.2)
    likes_UI[:, 7] = False
    likes_UI[3] = False
    return likes_UI


@pytest.fixture
def folded_table(likes_UI: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return fold_table(*tables_at_random(likes_UI, 6))


def test_the_map_is_the_regression_of_rows_on_the_means_of_their_items_drawn_to_a_multiple_of_the_identity(
    likes_UI: np.ndarray,
) -> None:
    tables, liked, degree_I = tables_at_random(likes_UI, 6)
    fold_ID, fold_length = fold_table(tables, liked, degree_I)
    users = likes_UI.any(axis=1)
    item_ID, row_UD = tables.item_ID[:, :-1].double().numpy(), tables.user_UD[:, :-1].double().numpy()[users]
    mean_UD = (likes_UI @ item_ID)[users] / likes_UI.sum(axis=1, keepdims=True)[users]
    square_DD = mean_UD.T @ mean_UD
    ridge_DD = 0.1 * np.trace(square_DD) / 6 * np.eye(6)
    scale = (mean_UD * row_UD).sum() / (mean_UD**2).sum()
    map_DD = np.linalg.solve(square_DD + ridge_DD, mean_UD.T @ row_UD + scale * ridge_DD)
    expected_ID = item_ID @ map_DD
    expected_ID[~likes_UI.any(axis=0)] = 0
    np.testing.assert_allclose(fold_ID.numpy(), expected_ID, atol=1e-5)
    np.testing.assert_allclose(fold_length.numpy(), [np.linalg.norm(row_UD, axis=1).mean()], rtol=1e-6)


def test_a_row_has_the_trained_rows_length_and_less_with_few_events(
    folded_table: tuple[torch.Tensor, torch.Tensor],
) -> None:
    events = Csr(np.array([0, 1, 4, 24]), np.concatenate([[2], [0, 3, 5], np.r_[8:28]]).astype(np.int32))
    folded = fold_in(events, np.arange(3), *folded_table)
    length_R = torch.linalg.vector_norm(folded.user_RD[:, :-1], dim=1).numpy()
    np.testing.assert_allclose(length_R, [n / (n + HALF_AT) * float(folded_table[1]) for n in (1, 3, 20)], rtol=1e-5)
    assert (folded.user_RD[:, -1] == 1).all(), "the item's bias counts in full"


def test_who_has_met_nothing_that_was_trained_gets_no_row(folded_table: tuple[torch.Tensor, torch.Tensor]) -> None:
    events = Csr(np.array([0, 0, 1, 3]), np.array([7, 2, 7], dtype=np.int32))  # nobody likes item 7
    folded = fold_in(events, np.arange(3), *folded_table)
    assert folded.has_row_R.tolist() == [False, False, True]
    assert (folded.user_RD[:2] == 0).all()
    assert folded.histories.items.indices.tolist() == [2], "what adds nothing is no reason"
    length = torch.linalg.vector_norm(folded.user_RD[2, :-1])
    torch.testing.assert_close(length, folded_table[1][0] / (1 + HALF_AT), msg="and counts for no event")
    nobody = fold_in(events, np.zeros(0, dtype=np.int64), *folded_table)
    assert nobody.user_RD.shape == (0, 7)


def test_a_row_does_not_depend_on_who_is_asked_for_with_it(
    likes_UI: np.ndarray, folded_table: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tables, liked, degree_I = tables_at_random(likes_UI, 6)
    together = fold_in(liked, np.arange(60), *folded_table)
    for user in (0, 3, 59):
        assert torch.equal(fold_in(liked, np.array([user]), *folded_table).user_RD[0], together.user_RD[user])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = fold_table(tables, liked, degree_I)
        assert torch.equal(fold_in(liked, np.arange(60), *again).user_RD, together.user_RD)
    finally:
        torch.set_num_threads(threads)


def test_the_map_of_a_sample_of_many_users_is_much_like_that_of_all(
    likes_UI: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, liked, degree_I = tables_at_random(np.tile(likes_UI, (20, 1)), 3)
    mean_UD = torch.from_numpy(np.tile(likes_UI, (20, 1)).astype("f")) @ tables.item_ID[:, :-1]
    knowing = tables._replace(user_UD=torch.cat([mean_UD, torch.ones(1200, 1)], dim=1))
    whole, _ = fold_table(knowing, liked, degree_I)
    monkeypatch.setattr(models.fold_in, "USERS_AT_MOST", 300)
    monkeypatch.setattr(models.fold_in, "USERS_AT_ONCE", 70)
    sampled, _ = fold_table(knowing, liked, degree_I)
    assert not torch.equal(sampled, whole)
    assert (sampled - whole).square().mean() < 0.02 * whole.square().mean()


def test_nobody_with_likes_and_tables_of_zeros_give_finite_numbers() -> None:
    tables, liked, degree_I = tables_at_random(np.zeros((4, 5), dtype=bool), 3)
    assert (fold_table(tables, liked, degree_I)[0] == 0).all()
    tables, liked, degree_I = tables_at_random(np.ones((4, 5), dtype=bool), 3)
    fold_ID, fold_length = fold_table(Tables(*(torch.zeros_like(table) for table in tables)), liked, degree_I)
    assert not fin_or_raise(fold_in(liked, np.arange(4), fold_ID, fold_length)).has_row_R.any()


def fin_or_raise(folded: Folded) -> Folded:
    assert torch.isfinite(folded.user_RD).all()
    return folded


def test_the_reasons_of_a_folded_row_and_the_bias_are_all_of_its_score(
    likes_UI: np.ndarray, folded_table: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tables, liked, _ = tables_at_random(likes_UI, 6)
    rows = np.flatnonzero(likes_UI.any(axis=1))
    folded = fold_in(liked, rows, *folded_table)
    item_BK = np.tile(np.arange(30, dtype=np.int32), (len(rows), 1))
    score_BK = (folded.user_RD @ tables.item_ID.T).numpy()
    found = reasons(folded.histories, np.arange(len(rows)), item_BK, score_BK, tables.item_ID)
    np.testing.assert_allclose(found.history_BK + found.bias_BK, score_BK, atol=1e-5)
    np.testing.assert_allclose(found.own_BK, 0.0, atol=1e-5)
