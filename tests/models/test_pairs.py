"""Events become pairs: held against a plain count in Python, and compiled against not compiled, byte by byte."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import pairs
from models.compiled import SWITCH
from models.pairs import (
    DAY_US,
    EVENTS_AT_ONCE,
    LONG_GROUP,
    MICRO,
    NEVER,
    Events,
    Folding,
    Pairs,
    fold,
    in_order,
    is_repeat,
    stamp_of,
    strengths,
)

PROJECT_ROOT = Path(__file__).resolve().parents[2]
compiled_too = pytest.mark.parametrize(
    "is_compiled",
    [
        pytest.param(True, marks=pytest.mark.skipif(not pairs.AVAILABLE, reason="numba is not installed")),
        False,
    ],
)
NUM_KINDS = 3
FROM_US, UNTIL_US = 10 * DAY_US, 15 * DAY_US

Row = tuple[int, int, int, int]  # user, item, time, kind
far_apart = st.sampled_from([0, 1, 2, 7, 2**31 - 2, 2**31 - 1])
near = st.integers(0, 3)
times = st.one_of(
    st.sampled_from([0, FROM_US - 1, FROM_US, UNTIL_US - 1, UNTIL_US, 35_000 * DAY_US * 10]),
    st.integers(FROM_US - DAY_US, UNTIL_US + DAY_US),
    st.integers(0, 3).map(lambda day: FROM_US + day * DAY_US),
)
rows = st.lists(st.tuples(st.one_of(near, far_apart), st.one_of(near, far_apart), times, st.integers(0, NUM_KINDS - 1)))


def events_of(found: list[Row]) -> Events:
    columns = np.array(found, np.int64).reshape(-1, 4)
    stamp_N = stamp_of(columns[:, 2], columns[:, 3].astype(np.uint8))
    return Events(columns[:, 0].astype(np.int32), columns[:, 1].astype(np.int32), stamp_N)


@contextmanager
def path(is_compiled: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "AVAILABLE", is_compiled)
        yield


def by_hand(found: list[Row], folding: Folding) -> list[tuple[int, int, int, bool, int, int]]:
    """user, item, latest time, liked, first seen, first liked of each pair, in order."""
    by_pair: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for user, item, time, kind in found:
        if folding.from_us <= time < folding.until_us:
            by_pair.setdefault((user, item), set()).add((time, kind))
    pairs_found = []
    for (user, item), events in sorted(by_pair.items()):
        first, (last, last_kind) = min(events)[0], max(events)
        if folding.strength_KD is None:
            liked = last_kind > 0
            first_liked = min((time for time, kind in events if kind > 0), default=NEVER)
        else:
            table = folding.strength_KD.tolist()
            ages = [(kind, (folding.until_us - 1 - time) // DAY_US) for time, kind in events]
            liked = sum(table[kind][min(age, len(table[0]) - 1)] for kind, age in ages) >= folding.threshold
            first_liked = last if liked else NEVER
        pairs_found.append((user, item, last, liked, first, first_liked))
    return pairs_found


def listed(folded: Pairs) -> list[tuple[int, ...]]:
    user_P = np.repeat(folded.user_U, folded.count_U)
    columns = (user_P, folded.item_P, folded.time_P, folded.liked_P, folded.first_seen_P, folded.first_liked_P)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def bytes_of(folded: Pairs) -> list[object]:
    return [
        (str(value.dtype), value.tobytes()) if isinstance(value, np.ndarray) else value for value in astuple(folded)
    ]


FOLDINGS = {
    "the latest decides": Folding(FROM_US, UNTIL_US),
    "everything": Folding(0, 2**62),
    "weights": Folding(FROM_US, UNTIL_US, strengths(np.array([100_000, 500_000, MICRO]), half_life_days=None), MICRO),
    "weights that fade": Folding(
        FROM_US, UNTIL_US, strengths(np.array([100_000, 500_000, MICRO]), half_life_days=1.5), 700_000
    ),
}


@compiled_too
@pytest.mark.parametrize("name", FOLDINGS)
@settings(max_examples=120, deadline=None)
@given(found=rows)
def test_pairs_are_what_a_plain_count_finds(name: str, is_compiled: bool, found: list[Row]) -> None:
    folding = FOLDINGS[name]
    with path(is_compiled):
        folded = fold(events_of(found), folding)
    assert listed(folded) == by_hand(found, folding)
    inside = [row for row in found if folding.from_us <= row[2] < folding.until_us]
    assert folded.num_later == sum(row[2] >= folding.until_us for row in found)
    assert folded.num_before == sum(row[2] < folding.from_us for row in found)
    assert folded.num_repeats == len(inside) - len(set(inside))


@pytest.mark.skipif(not pairs.AVAILABLE, reason="numba is not installed")
@pytest.mark.parametrize("name", FOLDINGS)
@settings(max_examples=60, deadline=None)
@given(found=rows, shuffled=st.randoms(use_true_random=False))
def test_order_and_compiling_change_no_byte(name: str, found: list[Row], shuffled: object) -> None:
    other = list(found)
    shuffled.shuffle(other)  # type: ignore[attr-defined]
    folded = bytes_of(fold(events_of(found), FOLDINGS[name]))
    with path(is_compiled=False):
        assert bytes_of(fold(events_of(other), FOLDINGS[name])) == folded


@compiled_too
@settings(max_examples=150, deadline=None)
@given(found=rows)
def test_events_are_ordered_by_all_columns_and_equal_ones_keep_their_order(is_compiled: bool, found: list[Row]) -> None:
    events = events_of(found)
    with path(is_compiled):
        ordered, position_N = in_order(events)
    places = sorted(range(len(found)), key=lambda place: found[place])  # sorted() keeps equal ones in their order
    assert position_N.tolist() == places
    assert ordered.user_N.tolist() == [found[place][0] for place in places]
    assert ordered.item_N.tolist() == [found[place][1] for place in places]
    assert ordered.stamp_N.tolist() == events.stamp_N[places].tolist()
    repeats = [place > 0 and found[places[place]] == found[places[place - 1]] for place in range(len(found))]
    assert is_repeat(ordered).tolist() == repeats


def many(count: int, *, users: int, items: int, seed: int = 3) -> Events:
    rng = np.random.default_rng(seed)
    return Events(
        rng.integers(0, users, count).astype(np.int32) + 5,
        rng.integers(0, items, count).astype(np.int32),
        stamp_of(rng.integers(FROM_US - DAY_US, UNTIL_US + DAY_US, count), rng.integers(0, 3, count).astype(np.uint8)),
    )


@pytest.mark.skipif(not pairs.AVAILABLE, reason="numba is not installed")
@pytest.mark.parametrize(
    ("count", "users", "items"),
    [
        (3 * EVENTS_AT_ONCE, 10_000, 500),  # divided before it is sorted
        (2 * EVENTS_AT_ONCE, 1, 40),  # one user cannot be divided
        (2 * EVENTS_AT_ONCE, 2_000_000_000, 2_000_000_000),  # wider than one integer holds
        (40 * LONG_GROUP, 2, 2),  # pairs of many events
    ],
)
def test_many_events_are_ordered_as_few_are(count: int, users: int, items: int) -> None:
    events = many(count, users=users, items=items)
    ordered, position_N = in_order(events)
    expected = np.lexsort((events.stamp_N, events.item_N, events.user_N))
    np.testing.assert_array_equal(position_N, expected)
    for column in ("user_N", "item_N", "stamp_N"):
        np.testing.assert_array_equal(getattr(ordered, column), getattr(events, column)[expected])


FOLD_AND_HASH = """
from tests.models.test_pairs import hash_of_a_folding
print(hash_of_a_folding())
"""


def hash_of_a_folding() -> str:
    events = many(2 * EVENTS_AT_ONCE, users=3_000, items=200)
    return hashlib.sha256(repr([bytes_of(fold(events, one)) for one in FOLDINGS.values()]).encode()).hexdigest()


def test_a_machine_without_compiled_functions_gives_the_same_bytes() -> None:
    without = subprocess.run(
        [sys.executable, "-c", FOLD_AND_HASH],
        env=os.environ | {SWITCH: "0", "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert without.stdout.strip() == hash_of_a_folding()


# ---- what an event adds


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 1000 * MICRO), min_size=1, max_size=5),
    half_life=st.floats(0.01, 1000.0),
    age=st.integers(0, 40_000),
)
def test_strengths_halve_every_half_life_until_nothing_is_left(weights: list[int], half_life: float, age: int) -> None:
    table = strengths(np.array(weights), half_life_days=half_life)
    assert table[:, 0].tolist() == weights
    assert not table[:, -1].any(), "an age beyond the table takes its last column"
    for weight, strength in zip(weights, table[:, min(age, table.shape[1] - 1)].tolist(), strict=True):
        assert abs(strength - weight * 2.0 ** (-age / half_life)) <= 0.5 + weight * 1e-12


def test_without_a_half_life_age_does_not_matter() -> None:
    assert strengths(np.array([5, 7]), half_life_days=None).tolist() == [[5], [7]]


@compiled_too
def test_a_day_has_passed_when_the_first_microsecond_of_the_next_one_has(is_compiled: bool) -> None:
    table = strengths(np.array([MICRO]), half_life_days=1.0)
    for time, strength in ((UNTIL_US - 1, MICRO), (UNTIL_US - DAY_US, MICRO), (UNTIL_US - DAY_US - 1, MICRO // 2)):
        with path(is_compiled):
            liked = [
                fold(events_of([(0, 0, time, 0)]), Folding(FROM_US, UNTIL_US, table, threshold)).liked_P.tolist()
                for threshold in (strength, strength + 1)
            ]
        assert liked == [[True], [False]]
