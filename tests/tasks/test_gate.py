"""Planted faults: each is named, each is refused, and no setting lets a broken list through."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from models.graph import interactions_by_user
from tasks.config import GateConfig
from tasks.contracts import Evaluation, Measured, ModelScore, Part, Recommendations, Verdict
from tasks.errors import GateRefused
from tasks.evaluate.gate import Known, check_popularity, judge_night, refuse_unless_passed

USERS = ["ann", "bob", "cy", "dan"]  # dan has met everything but two items
ITEMS = ["a", "b", "c", "d", "e"]
SEEN = [("ann", "a"), ("bob", "b"), ("dan", "a"), ("dan", "b"), ("dan", "c")]
K = 3
OVERRIDE = GateConfig(override="popularity", override_reason="M. from the shop: wanted for the test week")


@dataclass(frozen=True)
class Lists:
    """One frame a file."""

    files: tuple[pl.DataFrame, ...]

    def written_to(self, folder: Path) -> Recommendations:
        parts = []
        for number, frame in enumerate(self.files):
            path = folder / f"part-{number:05d}.parquet"
            frame.write_parquet(path)
            users = frame["user_id"].n_unique()
            parts.append(Part(str(path), len(frame), users, path.stat().st_size, "hash"))
        return Recommendations(str(folder), tuple(parts), "f", K, 4, 11, {}, 0, 1, len(ITEMS))


def frame_of(rows: list[tuple[str, int, str, float, str]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float32, "tier": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


GOOD = Lists(
    (
        frame_of(
            [
                ("ann", 1, "b", 0.9, "graph"),
                ("ann", 2, "c", 0.9, "graph"),
                ("ann", 3, "e", 7.0, "popular"),  # scores compare within a tier only
                ("bob", 1, "a", 3.0, "popular"),
                ("bob", 2, "c", 2.0, "popular"),
                ("bob", 3, "d", 2.0, "popular"),
            ]
        ),
        frame_of(
            [
                ("cy", 1, "e", 0.5, "graph"),
                ("cy", 2, "a", 0.4, "graph"),
                ("cy", 3, "b", -0.3, "graph"),
                ("dan", 1, "e", 0.5, "graph"),
                ("dan", 2, "d", 0.4, "graph"),
            ]
        ),
    )
)


@pytest.fixture
def known() -> Known:
    user_E = np.array([USERS.index(user) for user, _ in SEEN])
    item_E = np.array([ITEMS.index(item) for _, item in SEEN])
    return Known(pl.Series("user_id", USERS), pl.Series("item_id", ITEMS), interactions_by_user(user_E, item_E, 4))


CLEARLY_BETTER = Measured(0.1, 0.05, 0.15)


def evaluation(difference: Measured = CLEARLY_BETTER) -> Evaluation:
    scores = tuple(
        ModelScore(model, part, 123, Measured(value, 0, 1), Measured(value / 2, 0, 1), 0.5)
        for model, value in (("lightgcn", 0.2 + difference.mean), ("popularity", 0.2), ("item_knn", 0.25))
        for part in ("validation", "test")
    )
    return Evaluation("e", 20, scores, {"recall": difference, "ndcg": CLEARLY_BETTER}, {}, {})


CLEARLY_WORSE = evaluation(Measured(-0.1, -0.15, -0.05))


def change(file: int, user: str, at: int, **values: object) -> Callable[[Lists], Lists]:
    """The good lists with one row changed."""

    def plant(lists: Lists) -> Lists:
        here = (pl.col("user_id") == user) & (pl.col("rank") == at)
        frame = lists.files[file]
        changed = frame.with_columns(
            **{
                column: pl.when(here).then(pl.lit(value, frame.schema[column])).otherwise(pl.col(column))
                for column, value in values.items()
            }
        )
        return replace_file(lists, file, changed)

    return plant


def replace_file(lists: Lists, file: int, frame: pl.DataFrame) -> Lists:
    return Lists(tuple(frame if number == file else old for number, old in enumerate(lists.files)))


def drop(file: int, condition: pl.Expr) -> Callable[[Lists], Lists]:
    return lambda lists: replace_file(lists, file, lists.files[file].filter(~condition))


def reorder(file: int, order: list[int]) -> Callable[[Lists], Lists]:
    return lambda lists: replace_file(lists, file, lists.files[file][order])


USER, RANK = pl.col("user_id"), pl.col("rank")
# What is planted, and the name under which the gate must report it.
FAULTS: dict[str, tuple[Callable[[Lists], Lists], str]] = {
    "an item twice": (change(0, "ann", 2, item_id="b"), "items that stand twice in a list"),
    "a seen item": (change(0, "ann", 2, item_id="a"), "items that the user has met"),
    "a missing user": (drop(1, USER == "cy"), "users without a list"),
    "a missing file": (lambda lists: Lists(lists.files[:1]), "users without a list"),
    "no files": (lambda lists: Lists(()), "users without a list"),
    "a short list": (drop(0, (USER == "bob") & (RANK == 3)), "lists of a wrong length"),
    "a list of the wrong end": (drop(0, (USER == "bob") & (RANK == 1)), "lists of a wrong length"),
    "a score that is NaN": (change(1, "cy", 3, score=float("nan")), "scores that are not finite"),
    "a score that is infinite": (change(1, "cy", 1, score=float("inf")), "scores that are not finite"),
    "a score that is missing": (change(1, "cy", 1, score=None), "scores that are not finite"),
    "an unknown item": (change(1, "cy", 1, item_id="zzz"), "rows with an unknown user or item"),
    "an unknown user": (change(1, "cy", 1, user_id="zzz"), "rows with an unknown user or item"),
    "a missing item": (change(1, "cy", 1, item_id=None), "rows with an unknown user or item"),
    "scores that rise": (change(1, "cy", 2, score=0.6), "rows out of order"),
    "a rank that is left out": (change(1, "dan", 2, rank=3), "rows out of order"),
    "a rank that stands twice": (change(1, "dan", 2, rank=1), "rows out of order"),
    "a rank that is missing": (change(1, "cy", 2, rank=None), "rows out of order"),
    "popular before graph": (change(0, "ann", 1, tier="popular"), "rows out of order"),
    "two rows changed places": (reorder(1, [1, 0, 2, 3, 4]), "rows out of order"),
    "a list torn apart": (reorder(0, [0, 1, 3, 4, 5, 2]), "rows out of order"),
    "users out of order": (reorder(1, [3, 4, 0, 1, 2]), "rows out of order"),
    "two files changed places": (lambda lists: Lists(lists.files[::-1]), "files out of order"),
    "an unknown tier": (change(0, "ann", 3, tier="magic"), "rows with an unknown tier"),
    "a tier that is missing": (change(0, "ann", 3, tier=None), "rows with an unknown tier"),
    "a user in two files": (
        lambda lists: replace_file(lists, 1, pl.concat([lists.files[0].filter(USER == "bob"), lists.files[1]])),
        "users in two files",
    ),
}


def judge(lists: Lists, known: Known, folder: Path, settings: GateConfig, judged: Evaluation) -> Verdict:
    return judge_night(settings, judged, lists.written_to(folder), known)


def test_good_lists_of_a_good_fit_pass(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, GateConfig(), evaluation())
    assert verdict.passed, [check for check in verdict.checks if not check.passed]
    assert verdict.overridden == verdict.override_reason == ""
    refuse_unless_passed(verdict)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("settings", [GateConfig(), OVERRIDE], ids=["as it comes", "with an override"])
def test_a_planted_fault_is_named_and_refused(fault: str, settings: GateConfig, known: Known, tmp_path: Path) -> None:
    plant, named = FAULTS[fault]
    verdict = judge(plant(GOOD), known, tmp_path, settings, evaluation())
    assert f"lists: {named}" in {check.gate for check in verdict.checks if not check.passed}
    with pytest.raises(GateRefused, match=rf"{named}.*Nothing was published.*cannot be overridden"):
        refuse_unless_passed(verdict)


def test_a_night_in_which_nobody_gets_anything_does_not_go_live(known: Known, tmp_path: Path) -> None:
    """Everybody has met everything: each list is as long as it can be, and readers would find an empty table."""
    users, items = np.divmod(np.arange(4 * len(ITEMS)), len(ITEMS))
    all_met = replace(known, seen=interactions_by_user(users, items, 4))
    nothing = replace(Lists(()).written_to(tmp_path), rows=0)
    verdict = judge_night(OVERRIDE, evaluation(), nothing, all_met)
    assert [check.gate for check in verdict.checks if not check.passed] == ["lists: somebody gets something"]
    with pytest.raises(GateRefused, match=r"0 rows for 4 users.*Everybody has met the whole catalogue"):
        refuse_unless_passed(verdict)


def test_an_override_of_popularity_does_not_carry_a_broken_list_along(known: Known, tmp_path: Path) -> None:
    plant, named = FAULTS["a seen item"]
    verdict = judge(plant(GOOD), known, tmp_path, OVERRIDE, CLEARLY_WORSE)
    assert not verdict.passed
    with pytest.raises(GateRefused, match=f"{named}.*cannot be overridden"):
        refuse_unless_passed(verdict)


def test_a_fit_clearly_worse_than_popularity_is_refused_with_its_numbers(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, GateConfig(), CLEARLY_WORSE)
    with pytest.raises(GateRefused) as refused:
        refuse_unless_passed(verdict)
    message = str(refused.value)
    for part in (
        "recall@20 on test is 0.1000, popularity's 0.2000",
        "difference -0.1000, 95 % interval -0.1500 to -0.0500 over 123 users",
        "the live recommendations stay",
        "gate.override='popularity' and gate.override_reason",
    ):
        assert part in message
    assert not refused.value.worth_a_retry


def test_an_override_with_a_reason_passes_and_is_recorded(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, OVERRIDE, CLEARLY_WORSE)
    refuse_unless_passed(verdict)
    assert verdict.overridden == "popularity"
    assert verdict.override_reason == OVERRIDE.override_reason
    assert [check.gate for check in verdict.checks if not check.passed] == ["popularity"], "it still says so"


def test_an_override_that_was_not_needed_is_not_recorded(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, OVERRIDE, evaluation())
    assert verdict.passed
    assert verdict.overridden == verdict.override_reason == ""


@pytest.mark.parametrize("reason", ["", "    ", "ok"])
def test_an_override_needs_a_reason(reason: str) -> None:
    with pytest.raises(ValidationError, match="who overrides, and why"):
        GateConfig(override="popularity", override_reason=reason)


@pytest.mark.parametrize(
    ("difference", "passed"),
    [
        (Measured(0.0, 0.0, 0.0), True),
        (Measured(-0.01, -0.03, 0.01), True),  # worse, within noise
        (Measured(-0.01, -0.03, 0.0), True),
        (Measured(-0.02, -0.03, -0.0001), False),
        (Measured(float("nan"), float("nan"), float("nan")), False),  # what cannot be measured is not good enough
    ],
)
def test_only_worse_beyond_noise_is_worse(difference: Measured, passed: bool) -> None:
    assert check_popularity("recall", evaluation(difference)).passed is passed


def test_the_metric_is_the_one_that_was_chosen() -> None:
    assert not check_popularity("recall", CLEARLY_WORSE).passed
    assert check_popularity("ndcg", CLEARLY_WORSE).passed
