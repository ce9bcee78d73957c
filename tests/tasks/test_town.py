"""The demo's town: events like real ones, and an answer that is known."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.config import IngestConfig
from tasks.ingest.events import last_event_at
from tasks.ingest.inspection import inspect_files
from tasks.ingest.movielens import read_titles
from tasks.ingest.sources import pin_inputs
from tasks.ingest.town import LAST_DAY, NUM_DAYS, Town, build_town, known_answer, taste_share, write_town
from tasks.run import decide_date
from tasks.store import open_store
from tests.worlds import read_night

SETTINGS = IngestConfig()


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(str(tmp_path / "store"))


def listing(store: Any) -> list[tuple[str, str]]:
    return [(found.key, found.etag) for found in store.list("")]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (open_store(str(tmp_path / name)) for name in ("first", "again", "other"))
    write_town(first)
    write_town(again)
    write_town(other, seed=7)
    assert listing(first) == listing(again) != listing(other)


def test_writing_a_town_twice_changes_nothing(store: Any) -> None:
    summary = write_town(store)
    before = listing(store)
    assert summary.num_written == NUM_DAYS + 2
    assert write_town(store).num_written == 0
    assert listing(store) == before


def test_a_night_reads_the_town_whole_and_knows_its_date(store: Any, tmp_path: Path) -> None:
    summary = write_town(store)
    schema = inspect_files(store, pin_inputs(store, SETTINGS), SETTINGS)
    night = read_night(store, tmp_path, as_of=date(2026, 11, 23))
    assert (night.rows_in, night.quarantined) == (summary.num_events, {})
    assert (night.num_users, night.num_items) == (summary.num_residents, summary.num_things) == (1_000, 500)
    assert sum(night.set_aside.values()) > 500
    assert decide_date(as_of=None, scheduled_on=None, last_event_at=last_event_at(schema, SETTINGS)) == date(
        2026, 11, 23
    )
    titles = read_titles(store)
    assert titles is not None
    assert titles.height == 500


def test_the_town_is_as_large_as_it_says_and_ends_on_a_fixed_day(town: Town) -> None:
    days = town.events.select(pl.from_epoch("timestamp").dt.date().alias("on"))["on"]
    assert 45_000 < town.events.height < 55_000
    assert (days.min(), days.max(), days.n_unique()) == (date(2026, 10, 24), LAST_DAY, NUM_DAYS)
    assert town.events["rating"].is_between(1, 5).all()


def test_residents_come_on_many_days(town: Town) -> None:
    days_active = (
        town.events.with_columns(on=pl.from_epoch("timestamp").dt.date())
        .group_by("user_id")
        .agg(pl.col("on").n_unique())["on"]
    )
    assert (days_active >= 3).mean() > 0.95
    assert days_active.median() > 6


def test_titles_are_one_of_a_kind_and_readable(town: Town) -> None:
    assert town.things["title"].n_unique() == town.things.height == 500
    assert town.things["title"].str.contains(r"^[A-ZÀ-Ý][\p{L} ]+$").all()
    assert town.things.group_by("genre", "kind").len()["len"].to_list() == [10] * 50


def test_residents_like_what_fits_them(town: Town) -> None:
    likes = town.events.filter(pl.col("rating") >= 4)
    assert taste_share(likes, town) > 0.85
    assert taste_share(known_answer(town), town) == 1.0
    assert known_answer(town).height == 1_000 * 100


def test_some_residents_like_nothing(town: Town) -> None:
    grumblers = town.residents.filter("never_pleased")["user_id"]
    assert 5 < len(grumblers) < 50
    assert town.events.filter(pl.col("user_id").is_in(grumblers.implode()))["rating"].max() <= 2


def test_some_things_are_far_more_popular_than_others(town: Town) -> None:
    counts = town.events["item_id"].value_counts()["count"].sort(descending=True).to_numpy()
    assert counts[:50].sum() > 0.25 * counts.sum()
    assert counts.min() > 0


def test_who_liked_what_before_tells_more_than_what_is_popular(town: Town) -> None:
    """Cosine neighbours, written out: what a graph has to find is in the events, and popularity alone misses it."""
    likes = town.events.filter(pl.col("rating") >= 4).unique(["user_id", "item_id"], keep="last", maintain_order=True)
    cut = int(likes.height * 0.9)
    users, items = sorted(town.residents["user_id"]), sorted(town.things["item_id"])
    user_E = np.searchsorted(users, likes["user_id"].to_list())
    item_E = np.searchsorted(items, likes["item_id"].to_list())
    before_UI, after_UI = np.zeros((1_000, 500)), np.zeros((1_000, 500))
    before_UI[user_E[:cut], item_E[:cut]] = 1
    after_UI[user_E[cut:], item_E[cut:]] = 1
    popularity_I = before_UI.sum(axis=0)
    together_II = before_UI.T @ before_UI / np.sqrt(np.outer(popularity_I + 10, popularity_I + 10))
    np.fill_diagonal(together_II, 0)

    def recall_at_20(score_UI: np.ndarray) -> float:
        top_UK = np.argsort(-np.where(before_UI > 0, -np.inf, score_UI), axis=1, kind="stable")[:, :20]
        hits_U, all_U = np.take_along_axis(after_UI, top_UK, axis=1).sum(axis=1), after_UI.sum(axis=1)
        return float((hits_U[all_U > 0] / all_U[all_U > 0]).mean())

    popular = recall_at_20(np.broadcast_to(popularity_I, (1_000, 500)))
    assert popular > 2 * 20 / 500
    assert recall_at_20(before_UI @ together_II) > 2 * popular
