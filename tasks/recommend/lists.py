"""Everybody's K items as rows of output format 2, some people at a time.

user_id and item_id as they came, rank int32 from 1, score float32, tier string, reasons; sorted by user_id, rank.

tier is a property of the row. graph: the served fit's score. popular: how many people like the item; for users
without a trained row, and behind a list whose user has met nearly everything that the graph knows. Scores are
comparable within a user and a tier only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.graph import load_csr
from models.rivals import popularity
from models.scorers import InnerProduct, for_everybody, rows_where
from models.selection import NO_ITEM
from models.topk import Lists, top_k
from tasks.contracts import Fitted, Graph
from tasks.recommend.served import load_tables
from tasks.recommend.shards import Counts
from tasks.run import read_ids


@dataclass(frozen=True)
class Sources:
    """Where a process finds what lists are made of. It crosses to ranks as JSON: paths, numbers, names."""

    graph_folder: str
    served_path: str
    num_people: int
    num_items: int
    k: int

    @classmethod
    def of(cls, graph: Graph, fitted: Fitted, settings: Any) -> "Sources":
        return cls(graph.folder, fitted.served_path, graph.num_users, graph.num_items, settings.k)


@dataclass(frozen=True)
class Listed:
    """The finished rows of some neighbouring people, and what was counted over them."""

    rows: pl.DataFrame
    people: int
    counts: Counts


class Everybody:
    """What all lists are made of, opened once a process."""

    def __init__(self, sources: Sources) -> None:
        self.k = sources.k
        liked, self.seen = load_csr(sources.graph_folder, "liked_all"), load_csr(sources.graph_folder, "seen_all")
        self.user_ids, self.item_ids = read_ids(Path(sources.graph_folder))
        self.item_rank_I = np.load(Path(sources.graph_folder) / "item_rank.npy")
        self.by_id = self.user_ids.arg_sort().to_numpy().astype(np.int64)
        tables = load_tables(sources.served_path)
        self.has_row_U = liked.counts() > 0
        self.popularity_I = popularity(liked, sources.num_items)
        self.reason = pl.Struct({"kind": pl.String, "item_id": self.item_ids.dtype, "share": pl.Float32})
        self.scorer = InnerProduct(
            tables["user_UD"], tables["item_ID"], rows_where(self.has_row_U), self.popularity_I > 0
        )

    def lists(self, start: int, stop: int, *, block_bytes: int, threads: int | None) -> Iterator[Listed]:
        """The people from start to before stop, block after block, in the order of their ids."""
        for block in top_k(
            [self.scorer, for_everybody(self.popularity_I, len(self.has_row_U))],
            users=self.by_id[start:stop],
            excluded=self.seen,
            k=self.k,
            item_rank_I=self.item_rank_I,
            block_bytes=block_bytes,
            threads=threads,
        ):
            rows = self._rows(block)
            yield Listed(rows, len(block.users), self._counts(block, rows))

    def _rows(self, block: Lists) -> pl.DataFrame:
        line, column = np.nonzero(block.item_BK != NO_ITEM)
        tier = pl.Series("tier", np.where(block.tier_BK[line, column] == 1, "popular", "graph"), dtype=pl.String)
        return pl.DataFrame(
            {
                "user_id": self.user_ids.gather(block.users[line]),
                "rank": pl.Series((column + 1).astype(np.int32)),
                "item_id": self.item_ids.gather(block.item_BK[line, column]),
                "score": pl.Series(block.score_BK[line, column].astype(np.float32)),
                "tier": tier,
                "reasons": pl.Series([[]] * len(line), dtype=pl.List(self.reason)),
            }
        )

    def _counts(self, block: Lists, rows: pl.DataFrame) -> Counts:
        lengths = (block.item_BK != NO_ITEM).sum(axis=1)
        return {
            "rows_by_tier": dict(rows.group_by("tier").len().sort("tier").iter_rows()),
            "users": {
                "without_a_trained_row": int((~self.has_row_U[block.users]).sum()),
                "with_a_short_list": int((lengths < self.k).sum()),
            },
        }
