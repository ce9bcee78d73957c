"""Everybody's K items as finished Parquet parts (output format 1), in blocks of bounded memory.

user_id and item_id as they came, rank int32 from 1, score float32, tier string; sorted by user_id, rank.

tier is a property of the row. graph: the served fit's score. popular: how many people like the item; for users
without a trained row, and behind a list whose user has met nearly everything that the graph knows. Scores are
comparable within a user and a tier only.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.torch import load_file

from models.graph import load_csr
from models.rivals import popularity
from models.topk import NO_ITEM, InnerProduct, Lists, top_k
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Part, Recommendations
from tasks.run import file_sha256, fingerprint_of, read_ids

ROWS_IN_MEMORY = 2_000_000  # of one part; 40 bytes a row at most with integer ids
ROW_GROUP_ROWS = 100_000  # fixed: the bytes must not follow how the rows were cut
log = logging.getLogger("nightgraph.recommend")


def recommend_everyone(graph: Graph, fitted: Fitted, settings: RecommendConfig, folder: Path) -> Recommendations:
    """One list for every user of the graph, written in order of user id. Memory: block_mib and one part's rows."""
    liked, seen = load_csr(graph.folder, "liked_all"), load_csr(graph.folder, "seen_all")
    user_ids, item_ids = read_ids(Path(graph.folder))
    tables = load_file(fitted.served_path)
    popularity_I = popularity(liked, graph.num_items)
    scorer = InnerProduct(tables["user_UD"], tables["item_ID"], liked.counts() > 0, popularity_I > 0)
    by_id = user_ids.arg_sort().to_numpy().astype(np.int64)
    users_per_part = max(1, min(settings.users_per_part, ROWS_IN_MEMORY // settings.k))
    parts, tiers = [], {"graph": 0, "popular": 0}
    progress = _Progress(graph.num_users)
    for number, start in enumerate(range(0, graph.num_users, users_per_part)):
        blocks = top_k(
            scorer,
            popularity_I,
            users=by_id[start : start + users_per_part],
            seen=seen,
            k=settings.k,
            item_rank_I=np.load(Path(graph.folder) / "item_rank.npy"),
            block_bytes=settings.block_mib * 2**20,
        )
        rows = pl.concat([_rows(block, user_ids, item_ids) for block in progress.follow(blocks)])
        for tier, count in rows.group_by("tier").len().iter_rows():
            tiers[tier] += count
        parts.append(_write(rows, folder / f"part-{number:05d}.parquet"))
    lengths = np.minimum(settings.k, graph.num_items - seen.counts())
    return Recommendations(
        folder=str(folder),
        parts=tuple(parts),
        fingerprint=fingerprint_of([part.sha256 for part in parts]),
        k=settings.k,
        users=sum(part.users for part in parts),
        rows=sum(part.rows for part in parts),
        rows_by_tier=tiers,
        users_without_a_trained_row=int((liked.counts() == 0).sum()),
        short_lists=int((lengths < settings.k).sum()),
        catalogue=graph.num_items,
    )


def _rows(block: Lists, user_ids: pl.Series, item_ids: pl.Series) -> pl.DataFrame:
    """A block's lists as rows of output format 1."""
    line, column = np.nonzero(block.item_BK != NO_ITEM)
    tier = pl.Series("tier", np.where(block.filled_BK[line, column], "popular", "graph"), dtype=pl.String)
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(block.users[line]),
            "rank": pl.Series((column + 1).astype(np.int32)),
            "item_id": item_ids.gather(block.item_BK[line, column]),
            "score": pl.Series(block.score_BK[line, column].astype(np.float32)),
            "tier": tier,
        }
    )


def _write(rows: pl.DataFrame, path: Path) -> Part:
    rows.write_parquet(path, compression="zstd", compression_level=3, row_group_size=ROW_GROUP_ROWS)
    return Part(
        path=str(path),
        rows=len(rows),
        users=rows["user_id"].n_unique(),
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


class _Progress:
    """Users a second and time left, every few seconds."""

    def __init__(self, num_users: int, every_s: float = 5.0) -> None:
        self.num_users, self.every_s = num_users, every_s
        self.done = 0
        self.started = self.told_at = time.monotonic()

    def follow(self, blocks: Iterator[Lists]) -> Iterator[Lists]:
        for block in blocks:
            self.done += len(block.users)
            now = time.monotonic()
            if now - self.told_at > self.every_s:
                self.told_at = now
                rate = self.done / (now - self.started)
                log.info(
                    "%s of %s users, %s a second, %.0f s left",
                    f"{self.done:,}",
                    f"{self.num_users:,}",
                    f"{rate:,.0f}",
                    (self.num_users - self.done) / rate,
                )
            yield block
