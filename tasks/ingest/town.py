"""A town of our own for the demo and the tests: residents with hidden tastes, things with titles, a known answer.

Everything follows from the seed and a fixed last day, so a town has the same bytes wherever it is written.
"""

import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tasks.errors import ObjectExists
from tasks.store import Store

LAST_DAY = date(2026, 11, 22)
NUM_DAYS = 30
NUM_RESIDENTS = 1_000
THINGS_OF_A_KIND = 10  # of each kind in each taste
MEAN_EVENTS = 50.0
SHARE_OUT_OF_TASTE = 0.15  # what is popular, whoever it is for
SHARE_NEVER_PLEASED = 0.02
SHARE_AGAIN = 0.05  # rated again on a later occasion
POPULARITY_EXPONENT = 0.8  # Zipf over the whole catalogue

# Each taste has words to build titles of, so that a person sees at a glance what fits together.
TASTES: dict[str, tuple[str, ...]] = {
    "sea": ("Lighthouse", "Harbour", "Tide", "Sailor", "Coral", "Anchor", "Whale", "Island", "Gull", "Driftwood"),
    "mystery": ("Alibi", "Cipher", "Inspector", "Poison", "Witness", "Locked Room", "Ransom", "Clue", "Heist", "Decoy"),
    "garden": ("Orchard", "Rose", "Greenhouse", "Bee", "Fern", "Meadow", "Seedling", "Willow", "Moss", "Hedgerow"),
    "space": ("Comet", "Orbit", "Nebula", "Rocket", "Saturn", "Eclipse", "Moonbase", "Galaxy", "Astronaut", "Meteor"),
    "music": ("Violin", "Jazz", "Chorus", "Piano", "Rhythm", "Ballad", "Trumpet", "Vinyl", "Sonata", "Encore"),
    "baking": (
        "Sourdough",
        "Cinnamon",
        "Brioche",
        "Pretzel",
        "Almond",
        "Marzipan",
        "Rye",
        "Nougat",
        "Crumble",
        "Waffle",
    ),
    "history": ("Castle", "Crown", "Viking", "Abbey", "Scroll", "Knight", "Empire", "Ruin", "Pharaoh", "Legion"),
    "mountain": ("Summit", "Glacier", "Ridge", "Alpine", "Avalanche", "Eagle", "Granite", "Cabin", "Trail", "Pine"),
    "robots": (
        "Automaton",
        "Circuit",
        "Android",
        "Gearwheel",
        "Servo",
        "Turing",
        "Drone",
        "Clockwork",
        "Piston",
        "Relay",
    ),
    "romance": (
        "Valentine",
        "Love Letter",
        "Serenade",
        "Wedding",
        "Kiss",
        "Rendezvous",
        "Sweetheart",
        "Waltz",
        "Vow",
        "Blush",
    ),
}
KINDS: dict[str, tuple[str, ...]] = {
    "book": ("The {} Diaries", "The {} Papers", "A Pocketful of {}"),
    "film": ("The Last {}", "{} at Midnight", "Return to {}"),
    "cafe": ("Café {}", "{} Corner", "The {} Teahouse"),
    "club": ("The {} Society", "{} Circle", "Friends of {}"),
    "course": ("{} for Beginners", "{} Masterclass", "Weekend {}"),
}


@dataclass(frozen=True)
class Town:
    """R residents, I things, E events of one resident, S sittings, T tastes."""

    events: pl.DataFrame  # user_id, item_id, rating (int8, 1 to 5), timestamp (s), in the order of time
    things: pl.DataFrame  # item_id, title, kind, genre, categories (the genre, as the items table wants it)
    residents: pl.DataFrame  # user_id, first_taste, second_taste, never_pleased


@dataclass(frozen=True)
class TownSummary:
    num_residents: int
    num_things: int
    num_events: int
    first_on: date
    last_on: date
    num_written: int  # files that were not there before


def build_town(seed: int = 2020) -> Town:
    rng = np.random.default_rng(seed)
    things = _things()
    popularity_I = _popularity(things.height, rng)
    residents, taste_share_RT = _residents(rng)
    taste_I = np.repeat(np.arange(len(TASTES)), len(KINDS) * THINGS_OF_A_KIND)
    events = [
        _events_of(resident, taste_share_RT[resident], taste_I, popularity_I, residents, rng)
        for resident in range(NUM_RESIDENTS)
    ]
    user_E, item_E, rating_E, timestamp_E = (np.concatenate(column) for column in zip(*events, strict=True))
    together = pl.DataFrame(
        {
            "user_id": residents["user_id"].to_numpy()[user_E],
            "item_id": things["item_id"].to_numpy()[item_E],
            "rating": rating_E.astype(np.int8),
            "timestamp": timestamp_E,
        },
        schema_overrides={"user_id": pl.String, "item_id": pl.String},
    )
    return Town(together.sort("timestamp", "user_id", "item_id"), things, residents)


def write_town(store: Store, seed: int = 2020) -> TownSummary:
    """One file of events a day, the titles, and a _SUCCESS that no reader may stumble over. What is there stays."""
    town = build_town(seed)
    by_day = town.events.with_columns(on=pl.from_epoch("timestamp").dt.date()).partition_by("on", as_dict=True)
    files = {f"events/dt={on.isoformat()}/events.parquet": frame.drop("on") for (on,), frame in sorted(by_day.items())}
    num_written = sum(_write_once(store, key, frame) for key, frame in files.items())
    num_written += _write_once(store, "items/items.parquet", town.things)
    num_written += _put(store, f"events/dt={LAST_DAY.isoformat()}/_SUCCESS", b"")
    return TownSummary(
        num_residents=town.residents.height,
        num_things=town.things.height,
        num_events=town.events.height,
        first_on=LAST_DAY - timedelta(days=NUM_DAYS - 1),
        last_on=LAST_DAY,
        num_written=num_written,
    )


