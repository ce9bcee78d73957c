"""Planted faults: each is named, each is refused, and no setting lets a broken list through."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from models.graph import Csr, interactions_by_user
from tasks.config import GateConfig, RecommendConfig
from tasks.contracts import Evaluation, Measured, ModelScore, Part, Recommendations, Verdict
from tasks.errors import GateRefused
from tasks.evaluate.allowed import Known
from tasks.evaluate.gate import judge_night, refuse_unless_passed
from tasks.evaluate.quality import check_popularity

USERS = ["ann", "bob", "cy", "dan"]  # dan has met everything but two items
ITEMS = ["a", "b", "c", "d", "e"]
SEEN = [("ann", "a"), ("bob", "b"), ("dan", "a"), ("dan", "b"), ("dan", "c")]
LONG_AGO = [("ann", "b"), ("ann", "c")]  # they may come again; b was not liked
K = 3
DAY_US = 86_400_000_000
ANY_ITEM = RecommendConfig(k=K)
OVERRIDE = GateConfig(override=("popularity",), override_reason="M. from the shop: wanted for the test week")


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
    return known_of()


def pairs_of(pairs: list[tuple[str, str]]) -> Csr:
    users, items = ([names.index(pair[side]) for pair in pairs] for side, names in enumerate((USERS, ITEMS)))
    return interactions_by_user(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64), 4)


def known_of(
    *,
    settings: RecommendConfig = ANY_ITEM,
    blocked: list[tuple[str, str]] | None = None,
    segment: dict[str, str] | None = None,
    **facts: dict[str, object],
) -> Known:
    """No rule but what was met, and what is said here: facts by item, segments by user."""
    kinds = {
        "available": pl.Boolean,
        "categories": pl.List(pl.String),
        "segments": pl.List(pl.String),
        "born_us": pl.Int64,
    }
    items = {name: [facts.get(name, {}).get(item) for item in ITEMS] for name in kinds}
    items["born_us"] = [born if born is not None else 0 for born in items["born_us"]]
    return Known(
        people=pl.DataFrame({"user_id": USERS, "segment": [(segment or {}).get(user, "") for user in USERS]}),
        items=pl.DataFrame({"item_id": ITEMS, **items}, schema={"item_id": pl.String, **kinds}),
        met=pairs_of(SEEN),
        blocked=pairs_of(blocked or []),
        met_ever=pairs_of(sorted(SEEN + LONG_AGO)),
        liked=pairs_of(sorted({*SEEN, *LONG_AGO} - {("ann", "b")})),
        settings=settings,
        midnight_us=10 * DAY_US,
    )


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


def change_all(file: int, user: str, items: list[tuple[int, str]]) -> Callable[[Lists], Lists]:
    def plant(lists: Lists) -> Lists:
        for at, item in items:
            lists = change(file, user, at, item_id=item)(lists)
        return lists

    return plant


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
    "equal scores, the later id first": (change_all(0, "bob", [(2, "d"), (3, "c")]), "rows out of order"),
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


ONE_A_CATEGORY = RecommendConfig(k=K, at_most_per_category=1)
AGES = RecommendConfig(k=K, min_item_age_days=2, max_item_age_days=8)
# What the gate knows beside the good lists, the list items that are against it, and under which name.
BROKEN_RULES: dict[str, tuple[dict[str, object], int, str]] = {
    "blocked": ({"blocked": [("ann", "b"), ("cy", "e"), ("cy", "d")]}, 2, "items that are blocked for the user"),
    "unavailable": (
        {"available": {"a": True, "b": True, "c": True, "d": False, "e": True}},
        2,
        "items that are forbidden: unavailable",
    ),
    "unlisted": ({"available": {"a": True, "b": True, "c": True, "d": True}}, 3, "items that are forbidden: unlisted"),
    "too new": (
        {"settings": AGES, "born_us": {**dict.fromkeys("abcd", 8 * DAY_US), "e": 8 * DAY_US + 1}},
        3,
        "items that are forbidden: too_new",
    ),
    "too old": (
        {"settings": AGES, "born_us": {**dict.fromkeys("abcd", 2 * DAY_US), "e": 2 * DAY_US - 1}},
        3,
        "items that are forbidden: too_old",
    ),
    "of another segment": (
        {"segments": {"e": ["new", "old"], "d": []}, "segment": {"ann": "old", "cy": "other"}},
        2,
        "items that are forbidden: segment",
    ),
    "beyond the cap": (
        {
            "settings": ONE_A_CATEGORY,
            "categories": {"a": ["x"], "c": ["x", "y"], "e": ["y"]},
        },
        2,
        "categories with too many items in a list",
    ),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_items_against_a_rule_are_counted_under_it_and_refused(rule: str, tmp_path: Path) -> None:
    told, count, named = BROKEN_RULES[rule]
    verdict = judge(GOOD, known_of(**told), tmp_path, OVERRIDE, evaluation())  # type: ignore[arg-type]
    assert {check.gate: check.detail for check in verdict.checks}[f"lists: {named}"] == f"{count} {named}"
    assert not verdict.passed


REASON = pl.List(pl.Struct({"kind": pl.String, "item_id": pl.String, "share": pl.Float32}))
GOOD_REASONS = [
    [],
    [("liked", "a", 0.5), ("liked", "c", 0.25), ("met", "b", 0.25)],
    [("segment", None, 1.0)],
    [("popular", None, 0.01)],
]
WRONG_REASONS = [
    [("liked", None, 0.5)],
    [("popular", "a", 0.5)],
    [("magic", None, 0.5)],
    [("liked", "a", 0.25), ("liked", "b", 0.5)],
    [("liked", "a", 0.75), ("liked", "b", 0.5)],
    [("liked", "a", 0.0)],
    [("liked", "a", float("nan"))],
]


@pytest.mark.parametrize("wrong", range(-1, len(WRONG_REASONS)))
def test_reasons_that_cannot_be_are_refused(wrong: int, known: Known, tmp_path: Path) -> None:
    reasons = [*GOOD_REASONS, [], WRONG_REASONS[wrong] if wrong >= 0 else []]
    named = [[dict(zip(("kind", "item_id", "share"), one, strict=True)) for one in of_row] for of_row in reasons]
    lists = replace_file(GOOD, 0, GOOD.files[0].with_columns(reasons=pl.Series(named, dtype=REASON)))
    checks = {check.gate: check for check in judge(lists, known, tmp_path, GateConfig(), evaluation()).checks}
    assert checks["lists: rows with reasons that cannot be"].passed is (wrong < 0)


@pytest.mark.parametrize(
    ("reason", "at"),
    [
        (("liked", "b", 0.5), 1),  # met, and not liked
        (("liked", "d", 0.5), 1),  # bob's
        (("met", "d", 0.5), 2),
        (("met", "a", 0.5), 3),  # ann's, not bob's
        (("liked", "zzz", 0.5), 1),
    ],
)
def test_a_reason_that_names_what_this_person_has_not_met_or_not_liked_is_refused(
    reason: tuple[str, str, float], at: int, known: Known, tmp_path: Path
) -> None:
    named = [[dict(zip(("kind", "item_id", "share"), reason, strict=True))] if row == at else [] for row in range(6)]
    lists = replace_file(GOOD, 0, GOOD.files[0].with_columns(reasons=pl.Series(named, dtype=REASON)))
    failed = [c for c in judge(lists, known, tmp_path, GateConfig(), evaluation()).checks if not c.passed]
    about = "rows because of items that the user has not met or liked"
    assert [(check.gate, check.detail) for check in failed] == [(f"lists: {about}", f"1 {about}")]


def test_segment_and_fold_in_stand_between_graph_and_popular(known: Known, tmp_path: Path) -> None:
    rows = [
        ("cy", 1, "e", 0.5, "fold_in"),
        ("cy", 2, "a", 9.0, "segment"),
        ("cy", 3, "b", 8.0, "segment"),
        ("dan", 1, "e", 0.5, "graph"),
        ("dan", 2, "d", 0.7, "popular"),
    ]
    assert judge(replace_file(GOOD, 1, frame_of(rows)), known, tmp_path, GateConfig(), evaluation()).passed
    rows[1], rows[2] = ("cy", 2, "a", 9.0, "popular"), ("cy", 3, "b", 8.0, "segment")
    verdict = judge(replace_file(GOOD, 1, frame_of(rows)), known, tmp_path, GateConfig(), evaluation())
    assert [check.gate for check in verdict.checks if not check.passed] == ["lists: rows out of order"]


def test_a_list_is_as_long_as_the_rules_leave_items(tmp_path: Path) -> None:
    """dan may get d and e. Without d the list of one item is whole, and that of two is one too long."""
    known = known_of(available={"a": True, "b": True, "c": True, "d": False, "e": True})
    left = {"ann": "bce", "bob": "ace", "cy": "eab", "dan": "e"}
    rows = [
        (user, rank, item, 1.0 - rank, "graph") for user, items in left.items() for rank, item in enumerate(items, 1)
    ]
    lists = Lists((frame_of(rows),))
    assert judge(lists, known, tmp_path, GateConfig(), evaluation()).passed
    verdict = judge(drop(0, (USER == "cy") & (RANK == 3))(lists), known, tmp_path, GateConfig(), evaluation())
    assert [check.gate for check in verdict.checks if not check.passed] == ["lists: lists of a wrong length"]


def test_a_list_that_the_cap_ends_is_whole_only_if_nothing_else_has_room(tmp_path: Path) -> None:
    one_kind = {item: ["x"] for item in "abcd"} | {"e": ["x", "y"]}
    known = known_of(settings=ONE_A_CATEGORY, categories=one_kind)  # type: ignore[arg-type]
    lists = Lists((frame_of([(user, 1, "e", 1.0, "graph") for user in USERS]),))
    assert judge(lists, known, tmp_path, GateConfig(), evaluation()).passed
    known = known_of(settings=ONE_A_CATEGORY, categories=one_kind | {"d": ["z"]})  # type: ignore[arg-type]
    verdict = judge(lists, known, tmp_path, GateConfig(), evaluation())
    assert [(c.gate, c.detail) for c in verdict.checks if not c.passed] == [
        ("lists: lists of a wrong length", "4 lists of a wrong length")
    ]


def test_a_night_in_which_nobody_gets_anything_does_not_go_live(known: Known, tmp_path: Path) -> None:
    """Everybody has met everything: each list is as long as it can be, and readers would find an empty table."""
    users, items = np.divmod(np.arange(4 * len(ITEMS)), len(ITEMS))
    all_met = replace(known, met=interactions_by_user(users, items, 4))
    nothing = replace(Lists(()).written_to(tmp_path), rows=0)
    verdict = judge_night(OVERRIDE, evaluation(), nothing, all_met)
    assert [check.gate for check in verdict.checks if not check.passed] == ["lists: somebody gets something"]
    with pytest.raises(GateRefused, match=r"0 rows for 4 users.*Nobody is left an item that they have not met"):
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
        "gate.override=popularity and gate.override_reason",
    ):
        assert part in message
    assert not refused.value.worth_a_retry


def test_an_override_with_a_reason_passes_and_is_recorded(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, OVERRIDE, CLEARLY_WORSE)
    refuse_unless_passed(verdict)
    assert verdict.overridden == "popularity"
    assert verdict.override_reason == OVERRIDE.override_reason
    assert [check.gate for check in verdict.checks if not check.passed] == ["popularity"], "it still says so"


def test_several_checks_of_quality_are_overridden_by_name_and_one_that_is_not_named_still_refuses(
    known: Known, tmp_path: Path
) -> None:
    floor = GateConfig(at_least=0.9, override_reason="Anna: the catalogue was new", override=("popularity",))
    low = Measured(-0.1, -0.15, -0.05)
    below = replace(CLEARLY_WORSE, over_popularity={"recall": low, "ndcg": low})
    scores = [replace(score, recall=Measured(0.1, 0.05, 0.15)) for score in below.scores]
    below = replace(below, scores=tuple(scores))
    with pytest.raises(GateRefused, match=r"gate\.override=popularity,floor and gate\.override_reason"):
        refuse_unless_passed(judge(GOOD, known, tmp_path, floor, below))
    both = floor.model_copy(update={"override": ("floor", "popularity")})
    verdict = judge(GOOD, known, tmp_path, both, below)
    refuse_unless_passed(verdict)
    assert verdict.overridden == "popularity, floor"


def test_an_override_that_was_not_needed_is_not_recorded(known: Known, tmp_path: Path) -> None:
    verdict = judge(GOOD, known, tmp_path, OVERRIDE, evaluation())
    assert verdict.passed
    assert verdict.overridden == verdict.override_reason == ""


@pytest.mark.parametrize("reason", ["", "    ", "ok"])
def test_an_override_needs_a_reason(reason: str) -> None:
    with pytest.raises(ValidationError, match="who overrides, and why"):
        GateConfig(override=("popularity",), override_reason=reason)


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
