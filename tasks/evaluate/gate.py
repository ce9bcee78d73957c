"""Whether a night may go live: the finished lists must be whole, and the fit not clearly worse than popularity.

The list checks read the files that would be published, not the arrays they came from, and cannot be overridden.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.graph import Csr
from tasks.config import GateConfig
from tasks.contracts import Check, Evaluation, Recommendations, Verdict
from tasks.errors import GateRefused

TIERS = ("graph", "popular")  # in the order in which they may follow each other within a list


@dataclass(frozen=True)
class Known:
    """What lists are held against: the ids by row, and everything each user has met."""

    user_ids: pl.Series
    item_ids: pl.Series
    seen: Csr


def judge_night(
    settings: GateConfig, evaluation: Evaluation, recommendations: Recommendations, known: Known
) -> Verdict:
    """All checks, passed or not. Only the popularity check can be overridden, by name and with a reason."""
    checks = [*check_lists(recommendations, known), check_popularity(settings.metric, evaluation)]
    overridden = settings.override if any(c.gate == settings.override and not c.passed for c in checks) else ""
    return Verdict(
        passed=all(check.passed or check.gate == overridden for check in checks),
        checks=tuple(checks),
        overridden=overridden,
        override_reason=settings.override_reason if overridden else "",
    )


def refuse_unless_passed(verdict: Verdict) -> None:
    """Raises GateRefused with every check that failed."""
    if verdict.passed:
        return
    failed = [check for check in verdict.checks if not check.passed]
    nothing_to_give = [check.gate for check in failed] == ["lists: somebody gets something"]
    what_to_do = (
        "Everybody has met the whole catalogue: wait for new items, or read fewer days of events."
        if nothing_to_give
        else "To publish anyway, run again with gate.override='popularity' and gate.override_reason."
        if all(check.gate == "popularity" for check in failed)
        else "Broken lists cannot be overridden: this is a fault in the job or in its disk; run again, then report it."
    )
    found = "; ".join(f"{check.gate}: {check.detail}" for check in failed)
    raise GateRefused(
        f"{found}. Nothing was published; the live recommendations stay. {what_to_do} "
        "Every figure stands in the run's report and below _meta/audits/ in the store."
    )


def check_popularity(metric: str, evaluation: Evaluation) -> Check:
    """Refuses where the whole 95 % interval of the paired difference to popularity on test lies below zero."""
    difference = evaluation.over_popularity[metric]
    scores = {s.model: getattr(s, metric).mean for s in evaluation.scores if s.part == "test"}
    users = next(s.num_users for s in evaluation.scores if s.part == "test")
    return Check(
        gate="popularity",
        passed=difference.high >= 0.0,
        detail=(
            f"{metric}@{evaluation.k} on test is {scores['lightgcn']:.4f}, popularity's {scores['popularity']:.4f}: "
            f"difference {difference.mean:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f} "
            f"over {users:,} users"
        ),
    )


def check_lists(recommendations: Recommendations, known: Known) -> list[Check]:
    """Finite scores, known ids, whole and ordered lists, no repeated and no seen item, nobody left out."""
    faults: dict[str, int] = {}
    users_met = np.zeros(len(known.user_ids), dtype=bool)
    for part in recommendations.parts:
        for name, count in _faults_of(pl.read_parquet(part.path), recommendations.k, known, users_met):
            faults[name] = faults.get(name, 0) + count
    faults["users without a list"] = int((~users_met & (_expected_length(recommendations.k, known) > 0)).sum())
    rows = f"{recommendations.rows:,} rows for {len(known.user_ids):,} users and {len(known.item_ids):,} items"
    empty = Check("lists: somebody gets something", recommendations.rows > 0, rows)
    return [
        empty,
        *(Check(f"lists: {name}", passed=count == 0, detail=f"{count:,} {name}") for name, count in faults.items()),
    ]


def _expected_length(k: int, known: Known) -> np.ndarray:
    """K, or all that is left of the catalogue."""
    return np.minimum(k, len(known.item_ids) - known.seen.counts())


def _faults_of(lists: pl.DataFrame, k: int, known: Known, users_met: np.ndarray) -> Iterator[tuple[str, int]]:
    rows = lists.join(_rows("user", known.user_ids), on="user_id", how="left", maintain_order="left")
    rows = rows.join(_rows("item", known.item_ids), on="item_id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("user_index").is_null() | pl.col("item_index").is_null())
    yield "rows with an unknown user or item", len(unknown)
    rows = rows.filter(pl.col("user_index").is_not_null() & pl.col("item_index").is_not_null())
    user, item = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
    yield "scores that are not finite", int((~np.isfinite(lists["score"].to_numpy())).sum())
    yield "items that stand twice in a list", len(rows) - rows.select("user_id", "item_id").n_unique()
    yield "items that the user has met", _count_seen(user, item, known)
    tier = pl.col("tier").replace_strict({name: order for order, name in enumerate(TIERS)}, default=None)
    ordered = rows.with_columns(tier_order=tier)
    same_user = pl.col("user_index") == pl.col("user_index").shift(1)
    step = pl.col("tier_order") - pl.col("tier_order").shift(1)
    yield "rows with an unknown tier", ordered["tier_order"].null_count()
    does_not_follow = (
        (pl.col("rank") != pl.col("rank").shift(1) + 1)
        | (step < 0)
        | ((step == 0) & (pl.col("score") > pl.col("score").shift(1)))
    )
    # A list torn apart has its second piece behind a larger user's rows.
    out_of_order = (pl.col("user_id") < pl.col("user_id").shift(1)) | (same_user & does_not_follow)
    yield "rows out of order", ordered.select((out_of_order | pl.col("rank").is_null()).sum()).item()
    lengths = rows.group_by("user_index").agg(pl.len(), pl.col("rank").min()).sort("user_index")
    listed = lengths["user_index"].to_numpy()
    wrong = (lengths["len"].to_numpy() != _expected_length(k, known)[listed]) | (lengths["rank"].to_numpy() != 1)
    yield "lists of a wrong length", int(wrong.sum())
    yield "users in two files", int(users_met[listed].sum())
    yield "files out of order", int(len(listed) > 0 and users_met[listed[0] + 1 :].any())  # rows are in id order
    users_met[listed] = True


def _rows(name: str, ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({f"{name}_id": ids}).with_row_index(f"{name}_index").cast({f"{name}_index": pl.Int64})


def _count_seen(user: np.ndarray, item: np.ndarray, known: Known) -> int:
    users = np.unique(user)
    position, seen_item = known.seen.rows_of(users)
    num_items = len(known.item_ids)
    met = users[position] * np.int64(num_items) + seen_item  # ascending
    asked = user * np.int64(num_items) + item
    found = np.minimum(np.searchsorted(met, asked), len(met) - 1)
    return int((met[found] == asked).sum()) if len(met) else 0
