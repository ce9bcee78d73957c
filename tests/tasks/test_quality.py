"""What the gate says of a judged fit: better, worse, or that nobody can tell."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from models.metrics import bootstrap_interval
from tasks.config import GateConfig
from tasks.contracts import Check, Evaluation, Measured, ModelScore, NightDiff, SliceScore
from tasks.evaluate.quality import DETECTABLE, check_change, check_popularity, check_quality, has_evidence

USERS = 200


def evaluation(over: Measured, *, users: int = USERS, rival: Measured | None = None, **slices: Measured) -> Evaluation:
    """Popularity's recall is 0.2; `over` is LightGCN's paired difference to it, `rival` that of EASE to LightGCN."""
    scores = tuple(
        ModelScore(model, "test", users, Measured(value, value - 0.02, value + 0.02), Measured(0.1, 0.1, 0.1), 0.5)
        for model, value in (("lightgcn", 0.2 + over.mean), ("popularity", 0.2))
    )
    return Evaluation(
        fingerprint="e",
        k=20,
        scores=scores,
        over_popularity={"recall": over, "ndcg": over},
        recall_by_history={},
        users_by_history={},
        slices=tuple(
            SliceScore(name.replace("_", ": "), users, Measured(0.2 + value.mean, 0.0, 1.0), value)
            for name, value in slices.items()
        ),
        rivals_over={"ease": {"recall": rival, "ndcg": rival}} if rival else {},
    )


def answers(found: Evaluation, settings: GateConfig | None = None) -> dict[str, Check]:
    return {check.gate: check for check in check_quality(settings or GateConfig(), found)}


BETTER = Measured(0.05, 0.04, 0.06)
WORSE = Measured(-0.05, -0.06, -0.04)
LEVEL = Measured(0.0, -0.01, 0.01)
ANYTHING = Measured(0.01, -0.15, 0.17)


@pytest.mark.parametrize(
    ("over", "users", "passed", "enough"),
    [
        (BETTER, USERS, True, True),
        (LEVEL, USERS, True, True),
        (WORSE, USERS, False, True),
        (ANYTHING, USERS, True, False),  # the interval holds a third of the value on either side
        (WORSE, 29, True, False),  # by luck
        (BETTER, 29, True, False),
    ],
)
def test_too_few_users_for_the_question_is_an_answer_of_its_own(
    over: Measured, users: int, passed: bool, enough: bool
) -> None:
    check = check_popularity("recall", evaluation(over, users=users))
    assert (check.passed, check.enough_evidence) == (passed, enough)


def test_as_many_users_as_the_rule_asks_for_find_the_difference_in_four_of_five_trials() -> None:
    """A paired difference of DETECTABLE x the reference, measured over just as many users as have evidence."""
    rng, spread, reference = np.random.default_rng(0), 0.3, 0.2
    users = 100
    while not has_evidence(_interval_of(rng.normal(0.0, spread, users), rng), reference, users):
        users = int(users * 1.1)
    effect = DETECTABLE * reference
    found = [_interval_of(rng.normal(effect, spread, users), rng).low > 0.0 for _ in range(120)]
    assert 0.68 < np.mean(found) < 0.92
    by_luck = [_interval_of(rng.normal(0.0, spread, users), rng).low > 0.0 for _ in range(120)]
    assert np.mean(by_luck) < 0.08


def _interval_of(value_B: np.ndarray, rng: np.random.Generator) -> Measured:
    return Measured(*bootstrap_interval(value_B, resamples=200, seed=int(rng.integers(1 << 30))))


@pytest.mark.parametrize(("at_least", "passed"), [(None, True), (0.24, True), (0.26, True), (0.28, False)])
def test_a_floor_refuses_what_is_below_it_beyond_noise(at_least: float | None, passed: bool) -> None:
    """0.25, and up to 0.27 by its interval."""
    assert answers(evaluation(BETTER), GateConfig(at_least=at_least))["floor"].passed is passed


def test_a_slice_that_loses_more_than_is_allowed_is_refused_and_named() -> None:
    lost = Measured(-0.08, -0.1, -0.06)
    check = answers(evaluation(BETTER, users_light=BETTER, users_heavy=lost))["slices"]
    assert not check.passed
    assert "users: heavy (200 users): -0.0800 beside popularity" in check.detail
    assert answers(evaluation(BETTER, users_heavy=Measured(-0.08, -0.1, -0.03)))["slices"].passed, (
        "within noise of 20 %"
    )
    assert answers(evaluation(BETTER, items_head=lost))["slices"].passed, "popularity lists nothing but the head"
    few = answers(evaluation(BETTER, users=12, users_heavy=lost))["slices"]
    assert (few.passed, few.enough_evidence) == (True, False)
    assert answers(evaluation(BETTER, users_heavy=lost), GateConfig(slice_loss_at_most=0.5))["slices"].passed


def test_a_rival_that_is_ahead_is_named_and_whether_it_refuses_is_a_setting() -> None:
    ahead = evaluation(BETTER, rival=Measured(0.02, 0.01, 0.03))
    assert list(ahead.rivals_ahead("recall")) == ["ease"]
    told = answers(ahead)["rivals"]
    assert told.passed
    assert "ease is ahead by 0.0200 (0.0100 to 0.0300) in recall@20, over 200 test users" in told.detail
    assert not answers(ahead, GateConfig(rivals="refuse"))["rivals"].passed
    level = evaluation(BETTER, rival=Measured(0.02, -0.01, 0.05))
    assert answers(level, GateConfig(rivals="refuse"))["rivals"].passed
    few = evaluation(BETTER, users=20, rival=Measured(0.02, 0.01, 0.03))
    assert not answers(few)["rivals"].enough_evidence


def test_every_question_is_answered_every_night() -> None:
    assert list(answers(evaluation(LEVEL))) == ["popularity", "floor", "slices", "rivals"]
    assert all(check.passed for check in answers(evaluation(replace(LEVEL, mean=0.001))).values())


# ---- against the live night

SETTLED = NightDiff(date(2026, 11, 22), 1, 100, 102, False, "", 98, 0.6, (), 10)


@pytest.mark.parametrize(
    ("diff", "fault"),
    [
        (SETTLED, ""),
        (replace(SETTLED, users_now=51), ""),
        (replace(SETTLED, users_now=49), "people with a list fell by more than 50%"),
        (replace(SETTLED, overlap=0.1), ""),
        (replace(SETTLED, overlap=0.09), "lists share less than 10%"),
        (replace(SETTLED, overlap=float("nan")), "lists share less than 10%"),
        (replace(SETTLED, overlap=1.0, identical=98), "not one list changed, although the events are others"),
        (replace(SETTLED, overlap=1.0, identical=98, same_input=True), ""),
        (replace(SETTLED, overlap=1.0, identical=97), ""),
    ],
)
def test_too_much_change_and_none_at_all_are_both_refused(diff: NightDiff, fault: str) -> None:
    check = check_change(GateConfig(), diff)
    assert check.passed == (not fault)
    assert fault in check.detail
    assert check.enough_evidence


def test_the_first_night_needs_no_other_and_says_so() -> None:
    check = check_change(GateConfig(), NightDiff(None, 0, 0, 100, False))
    assert (check.passed, check.enough_evidence) == (True, False)
    assert "first night" in check.detail


def test_a_live_night_that_cannot_be_read_keeps_no_night_back() -> None:
    check = check_change(GateConfig(), replace(SETTLED, users_in_both=0, why_not="it cannot be read (UploadCorrupt)"))
    assert (check.passed, check.enough_evidence) == (True, False)
    assert "UploadCorrupt" in check.detail


def test_few_people_in_both_nights_say_little_of_the_others() -> None:
    check = check_change(GateConfig(), replace(SETTLED, users_in_both=20, overlap=0.0))
    assert (check.passed, check.enough_evidence) == (True, False)
