"""Whether the served model is the one that the lists come from, and has not collapsed: no test part can tell.

The judged fit has a test part and goes; the served fit is what people get, and has none. So its tables are looked at
(models/health.py), beside the judged ones where there is something to compare, and a sample of the finished lists is
scored anew with them.
"""

from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.graph import load_csr
from models.health import TableHealth, knows_own_likes, some_of, table_health
from models.scorers import InnerProduct, rows_where
from tasks.contracts import Check, Fitted, Graph, Recommendations
from tasks.run import read_ids

SEED = 11
MEAN_COSINE_AT_MOST = 0.95
ZERO_SHARE_AT_MOST = 0.01
STRANGERS_AT_MOST = 0.01  # more users than in the judged fit who score others' likes above their own
ROWS_OF_A_FILE = 500
TOLERANCE = 1e-4  # of a score: far above rounding, far below what separates two items


def check_served(graph: Graph, fitted: Fitted, recommendations: Recommendations) -> list[Check]:
    """Memory: the two fits' tables, mapped, and a file's rows."""
    judged, served = load_file(fitted.judged_path), load_file(fitted.served_path)
    return [
        *_check_tables(graph, served),
        _check_own_likes(graph, judged, served),
        _check_scores(graph, served, recommendations),
    ]


def least_rank(width: int) -> float:
    """A healthy fit uses most of its directions; one that has collapsed uses one or two."""
    return 1.0 + width / 32


def _check_tables(graph: Graph, served: dict[str, Tensor]) -> Iterator[Check]:
    liked = load_csr(graph.folder, "liked_all")
    likes_I = np.bincount(np.asarray(liked.indices), minlength=graph.num_items)
    for kind, name, rows in (
        ("users", "user_UD", np.flatnonzero(liked.counts() > 0)),
        ("items", "item_ID", np.flatnonzero(likes_I > 0)),
    ):
        width = served[name].shape[1] - 1
        health = table_health(served[name], rows)
        yield Check(
            gate=f"model: {kind} differ",
            passed=_is_healthy(health, width),
            detail=(
                f"effective rank {health.effective_rank:.1f} of {width} (at least {least_rank(width):.1f}), "
                f"mean cosine {health.mean_cosine:.3f} (at most {MEAN_COSINE_AT_MOST}), {health.zero_share:.1%} zeros "
                f"(at most {ZERO_SHARE_AT_MOST:.0%}) in {len(rows):,} rows"
            ),
        )


def _is_healthy(health: TableHealth, width: int) -> bool:
    """A number that is none is in no order, hence not healthy."""
    return (
        health.effective_rank >= least_rank(width)
        and health.mean_cosine <= MEAN_COSINE_AT_MOST
        and health.zero_share <= ZERO_SHARE_AT_MOST
    )


def _check_own_likes(graph: Graph, judged: dict[str, Tensor], served: dict[str, Tensor]) -> Check:
    """Users who have somebody else's row, or none that was learned, score what others like above what they like.

    Of light and heavy users apart: a fault of one kind must not drown in the mean of all.
    """
    found, passed = [], True
    for kind, part, tables in (("judged", "train", judged), ("served", "all", served)):
        liked = load_csr(graph.folder, f"liked_{part}")
        users = some_of(np.flatnonzero(liked.counts() > 0), seed=SEED)
        own_B = knows_own_likes(tables["user_UD"], tables["item_ID"], liked, users, seed=SEED)
        heavy_B = liked.counts()[users] > np.median(liked.counts()[users])
        found.append((kind, {"light": own_B[~heavy_B], "heavy": own_B[heavy_B]}))
    words = []
    for whom in ("light", "heavy"):
        (_, before), (_, now) = ((kind, by_kind[whom]) for kind, by_kind in found)
        allowed = STRANGERS_AT_MOST + (float((before <= 0.5).mean()) if len(before) else 0.0)
        strangers = int((~(now > 0.5)).sum())
        passed &= wilson_low(strangers, len(now)) <= allowed
        words.append(f"{strangers:,} of {len(now):,} {whom} users (at most {allowed:.1%} beyond noise)")
    return Check(
        "model: users know their likes", bool(passed), "others' likes score above their own: " + ", ".join(words)
    )


def wilson_low(count: int, of: int) -> float:
    """The lower 95 % bound of a share (Wilson 1927)."""
    if not of:
        return 0.0
    share, z2 = count / of, 1.96**2
    return (share + z2 / (2 * of) - 1.96 * sqrt(share * (1 - share) / of + z2 / (4 * of * of))) / (1 + z2 / of)


def _check_scores(graph: Graph, served: dict[str, Tensor], recommendations: Recommendations) -> Check:
    """Rows of tier graph, a sample of each file, are scored anew: lists of another model or night have other scores."""
    users, items = read_ids(Path(graph.folder))
    liked = load_csr(graph.folder, "liked_all")
    scorer = InnerProduct(
        served["user_UD"], served["item_ID"], rows_where(liked.counts() > 0), np.ones(graph.num_items, dtype=bool)
    )
    looked_at, wrong = 0, 0
    for part in recommendations.parts:
        of_graph = pl.scan_parquet(part.path).filter(pl.col("tier") == "graph")
        rows = of_graph.select("user_id", "item_id", "score").collect()
        rows = rows.gather_every(max(1, len(rows) // ROWS_OF_A_FILE))
        user = users.cast(rows["user_id"].dtype).search_sorted(rows["user_id"]).to_numpy()
        item = items.cast(rows["item_id"].dtype).search_sorted(rows["item_id"]).to_numpy()
        known = (user < len(users)) & (item < len(items))  # an unknown id is another check's
        user, item, score = user[known], item[known], rows["score"].to_numpy()[known]
        again = _scores(scorer, user, item)
        looked_at += len(again)
        wrong += int((~(np.abs(again - score) <= TOLERANCE * np.maximum(1.0, np.abs(again)))).sum())
    return Check(
        gate="lists: scores that the served model does not give",
        passed=wrong == 0,
        detail=f"{wrong:,} of {looked_at:,} rows of tier graph that were scored anew",
    )


def _scores(scorer: InnerProduct, user_N: np.ndarray, item_N: np.ndarray) -> np.ndarray:
    if not len(user_N):
        return np.zeros(0)
    return scorer.exact(user_N, torch.from_numpy(item_N.astype(np.int64))[:, None])[:, 0].numpy()