# ---- the known answer


def known_answer(town: Town) -> pl.DataFrame:
    """user_id, item_id: everything that is of one of the resident's two tastes, seen or not."""
    tastes = town.residents.unpivot(["first_taste", "second_taste"], index="user_id", value_name="genre")
    return tastes.join(town.things, on="genre").select("user_id", "item_id").sort("user_id", "item_id")


def taste_share(recommended: pl.DataFrame, town: Town) -> float:
    """Of all recommended user_id, item_id rows, the share that fits the resident. By chance it is 2 tastes in 10."""
    return recommended.join(known_answer(town), on=["user_id", "item_id"], how="semi").height / recommended.height


# ---- how a town comes about


def _things() -> pl.DataFrame:
    """Taste by taste, in it kind by kind: the row of a thing tells its taste."""
    rows = []
    number = dict.fromkeys(KINDS, 0)
    for genre, words in TASTES.items():
        for kind, patterns in KINDS.items():
            for word in words:
                title = patterns[number[kind] % len(patterns)].format(word)
                number[kind] += 1
                rows.append((f"{kind}-{number[kind]:03d}", title, kind, genre))
    return pl.DataFrame(rows, schema=["item_id", "title", "kind", "genre"], orient="row").with_columns(
        categories=pl.concat_list("genre")
    )


def _popularity(num_things: int, rng: np.random.Generator) -> np.ndarray:
    weight_I = (1.0 + rng.permutation(num_things)) ** -POPULARITY_EXPONENT
    return weight_I / weight_I.sum()


def _residents(rng: np.random.Generator) -> tuple[pl.DataFrame, np.ndarray]:
    """Each has a first and a second taste and a little of all; some tastes are more common than others."""
    names = list(TASTES)
    common_T = np.linspace(1.6, 0.6, len(names))
    common_T /= common_T.sum()
    tastes_R2 = np.stack([rng.choice(len(names), 2, replace=False, p=common_T) for _ in range(NUM_RESIDENTS)])
    first_share_R = rng.uniform(0.5, 0.7, NUM_RESIDENTS)
    share_RT = np.full((NUM_RESIDENTS, len(names)), 0.1 / len(names))
    rows_R = np.arange(NUM_RESIDENTS)
    share_RT[rows_R, tastes_R2[:, 0]] += first_share_R
    share_RT[rows_R, tastes_R2[:, 1]] += 0.9 - first_share_R
    frame = pl.DataFrame(
        {
            "user_id": [f"resident-{number:04d}" for number in range(1, NUM_RESIDENTS + 1)],
            "first_taste": [names[taste] for taste in tastes_R2[:, 0]],
            "second_taste": [names[taste] for taste in tastes_R2[:, 1]],
            "never_pleased": rng.random(NUM_RESIDENTS) < SHARE_NEVER_PLEASED,
        }
    )
    return frame, share_RT


def _events_of(
    resident: int,
    taste_share_T: np.ndarray,
    taste_I: np.ndarray,
    popularity_I: np.ndarray,
    residents: pl.DataFrame,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    by_taste_I = popularity_I * taste_share_T[taste_I]
    appeal_I = (1 - SHARE_OUT_OF_TASTE) * by_taste_I / by_taste_I.sum() + SHARE_OUT_OF_TASTE * popularity_I
    num_things = int(np.clip(rng.gamma(2.0, MEAN_EVENTS / 2.0), 5, 150))
    item_E = rng.choice(len(appeal_I), num_things, replace=False, p=appeal_I)
    fits_E = taste_share_T[taste_I[item_E]] > 0.1
    highest = 2 if residents["never_pleased"][resident] else 5
    rating_E = np.clip(np.rint(np.where(fits_E, 4.3, 2.6) + rng.normal(0.0, 0.8, num_things)), 1, highest)
    timestamp_E = _evenings(num_things, rng)
    again_E = rng.random(num_things) < SHARE_AGAIN
    later_E = np.minimum(timestamp_E[again_E] + rng.integers(1, 7, again_E.sum()) * 86_400, _midnight_s(1) - 1)
    return (
        np.full(num_things + again_E.sum(), resident),
        np.concatenate([item_E, item_E[again_E]]),
        np.concatenate([rating_E, np.clip(rating_E[again_E] + rng.integers(-1, 2, again_E.sum()), 1, highest)]),
        np.concatenate([timestamp_E, later_E]),
    )


def _evenings(num_events: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds since 1970, a few sittings spread over the month, minutes between the events of one."""
    num_sittings = max(3, num_events // 5)
    day_S = rng.choice(NUM_DAYS, num_sittings, replace=False)
    start_S = np.clip(rng.normal(19.0, 2.5, num_sittings), 6.0, 22.5) * 3_600
    sitting_E = rng.integers(0, num_sittings, num_events)
    minutes_E = rng.uniform(0.0, 75.0, num_events)
    return (_midnight_s(1 - NUM_DAYS) + day_S[sitting_E] * 86_400 + start_S[sitting_E] + minutes_E * 60).astype(
        np.int64
    )


def _midnight_s(days_after_last: int) -> int:
    return (LAST_DAY + timedelta(days=days_after_last) - date(1970, 1, 1)).days * 86_400


def _write_once(store: Store, key: str, frame: pl.DataFrame) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "part.parquet"
        frame.write_parquet(path, compression="zstd", row_group_size=100_000)
        return _put(store, key, path)


def _put(store: Store, key: str, source: bytes | Path) -> bool:
    try:
        store.put_once(key, source)
    except ObjectExists:
        return False
    return True
