"""What may stand in a list and what may not: exclusions, groups, caps on categories, several tiers, and the wishes."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import selection, topk
from models.graph import Csr, interactions_by_user
from models.scorers import GroupScores, InnerProduct, Scorer, for_everybody
from models.selection import NO_ITEM, Allowed
from models.topk import CategoryCap, Lists, joined, top_k


def csr(has_UI: np.ndarray) -> Csr:
    return interactions_by_user(*np.nonzero(has_UI), num_users=len(has_UI))


def walked(
    score_TUI: np.ndarray,
    forbidden_UI: np.ndarray,
    k: int,
    rank_I: np.ndarray,
    user: int,
    at_most: int | None,
    category_IC: np.ndarray,
) -> list[tuple[int, int]]:
    """[(item, tier)] by the rules as a person would apply them."""
    taken: list[tuple[int, int]] = []
    for tier, score_UI in enumerate(score_TUI):
        order = sorted(range(len(rank_I)), key=lambda item: (-float(score_UI[user, item]), int(rank_I[item])))
        for item in order:
            if len(taken) == k or forbidden_UI[user, item] or score_UI[user, item] == -np.inf:
                continue
            if item in [other for other, _ in taken]:
                continue
            counts = category_IC[[other for other, _ in taken]].sum(axis=0)
            if at_most is not None and (counts[category_IC[item]] >= at_most).any():
                continue
            taken.append((item, tier))
    return taken


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    users, items, groups, categories = draw(st.integers(1, 4)), draw(st.integers(1, 14)), 2, 3
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tables = rng.integers(-2, 3, (users + items, 3)).astype(np.float32)  # many ties, zeros, negatives
    return {
        "user_RD": tables[:users],
        "item_ID": tables[users:],
        "row_U": np.where(rng.random(users) < 0.8, np.arange(users), -1),
        "segment_GI": np.where(rng.random((groups, items)) < 0.5, rng.integers(0, 3, (groups, items)), -np.inf),
        "group_U": rng.integers(-1, groups, users),
        "popular_I": rng.integers(0, 3, items).astype(np.float32),
        "excluded_UI": rng.random((users, items)) < draw(st.sampled_from([0.0, 0.3, 1.0])),
        "allowed_GI": rng.random((groups, items)) < draw(st.sampled_from([0.0, 0.7, 1.0])),
        "allowed_U": rng.integers(0, groups, users),
        "category_IC": rng.random((items, categories)) < 0.5,
        "at_most": draw(st.sampled_from([None, 1, 2])),
        "k": draw(st.integers(1, 16)),
        "rank_I": rng.permutation(items),
    }


def lists_of(case: dict, *, wishes: bool = False) -> Lists:
    items = len(case["rank_I"])
    tiers: list[Scorer] = [
        InnerProduct(
            torch.from_numpy(case["user_RD"]),
            torch.from_numpy(case["item_ID"]),
            case["row_U"],
            np.ones(items, dtype=bool),
        ),
        GroupScores(case["segment_GI"].astype(np.float32), case["group_U"]),
        for_everybody(case["popular_I"], len(case["row_U"])),
    ]
    cap = None if case["at_most"] is None else CategoryCap(case["at_most"], csr(case["category_IC"]))
    blocks = top_k(
        tiers,
        users=np.arange(len(case["row_U"])),
        k=case["k"],
        excluded=csr(case["excluded_UI"]),
        item_rank_I=case["rank_I"],
        allowed=Allowed(case["allowed_GI"], case["allowed_U"]),
        cap=cap,
        wishes=wishes,
    )
    return joined(list(blocks))


def scores_of(case: dict) -> np.ndarray:
    """(3, U, I) of the three tiers."""
    graph_UI = case["user_RD"] @ case["item_ID"].T
    graph_UI[case["row_U"] < 0] = -np.inf
    segment_UI = np.where(case["group_U"][:, None] >= 0, case["segment_GI"][case["group_U"]], -np.inf)
    return np.stack([graph_UI, segment_UI, np.tile(case["popular_I"], (len(graph_UI), 1))])


EACH_PATH = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EACH_PATH
@given(cases())
def test_lists_are_what_a_person_would_pick_by_the_rules(path: str, case: dict) -> None:
    lists, score_TUI = lists_of(case), scores_of(case)
    forbidden_UI = case["excluded_UI"] | ~case["allowed_GI"][case["allowed_U"]]
    for user in range(len(case["row_U"])):
        expected = walked(
            score_TUI, forbidden_UI, case["k"], case["rank_I"], user, case["at_most"], case["category_IC"]
        )
        length = int((lists.item_BK[user] != NO_ITEM).sum())
        found = zip(lists.item_BK[user, :length].tolist(), lists.tier_BK[user, :length].tolist(), strict=True)
        assert list(found) == expected
        for item, tier, score in zip(
            *(field[user, :length] for field in (lists.item_BK, lists.tier_BK, lists.score_BK)), strict=True
        ):
            assert score == score_TUI[tier, user, item]


@EACH_PATH
@given(cases())
def test_wishes_are_what_the_first_tier_with_an_opinion_would_give_without_rules(path: str, case: dict) -> None:
    lists, score_TUI = lists_of(case, wishes=True), scores_of(case)
    nothing_UI = np.zeros_like(case["excluded_UI"])
    for user in range(len(case["row_U"])):
        tier = next(tier for tier in range(3) if (score_TUI[tier, user] > -np.inf).any())
        wanted = walked(
            score_TUI[tier : tier + 1], nothing_UI, case["k"], case["rank_I"], user, None, case["category_IC"]
        )
        wished = lists.wished_BK[user]
        assert wished[wished != NO_ITEM].tolist() == [item for item, _ in wanted]


def test_wishes_change_nothing_in_the_lists() -> None:
    case = {
        "user_RD": np.eye(3, dtype=np.float32),
        "item_ID": np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32),
        "row_U": np.array([0, 1, -1]),
        "segment_GI": np.full((1, 50), -np.inf),
        "group_U": np.array([-1, 0, 0]),
        "popular_I": np.arange(50, dtype=np.float32),
        "excluded_UI": np.arange(150).reshape(3, 50) % 4 == 0,
        "allowed_GI": np.arange(50)[None] % 3 > 0,
        "allowed_U": np.zeros(3, dtype=np.int64),
        "category_IC": np.arange(50)[:, None] % 5 == np.arange(5),
        "at_most": 2,
        "k": 12,
        "rank_I": np.arange(50),
    }
    plain, wishing = lists_of(case), lists_of(case, wishes=True)
    for field in ("item_BK", "score_BK", "tier_BK"):
        assert np.array_equal(getattr(plain, field), getattr(wishing, field))
    assert plain.wished_BK.shape == (3, 0)
    assert (plain.item_BK[:, -1] == NO_ITEM).all(), "five categories of two make ten items, not twelve"


def test_a_cap_looks_as_deep_as_it_must(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """999 items of one category stand before the other category's first."""
    monkeypatch.setattr(topk, "RANKED_AT_ONCE", 1000)  # a few users at a time
    scorer = InnerProduct(torch.ones(5, 1), torch.arange(2000.0).flip(0)[:, None], np.arange(5), np.ones(2000, bool))
    cap = CategoryCap(2, csr((np.arange(2000) >= 999)[:, None] == np.array([False, True])))
    nothing = Csr(np.zeros(6, dtype=np.int64), np.zeros(0, dtype=np.int32))
    (lists,) = top_k(
        [scorer], users=np.arange(5), k=5, excluded=nothing, item_rank_I=np.arange(2000), cap=cap, threads=1
    )
    assert lists.item_BK.tolist() == [[0, 1, 999, 1000, NO_ITEM]] * 5


