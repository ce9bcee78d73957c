"""Reasons: the parts of a score add up to it, and the strongest are named, in the same bits however they are found."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models.reasons
from models.clock import Clock
from models.compiled import AVAILABLE
from models.distributed import Ranks
from models.graph import Csr, interactions_by_user, load_csr
from models.reasons import Histories, Reasons, histories_of, reasons
from models.selection import NO_ITEM
from models.train import begin, sampler_of
from tasks.contracts import Graph
from tests.worlds import build_graph_of, graph_of_random_likes, random_likes, spec_for, two_taste_world

WAYS = [
    pytest.param(True, id="kernel", marks=pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")),
    pytest.param(False, id="numpy"),
]


def graph_named(name: str, folder: Path) -> Graph:
    if name == "tastes":
        return build_graph_of(two_taste_world().seen, folder)
    return graph_of_random_likes(folder, users=50, items=35, share={"sparse": 0.06, "dense": 0.5}[name])


@pytest.mark.parametrize("by_kernel", WAYS)
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("world", ["tastes", "sparse", "dense"])
def test_history_own_term_and_bias_add_up_to_the_score(
    world: str, loss: str, layers: int, by_kernel: bool, tmp_path: Path
) -> None:
    """The own term is taken from the table that was trained, not from what is left over."""
    graph = graph_named(world, tmp_path / "graph")
    spec = spec_for(graph, tmp_path / "fit", loss=loss, layers=layers)
    liked = load_csr(graph.folder, "liked_all")
    training = begin(spec, Ranks(0, 1, torch.device("cpu")), "served", liked, Clock())
    for number, step in enumerate(sampler_of(spec, liked, torch.device("cpu"), training.likeness_U).epoch(1, 0, 1)):
        training.step(step, learning_rate=0.05, at=(1, number))
    tables = training.tables()
    own_UD = training.model.table.detach()[: graph.num_users] / (layers + 1) * tables.scale_U[:, None]
    item_BK = np.tile(np.arange(graph.num_items, dtype=np.int32), (graph.num_users, 1))
    score_BK = (tables.user_UD.double() @ tables.item_ID.double().T).numpy()
    histories = histories_of(liked, scale_U=tables.scale_U, hop_ID=training.hop())
    rows = np.arange(graph.num_users)
    found = reasons(histories, rows, item_BK, score_BK.astype(np.float32), tables.item_ID, by_kernel=by_kernel)
    own_BK = (own_UD.double() @ tables.item_ID[:, :-1].double().T).numpy()
    assert np.abs(found.history_BK + own_BK + found.bias_BK - score_BK).max() < 1e-5
    np.testing.assert_allclose(found.own_BK, own_BK, atol=1e-5)
    if layers == 0:
        assert (found.item_BKR == NO_ITEM).all(), "without propagation nothing that a user likes is in their row"


def test_the_reasons_for_an_item_are_of_its_taste(tmp_path: Path) -> None:
    graph = graph_named("tastes", tmp_path / "graph")
    spec = spec_for(graph, tmp_path / "fit")
    liked = load_csr(graph.folder, "liked_all")
    training = begin(spec, Ranks(0, 1, torch.device("cpu")), "served", liked, Clock())
    tables = training.tables()
    item_BK = np.tile(np.arange(graph.num_items, dtype=np.int32), (graph.num_users, 1))
    own_taste = item_BK % 2 == np.arange(graph.num_users)[:, None] % 2
    histories = histories_of(liked, scale_U=tables.scale_U, hop_ID=training.hop())
    score_BK = (tables.user_UD @ tables.item_ID.T).numpy()
    found = reasons(histories, np.arange(graph.num_users), item_BK, score_BK, tables.item_ID)
    assert (found.item_BKR[own_taste][:, 0] != NO_ITEM).all()
    for user in range(graph.num_users):
        named = found.item_BKR[user][found.item_BKR[user] != NO_ITEM]
        assert np.isin(named, liked.indices[liked.indptr[user] : liked.indptr[user + 1]]).all()
    assert found.share_BKR[own_taste].sum(axis=1).mean() > 5 * found.share_BKR[~own_taste].sum(axis=1).mean() / 4


# ---- on numbers without a fit


def histories_at_random(likes_UI: np.ndarray, width: int, seed: int = 0) -> tuple[Histories, torch.Tensor]:
    rng = np.random.default_rng(seed)
    num_users, num_items = likes_UI.shape
    hop_ID = rng.standard_normal((num_items, width)).astype(np.float32)
    item_ID = torch.from_numpy(rng.standard_normal((num_items, width + 1)).astype(np.float32))
    liked = interactions_by_user(*np.nonzero(likes_UI), num_users=num_users)
    return Histories(liked, rng.random(num_users).astype(np.float32), hop_ID), item_ID


def lists_at_random(rng: np.random.Generator, users: int, items: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    item_BK = rng.integers(-1, items, (users, k)).astype(np.int32)
    return item_BK, np.where(item_BK == NO_ITEM, -np.inf, rng.standard_normal((users, k))).astype(np.float32)


def assert_same_bits(left: Reasons, right: Reasons) -> None:
    for name, array in vars(left).items():
        assert array.tobytes() == getattr(right, name).tobytes(), name


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 6),
    items=st.integers(1, 9),
    width=st.integers(1, 19),
    k=st.integers(1, 18),
    at_most=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_strongest_are_those_of_a_full_sort(
    users: int, items: int, width: int, k: int, at_most: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    likes_UI = random_likes(rng, users, items, share)
    histories, item_ID = histories_at_random(likes_UI, width, seed)
    item_BK, score_BK = lists_at_random(rng, users, items, k)
    rows = rng.permutation(users)
    ways = [reasons(histories, rows, item_BK, score_BK, item_ID, at_most=at_most, by_kernel=False)]
    if AVAILABLE:
        ways.append(reasons(histories, rows, item_BK, score_BK, item_ID, at_most=at_most, by_kernel=True))
        assert_same_bits(*ways)
    found = ways[0]
    for line, user in enumerate(rows):
        for place, item in enumerate(item_BK[line]):
            own = np.flatnonzero(likes_UI[user]) if item != NO_ITEM else np.zeros(0, dtype=int)
            parts = histories.weight_R[user] * (histories.hop_ID[own] @ item_ID.numpy()[item, :-1]).astype(np.float64)
            expected = [int(own[at]) for at in np.argsort(-parts, kind="stable") if parts[at] > 0][:at_most]
            assert [int(one) for one in found.item_BKR[line, place] if one != NO_ITEM] == expected
            np.testing.assert_allclose(found.history_BK[line, place], parts.sum(), atol=1e-5)
            if item == NO_ITEM:
                assert (found.share_BKR[line, place] == 0).all()
                continue
            rest = [found.own_BK[line, place], found.bias_BK[line, place]]
            for_it = parts[parts > 0].sum() + sum(part for part in rest if part > 0)
            shares = sorted((parts[parts > 0] / for_it).tolist(), reverse=True)[:at_most]
            np.testing.assert_allclose(found.share_BKR[line, place, : len(shares)], shares, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("by_kernel", WAYS)
def test_block_sizes_and_threads_change_no_bit(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    histories, item_ID = histories_at_random(random_likes(rng, 70, 50, 0.4), 24)
    item_BK, score_BK = lists_at_random(rng, 70, 50, 7)
    whole = reasons(histories, np.arange(70), item_BK, score_BK, item_ID, by_kernel=by_kernel, threads=1)
    monkeypatch.setattr(models.reasons, "USERS_AT_ONCE", 9)
    monkeypatch.setattr(models.reasons, "LIKES_AT_ONCE", 5)  # histories are torn apart
    assert_same_bits(
        reasons(histories, np.arange(70), item_BK, score_BK, item_ID, by_kernel=by_kernel, threads=3), whole
    )
    for user in range(70):
        one = slice(user, user + 1)
        alone = reasons(histories, np.arange(70)[one], item_BK[one], score_BK[one], item_ID, by_kernel=by_kernel)
        assert_same_bits(alone, Reasons(*(array[one] for array in vars(whole).values())))


@pytest.mark.parametrize("by_kernel", WAYS)
def test_equal_reasons_stand_in_the_order_of_items(by_kernel: bool) -> None:
    liked = Csr(np.array([0, 5]), np.array([1, 3, 4, 6, 8], dtype=np.int32))
    histories = Histories(liked, np.ones(1, np.float32), np.ones((9, 2), np.float32))
    score_BK = np.full((1, 1), 10.0, np.float32)
    found = reasons(histories, np.zeros(1, int), np.zeros((1, 1), int), score_BK, torch.ones(9, 3), by_kernel=by_kernel)
    assert found.item_BKR.tolist() == [[[1, 3, 4]]]
    assert found.share_BKR.tolist() == [[[np.float32(2 / 11)] * 3]], "2 each of 10, and bias 1; own term -1"
    opposed = replace(histories, hop_ID=-histories.hop_ID)
    found = reasons(opposed, np.zeros(1, int), np.zeros((1, 1), int), score_BK, torch.ones(9, 3), by_kernel=by_kernel)
    assert (found.item_BKR == NO_ITEM).all(), "what speaks against an item is no reason for it"
    assert found.share_BKR.sum() == 0


@pytest.mark.parametrize("by_kernel", WAYS)
def test_a_hundred_thousand_likes_need_no_more_memory_than_ten(by_kernel: bool) -> None:
    many = 100_000
    liked = Csr(np.array([0, many]), np.arange(many, dtype=np.int32))
    rng = np.random.default_rng(0)
    hop_ID = rng.standard_normal((many, 16)).astype(np.float32)
    item_ID = torch.from_numpy(rng.standard_normal((many, 17)).astype(np.float32))
    item_BK = rng.integers(0, many, (1, 20)).astype(np.int32)
    score_BK = np.zeros((1, 20), np.float32)
    histories = Histories(liked, np.full(1, 0.01, np.float32), hop_ID)
    reasons(histories, np.zeros(1, int), item_BK, score_BK, item_ID, by_kernel=by_kernel)  # what is compiled, once
    tracemalloc.start()
    try:
        found = reasons(histories, np.zeros(1, int), item_BK, score_BK, item_ID, by_kernel=by_kernel)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20, "all parts of the lists would be 16 MiB in float64"
    parts_EK = 0.01 * (hop_ID.astype(np.float64) @ item_ID.numpy()[item_BK[0], :-1].T.astype(np.float64))
    assert (found.item_BKR[0, :, 0] == parts_EK.argmax(axis=0)).all()
    np.testing.assert_allclose(found.history_BK[0], parts_EK.sum(axis=0), atol=1e-4)


def test_nobody_and_no_place_have_no_reasons_and_none_must_be_asked_for() -> None:
    histories, item_ID = histories_at_random(np.ones((2, 3), bool), 4)
    empty = np.zeros((0, 5), np.int32)
    assert reasons(histories, np.zeros(0, int), empty, empty.astype(np.float32), item_ID).item_BKR.shape == (0, 5, 3)
    with pytest.raises(ValueError, match="at_most is 0"):
        reasons(histories, np.zeros(0, int), empty, empty.astype(np.float32), item_ID, at_most=0)
