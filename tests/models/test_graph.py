"""The graph as arrays: what the formula says, and what comes back from the disk."""

from pathlib import Path

import numpy as np
import pytest

from models.graph import (
    Adjacency,
    Csr,
    interactions_by_user,
    load_adjacency,
    load_csr,
    normalised_adjacency,
    save_arrays,
)
from tests.worlds import random_likes


def csr_of(likes_UI: np.ndarray) -> Csr:
    return interactions_by_user(*np.nonzero(likes_UI), num_users=len(likes_UI))


def dense(adjacency: Adjacency) -> np.ndarray:
    matrix_NN = np.zeros((adjacency.num_nodes, adjacency.num_nodes))
    row = np.repeat(np.arange(adjacency.num_nodes), np.diff(adjacency.indptr))
    np.add.at(matrix_NN, (row, adjacency.indices), adjacency.values)
    return matrix_NN


@pytest.mark.parametrize(("users", "items", "share"), [(1, 1, 1.0), (7, 5, 0.5), (30, 50, 0.1), (20, 3, 0.05)])
def test_the_adjacency_is_the_formula(users: int, items: int, share: float) -> None:
    likes_UI = random_likes(np.random.default_rng(users), users, items, share)
    whole_NN = np.block([[np.zeros((users, users)), likes_UI], [likes_UI.T, np.zeros((items, items))]])
    degree_N = whole_NN.sum(axis=1)
    inverse_root_N = np.divide(1.0, np.sqrt(degree_N), out=np.zeros_like(degree_N), where=degree_N > 0)
    expected_NN = inverse_root_N[:, None] * whole_NN * inverse_root_N[None, :]

    found_NN = dense(normalised_adjacency(csr_of(likes_UI), items))

    np.testing.assert_allclose(found_NN, expected_NN, atol=1e-7)
    np.testing.assert_array_equal(found_NN, found_NN.T)


def test_a_node_without_edges_has_an_empty_row_and_nothing_is_nan() -> None:
    likes_UI = np.zeros((4, 5), dtype=bool)
    likes_UI[1, 2] = likes_UI[3, 2] = True
    adjacency = normalised_adjacency(csr_of(likes_UI), 5)
    assert np.isfinite(adjacency.values).all()
    assert np.diff(adjacency.indptr).tolist() == [0, 1, 0, 1, 0, 0, 2, 0, 0]


def test_rows_do_not_follow_the_order_in_which_pairs_arrive() -> None:
    rng = np.random.default_rng(3)
    user_E, item_E = np.nonzero(random_likes(rng, 20, 30, 0.2))
    shuffled = rng.permutation(len(user_E))
    first = interactions_by_user(user_E, item_E, 20)
    second = interactions_by_user(user_E[shuffled], item_E[shuffled], 20)
    np.testing.assert_array_equal(first.indptr, second.indptr)
    np.testing.assert_array_equal(first.indices, second.indices)
    assert (first.indptr.dtype, first.indices.dtype) == (np.int64, np.int32)


def test_the_entries_of_chosen_rows_come_in_the_order_of_the_choice() -> None:
    likes_UI = random_likes(np.random.default_rng(4), 12, 9, 0.3)
    likes_UI[5] = False
    liked = csr_of(likes_UI)
    chosen = np.array([7, 5, 0, 7])
    position, item = liked.rows_of(chosen)
    expected = [(p, i) for p, user in enumerate(chosen) for i in np.flatnonzero(likes_UI[user])]
    assert list(zip(position.tolist(), item.tolist(), strict=True)) == expected


def test_no_rows_have_no_entries() -> None:
    position, item = csr_of(np.eye(3, dtype=bool)).rows_of(np.array([], dtype=np.int64))
    assert len(position) == len(item) == 0


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_arrays_come_back_from_the_disk_as_they_went(share: float, tmp_path: Path) -> None:
    liked = csr_of(random_likes(np.random.default_rng(5), 8, 6, share))
    adjacency = normalised_adjacency(liked, 6)
    save_arrays(tmp_path, "liked", liked)
    save_arrays(tmp_path, "adjacency", adjacency)
    for written, read in ((liked, load_csr(tmp_path, "liked")), (adjacency, load_adjacency(tmp_path, "adjacency"))):
        for field, array in vars(written).items():
            np.testing.assert_array_equal(getattr(read, field), array)
            assert getattr(read, field).dtype == array.dtype
            assert isinstance(getattr(read, field), np.memmap) == (len(array) > 0), "ranks share one page cache"
