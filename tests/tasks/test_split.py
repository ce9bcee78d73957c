"""Nothing is learned from what came later, whatever the events are: properties over events that hypothesis invents."""

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.errors import GraphTooSmall, LeakDetected
from tasks.graph.split import Parts, Split
from tests.worlds import numbered, split_by_time, two_taste_world

SPLITS = ("global_time", "per_user_time")
PARTS = ("train", "validation", "test")


PAIRS = {
    "user_index": pl.Int32,
    "item_index": pl.Int32,
    "liked": pl.Boolean,
    "first_seen_us": pl.Int64,
    "first_liked_us": pl.Int64,
}


def pairs_of(rows: list[tuple[int, int, int, bool]]) -> pl.DataFrame:
    """Pairs with one event each: (user, item, time, liked)."""
    events = [(user, item, liked, time, time if liked else None) for user, item, time, liked in rows]
    return pl.DataFrame(events, schema=PAIRS, orient="row")


@st.composite
def pairs(draw: st.DrawFn) -> pl.DataFrame:
    """Distinct (user, item) pairs; few different times, so that many events share an instant.

    Some were met before they were liked; some that were liked once are not any more.
    """
    cells = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 24)), min_size=8, max_size=60, unique=True))
    latest = draw(st.sampled_from([3, 30, 10**15]))
    time = st.integers(-latest, latest)
    rows = []
    for user, item in cells:
        liked, seen_at = draw(st.integers(0, 4)) > 0, draw(time)
        liked_at = draw(st.sampled_from([seen_at] * 4 + [max(seen_at, draw(time))]))
        rows.append((user, item, liked, seen_at, liked_at if liked else draw(st.sampled_from([None, liked_at]))))
    return pl.DataFrame(rows, schema=PAIRS, orient="row")


SHARES = st.sampled_from([0.01, 0.1, 0.25, 0.4])


def split_or_assume(frame: pl.DataFrame, split: str, validation_share: float, test_share: float) -> pl.DataFrame:
    try:
        return split_by_time(frame, split=split, validation_share=validation_share, test_share=test_share)
    except GraphTooSmall:
        assume(False)
        raise


def times(parted: pl.DataFrame, part: str) -> pl.Series:
    return parted.filter(pl.col("part") == part)["first_liked_us"]


@settings(max_examples=150, deadline=None)
@given(pairs(), SHARES, SHARES)
def test_one_moment_parts_everybody(frame: pl.DataFrame, validation_share: float, test_share: float) -> None:
    """Strictly: events of one instant are never torn apart."""
    parted = split_or_assume(frame, "global_time", validation_share, test_share)
    assert times(parted, "train").max() < times(parted, "validation").min()  # type: ignore[operator]
    assert times(parted, "validation").max() < times(parted, "test").min()  # type: ignore[operator]


@settings(max_examples=100, deadline=None)
@given(pairs(), SHARES, SHARES)
def test_no_users_training_is_later_than_what_they_are_judged_on(
    frame: pl.DataFrame, validation_share: float, test_share: float
) -> None:
    parted = split_or_assume(frame, "per_user_time", validation_share, test_share)
    for (_,), own in parted.filter("liked").group_by("user_index"):
        counts = {part: len(times(own, part)) for part in PARTS}
        if len(own) < 3:
            assert counts == {"train": len(own), "validation": 0, "test": 0}
            continue
        sizes = {"validation": max(1, int(len(own) * validation_share)), "test": max(1, int(len(own) * test_share))}
        assert counts["train"] == len(own) - sum(sizes.values())
        # Those that were met before they were liked may have no part, and no others.
        for part, size in sizes.items():
            assert counts[part] <= size
        lacking = sum(sizes.values()) - counts["validation"] - counts["test"]
        without = own.filter(pl.col("part").is_null())
        assert len(without) == lacking
        assert (without["first_seen_us"] < without["first_liked_us"]).all()
        train, validation, test = (times(own, part).to_list() for part in PARTS)
        assert all(earlier <= later for earlier in train for later in validation + test)
        assert all(earlier <= later for earlier in validation for later in test)


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=100, deadline=None)
@given(frame=pairs(), validation_share=SHARES, test_share=SHARES)
def test_what_a_list_leaves_out_is_never_what_it_is_judged_on(
    split: str, frame: pl.DataFrame, validation_share: float, test_share: float
) -> None:
    parted = split_or_assume(frame, split, validation_share, test_share)
    part = pl.col("part")
    assert parted.filter((part == "validation") & pl.col("seen_before_validation")).is_empty()
    assert parted.filter((part == "test") & pl.col("seen_before_test")).is_empty()
    # And what a user liked before stands in no list of theirs.
    assert parted.filter((part == "train") & ~pl.col("seen_before_validation")).is_empty()
    assert parted.filter(part.is_in(["train", "validation"]) & ~pl.col("seen_before_test")).is_empty()


