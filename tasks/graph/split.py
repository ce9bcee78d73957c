"""Which likes train, which choose the epochs, which judge. By time: nothing is learned from what came later.

A like belongs to the moment of the pair's first like, however often it was repeated: from then on it could be learned.
What a user had met before a part begins is nothing to find in it, since no list may show it; such a like, of an item
first met without liking it, has no part and is learned by the served fit only. Of a like that was withdrawn later
nothing is left in any part: ingest keeps what a pair's latest event says.

Two settings. `global_time`: one moment for everybody, as in production, where tomorrow is unknown for all users at
once. `per_user_time`: the last part of each user's likes; every user with three likes or more is judged
(unless all they liked last had been met before).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from tasks.errors import GraphTooSmall, LeakDetected
from tasks.graph.selection import smallest

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """How likes are parted. The instants, microseconds since 1970 UTC, are where parts begin for everybody, or None."""

    kind: str
    validation_share: float
    test_share: float
    validation_from_us: int | None = None
    test_from_us: int | None = None


def plan_split(
    like_times: Callable[[], Iterator[npt.NDArray[np.int64]]],
    num_likes: int,
    *,
    kind: str,
    validation_share: float,
    test_share: float,
) -> Split:
    """What has to be known of all likes before any of them is parted. `like_times` is read some times over.

    Raises GraphTooSmall where there is no like.
    """
    if not num_likes:
        raise GraphTooSmall("there is not one like to split. Nothing was published. More events are needed.")
    split = Split(kind, validation_share, test_share)
    if kind != "global_time":
        return split
    shares = (1 - validation_share - test_share, 1 - test_share)
    instants = [smallest(like_times, min(num_likes - 1, int(num_likes * share))) for share in shares]
    return Split(kind, validation_share, test_share, *instants)


def part_pairs(pairs: pl.DataFrame, split: Split) -> pl.DataFrame:
    """Adds to (user_index, item_index, liked, first_seen_us, first_liked_us) of whole users, in the same order:

    part                     train, validation or test for a like; null for a pair that is only seen, or was met before
    seen_before_validation   the user had met the item before their validation likes begin
    seen_before_test         the same for test
    """
    parted = _parts_by_global_time(pairs, split) if split.kind == "global_time" else _parts_by_user_time(pairs, split)
    return _without_what_was_met(parted)


@dataclass
class Parts:
    """What has been parted so far: checked, counted."""

    split: Split
    likes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    first_us: dict[str, int] = field(default_factory=dict)  # of a part's likes
    last_us: dict[str, int] = field(default_factory=dict)

    def add(self, parted: pl.DataFrame) -> pl.DataFrame:
        """The same. Raises LeakDetected where the last training like is later than the first that it is judged on."""
        whose = [] if self.split.kind == "global_time" else ["user_index"]
        spans = (
            parted.filter(pl.col("part").is_not_null())
            .group_by(*whose, "part")
            .agg(first=pl.col("first_liked_us").min(), last=pl.col("first_liked_us").max(), likes=pl.len())
        )
        if whose:
            _refuse_leaks(spans, whose, self.split.kind)
        for part, first, last, likes in (
            spans.group_by("part").agg(pl.col("first").min(), pl.col("last").max(), pl.col("likes").sum()).iter_rows()
        ):
            self.likes[part] += likes
            self.first_us[part] = min(first, self.first_us.get(part, first))
            self.last_us[part] = max(last, self.last_us.get(part, last))
        return parted

    def finish(self) -> None:
        """Raises LeakDetected, and GraphTooSmall where a part is empty: a night could not learn, or not be judged."""
        if self.split.kind == "global_time":
            found = [(part, self.first_us[part], self.last_us[part]) for part in self.first_us]
            spans = pl.DataFrame(found, schema={"part": pl.String, "first": pl.Int64, "last": pl.Int64}, orient="row")
            _refuse_leaks(spans, [], self.split.kind)
        _refuse_an_empty_part(self.likes, self.split.kind)

    def begins(self, part: str) -> int | None:
        """When a part of the likes begins, in microseconds since 1970 UTC; none where each user has a moment of theirs.

        What another fit learned from likes before it, that fit's own cut being no later, is nothing that is judged.
        """
        return self.first_us[part] if self.split.kind == "global_time" else None


def _parts_by_global_time(pairs: pl.DataFrame, split: Split) -> pl.DataFrame:
    time, met = pl.col("first_liked_us"), pl.col("first_seen_us")
    # Events of one instant stay together, so a part can be a little smaller than its share.
    part = (
        pl.when(time >= split.test_from_us)
        .then(pl.lit("test"))
        .when(time >= split.validation_from_us)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return pairs.with_columns(
        part=pl.when("liked").then(part),
        seen_before_validation=met < split.validation_from_us,
        seen_before_test=met < split.test_from_us,
    )


def _parts_by_user_time(pairs: pl.DataFrame, split: Split) -> pl.DataFrame:
    """The order within a user is (time, item row): MovieLens has many likes in one second.

    A user with n >= 3 likes gives max(1, floor(n x share)) of them to test and to validation, others train only.
    """
    order = pl.struct("first_liked_us", "item_index").rank("ordinal").over("user_index").cast(pl.Int64)
    count = pl.len().over("user_index").cast(pl.Int64)

    def share_of(share: float) -> pl.Expr:
        return pl.when(count >= 3).then((count * share).floor().cast(pl.Int64).clip(lower_bound=1)).otherwise(0)

    test_from = count - share_of(split.test_share)
    validation_from = test_from - share_of(split.validation_share)
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


def _refuse_an_empty_part(likes: dict[str, int], kind: str) -> None:
    if all(likes.values()):
        return
    what_to_do = (
        "Likes of one instant stay together, and there are too few instants. Use graph.split='per_user_time', other "
        "shares, or more days of events; or a lower ingest.like_threshold, if there should be more likes than these."
        if kind == "global_time"
        else "Only a user with three likes or more is judged. Use graph.split='global_time', more days of events, "
        "or a lower ingest.like_threshold, if there should be more likes than these."
    )
    raise GraphTooSmall(
        f"the {kind} split of {sum(likes.values()):,} likes leaves {likes['train']:,} to train on, "
        f"{likes['validation']:,} for validation and {likes['test']:,} for test, and each needs some. "
        f"Nothing was published. {what_to_do}"
    )


def _refuse_leaks(spans: pl.DataFrame, whose: list[str], kind: str) -> None:
    """The last training like must not be later than the first one it is judged on: of anybody, or of the same user."""

    def of(name: str, part: str) -> pl.Expr:
        return pl.col(name).filter(pl.col("part") == part).max()

    leaks = spans.group_by(whose or pl.lit(0).alias("all")).agg(
        leaks=pl.any_horizontal(
            of("last", "train") > of("first", "validation"),
            of("last", "train") > of("first", "test"),
            of("last", "validation") > of("first", "test"),
        )
    )
    if num_leaks := leaks["leaks"].sum():
        raise LeakDetected(
            f"{num_leaks:,} groups of the {kind} split train on likes later than those they are judged on. "
            "This is a fault in the split, not in your data; nothing was published. Please report it."
        )
