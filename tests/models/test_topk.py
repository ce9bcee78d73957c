"""The best K of everything, exactly: held against a full stable sort, over shapes and ties that hypothesis invents."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import selection, topk
from models.graph import Csr, interactions_by_user
from models.scorers import InnerProduct, for_everybody, rows_where
from models.selection import NO_ITEM
from models.topk import Lists, joined, top_k, users_per_block
from tests.models.paths import PATHS, take
from tests.worlds import random_likes

PROJECT_ROOT = Path(__file__).resolve().parents[2]


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
            [
                lambda rows: torch.from_numpy(score_UI[rows].astype(np.float32)),
                for_everybody(fallback_I.astype(np.float32), num_users),
            ],
            users=np.arange(num_users) if users is None else users,
            excluded=seen_csr(seen_UI),
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
        assert (block.tier_BK[line, length:] == -1).all()
        items, filled = block.item_BK[line, :length].tolist(), (block.tier_BK[line, :length] == 1).tolist()
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


EACH_PATH = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EACH_PATH
@given(cases())
def test_lists_are_those_of_a_full_stable_sort(path: str, case: dict[str, object]) -> None:
    found = lists_of(**case)  # type: ignore[arg-type]
    of_case = [case[part] for part in ("score_UI", "fallback_I", "seen_UI", "k", "item_rank_I")]
    for user, row in found.items():
        assert row == brute_force(*of_case, user)  # type: ignore[arg-type]


@EACH_PATH
@given(cases())
def test_nothing_repeats_nothing_was_seen_and_only_an_exhausted_catalogue_is_short(
    path: str, case: dict[str, object]
) -> None:
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
def test_equal_scores_are_ordered_by_id_not_by_row(path: str, k: int) -> None:
    rank_I = np.random.default_rng(0).permutation(40)
    found = lists_of(np.ones((2, 40)), np.zeros(40), np.zeros((2, 40), dtype=bool), k, rank_I)
    assert [item for item, _ in found[1]] == np.argsort(rank_I)[:k].tolist()


def test_the_two_zeros_are_one_score(path: str) -> None:
    score_UI = np.array([[0.0, -0.0, 0.0, -0.0, 1.0]])
    found = lists_of(score_UI, np.zeros(5), np.zeros((1, 5), dtype=bool), 3)
    assert found[0] == [(4, False), (0, False), (1, False)]


def test_a_large_catalogue_with_many_ties_is_exact(path: str) -> None:
    """Large enough for torch's other selection paths."""
    rng = np.random.default_rng(1)
    score_UI = rng.integers(0, 50, (20, 5000)).astype(np.float32)
    seen_UI = random_likes(rng, 20, 5000, 0.05)
    found = lists_of(score_UI, np.zeros(5000), seen_UI, 30)
    for user in range(20):
        assert found[user] == brute_force(score_UI, np.zeros(5000), seen_UI, 30, np.arange(5000), user)


USERS_IN_BLOCK = [1, 2, 7, 33, 49, 50]


