"""The best K of everything, exactly: held against a full stable sort, over shapes and ties that hypothesis invents."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.graph import Csr, interactions_by_user
from models.topk import NO_ITEM, Lists, inner_product_scorer, top_k, users_per_block
from tests.worlds import random_likes


def brute_force(
    score_UI: np.ndarray, fallback_I: np.ndarray, seen_UI: np.ndarray, k: int, item_rank_I: np.ndarray, user: int
) -> list[tuple[int, bool]]:
    """[(item, is the fallback's)]: the scorer's unseen items first, then the fallback's; equal scores by id rank."""

    def ordered(items: list[int], score_I: np.ndarray) -> list[int]:
        return sorted(items, key=lambda item: (-float(score_I[item]), int(item_rank_I[item])))

    unseen = [item for item in range(len(item_rank_I)) if not seen_UI[user, item]]
    own = ordered([item for item in unseen if score_UI[user, item] > -np.inf], score_UI[user])[:k]
    rest = ordered([item for item in unseen if item not in own], fallback_I)[: k - len(own)]
    return [(item, False) for item in own] + [(item, True) for item in rest]


def lists_of(
    score_UI: np.ndarray,
    fallback_I: np.ndarray,
    seen_UI: np.ndarray,
    k: int,
    item_rank_I: np.ndarray | None = None,
    users: np.ndarray | None = None,
    block_bytes: int = 2**20,
) -> dict[int, list[tuple[int, bool]]]:
    num_users, num_items = score_UI.shape
    blocks = list(
        top_k(
            lambda rows: torch.from_numpy(score_UI[rows].astype(np.float32)),
            fallback_I.astype(np.float32),
            users=np.arange(num_users) if users is None else users,
            seen=seen_csr(seen_UI),
            k=k,
            item_rank_I=np.arange(num_items) if item_rank_I is None else item_rank_I,
            block_bytes=block_bytes,
        )
    )
    asked = np.arange(num_users) if users is None else users
    assert [user for block in blocks for user in block.users.tolist()] == asked.tolist()
    return {user: row for block in blocks for user, row in rows_of(block)}


def rows_of(block: Lists) -> list[tuple[int, list[tuple[int, bool]]]]:
    rows = []
    for line, user in enumerate(block.users.tolist()):
        present = block.item_BK[line] != NO_ITEM
        length = int(present.sum())
        assert present[:length].all(), "the missing end is at the end"
        assert np.isneginf(block.score_BK[line, length:]).all()
        assert not block.filled_BK[line, length:].any()
        items, filled = block.item_BK[line, :length].tolist(), block.filled_BK[line, :length].tolist()
        rows.append((user, list(zip(items, filled, strict=True))))
    return rows


def seen_csr(seen_UI: np.ndarray) -> Csr:
    return interactions_by_user(*np.nonzero(seen_UI), num_users=len(seen_UI))


# Few different values, so that most scores are tied; both zeros; an item without a score.
SCORES = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-40, 3e38, -np.inf])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    score = draw(st.lists(SCORES, min_size=users * items, max_size=users * items))
    seen = draw(st.lists(st.booleans(), min_size=users * items, max_size=users * items))
    return {
        "score_UI": np.array(score, dtype=np.float32).reshape(users, items),
        "fallback_I": np.array(draw(st.lists(st.sampled_from([0.0, 1.0, 7.0]), min_size=items, max_size=items))),
        "seen_UI": np.array(seen).reshape(users, items),
        "k": draw(st.integers(1, 15)),
        "item_rank_I": np.array(draw(st.permutations(range(items)))),
        "users": np.array(draw(st.permutations(range(users)))),
        "block_bytes": draw(st.sampled_from([1, 12 * items * 2, 2**20])),
    }


@settings(max_examples=300, deadline=None)
@given(cases())
def test_lists_are_those_of_a_full_stable_sort(case: dict[str, object]) -> None:
    found = lists_of(**case)  # type: ignore[arg-type]
    of_case = [case[part] for part in ("score_UI", "fallback_I", "seen_UI", "k", "item_rank_I")]
    for user, row in found.items():
        assert row == brute_force(*of_case, user)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_nothing_repeats_nothing_was_seen_and_only_an_exhausted_catalogue_is_short(case: dict[str, object]) -> None:
    seen_UI, k = case["seen_UI"], case["k"]
    assert isinstance(seen_UI, np.ndarray)
    assert isinstance(k, int)
    for user, row in lists_of(**case).items():  # type: ignore[arg-type]
        items = [item for item, _ in row]
        assert len(set(items)) == len(items)
        assert not seen_UI[user, items].any()
        assert len(items) == min(k, int((~seen_UI[user]).sum()))
        filled = [is_filled for _, is_filled in row]
        assert filled == sorted(filled), "the fallback stands behind"


@pytest.mark.parametrize("k", [1, 3, 40, 41, 100])
def test_equal_scores_are_ordered_by_id_not_by_row(k: int) -> None:
    rank_I = np.random.default_rng(0).permutation(40)
    found = lists_of(np.ones((2, 40)), np.zeros(40), np.zeros((2, 40), dtype=bool), k, rank_I)
    assert [item for item, _ in found[1]] == np.argsort(rank_I)[:k].tolist()


