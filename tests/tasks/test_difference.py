"""Tonight's lists beside the live ones, held against a plain count."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.contracts import NightDiff, Part, Recommendations
from tasks.publish.difference import compare, compared
from tasks.publish.reader import LatestNight, open_latest
from tasks.store import open_store


def lists_of(frames: list[pl.DataFrame], folder: Path, k: int) -> Recommendations:
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, frame in enumerate(frames):
        path = folder / f"part-{number}.parquet"
        frame.write_parquet(path)
        parts.append(Part(str(path), len(frame), frame["user_id"].n_unique(), path.stat().st_size, "hash"))
    rows = sum(part.rows for part in parts)
    return Recommendations(str(folder), tuple(parts), "f", k, sum(p.users for p in parts), rows, {}, 0, 0, 99)


def drawn(seed: int, users: range, *, k: int = 5, items: int = 30, kind: Any = pl.Int64) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (user, rank + 1, f"item {item}", 1.0, "graph" if rng.random() < 0.8 else "popular")
        for user in users
        for rank, item in enumerate(rng.permutation(items)[:k])
    ]
    schema = {"user_id": kind, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float32, "tier": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def live_of(make_night: Any, frames: list[pl.DataFrame], tmp_path: Path) -> LatestNight:
    """A published night whose files are these."""
    make_night(str(tmp_path / "store")).publish()
    live = open_latest(str(tmp_path / "store"))
    files = []
    for number, frame in enumerate(frames):
        path = tmp_path / f"live-{number}.parquet"
        frame.write_parquet(path, row_group_size=40)
        files.append(str(path))
    users = sum(frame["user_id"].n_unique() for frame in frames)
    return replace(live, files=tuple(files), manifest=live.manifest.model_copy(update={"users": users}))


def by_hand(now: pl.DataFrame, before: pl.DataFrame) -> dict[str, Any]:
    lists = [
        {user: rows.sort("rank")["item_id"].to_list() for (user,), rows in frame.group_by("user_id")}
        for frame in (now, before)
    ]
    both = sorted(lists[0].keys() & lists[1].keys())
    overlap = [len(set(lists[0][u]) & set(lists[1][u])) / max(len(lists[0][u]), len(lists[1][u])) for u in both]
    of_now, of_before = (set(frame["item_id"]) for frame in (now, before))
    return {
        "users_in_both": len(both),
        "overlap": pytest.approx(np.mean(overlap)),
        "identical": sum(lists[0][u] == lists[1][u] for u in both),
        "items_in": len(of_now - of_before),
        "items_out": len(of_before - of_now),
    }


@pytest.mark.parametrize("files", [1, 3])
def test_the_figures_are_those_of_a_plain_count_over_any_files(files: int, make_night: Any, tmp_path: Path) -> None:
    now = pl.concat([drawn(1, range(3, 60)), drawn(2, range(60, 64)), drawn(9, range(70, 80), items=33)])
    before = pl.concat([drawn(4, range(0, 50)), drawn(2, range(60, 64)), drawn(5, range(90, 95), k=3)])
    cuts = np.array_split(now["user_id"].unique().sort().to_numpy(), files)
    parts = [now.filter(pl.col("user_id").is_in(pl.Series(some).implode())) for some in cuts]
    live = live_of(
        make_night, [before.filter(pl.col("user_id") < 61), before.filter(pl.col("user_id") >= 61)], tmp_path
    )
    diff = compare(live, lists_of(parts, tmp_path / "now", 5), same_input=False)
    assert {name: getattr(diff, name) for name in by_hand(now, before)} == by_hand(now, before)
    assert diff.identical >= 4
    assert sum(diff.overlap_tenths) == diff.users_in_both
    assert diff.overlap_tenths[10] >= 4
    for one in (*diff.gained, *diff.lost):
        for frame, count in ((now, one.now), (before, one.before)):
            assert len(frame.filter(pl.col("item_id") == one.item_id)) == count
    gains = [one.now - one.before for one in diff.gained]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0
    assert (diff.users_before, diff.users_now) == (59, 71)


def test_whose_list_begins_with_another_tier_is_counted(make_night: Any, tmp_path: Path) -> None:
    before = drawn(1, range(10))
    now = before.with_columns(
        tier=pl.when((pl.col("rank") == 1) & (pl.col("user_id") < 4)).then(pl.lit("fold_in")).otherwise("tier")
    )
    diff = compare(live_of(make_night, [before], tmp_path), lists_of([now], tmp_path / "now", 5), same_input=True)
    assert (diff.other_tier, diff.identical, diff.overlap) == (4, 10, 1.0)


def test_ids_of_another_width_are_the_same_and_of_another_kind_are_not(make_night: Any, tmp_path: Path) -> None:
    before = drawn(1, range(10))
    live = live_of(make_night, [before], tmp_path)
    narrow = lists_of([drawn(1, range(10), kind=pl.Int32)], tmp_path / "narrow", 5)
    assert compare(live, narrow, same_input=True).identical == 10
    text = lists_of([before.with_columns(pl.col("user_id").cast(pl.String))], tmp_path / "text", 5)
    assert "of another kind" in compare(live, text, same_input=True).why_not


def test_without_a_live_night_there_is_nothing_to_compare_and_a_damaged_one_is_said(
    make_night: Any, tmp_path: Path
) -> None:
    night = make_night(str(tmp_path / "store"))
    store = open_store(str(tmp_path / "store"))
    first = compared(store, night.run, night.recommendations)
    assert first == NightDiff(None, 0, 0, night.recommendations.users, same_input=False)
    night.publish()
    again = compared(store, night.run, night.recommendations)
    assert (again.as_of, again.same_input) == (date(2026, 11, 23), True)
    assert again.identical == again.users_in_both > 0
    for path in (tmp_path / "store" / "recs").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    damaged = compared(store, night.run, night.recommendations)
    assert damaged.why_not.startswith("it cannot be read")
