"""Which likes train, which choose the epochs, which judge. By time: nothing is learned from what came later.

A like belongs to the moment of the pair's first like, however often it was repeated: from then on it could be learned.
What a user had met before a part begins is nothing to find in it, since no list may show it; such a like, of an item
first met without liking it, has no part and is learned by the served fit only. Of a like that was withdrawn later
nothing is left in any part: ingest keeps what a pair's latest event says.

Two settings. `global_time`: one moment for everybody, as in production, where tomorrow is unknown for all users at
once. `per_user_time`: the last part of each user's likes; every user with three likes or more is judged
(unless all they liked last had been met before).
"""

import polars as pl

from tasks.errors import GraphTooSmall, LeakDetected


def split_by_time(pairs: pl.DataFrame, *, split: str, validation_share: float, test_share: float) -> pl.DataFrame:
    """Adds to (user_index, item_index, liked, first_seen_us, first_liked_us), in the same order:

    part                     train, validation or test for a like; null for a pair that is only seen, or was met before
    seen_before_validation   the user had met the item before their validation likes begin
    seen_before_test         the same for test

    Raises GraphTooSmall where a part would be empty: such a night could not learn, or not be judged.
    """
    if not pairs["liked"].any():
        raise GraphTooSmall("there is not one like to split. Nothing was published. More events are needed.")
    by = _parts_by_global_time if split == "global_time" else _parts_by_user_time
    parted = _without_what_was_met(by(pairs, validation_share, test_share))
    _refuse_a_leak(parted, split)
    _refuse_an_empty_part(parted, split)
    return parted


def first_instant(parted: pl.DataFrame, part: str, split: str) -> int | None:
    """When a part of the likes begins, in microseconds since 1970 UTC; none where each user has a moment of their own.

    What another fit learned from likes before it, that fit's own cut being no later, is nothing that is judged here.
    """
    if split != "global_time":
        return None
    first = parted.filter(pl.col("part") == part)["first_liked_us"].min()
    assert isinstance(first, int)
    return first


def _parts_by_global_time(pairs: pl.DataFrame, validation_share: float, test_share: float) -> pl.DataFrame:
    times = pairs.filter("liked")["first_liked_us"].sort()
    validation_from = times[int(len(times) * (1 - validation_share - test_share))]
    test_from = times[min(len(times) - 1, int(len(times) * (1 - test_share)))]
    time, met = pl.col("first_liked_us"), pl.col("first_seen_us")
    # Events of one instant stay together, so a part can be a little smaller than its share.
    part = (
        pl.when(time >= test_from)
        .then(pl.lit("test"))
        .when(time >= validation_from)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return pairs.with_columns(
        part=pl.when("liked").then(part),
        seen_before_validation=met < validation_from,
        seen_before_test=met < test_from,
    )


def _parts_by_user_time(pairs: pl.DataFrame, validation_share: float, test_share: float) -> pl.DataFrame:
    """The order within a user is (time, item row): MovieLens has many likes in one second.

    A user with n >= 3 likes gives max(1, floor(n x share)) of them to test and to validation, others train only.
    """
    order = pl.struct("first_liked_us", "item_index").rank("ordinal").over("user_index").cast(pl.Int64)
    count = pl.len().over("user_index").cast(pl.Int64)

    def share_of(share: float) -> pl.Expr:
        return pl.when(count >= 3).then((count * share).floor().cast(pl.Int64).clip(lower_bound=1)).otherwise(0)

    test_from = count - share_of(test_share)
    validation_from = test_from - share_of(validation_share)
    part = (
        pl.when(order > test_from)
        .then(pl.lit("test"))
        .when(order > validation_from)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    likes = pairs.filter("liked").with_columns(part=part).select("user_index", "item_index", "part")
    parted = pairs.join(likes, on=["user_index", "item_index"], how="left", maintain_order="left")

    def begins(name: str) -> pl.Expr:
        return pl.col("first_liked_us").filter(pl.col("part") == name).min().over("user_index")

    def seen_before(name: str, parts: list[str]) -> pl.Expr:
        earlier = pl.col("first_seen_us") < begins(name)
        # By part where likes share an instant; a later part's like may still have been met, and not liked, before.
        return pl.col("part").is_in(parts).fill_null(False) | earlier.fill_null(pl.col("part").is_null())

    return parted.with_columns(
        seen_before_validation=seen_before("validation", ["train"]),
        seen_before_test=seen_before("test", ["train", "validation"]),
    )


def _without_what_was_met(parted: pl.DataFrame) -> pl.DataFrame:
    met = pl.any_horizontal(
        (pl.col("part") == part) & pl.col(f"seen_before_{part}") for part in ("validation", "test")
    ).fill_null(False)
    return parted.with_columns(part=pl.when(~met).then("part"))


def _refuse_an_empty_part(parted: pl.DataFrame, split: str) -> None:
    likes = {part: int((parted["part"] == part).sum()) for part in ("train", "validation", "test")}
    if all(likes.values()):
        return
    what_to_do = (
        "Likes of one instant stay together, and there are too few instants. Use graph.split='per_user_time', other "
        "shares, or more days of events."
        if split == "global_time"
        else "Only a user with three likes or more is judged. Use graph.split='global_time', or more days of events."
    )
    raise GraphTooSmall(
        f"the {split} split of {sum(likes.values()):,} likes leaves {likes['train']:,} to train on, "
        f"{likes['validation']:,} for validation and {likes['test']:,} for test, and each needs some. "
        f"Nothing was published. {what_to_do}"
    )


def _refuse_a_leak(parted: pl.DataFrame, split: str) -> None:
    """The last training like must not be later than the first one it is judged on: of anybody, or of the same user."""
    groups = [] if split == "global_time" else ["user_index"]
    time = pl.col("first_liked_us")
    spans = parted.group_by(groups or pl.lit(0).alias("all")).agg(
        *[time.filter(pl.col("part") == part).max().alias(f"{part}_last") for part in ("train", "validation")],
        *[time.filter(pl.col("part") == part).min().alias(f"{part}_first") for part in ("validation", "test")],
    )
    leaks = spans.filter(
        (pl.col("train_last") > pl.col("validation_first")).fill_null(False)
        | (pl.col("train_last") > pl.col("test_first")).fill_null(False)
        | (pl.col("validation_last") > pl.col("test_first")).fill_null(False)
    )
    if not leaks.is_empty():
        raise LeakDetected(
            f"{len(leaks):,} groups of the {split} split train on likes later than those they are judged on. "
            "This is a fault in the split, not in your data; nothing was published. Please report it."
        )
