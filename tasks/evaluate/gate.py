"""Whether a night may go live: lists whole, the served model sound (served.py), the judged fit good (quality.py).

The list checks read the files that would be published, not the arrays they came from, and cannot be overridden.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import scipy.sparse as sp

from models.graph import Csr
from tasks.config import GateConfig
from tasks.contracts import TIERS, Check, Evaluation, Recommendations, Verdict
from tasks.errors import GateRefused
from tasks.evaluate.allowed import CELLS_AT_ONCE, Known
from tasks.evaluate.beside import check_outputs
from tasks.evaluate.quality import OVERRIDABLE, check_quality


def judge_night(
    settings: GateConfig,
    evaluation: Evaluation,
    recommendations: Recommendations,
    known: Known,
    others: Sequence[Check] = (),
) -> Verdict:
    """All checks, passed or not. Only those of quality can be overridden, by name and with a reason."""
    checks = [
        *check_lists(recommendations, known),
        *check_outputs(recommendations.outputs, known.people["user_id"], known.items["item_id"]),
        *others,
        *check_quality(settings, evaluation),
    ]
    overridden = [check.gate for check in checks if not check.passed and check.gate in settings.override]
    return Verdict(
        passed=all(check.passed or check.gate in overridden for check in checks),
        checks=tuple(checks),
        overridden=", ".join(overridden),
        override_reason=settings.override_reason if overridden else "",
    )


def refuse_unless_passed(verdict: Verdict) -> None:
    """Raises GateRefused with every check that failed."""
    if verdict.passed:
        return
    failed = [check for check in verdict.checks if not check.passed]
    nothing_to_give = [check.gate for check in failed] == ["lists: somebody gets something"]
    what_to_do = (
        "Nobody is left an item that they have not met and that the rules allow: wait for new items, look at items/ "
        "and the settings of recommend, or recommend what was met long ago with recommend.seen_days."
        if nothing_to_give
        else f"To publish anyway, run again with gate.override={','.join(one.gate for one in failed)} and "
        "gate.override_reason."
        if all(check.gate in OVERRIDABLE for check in failed)
        else "Broken lists and a broken model cannot be overridden: this is a fault in the job or in its disk, or the "
        "training went wrong; run again, look at the settings of train, then report it."
    )
    found = "; ".join(f"{check.gate}: {check.detail}" for check in failed)
    raise GateRefused(
        f"{found}. Nothing was published; the live recommendations stay. {what_to_do} "
        "Every figure stands in the run's report and below _meta/audits/ in the store."
    )


def check_lists(recommendations: Recommendations, known: Known) -> list[Check]:
    """Finite scores, known ids, whole and ordered lists, no repeated and no forbidden item, nobody left out."""
    faults: dict[str, int] = {}
    met_P = np.zeros(len(known.people), dtype=bool)
    expected_P = np.minimum(recommendations.k, known.num_allowed())
    for part in recommendations.parts:
        for name, count in _faults_of(pl.read_parquet(part.path), expected_P, known, met_P):
            faults[name] = faults.get(name, 0) + count
    faults["users without a list"] = int((~met_P & (expected_P > 0)).sum())
    rows = f"{recommendations.rows:,} rows for {len(known.people):,} users and {known.num_items:,} items"
    empty = Check("lists: somebody gets something", recommendations.rows > 0, rows)
    return [
        empty,
        *(Check(f"lists: {name}", passed=count == 0, detail=f"{count:,} {name}") for name, count in faults.items()),
    ]


def _faults_of(
    lists: pl.DataFrame, expected_P: np.ndarray, known: Known, met_P: np.ndarray
) -> Iterator[tuple[str, int]]:
    people = known.people.with_row_index("user_index").cast({"user_index": pl.Int64})
    items = known.items.with_row_index("item_index").cast({"item_index": pl.Int64})
    rows = lists.join(people, on="user_id", how="left", maintain_order="left")
    rows = rows.join(items, on="item_id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("user_index").is_null() | pl.col("item_index").is_null())
    yield "rows with an unknown user or item", len(unknown)
    rows = rows.filter(pl.col("user_index").is_not_null() & pl.col("item_index").is_not_null())
    yield "scores that are not finite", int((~np.isfinite(lists["score"].to_numpy())).sum())
    yield "items that stand twice in a list", len(rows) - rows.select("user_id", "item_id").n_unique()
    yield from _forbidden(rows, known)
    if "reasons" in rows.columns:
        yield "rows with reasons that cannot be", _wrong_reasons(rows)
        yield "rows because of items that the user has not met or liked", _reasons_of_others(rows, items, known)
    tier = pl.col("tier").replace_strict({name: order for order, name in enumerate(TIERS)}, default=None)
    ordered = rows.with_columns(tier_order=tier)
    same_user = pl.col("user_index") == pl.col("user_index").shift(1)
    step = pl.col("tier_order") - pl.col("tier_order").shift(1)
    yield "rows with an unknown tier", ordered["tier_order"].null_count()
    does_not_follow = (
        (pl.col("rank") != pl.col("rank").shift(1) + 1)
        | (step < 0)
        | ((step == 0) & (pl.col("score") > pl.col("score").shift(1)))
        | (
            (step == 0)
            & (pl.col("score") == pl.col("score").shift(1))
            & (pl.col("item_id") < pl.col("item_id").shift(1))
        )
    )
    # A list torn apart has its second piece behind a larger user's rows.
    out_of_order = (pl.col("user_id") < pl.col("user_id").shift(1)) | (same_user & does_not_follow)
    yield "rows out of order", ordered.select((out_of_order | pl.col("rank").is_null()).sum()).item()
    lengths = rows.group_by("user_index").agg(pl.len(), pl.col("rank").min()).sort("user_index")
    listed, length = lengths["user_index"].to_numpy(), lengths["len"].to_numpy()
    wrong = length != expected_P[listed]
    if known.settings.at_most_per_category is not None:
        short = length < expected_P[listed]
        of_short = rows.filter(pl.col("user_index").is_in(pl.Series(listed[short]).implode()))
        wrong[short] = ~_as_long_as_the_cap_lets_be(of_short, listed[short], known)
    wrong |= lengths["rank"].to_numpy() != 1
    yield "lists of a wrong length", int(wrong.sum())
    yield "users in two files", int(met_P[listed].sum())
    yield "files out of order", int(len(listed) > 0 and met_P[listed[0] + 1 :].any())  # rows are in id order
    met_P[listed] = True


def _forbidden(rows: pl.DataFrame, known: Known) -> Iterator[tuple[str, int]]:
    """Rows that break a rule, rule by rule. None of it can be overridden."""
    user, item = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
    yield "items that the user has met", _count_among(known.met, user, item, known.num_items)
    yield "items that are blocked for the user", _count_among(known.blocked, user, item, known.num_items)
    for rule, broken in known.forbidden_items().items():
        yield f"items that are forbidden: {rule}", int(rows.select(broken.sum()).item() or 0)
    at_most = known.settings.at_most_per_category
    if at_most is not None:
        of_category = rows.explode("categories").drop_nulls("categories").group_by("user_index", "categories").len()
        yield "categories with too many items in a list", int((of_category["len"] > at_most).sum())


def _wrong_reasons(rows: pl.DataFrame) -> int:
    """Shares are parts of one whole, the largest first; an item's own kind names an item, the others none."""
    num_reasons = rows["reasons"].list.len().fill_null(0).to_numpy()
    row = np.repeat(np.arange(len(rows)), num_reasons)
    if not len(row):
        return 0
    because = rows["reasons"].filter(pl.Series(num_reasons > 0)).explode().struct.unnest()
    share, of_own = because["share"].fill_null(np.nan).to_numpy(), because["kind"].is_in(["liked", "met"])
    no_kind = ~(of_own | because["kind"].is_in(["segment", "popular"])).fill_null(False)
    another_kind = of_own.fill_null(False) != because["item_id"].is_not_null()
    rises = np.append(False, (row[1:] == row[:-1]) & (share[1:] > share[:-1]))
    wrong = (no_kind | another_kind).to_numpy() | rises | ~(share > 0.0) | ~np.isfinite(share)
    more_than_all = np.bincount(row, weights=np.where(wrong, 0.0, share)) > 1.001
    return int((more_than_all | (np.bincount(row, weights=wrong) > 0)).sum())


