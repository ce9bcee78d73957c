"""Who may get what. Rules are applied before the best are chosen, so K stays K; each has a name and is counted.

seen          an event of this person and item: of all time, or of the last seen_days
blocked       the pair stands in blocked/
unavailable   items/ says so
unlisted      items/ has a column `available`, and does not say it of this item
too_new       born less than min_item_age_days before the night's date
too_old       born more than max_item_age_days before it
segment       items/ names segments for the item, and the person's is none of them
category      the list holds at_most_per_category better items of one of its categories already

An item that several forbid counts under the first. Births are published_at where items/ says it, else the first event.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.graph import Csr, interactions_by_user, load_csr
from models.recency import DAY_US
from models.selection import NO_ITEM, Allowed
from models.topk import CategoryCap
from tasks.config import RecommendConfig
from tasks.contracts import RULES, Tables
from tasks.errors import NothingAllowed
from tasks.run import read_ids

OF_ITEMS = RULES[2:7]  # what depends on the item, and at most on the person's segment
NONE = -1
SMALL_CATALOGUE = "catalogue"  # why a list is short where no rule is to blame


@dataclass(frozen=True)
class People:
    """Everybody who gets a list: users with events and those of the users table, in ascending order of id."""

    user_ids: pl.Series
    row_P: npt.NDArray[np.int64]  # each one's row in the graph; -1: no events
    segment_P: npt.NDArray[np.int64]  # -1: none
    segments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user_ids)

    def spread(self, by_row: Csr) -> Csr:
        """The same entries by person: rows of the graph are in the order of ids, too."""
        count_P = np.where(self.row_P >= 0, by_row.counts()[self.row_P], 0) if by_row.num_rows else 0 * self.row_P
        return Csr(np.concatenate([[0], np.cumsum(count_P)]), by_row.indices)


@dataclass(frozen=True)
class Rules:
    """seen, blocked and excluded (both together) by person. rule_GI: the first rule that forbids the item, or NONE.

    Group 0 are people without a segment, or everybody where no rule asks for it.
    """

    seen: Csr
    blocked: Csr
    excluded: Csr
    rule_GI: npt.NDArray[np.int8]
    group_P: npt.NDArray[np.int64]
    cap: CategoryCap | None

    @property
    def more_than_seen(self) -> bool:
        """Whether any rule but `seen` can take an item from anybody."""
        return bool(len(self.blocked.indices) or self.cap is not None or (self.rule_GI != NONE).any())

    @property
    def allowed(self) -> Allowed | None:
        """None where every item is allowed to everybody."""
        return Allowed(self.rule_GI == NONE, self.group_P) if (self.rule_GI != NONE).any() else None

    def forbidding(self, users: npt.NDArray[np.int64], item_BK: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
        """(B, K) the first rule, as a position in RULES, that forbids an item to its line's user, else NONE."""
        rule_BK = np.where(item_BK == NO_ITEM, NONE, self.rule_GI[self.group_P[users][:, None], item_BK])
        for name, pairs in (("blocked", self.blocked), ("seen", self.seen)):
            rule_BK[_among(pairs, users, item_BK, self.rule_GI.shape[1])] = RULES.index(name)
        return rule_BK.astype(np.int8)

    def left_after(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(B, 7) how many items each rule, in the order of RULES, leaves to a user; the cap is no such rule."""
        num_rules = len(RULES) - 1
        position, item = self.excluded.rows_of(users)
        group_B = self.group_P[users]
        gone_twice = self.rule_GI[group_B[position], item]  # by a pair and by a rule of items: counted for the pair
        twice = np.bincount((position * num_rules + gone_twice)[gone_twice != NONE], minlength=len(users) * num_rules)
        of_group_GR = np.stack([np.bincount(rule_I[rule_I != NONE], minlength=num_rules) for rule_I in self.rule_GI])
        gone_BR = of_group_GR[group_B] - twice.reshape(len(users), num_rules)
        gone_BR[:, 0] = self.seen.counts()[users]
        gone_BR[:, 1] = self.excluded.counts()[users] - gone_BR[:, 0]
        return self.rule_GI.shape[1] - np.cumsum(gone_BR, axis=1)


def _among(pairs: Csr, users: npt.NDArray[np.int64], item_BK: npt.NDArray[np.int32], num_items: int) -> np.ndarray:
    """(B, K) whether the line's user has the item."""
    if not len(pairs.indices):
        return np.zeros(item_BK.shape, dtype=bool)
    position, item = pairs.rows_of(users)
    have = np.append(position * num_items + item, -1)  # ascending but for the end, which nobody asks for
    asked_BK = np.arange(len(users))[:, None] * num_items + item_BK
    return (have[np.searchsorted(have[:-1], asked_BK)] == asked_BK) & (item_BK != NO_ITEM)


# ---- from tables and arrays


def read_people(graph_folder: str, tables: Tables) -> People:
    user_ids, _ = read_ids(Path(graph_folder))
    frame = pl.DataFrame({"user_id": user_ids}).with_row_index("row").cast({"row": pl.Int64})
    if (users := _table(tables, "users")) is not None:
        frame = frame.cast({"user_id": users["user_id"].dtype}).join(users, on="user_id", how="full", coalesce=True)
    frame = frame.sort("user_id")
    names: tuple[str, ...] = ()
    if (segments := _table(tables, "segments")) is not None:
        names = tuple(segments["segment"].unique().sort())
        numbered = pl.DataFrame({"segment": names}, schema={"segment": pl.String}).with_row_index("number")
        of_user = segments.join(numbered, on="segment").select("user_id", pl.col("number").cast(pl.Int64))
        frame = frame.join(of_user, on="user_id", how="left", maintain_order="left")
    number = frame["number"] if names else pl.Series([None] * len(frame), dtype=pl.Int64)
    return People(
        user_ids=frame["user_id"],
        row_P=frame["row"].fill_null(-1).to_numpy().astype(np.int64),
        segment_P=number.fill_null(-1).to_numpy().astype(np.int64),
        segments=names,
    )


def left_to_anybody(graph_folder: str, tables: Tables, settings: RecommendConfig, as_of: date) -> npt.NDArray[np.bool_]:
    """(I,) the items that the rules of items allow to at least one group of people."""
    rules = read_rules(graph_folder, tables, read_people(graph_folder, tables), settings, as_of)
    return (rules.rule_GI == NONE).any(axis=0)


def read_rules(graph_folder: str, tables: Tables, people: People, settings: RecommendConfig, as_of: date) -> Rules:
    """Raises NothingAllowed where nobody may get anything but for what they have met."""
    folder = Path(graph_folder)
    _, item_ids = read_ids(folder)
    midnight_us = int(datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC).timestamp()) * 1_000_000
    seen = load_csr(folder, "seen_all")
    if settings.seen_days is not None:
        recent = np.load(folder / "seen_at.npy") >= midnight_us - settings.seen_days * DAY_US
        seen = Csr(np.concatenate([[0], np.cumsum(recent)])[seen.indptr], seen.indices[recent])
    seen = people.spread(seen)
    blocked = _blocked(tables, people, item_ids)
    items = pl.DataFrame({"item_id": item_ids})
    if (facts := _table(tables, "items")) is not None:
        items = items.join(facts, on="item_id", how="left", maintain_order="left")
    rule_GI = _rules_of_items(items, np.load(folder / "item_first_seen.npy"), people, settings, midnight_us)
    _expect_something_allowed(rule_GI)
    by_segment = len(rule_GI) > 1
    return Rules(
        seen=seen,
        blocked=blocked,
        excluded=_both(seen, blocked),
        rule_GI=rule_GI,
        group_P=people.segment_P + 1 if by_segment else np.zeros(len(people), dtype=np.int64),
        cap=_cap(items, settings.at_most_per_category),
    )


