"""Three people of a finished night: what they liked, and what they get."""

from dataclasses import dataclass

import polars as pl

SHOWN = 6


@dataclass(frozen=True)
class Person:
    user_id: str
    num_likes: int
    liked: list[str]  # titles, the latest first
    gets: list[tuple[str, str]]  # (title, tier), best first


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
    chosen = dict(counts.row(int(share * (len(counts) - 1))) for share in (0.25, 0.5, 0.9)) if len(counts) else {}
    return [_person(user_id, num_likes, likes, lists, titles) for user_id, num_likes in chosen.items()]


def _person(
    user_id: int | str, num_likes: int, likes: pl.LazyFrame, lists: pl.LazyFrame, titles: pl.DataFrame | None
) -> Person:
    mine = pl.col("user_id") == user_id
    liked = likes.filter(mine).sort("timestamp_us", "item_id", descending=[True, False]).select("item_id").collect()
    gets = lists.filter(mine).sort("rank").select("item_id", "tier").head(SHOWN).collect()
    return Person(
        user_id=str(user_id),
        num_likes=num_likes,
        liked=_titles(liked["item_id"].unique(maintain_order=True).head(SHOWN), titles),
        gets=list(zip(_titles(gets["item_id"], titles), gets["tier"], strict=True)),
    )


def _titles(item_ids: pl.Series, titles: pl.DataFrame | None) -> list[str]:
    """Titles where they are known, ids elsewhere."""
    names = pl.DataFrame({"item_id": item_ids})
    if titles is not None and _same_kind(titles.schema["item_id"], names.schema["item_id"]):
        known = titles.select(pl.col("item_id").cast(names.schema["item_id"], strict=False), "title")
        names = names.join(known, on="item_id", how="left", maintain_order="left")
        return names.select(pl.coalesce("title", pl.col("item_id").cast(pl.String))).to_series().to_list()
    return [str(item_id) for item_id in item_ids]


def _same_kind(one: pl.DataType, other: pl.DataType) -> bool:
    """An id of 32 bits and one of 64 are the same number; a number and a text are never the same id."""
    return one == other or (one.is_integer() and other.is_integer())