@settings(max_examples=100, deadline=None)
@given(frame=pairs(), validation_share=SHARES, test_share=SHARES)
def test_whatever_a_user_had_met_before_a_part_begins_is_no_target_of_it(
    frame: pl.DataFrame, validation_share: float, test_share: float
) -> None:
    parted = split_or_assume(frame, "global_time", validation_share, test_share)
    for number, part in enumerate(PARTS[1:], start=1):
        earlier = parted.filter(pl.col("part").is_in(PARTS[:number]))["first_liked_us"].max()
        assert (parted.filter(pl.col("part") == part)["first_seen_us"] > earlier).all()


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=50, deadline=None)
@given(frame=pairs())
def test_every_like_has_a_part_nothing_else_has_one_and_the_order_stays(split: str, frame: pl.DataFrame) -> None:
    parted = split_or_assume(frame, split, 0.1, 0.1)
    assert parted.select(frame.columns).equals(frame)
    met_before_liked = frame["first_seen_us"] < frame["first_liked_us"]
    for has_part, liked, late in zip(parted["part"].is_not_null(), frame["liked"], met_before_liked, strict=True):
        assert has_part <= liked
        assert has_part or not liked or late
    assert set(parted["part"].drop_nulls()) <= set(PARTS)
    assert parted.select("seen_before_validation", "seen_before_test").null_count().sum_horizontal().item() == 0


@pytest.mark.parametrize("split", SPLITS)
def test_the_shares_are_about_what_was_asked_for(split: str) -> None:
    frame = pairs_of([(u, i, (u * 7919 + i * 104729) % 100_003, True) for u in range(50) for i in range(40)])
    parted = split_by_time(frame, split=split, validation_share=0.1, test_share=0.2)
    assert len(times(parted, "test")) == pytest.approx(400, abs=3)
    assert len(times(parted, "validation")) == pytest.approx(200, abs=3)


def test_what_was_met_and_not_liked_is_left_out_only_from_its_moment_on() -> None:
    """User 0 likes one item at each of ten moments, and meets item 90 early and item 91 at the very end."""
    likes = [(0, item, item * 10, True) for item in range(10)]
    frame = pairs_of([*likes, (0, 90, 5, False), (0, 91, 1000, False)])
    for split in SPLITS:
        parted = split_by_time(frame, split=split, validation_share=0.1, test_share=0.1)
        before = {row["item_index"]: row for row in parted.to_dicts()}
        assert before[90]["seen_before_validation"]
        assert before[90]["seen_before_test"]
        assert not before[91]["seen_before_validation"]
        assert not before[91]["seen_before_test"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_like_that_was_repeated_later_is_learned_from_its_first_time_on(split: str) -> None:
    """Ten likes at ten moments. Item 2 is liked again at the very end: its row says the latest event, and the first."""
    frame = pairs_of([(0, item, item * 10, True) for item in range(10)]).with_columns(timestamp_us=pl.lit(1000))
    parted = split_by_time(frame, split=split, validation_share=0.1, test_share=0.1)
    assert parted["part"].to_list() == ["train"] * 8 + ["validation", "test"]
    assert parted["seen_before_test"].to_list() == [True] * 9 + [False]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("met_at", "is_found"), [(5, False), (75, False), (92, True)])
