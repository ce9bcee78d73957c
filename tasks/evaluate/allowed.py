"""What tables and settings forbid, worked out anew for the gate, in another way than where lists are made.

A fault in the arrays that recommendations come from would otherwise be found right by themselves. Also who is in which
segment, for what that tier is worth.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.graph import Csr, load_csr
from tasks.config import RecommendConfig
from tasks.contracts import Tables
from tasks.run import read_ids

US = timedelta(microseconds=1)
NO_SEGMENT = ""  # no user's: tables have no empty segments
CELLS_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class Known:
    """What lists are held against.

    people: user_id (ascending), segment. items: item_id in the order of the graph's rows, available, segments,
    categories, born_us; facts that no table says are null. met and blocked: pairs by person, items ascending; also
    met_ever and liked, which no window of days cuts off: what a reason may name.
    """

    people: pl.DataFrame
    items: pl.DataFrame
    met: Csr
    blocked: Csr
    met_ever: Csr
    liked: Csr
    settings: RecommendConfig
    midnight_us: int

    @property
    def num_items(self) -> int:
        return len(self.items)

    def forbidden_items(self) -> dict[str, pl.Expr]:
        """Rule -> true for a row that breaks it, of frames with the items' facts and a person's segment."""
        day, age = timedelta(days=1) // US, self.midnight_us - pl.col("born_us")
        youngest, oldest = self.settings.min_item_age_days, self.settings.max_item_age_days
        somebody_says = self.items["available"].is_not_null().any()
        of_others = ~pl.col("segments").list.contains(pl.col("segment"))
        return {
            "unavailable": ~pl.col("available").fill_null(True),
            "unlisted": pl.lit(somebody_says) & pl.col("available").is_null(),
            "too_new": pl.lit(False) if youngest is None else age < youngest * day,
            "too_old": pl.lit(False) if oldest is None else age > oldest * day,
            "segment": (pl.col("segments").list.len() > 0).fill_null(False) & of_others.fill_null(True),
        }

    def num_allowed(self) -> npt.NDArray[np.int64]:
        """(P,) how many items all rules but the cap leave to each person."""
        people = np.arange(len(self.people))
        size = max(1, CELLS_AT_ONCE // max(1, self.num_items))
        counts = [self.allowed(people[start : start + size]).sum(axis=1) for start in range(0, len(people), size)]
        return np.concatenate(counts) if counts else people

    def allowed(self, people: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(B, I) what all rules but the cap leave to some people. Whoever asks for many asks for some at a time."""
        allowed_BI = self._allowed_SI[self._segment_P[people]]
        for pairs in (self.met, self.blocked):
            allowed_BI[pairs.rows_of(people)] = False
        return allowed_BI

    @cached_property
    def _segment_P(self) -> npt.NDArray[np.int64]:
        return (self.people["segment"].rank("dense").cast(pl.Int64) - 1).to_numpy()

    @cached_property
    def _allowed_SI(self) -> npt.NDArray[np.bool_]:
        """What the rules of items leave to people of each segment, in the order of their names."""
        of_segment = []
        for segment in self.people["segment"].unique().sort():
            rows = self.items.with_columns(segment=pl.lit(segment))
            of_segment.append(~rows.select(pl.any_horizontal(*self.forbidden_items().values())).to_series().to_numpy())
        return np.stack(of_segment)