def _reasons_of_others(rows: pl.DataFrame, items: pl.DataFrame, known: Known) -> int:
    """Rows with a reason whose item this person has not met, or not liked where the kind is `liked`."""
    named = (
        rows.select("reasons", "user_index", row=pl.int_range(pl.len()))
        .filter(pl.col("reasons").list.len() > 0)
        .explode("reasons")
        .unnest("reasons")
        .filter(pl.col("kind").is_in(["liked", "met"]) & pl.col("item_id").is_not_null())
        .join(items.select("item_id", "item_index"), on="item_id", how="left", maintain_order="left")
    )
    strange = named["item_index"].is_null().to_numpy()  # not in the graph: nobody has met it
    user, item = named["user_index"].to_numpy(), named["item_index"].fill_null(0).to_numpy()
    liked = (named["kind"] == "liked").to_numpy()
    strange[liked] |= ~_among(known.liked, user[liked], item[liked], known.num_items)
    strange[~liked] |= ~_among(known.met_ever, user[~liked], item[~liked], known.num_items)
    return int(named["row"].filter(pl.Series(strange)).n_unique())


def _count_among(pairs: Csr, user: np.ndarray, item: np.ndarray, num_items: int) -> int:
    return int(_among(pairs, user, item, num_items).sum())


def _among(pairs: Csr, user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    users = np.unique(user)
    position, has_item = pairs.rows_of(users)
    have = users[position] * np.int64(num_items) + has_item  # ascending
    asked = user * np.int64(num_items) + item
    found = np.minimum(np.searchsorted(have, asked), len(have) - 1)
    return have[found] == asked if len(have) else np.zeros(len(asked), dtype=bool)


def _as_long_as_the_cap_lets_be(rows: pl.DataFrame, listed: np.ndarray, known: Known) -> np.ndarray:
    """(listed,) whether no allowed item is left that has room in all its categories."""
    at_most = known.settings.at_most_per_category
    categories = known.items.select("categories").with_row_index("item").explode("categories").drop_nulls()
    number = (categories["categories"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    shape = (known.num_items, int(number.max()) + 1 if len(number) else 1)
    has_IC = sp.csr_matrix((np.ones(len(number), np.int32), (categories["item"].to_numpy(), number)), shape=shape)
    full = np.zeros(len(listed), dtype=bool)
    line, item = np.searchsorted(listed, rows["user_index"].to_numpy()), rows["item_index"].to_numpy()
    size = max(1, CELLS_AT_ONCE // known.num_items)
    for start in range(0, len(listed), size):
        of_some = (line >= start) & (line < start + size)
        some = listed[start : start + size]
        place = (line[of_some] - start, item[of_some])
        stands_BI = sp.csr_matrix((np.ones(of_some.sum(), np.int32), place), shape=(len(some), known.num_items))
        full_BC = (stands_BI @ has_IC).toarray() >= at_most
        left_BI = known.allowed(some) & ~(full_BC @ has_IC.T.astype(bool))
        left_BI[place] = False
        full[start : start + size] = ~left_BI.any(axis=1)
    return full
