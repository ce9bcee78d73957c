"""People of a finished night: what they liked, what they get, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.contracts import Traces

GETS_SHOWN = 6
LIKED_SHOWN = 12  # a recommended item takes two lines, its reason being the second


@dataclass(frozen=True)
class Reason:
    kind: str  # liked, met, segment, popular
    title: str  # of the item they liked or met; empty for the other kinds
    share: float


@dataclass(frozen=True)
class Given:
    """A row of their list."""

    rank: int
    title: str
    tier: str
    reasons: list[Reason]  # the largest first


@dataclass(frozen=True)
class Person:
    user_id: str
    num_likes: int
    liked: list[str]  # titles, the latest first
    gets: list[Given]  # best first


def three_people(likes: pl.LazyFrame, lists: pl.LazyFrame, titles: pl.DataFrame | None) -> list[Person]:
    """Somebody with few likes, somebody in the middle, somebody with many; the same three for the same night.

    `likes` has user_id, item_id, timestamp_us; `lists` is the published output.
    """
    counts = (
        likes.group_by("user_id")
        .agg(pl.col("item_id").n_unique().alias("likes"))
        .join(lists.filter(pl.col("tier") == "graph").select("user_id").unique(), on="user_id", how="semi")
        .sort("likes", "user_id")
        .collect(engine="streaming")
    )
    chosen = [counts.row(int(share * (len(counts) - 1)))[0] for share in (0.25, 0.5, 0.9)] if len(counts) else []
    return [
        person_of(user_id, likes, lists.filter(pl.col("user_id") == user_id).sort("rank").collect(), titles)
        for user_id in dict.fromkeys(chosen)
    ]


def person_of(
    user_id: int | str,
    likes: pl.LazyFrame,
    own: pl.DataFrame,
    titles: pl.DataFrame | None,
    *,
    liked_shown: int = LIKED_SHOWN,
    gets_shown: int = GETS_SHOWN,
) -> Person:
    """`own` is their list by rank. Lists of output format 1 have no reasons."""
    mine = likes.filter(pl.col("user_id") == user_id)
    liked = mine.sort("timestamp_us", "item_id", descending=[True, False]).select("item_id").collect()["item_id"]
    liked = liked.unique(maintain_order=True)
    gets = own.head(gets_shown)
    reasons = gets["reasons"].to_list() if "reasons" in gets.columns else [[]] * len(gets)
    because_of = [reason["item_id"] for row in reasons for reason in row if reason["item_id"] is not None]
    title_of = _titles([*liked.head(liked_shown), *gets["item_id"], *because_of], own.schema["item_id"], titles)
    return Person(
        user_id=str(user_id),
        num_likes=len(liked),
        liked=[title_of[item] for item in liked.head(liked_shown)],
        gets=[
            Given(rank, title_of[item], tier, [_reason(reason, title_of) for reason in row])
            for rank, item, tier, row in zip(gets["rank"], gets["item_id"], gets["tier"], reasons, strict=True)
        ],
    )


def why_no_list(traces: Traces) -> str:
    """Why a night has no list for whoever left these traces, as far as they tell, and what to do."""
    if traces.forgotten:
        return (
            "they were forgotten (make forget), and no night gives them a list again. What is left of them stands in "
            f"the team's own files: {traces.before + traces.later + traces.quarantined:,} rows of events"
            f"{', and rows of users/' if traces.in_users else ''}."
        )
    if traces.before:
        return (
            f"they have {traces.before:,} events before that day, {traces.likes:,} of them likes. Either these came in "
            "after the night ran, and the next one knows them, or what they have met and the rules leave nothing to "
            "recommend. The report counts such people; new items, or milder rules, help them."
        )
    if traces.in_users:
        return (
            "they have no event before that day, and users/ lists them. Either it has done so since the night ran, and "
            "the next one knows them, or the rules leave nothing to recommend."
        )
    if traces.later:
        return f"all of their {traces.later:,} events came on that day or later. The next night knows them."
    if traces.quarantined:
        return (
            f"all of their {traces.quarantined:,} events are quarantined, so that nothing is known of them. The report "
            "says by which rule rows are."
        )
    return (
        "no event there is theirs, and no users table lists them. Check the id; ids are opaque, so that 42, 042 and a "
        "trailing blank differ where they are text."
    )


def _reason(reason: Mapping[str, Any], title_of: Mapping[object, str]) -> Reason:
    return Reason(reason["kind"], title_of.get(reason["item_id"], ""), reason["share"])


def _titles(item_ids: list[object], kind: pl.DataType, titles: pl.DataFrame | None) -> dict[object, str]:
    """Titles where they are known, ids elsewhere."""
    title_of = {item_id: str(item_id) for item_id in item_ids}
    if titles is not None and _same_kind(titles.schema["item_id"], kind):
        known = titles.select(pl.col("item_id").cast(kind, strict=False), "title")
        known = known.filter(pl.col("item_id").is_in(pl.Series(list(title_of), dtype=kind).implode()))
        title_of |= dict(known.drop_nulls().iter_rows())
    return title_of


def _same_kind(one: pl.DataType, other: pl.DataType) -> bool:
    """An id of 32 bits and one of 64 are the same number; a number and a text are never the same id."""
    return one == other or (one.is_integer() and other.is_integer())