def test_the_two_zeros_are_one_score() -> None:
    score_UI = np.array([[0.0, -0.0, 0.0, -0.0, 1.0]])
    found = lists_of(score_UI, np.zeros(5), np.zeros((1, 5), dtype=bool), 3)
    assert found[0] == [(4, False), (0, False), (1, False)]


def test_a_large_catalogue_with_many_ties_is_exact() -> None:
    """Large enough for torch's other selection paths."""
    rng = np.random.default_rng(1)
    score_UI = rng.integers(0, 50, (20, 5000)).astype(np.float32)
    seen_UI = random_likes(rng, 20, 5000, 0.05)
    found = lists_of(score_UI, np.zeros(5000), seen_UI, 30)
    for user in range(20):
        assert found[user] == brute_force(score_UI, np.zeros(5000), seen_UI, 30, np.arange(5000), user)


@pytest.mark.parametrize("block_bytes", [1, 12 * 300 * 7, 2**30])
def test_the_block_size_changes_nothing_but_memory(block_bytes: int) -> None:
    """Scores of a matrix product: the block size changes how it is summed, and must not change the lists."""
    rng = np.random.default_rng(2)
    user_UD = torch.from_numpy(rng.standard_normal((50, 16)).astype(np.float32))
    item_ID = torch.from_numpy(rng.standard_normal((300, 16)).astype(np.float32))
    seen_UI = random_likes(rng, 50, 300, 0.1)
    has_row_U, has_row_I = np.arange(50) != 3, np.arange(300) % 10 != 0
    blocks = top_k(
        inner_product_scorer(user_UD, item_ID, has_row_U, has_row_I),
        np.arange(300, dtype=np.float32),
        users=np.arange(50),
        seen=seen_csr(seen_UI),
        k=20,
        item_rank_I=np.arange(300),
        block_bytes=block_bytes,
    )
    found = {user: row for block in blocks for user, row in rows_of(block)}
    score_UI = (user_UD @ item_ID.T).numpy()
    score_UI[:, ~has_row_I] = score_UI[~has_row_U] = -np.inf
    for user in range(50):
        assert found[user] == brute_force(score_UI, np.arange(300), seen_UI, 20, np.arange(300), user)


def test_users_and_items_without_a_trained_row_get_and_are_the_fallback() -> None:
    scorer = inner_product_scorer(
        torch.ones(2, 3), torch.ones(4, 3), np.array([True, False]), np.array([True, False, True, True])
    )
    blocks = top_k(
        scorer,
        np.array([1, 9, 2, 0], dtype=np.float32),
        users=np.arange(2),
        seen=seen_csr(np.zeros((2, 4), dtype=bool)),
        k=4,
        item_rank_I=np.arange(4),
    )
    found = {user: row for block in blocks for user, row in rows_of(block)}
    assert found[0] == [(0, False), (2, False), (3, False), (1, True)]
    assert found[1] == [(1, True), (2, True), (0, True), (3, True)]


def test_a_score_that_is_no_number_stands_in_the_open_where_the_gate_sees_it() -> None:
    """It must not be taken for "no opinion" and papered over by the fallback."""
    score_UI = np.array([[1.0, np.nan, 2.0]])
    blocks = top_k(
        lambda rows: torch.from_numpy(score_UI[rows].astype(np.float32)),
        np.zeros(3, dtype=np.float32),
        users=np.array([0]),
        seen=seen_csr(np.zeros((1, 3), dtype=bool)),
        k=2,
        item_rank_I=np.arange(3),
    )
    (block,) = blocks
    assert np.isnan(block.score_BK).any()


def test_no_users_make_no_blocks() -> None:
    assert lists_of(np.ones((2, 3)), np.zeros(3), np.zeros((2, 3), dtype=bool), 2, users=np.array([], dtype=int)) == {}


def test_a_block_fits_its_memory_and_holds_one_user_at_least() -> None:
    assert users_per_block(1000, 20_000_000) == 1000
    assert users_per_block(10**9, 1) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux counts it")
def test_a_block_takes_the_memory_that_was_granted() -> None:
    """In a process of its own: each scorer's peak over what was there before, once it has run with little."""
    program = """
from pathlib import Path
import numpy as np, torch
from models.graph import Csr
from models.rivals import item_knn_scorer, popularity, popularity_scorer
from models.topk import inner_product_scorer, top_k
torch.set_num_threads(1)
rng = np.random.default_rng(0)
U, I, D = 700, 20_000, 16
liked = Csr(np.arange(0, 20 * U + 1, 20), np.sort(rng.integers(0, I, (U, 20)), axis=1).astype(np.int32).ravel())
def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
def run(scorer, block_mib):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = mib("VmRSS")
    for block in top_k(scorer, popularity(liked, I), users=np.arange(U), seen=liked, k=20, item_rank_I=np.arange(I),
                       block_bytes=block_mib * 2**20):
        pass
    return mib("VmHWM") - before
for scorer in (
    popularity_scorer(liked, I),
    inner_product_scorer(torch.randn(U, D), torch.randn(I, D), np.ones(U, bool), np.ones(I, bool)),
    item_knn_scorer(liked, I, neighbours=50, shrink=1.0, block_bytes=64 * 2**20),
):
    run(scorer, 4)
    print(run(scorer, 160))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    for taken in map(float, ended.stdout.split()):
        assert taken < 1.25 * 160, "more than was granted, and than an allocator rounds up"
        assert taken > 20, "so little that nothing was measured"