def read_known(graph_folder: str, tables: Tables, settings: RecommendConfig, as_of: date) -> Known:
    folder = Path(graph_folder)
    user_ids, item_ids = read_ids(folder)
    midnight_us = (datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // US
    people = pl.DataFrame({"user_id": user_ids})
    if "users" in tables.rows:
        others = _table(tables, "users")
        people = pl.concat([people.cast(others.schema), others]).unique().sort("user_id")
    if "segments" in tables.rows:
        people = people.join(_table(tables, "segments"), on="user_id", how="left", maintain_order="left")
    else:
        people = people.with_columns(segment=pl.lit(NO_SEGMENT))
    people = people.with_columns(pl.col("segment").fill_null(NO_SEGMENT))
    return Known(
        people=people,
        items=_items(item_ids, tables, np.load(folder / "item_first_seen.npy")),
        met=_met(folder, user_ids, people, settings.seen_days, midnight_us),
        blocked=_blocked(tables, people, item_ids),
        met_ever=_of_people(load_csr(folder, "seen_all"), user_ids, people),
        liked=_of_people(load_csr(folder, "liked_all"), user_ids, people),
        settings=settings,
        midnight_us=midnight_us,
    )


def read_segments(graph_folder: str, tables: Tables) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """(U,) each user's segment as its place among the names, -1: none; and those. None where no table names any."""
    if "segments" not in tables.rows:
        return None, []
    told = _table(tables, "segments")
    user_ids, _ = read_ids(Path(graph_folder))
    users = pl.DataFrame({"user_id": user_ids.cast(told["user_id"].dtype)})
    segment = users.join(told, on="user_id", how="left", maintain_order="left")["segment"]
    return (segment.rank("dense").cast(pl.Int64) - 1).fill_null(
        -1
    ).to_numpy(), segment.drop_nulls().unique().sort().to_list()


def _table(tables: Tables, name: str) -> pl.DataFrame:
    return pl.read_parquet(Path(tables.folder) / f"{name}.parquet")


def _items(item_ids: pl.Series, tables: Tables, first_seen_I: np.ndarray) -> pl.DataFrame:
    text_list = pl.List(pl.String)
    facts: dict[str, pl.DataType] = {"available": pl.Boolean(), "categories": text_list, "segments": text_list}
    items = pl.DataFrame({"item_id": item_ids, "first_seen_us": first_seen_I})
    if "items" in tables.rows:
        items = items.join(_table(tables, "items"), on="item_id", how="left", maintain_order="left")
    missing = [pl.lit(None, kind).alias(name) for name, kind in facts.items() if name not in items.columns]
    born = ["published_at", "first_seen_us"] if "published_at" in items.columns else ["first_seen_us"]
    return items.with_columns(*missing, born_us=pl.coalesce(born)).select("item_id", *facts, "born_us")


def _met(folder: Path, user_ids: pl.Series, people: pl.DataFrame, seen_days: int | None, midnight_us: int) -> Csr:
    seen = load_csr(folder, "seen_all")
    if seen_days is None:
        return _of_people(seen, user_ids, people)
    recent_E = midnight_us - np.load(folder / "seen_at.npy") <= timedelta(days=seen_days) // US
    return _of_people(seen, user_ids, people, recent_E)


def _of_people(
    pairs: Csr, user_ids: pl.Series, people: pl.DataFrame, is_kept_E: npt.NDArray[np.bool_] | None = None
) -> Csr:
    """The graph's users' pairs by person, all or some of them."""
    person_U = people["user_id"].search_sorted(user_ids.cast(people["user_id"].dtype)).to_numpy()
    person_E, item_E = np.repeat(person_U, pairs.counts()), np.asarray(pairs.indices)
    if is_kept_E is not None:
        person_E, item_E = person_E[is_kept_E], item_E[is_kept_E]
    return _by_person(person_E, item_E, len(people))


def _blocked(tables: Tables, people: pl.DataFrame, item_ids: pl.Series) -> Csr:
    if "blocked" not in tables.rows:
        return _by_person(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), len(people))
    pairs = _table(tables, "blocked").filter(pl.col("item_id").is_in(item_ids.implode()))
    person = people["user_id"].search_sorted(pairs["user_id"]).to_numpy()
    item = item_ids.search_sorted(pairs["item_id"]).to_numpy()
    return _by_person(person, item, len(people))


def _by_person(person_E: np.ndarray, item_E: np.ndarray, num_people: int) -> Csr:
    """Pairs in ascending order, as they came, by person."""
    counts = np.bincount(person_E, minlength=num_people)
    return Csr(np.concatenate([[0], np.cumsum(counts)]), item_E.astype(np.int32))