def test_an_item_first_met_without_liking_it_is_nothing_to_find_later(split: str, met_at: int, is_found: bool) -> None:
    """The last of ten likes, at 95, is of an item that the user had met at `met_at`; test begins at 80 or 90."""
    likes = [(0, item, item * 10, True) for item in range(10)]
    more = [(1, item, item * 10 + 1, True) for item in range(10)]
    frame = pairs_of([*likes, (0, 50, 95, True), *more]).with_columns(
        first_seen_us=pl.when(pl.col("item_index") == 50).then(met_at).otherwise("first_seen_us")
    )
    parted = split_by_time(frame, split=split, validation_share=0.1, test_share=0.2)
    late = parted.row(by_predicate=pl.col("item_index") == 50, named=True)
    assert late["part"] == ("test" if is_found else None)
    assert late["seen_before_test"] is not is_found


def test_likes_of_one_second_are_parted_by_item_so_that_a_night_can_be_repeated() -> None:
    frame = pairs_of([(0, item, 7, True) for item in (3, 1, 2, 0)])
    parted = split_by_time(frame, split="per_user_time", validation_share=0.1, test_share=0.1)
    assert dict(parted.select("item_index", "part").rows()) == {
        0: "train",
        1: "train",
        2: "validation",
        3: "test",
    }


def test_no_likes_to_train_on_is_a_graph_too_small() -> None:
    frame = pairs_of([(user, 0, 7, True) for user in range(10)])
    with pytest.raises(GraphTooSmall, match=r"split of 10 likes leaves 0 to train on.*Nothing was published"):
        split_by_time(frame, split="global_time", validation_share=0.1, test_share=0.1)


@pytest.mark.parametrize("split", SPLITS)
def test_no_likes_at_all_is_a_graph_too_small(split: str) -> None:
    frame = pairs_of([(user, 0, 7, False) for user in range(10)])
    with pytest.raises(GraphTooSmall, match="not one like"):
        split_by_time(frame, split=split, validation_share=0.1, test_share=0.1)


def test_no_likes_to_choose_the_epochs_by_is_a_graph_too_small() -> None:
    """The last four of fourteen likes are of one moment: validation begins where test does."""
    late = [(user, 1, 100, True) for user in range(4)]
    frame = pairs_of([(user, 0, user, True) for user in range(10)] + late)
    with pytest.raises(GraphTooSmall, match=r"10 to train on, 0 for validation and 4 for test.*per_user_time"):
        split_by_time(frame, split="global_time", validation_share=0.1, test_share=0.1)


def test_nobody_with_three_likes_is_a_graph_too_small_for_the_split_by_user() -> None:
    frame = pairs_of([(user, item, item, True) for user in range(10) for item in range(2)])
    with pytest.raises(GraphTooSmall, match=r"20 to train on, 0 for validation and 0 for test.*three likes"):
        split_by_time(frame, split="per_user_time", validation_share=0.1, test_share=0.1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("trained_on_late", ["train", "validation"])
def test_a_leak_is_refused(split: str, trained_on_late: str) -> None:
    """Planted: the very last like of each user is moved into a part that comes before."""
    parted = split_by_time(numbered(two_taste_world().seen), split=split, validation_share=0.1, test_share=0.2)
    time = pl.col("first_liked_us")
    last = time == time.filter(pl.col("part") == "test").max().over("user_index")
    leaking = parted.with_columns(part=pl.when(last).then(pl.lit(trained_on_late)).otherwise(pl.col("part")))
    refused = pytest.raises(LeakDetected, match="fault in the split, not in your data; nothing was published")
    for blocks in ([leaking], list(leaking.partition_by("user_index", maintain_order=True))):
        parts = Parts(Split(split, 0.1, 0.2))
        with refused:
            for block in blocks:
                parts.add(block)
            parts.finish()