def _table(tables: Tables, name: str) -> pl.DataFrame | None:
    return pl.read_parquet(Path(tables.folder) / f"{name}.parquet") if name in tables.rows else None


def _blocked(tables: Tables, people: People, item_ids: pl.Series) -> Csr:
    pairs = _table(tables, "blocked")
    if pairs is None:
        return Csr(np.zeros(len(people) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    for name, ids in (("user", people.user_ids), ("item", item_ids)):
        rows = pl.DataFrame({f"{name}_id": ids}).with_row_index(name).cast({name: pl.Int64})
        pairs = pairs.join(rows, on=f"{name}_id", how="inner")
    return interactions_by_user(pairs["user"].to_numpy(), pairs["item"].to_numpy(), len(people))


def _both(one: Csr, other: Csr) -> Csr:
    if not len(other.indices):
        return one
    rows = np.arange(one.num_rows)
    pairs = [np.repeat(rows, csr.counts()) << 32 | csr.indices for csr in (one, other)]
    pair_E = np.sort(np.concatenate(pairs), kind="stable")  # two runs: several times faster than np.unique
    pair_E = pair_E[np.append(True, pair_E[1:] != pair_E[:-1])]
    return Csr(np.searchsorted(pair_E, np.arange(len(rows) + 1) << 32), (pair_E & 0xFFFFFFFF).astype(np.int32))


def _rules_of_items(
    items: pl.DataFrame, first_seen_I: np.ndarray, people: People, settings: RecommendConfig, midnight_us: int
) -> npt.NDArray[np.int8]:
    """(G, I) the first rule of each group that forbids the item, or NONE."""
    breaks: dict[str, npt.NDArray[np.bool_]] = {}
    if "available" in items.columns:
        breaks["unavailable"] = (~items["available"]).fill_null(False).to_numpy()
        breaks["unlisted"] = items["available"].is_null().to_numpy()
    born_I = first_seen_I
    if "published_at" in items.columns:
        published = items["published_at"]
        born_I = np.where(published.is_null(), first_seen_I, published.fill_null(0))
    if settings.min_item_age_days is not None:
        breaks["too_new"] = born_I > midnight_us - settings.min_item_age_days * DAY_US
    if settings.max_item_age_days is not None:
        breaks["too_old"] = born_I < midnight_us - settings.max_item_age_days * DAY_US
    rule_I = np.full(len(items), NONE, dtype=np.int8)
    for name in OF_ITEMS:
        if name in breaks:
            rule_I[(rule_I == NONE) & breaks[name]] = RULES.index(name)
    if "segments" not in items.columns or not (items["segments"].list.len() > 0).any():
        return rule_I[None]
    rule_GI = np.tile(rule_I, (len(people.segments) + 1, 1))
    for group, segment in enumerate((None, *people.segments)):
        names = items["segments"]
        others = (names.list.len() > 0) & (~names.list.contains(segment) if segment is not None else True)
        rule_GI[group, (rule_I == NONE) & others.fill_null(False).to_numpy()] = RULES.index("segment")
    return rule_GI


def _expect_something_allowed(rule_GI: npt.NDArray[np.int8]) -> None:
    if (rule_GI == NONE).any():
        return
    counts = {name: int((rule_GI[0] == RULES.index(name)).sum()) for name in OF_ITEMS}
    found = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    raise NothingAllowed(
        f"the rules forbid all {rule_GI.shape[1]:,} items to everybody ({found}). Nothing was published; the live "
        "recommendations stay. See recommend.min_item_age_days and recommend.max_item_age_days (ages count back from "
        "the night's date), and what items/ says is available and for which segments."
    )


def _cap(items: pl.DataFrame, at_most: int | None) -> CategoryCap | None:
    if at_most is None or "categories" not in items.columns:
        return None
    pairs = items.select("categories").with_row_index("item").explode("categories").drop_nulls()
    category = pairs["categories"].rank("dense").to_numpy().astype(np.int64) - 1
    return CategoryCap(at_most, interactions_by_user(pairs["item"].to_numpy(), category, len(items)))