def test_a_user_who_may_have_nothing_gets_nothing(path: str) -> None:
    scorer = InnerProduct(torch.ones(2, 2), torch.ones(30, 2), np.arange(2), np.ones(30, dtype=bool))
    excluded_UI = np.array([[True] * 30, [False] * 30])
    (lists,) = top_k(
        [scorer, for_everybody(np.ones(30), 2)],
        users=np.arange(2),
        k=4,
        excluded=csr(excluded_UI),
        item_rank_I=np.arange(30),
        threads=1,
    )
    assert (lists.item_BK[0] == NO_ITEM).all()
    assert lists.item_BK[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_block_with_few_positive_scores_is_as_exact_as_any(
    path: str, sign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative floats order backwards as integers; tables of one sign make every score one of them."""
    monkeypatch.setattr(selection, "TILE_BYTES", 512 * 2 * 64)  # many products a row
    rng = np.random.default_rng(0)
    user_RD, item_ID = np.abs(rng.standard_normal((40, 8))), sign * np.abs(rng.standard_normal((700, 8)))
    scorer = InnerProduct(
        torch.from_numpy(user_RD).float(), torch.from_numpy(item_ID).float(), np.arange(40), np.ones(700, dtype=bool)
    )
    excluded_UI = rng.random((40, 700)) < 0.3
    (lists,) = top_k(
        [scorer], users=np.arange(40), k=9, excluded=csr(excluded_UI), item_rank_I=np.arange(700), threads=1
    )
    score_UI = np.where(excluded_UI, -np.inf, user_RD.astype(np.float32).astype(float) @ item_ID.astype(np.float32).T)
    assert np.array_equal(lists.item_BK, np.argsort(-score_UI, axis=1, kind="stable")[:, :9])
