"""Everybody's K items, some people at a time: people, rules, tiers and reasons put together.

What is in a row says rows.py, who may get what rules.py, what is popular models/recency.py. The served fit knows all
likes, so tier graph is of everybody who likes something, and fold_in of those who have met things and liked none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.fold_in import fold_in, rows_to_fold_in
from models.graph import load_csr, load_likes
from models.reasons import histories_of, reasons
from models.recency import Likes, popular_in_groups, popular_of_everybody
from models.scorers import InnerProduct, Scorer
from models.selection import NO_ITEM
from models.topk import Lists, TopK
from tasks.config import RecommendConfig
from tasks.contracts import TIERS, Fitted, Graph, Tables
from tasks.recommend.rows import KINDS, Why, counts_of, rows_of
from tasks.recommend.rules import read_people, read_rules
from tasks.recommend.served import load_tables
from tasks.recommend.shards import Counts
from tasks.run import read_ids

GRAPH, FOLD_IN, SEGMENT, POPULAR = range(len(TIERS))


@dataclass(frozen=True)
class Sources:
    """Where a process finds what lists are made of. It crosses to ranks as JSON: paths, numbers, names."""

    graph_folder: str
    served_path: str
    tables_folder: str
    table_rows: dict[str, int]
    as_of: str
    settings: dict[str, Any]  # of RecommendConfig
    num_people: int
    num_items: int
    num_segments: int
    num_folded: int  # people with events and without a row of their own

    @classmethod
    def of(
        cls, graph: Graph, fitted: Fitted, settings: RecommendConfig, tables: Tables | None, as_of: date | None
    ) -> "Sources":
        """No tables: the store has none. No date: the day after the last event."""
        tables = tables or Tables("", "", {}, {})
        people = read_people(graph.folder, tables)
        last_us = int(np.load(Path(graph.folder) / "seen_at.npy", mmap_mode="r").max())
        return cls(
            graph_folder=graph.folder,
            served_path=fitted.served_path,
            tables_folder=tables.folder,
            table_rows=tables.rows,
            as_of=(as_of or datetime.fromtimestamp(last_us // 1_000_000, UTC).date() + timedelta(days=1)).isoformat(),
            settings=settings.model_dump(mode="json"),
            num_people=len(people),
            num_items=graph.num_items,
            num_segments=len(people.segments),
            num_folded=len(rows_to_fold_in(load_csr(graph.folder, "liked_all"))),
        )


@dataclass(frozen=True)
class Listed:
    """The finished rows of some neighbouring people, and what was counted over them."""

    rows: pl.DataFrame
    people: int
    counts: Counts


class Everybody:
    """What all lists are made of, opened once a process. Raises ModelNotFinite and NothingAllowed."""

    def __init__(self, sources: Sources) -> None:
        folder = sources.graph_folder
        settings = RecommendConfig.model_construct(**sources.settings)  # they were checked when the night was opened
        self.k = settings.k
        as_of = date.fromisoformat(sources.as_of)
        tables = Tables(sources.tables_folder, "", sources.table_rows, {})
        _, self.item_ids = read_ids(Path(folder))
        self.item_rank_I = np.load(Path(folder) / "item_rank.npy")
        self.people = read_people(folder, tables)
        self.rules = read_rules(folder, tables, self.people, settings, as_of)
        self.at_most_reasons = settings.reasons

        served = load_tables(sources.served_path)
        liked = load_csr(folder, "liked_all")
        trained_P = (self.people.row_P >= 0) & (liked.counts()[self.people.row_P] > 0)
        row_P = np.where(trained_P, self.people.row_P, -1)
        is_liked_I = np.bincount(liked.indices, minlength=sources.num_items) > 0
        self.histories = {GRAPH: histories_of(liked, scale_U=served["scale_U"], hop_ID=served["hop_ID"])}
        self.products = {GRAPH: InnerProduct(served["user_UD"], served["item_ID"], row_P, is_liked_I)}
        if len(rows := rows_to_fold_in(liked)):
            folded = fold_in(load_csr(folder, "seen_all"), rows, served["fold_ID"], served["fold_length"])
            row_U = np.full(liked.num_rows, -1)
            row_U[rows[folded.has_row_R]] = np.flatnonzero(folded.has_row_R)
            row_P = np.where(self.people.row_P >= 0, row_U[self.people.row_P], -1)
            self.products[FOLD_IN] = InnerProduct(folded.user_RD, served["item_ID"], row_P, is_liked_I)
            self.histories[FOLD_IN] = folded.histories

        every_like, liked_at_E = load_likes(folder, "all")
        likes = Likes(self.people.spread(every_like), liked_at_E, settings.popular_half_life_days)
        self.popular = {POPULAR: popular_of_everybody(likes, sources.num_items)}
        if self.people.segments:
            num_groups = len(self.people.segments)
            in_segments = popular_in_groups(likes, sources.num_items, self.people.segment_P, num_groups=num_groups)
            self.popular = {SEGMENT: in_segments, **self.popular}
        of_popular = {tier: popular.scores for tier, popular in self.popular.items()}
        self.tiers: dict[int, Scorer] = {**self.products, **of_popular}
        self._kept: tuple[tuple[int, int], TopK] | None = None

    def lists(self, start: int, stop: int, *, block_bytes: int, threads: int) -> Iterator[Listed]:
        """The people from start to before stop, block after block, in the order of their ids."""
        tier_at = np.array([*self.tiers, NO_ITEM], dtype=np.int8)
        would_be_NK = self._would_be(start, stop, block_bytes, threads) if self.rules.more_than_seen else None
        for block in self._top_k(block_bytes, threads).lists(np.arange(start, stop)):
            named = replace(block, tier_BK=tier_at[block.tier_BK])
            rows = rows_of(named, self._why(named, threads), self.people.user_ids, self.item_ids)
            would_be_BK = block.item_BK if would_be_NK is None else would_be_NK[block.users - start]
            yield Listed(rows, len(block.users), self._counts(named, would_be_BK))

    def _top_k(self, block_bytes: int, threads: int) -> TopK:
        """Made at the first shard and kept: it holds copies of the items."""
        if self._kept is None or self._kept[0] != (block_bytes, threads):
            made = TopK(
                list(self.tiers.values()),
                k=self.k,
                excluded=self.rules.excluded,
                item_rank_I=self.item_rank_I,
                allowed=self.rules.allowed,
                cap=self.rules.cap,
                wishes=True,
                block_bytes=block_bytes,
                threads=threads,
            )
            self._kept = ((block_bytes, threads), made)
        return self._kept[1]

    def _would_be(self, start: int, stop: int, block_bytes: int, threads: int) -> npt.NDArray[np.int32]:
        """(N, K) what these people would get if nothing but what they met were left out: what rules are counted by."""
        blocks = self._top_k(block_bytes, threads).without_rules(self.rules.seen).lists(np.arange(start, stop))
        return np.concatenate([block.item_BK for block in blocks])

    def _why(self, block: Lists, threads: int) -> Why:
        why = Why.nothing((*block.item_BK.shape, self.at_most_reasons))
        if not self.at_most_reasons:
            return why
        for tier, popular in self.popular.items():
            line, column = np.nonzero(block.tier_BK == tier)
            why.kind_BKR[line, column] = KINDS.index(TIERS[tier])
            why.share_BKR[line, column, 0] = popular.shares(block.users[line], block.score_BK[line, column])
        for tier, product in self.products.items():
            self._say_why(why, block, tier, product, threads)
        return why

    def _say_why(self, why: Why, block: Lists, tier: int, product: InnerProduct, threads: int) -> None:
        """The person's own items behind the rows of one tier. A folded row has met them and liked none."""
        lines = np.flatnonzero((block.tier_BK == tier).any(axis=1))
        if not len(lines):
            return
        own_bK = block.tier_BK[lines] == tier
        found = reasons(
            self.histories[tier],
            product.row_U[block.users[lines]],
            np.where(own_bK, block.item_BK[lines], NO_ITEM).astype(np.int32),
            np.where(own_bK, block.score_BK[lines], 0.0).astype(np.float32),
            product.item_ID,
            at_most=self.at_most_reasons,
            threads=threads,
        )
        own_bK1 = own_bK[..., None]
        kind = KINDS.index("liked" if tier == GRAPH else "met")
        why.kind_BKR[lines] = np.where(own_bK1, kind, why.kind_BKR[lines])
        why.item_BKR[lines] = np.where(own_bK1, found.item_BKR, why.item_BKR[lines])
        why.share_BKR[lines] = np.where(own_bK1, found.share_BKR, why.share_BKR[lines])

    def _counts(self, block: Lists, would_be_BK: npt.NDArray[np.int32]) -> Counts:
        without = self.products[GRAPH].row_U[block.users] < 0
        return {**counts_of(block, would_be_BK, self.rules), "users": {"without_a_trained_row": int(without.sum())}}