def tables(kind: str, num_users: int, num_items: int, width: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """spread: scores lie far apart. crowded: so near that a product's rounding decides. alike: items in threes."""
    rng = np.random.default_rng(2)
    user_UD = rng.standard_normal((num_users, width)).astype(np.float32)
    item_ID = rng.standard_normal((num_items, width)).astype(np.float32)
    if kind == "crowded":
        item_ID = (item_ID[:1] + 1e-7 * item_ID).astype(np.float32)
    if kind == "alike":
        item_ID = item_ID[np.arange(num_items) // 3]
    return torch.from_numpy(user_UD), torch.from_numpy(item_ID)


def all_lists(scorer: InnerProduct, seen_UI: np.ndarray, users_in_block: int, k: int = 20, threads: int = 1) -> Lists:
    num_users, num_items = seen_UI.shape
    blocks = top_k(
        [scorer, for_everybody(np.arange(num_items, dtype=np.float32), num_users)],
        users=np.arange(num_users),
        excluded=seen_csr(seen_UI),
        k=k,
        item_rank_I=np.arange(num_items)[::-1],
        wishes=True,
        block_bytes=threads * 12 * num_items * users_in_block,
        threads=threads,
    )
    return joined(list(blocks))


@pytest.mark.parametrize("kind", ["spread", "crowded", "alike"])
def test_neither_blocks_nor_threads_nor_the_path_change_a_bit_of_a_list(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_row_U, has_row_I = np.arange(50) != 3, np.arange(300) % 10 != 0
    scorer = InnerProduct(*tables(kind, 50, 300), rows_where(has_row_U), has_row_I)
    seen_UI = random_likes(np.random.default_rng(3), 50, 300, 0.1)
    first = all_lists(scorer, seen_UI, users_in_block=50)
    for path in PATHS:
        take(path, monkeypatch)
        for threads in (1, 2, 3):
            for users_in_block in USERS_IN_BLOCK:
                monkeypatch.setattr(topk, "USERS_AT_ONCE", users_in_block)
                monkeypatch.setattr(selection, "ROWS_AT_ONCE", 5)
                lists = all_lists(scorer, seen_UI, users_in_block, threads=threads)
                for field, values in vars(lists).items():
                    assert values.tobytes() == getattr(first, field).tobytes(), (path, field, users_in_block, threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")
@pytest.mark.parametrize("kind", ["spread", "crowded", "alike"])
def test_a_gpu_gives_the_bytes_of_a_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = InnerProduct(*tables(kind, 50, 300), rows_where(np.arange(50) != 3), np.arange(300) % 10 != 0)
    seen_UI = random_likes(np.random.default_rng(3), 50, 300, 0.1)
    assert scorer.on_gpu_if_it_fits(2**20).item_ID.device.type == "cuda"
    on_gpu = all_lists(scorer, seen_UI, users_in_block=7)
    monkeypatch.setattr(InnerProduct, "on_gpu_if_it_fits", lambda scorer, _: scorer)
    for field, values in vars(all_lists(scorer, seen_UI, users_in_block=7)).items():
        assert values.tobytes() == getattr(on_gpu, field).tobytes(), field


@pytest.mark.parametrize("kind", ["spread", "crowded", "alike"])
@pytest.mark.parametrize("num_items", [30, 300])
def test_the_lists_are_those_of_a_full_sort_of_the_exact_scores(path: str, kind: str, num_items: int) -> None:
    """Also where hundreds of items lie within the product's rounding of each other."""
    has_row_U, has_row_I = np.arange(50) != 3, np.arange(num_items) % 10 != 0
    scorer = InnerProduct(*tables(kind, 50, num_items), rows_where(has_row_U), has_row_I)
    seen_UI = random_likes(np.random.default_rng(3), 50, num_items, 0.1)
    lists = all_lists(scorer, seen_UI, users_in_block=7)
    score_UI = scorer.exact(np.arange(50), torch.arange(num_items).expand(50, -1)).numpy()
    opinion_UI = np.where(has_row_U[:, None] & has_row_I, score_UI, -np.inf)
    backwards = np.arange(num_items)[::-1]
    for user, row in rows_of(lists):
        assert row == brute_force(opinion_UI, np.arange(num_items), seen_UI, 20, backwards, user)
        own = lists.tier_BK[user] == 0
        assert lists.score_BK[user, own].tolist() == score_UI[user, lists.item_BK[user, own]].tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 17, 64, 65])
def test_an_exact_score_is_the_inner_product_and_the_product_is_as_near_as_promised(width: int) -> None:
    user_UD, item_ID = tables("spread", 50, 300, width)
    scorer = InnerProduct(user_UD, item_ID, np.arange(50), np.ones(300, dtype=bool))
    before = item_ID.clone()
    users, items = np.arange(50), torch.arange(300).expand(50, -1)
    true_UI = user_UD.double() @ item_ID.double().T
    exact_UI = scorer.exact(users, items)
    torch.testing.assert_close(exact_UI, true_UI.float(), atol=1e-5, rtol=1e-5)
    assert ((scorer(users) - exact_UI).abs() <= scorer.rounding_B(users)[:, None]).all()
    assert ((exact_UI - true_UI).abs() <= scorer.rounding_B(users)[:, None] / 2).all()
    assert torch.equal(item_ID, before), "the tables are not written to"


def test_users_and_items_without_a_trained_row_get_and_are_the_fallback(path: str) -> None:
    scorer = InnerProduct(torch.ones(1, 3), torch.ones(4, 3), np.array([0, -1]), np.array([True, False, True, True]))
    blocks = top_k(
        [scorer, for_everybody(np.array([1, 9, 2, 0]), 2)],
        users=np.arange(2),
        excluded=seen_csr(np.zeros((2, 4), dtype=bool)),
        k=4,
        item_rank_I=np.arange(4),
    )
    found = {user: row for block in blocks for user, row in rows_of(block)}
    assert found[0] == [(0, False), (2, False), (3, False), (1, True)]
    assert found[1] == [(1, True), (2, True), (0, True), (3, True)]


def test_a_score_that_is_no_number_stands_in_the_open_where_the_gate_sees_it(path: str) -> None:
    """It must not be taken for "no opinion" and papered over by the fallback."""
    score_UI = np.array([[1.0, np.nan, 2.0]])
    blocks = top_k(
        [lambda rows: torch.from_numpy(score_UI[rows].astype(np.float32)), for_everybody(np.zeros(3), 1)],
        users=np.array([0]),
        excluded=seen_csr(np.zeros((1, 3), dtype=bool)),
        k=2,
        item_rank_I=np.arange(3),
    )
    (block,) = blocks
    assert np.isnan(block.score_BK).any()


def test_no_users_make_no_blocks() -> None:
    assert lists_of(np.ones((2, 3)), np.zeros(3), np.zeros((2, 3), dtype=bool), 2, users=np.array([], dtype=int)) == {}


def test_a_block_holds_one_user_at_least() -> None:
    scorer = lambda users: torch.zeros(len(users), 1)  # noqa: E731
    assert users_per_block([scorer], 1000, 12_000_000, 10**6) == 1000
    assert users_per_block([scorer], 10**9, 1, 10**6) == 1


MEASURED_BLOCK = """
import sys
import numpy as np, psutil, torch
from models.graph import interactions_by_user
from models.rivals import item_knn_scorer
from models.scorers import InnerProduct, for_everybody, rows_where
from models.topk import top_k, users_per_block
torch.set_num_threads(2)
case, items, block_bytes = sys.argv[1], 20_000, 128 * 2**20
users = 2 * (block_bytes // (12 * items))
rng = np.random.default_rng(0)
pairs = np.unique(rng.integers(0, users * items, users * 20))
seen = interactions_by_user(pairs // items, pairs % items, users)
trained = np.full(users, case != "filled")
scorer = InnerProduct(torch.randn(users, 16), torch.randn(items, 16), rows_where(trained), np.full(items, True))
def peak():
    # Not ru_maxrss: a child inherits that of the process that started it.
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])
def walk(users, block_bytes):
    rank = np.arange(items) if case == "in id order" else rng.permutation(items)
    tiers = [scorer, for_everybody(np.ones(items), len(trained))]
    for _ in top_k(tiers, users=users, excluded=seen, k=20, item_rank_I=rank,
                   block_bytes=block_bytes):
        pass
if case == "tied":
    scorer = lambda users: torch.ones(len(users), items)
walk(np.arange(2), 1)  # torch's own first-time costs are no part of a block
before = psutil.Process().memory_info().rss
if case == "item-kNN":
    scorer = item_knn_scorer(seen, items, neighbours=20, shrink=1.0, block_bytes=block_bytes)
walk(np.arange(users), block_bytes)
print((peak() - before) / block_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read where Linux keeps it")
@pytest.mark.parametrize("case", ["in another order", "filled", "item-kNN"])
def test_a_blocks_peak_memory_is_within_what_was_granted(case: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED_BLOCK, case],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (0.2 if case == "item-kNN" else -0.1) < float(finished.stdout) <= 1.0
