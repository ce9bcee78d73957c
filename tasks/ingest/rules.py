"""What is wrong with a row: the named rules, each a Polars expression, in one list.

A row is refused under the first rule that it breaks, and kept in quarantine/ as it came. Where refused rows reach a
share of all, whoever writes the events has changed something, and the night stops. What is real and not to be learned
from, repeats and bots, is set aside where all events of a day stand together (digest.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl

from tasks.config import IngestConfig
from tasks.errors import ContractViolation
from tasks.ingest.inspection import EventFile, EventSchema

LONGEST_ID_BYTES = 256
LARGEST_RATING = 1e6  # like_threshold cannot be set beyond it
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_10000_US = 253_402_300_800_000_000
CLOCK_SLACK = timedelta(days=1)
WORST_FILES_NAMED = 3


@dataclass(frozen=True)
class Rule:
    """`breaks` is true for a row that breaks it, on the columns of scan.scan_file."""

    name: str
    breaks: pl.Expr


def rules(file: EventFile, schema: EventSchema, settings: IngestConfig) -> list[Rule]:
    """For one file, in the order in which they name a row."""
    ids = {"user_id": schema.user_id, "item_id": schema.item_id}
    time = pl.col("timestamp_us")
    named = {f"null_{name}": pl.col(name).is_null() for name in ids}
    named |= {f"malformed_{name}": is_malformed(pl.col(name)) for name, kind in ids.items() if kind == pl.String}
    if settings.has_rating:
        rating = pl.col("rating").cast(pl.Float64)
        named["null_rating"] = rating.is_null()
        named["not_finite_rating"] = ~rating.is_finite()  # said aloud, because NaN > 0 is true here
        named["absurd_rating"] = rating.abs() > LARGEST_RATING
    if settings.event_weights:
        named["unknown_event_type"] = pl.col("kind").is_null()
    named["null_timestamp"] = time.is_null()
    named["timestamp_before_1970"] = time < 0
    named["timestamp_after_9999"] = time >= YEAR_10000_US
    named["timestamp_in_future"] = time > microseconds_of(file.modified_at + CLOCK_SLACK)
    return [Rule(name, breaks) for name, breaks in named.items()]


def is_malformed(text: pl.Expr) -> pl.Expr:
    """Ids are opaque: never trimmed, folded or cast. Only what breaks files, logs and screens is refused."""
    size = text.str.len_bytes()
    return (size == 0) | (size > LONGEST_ID_BYTES) | text.str.contains(r"\p{Cc}")


def first_broken(named: list[Rule]) -> pl.Expr:
    """The name of the first rule that the row breaks, null where it breaks none."""
    return pl.coalesce([pl.when(rule.breaks).then(pl.lit(rule.name)) for rule in named]).alias("rule")


def midnight_us(day: date) -> int:
    return microseconds_of(datetime(day.year, day.month, day.day, tzinfo=UTC))


def microseconds_of(moment: datetime) -> int:
    """Since 1970, UTC."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def settings_of_rules(settings: IngestConfig) -> dict[str, object]:
    """What decides which rows of a file are valid and what kind they are: a digested unit is one of these settings.

    Weights, half life and window are none of it: they are applied where units are merged.
    """
    return {
        "columns": settings.columns.model_dump(),
        "like_threshold": settings.like_threshold if settings.has_rating else None,
        "event_types": settings.event_types,
        "bot_events_per_day": settings.bot_events_per_day,
    }


def ensure_contract(refused: Mapping[str, Mapping[str, int]], rows: int, settings: IngestConfig) -> None:
    """`refused` is file -> rule -> rows. Raises ContractViolation where they reach the share that stops a night."""
    total = sum(sum(by_rule.values()) for by_rule in refused.values())
    if not total or total < settings.quarantine_share_at_most * rows:
        return
    by_rule: dict[str, int] = {}
    for of_file in refused.values():
        for rule, count in of_file.items():
            by_rule[rule] = by_rule.get(rule, 0) + count
    worst = sorted(refused, key=lambda uri: (-sum(refused[uri].values()), uri))[:WORST_FILES_NAMED]
    raise ContractViolation(
        f"{total:,} of {rows:,} rows ({total / rows:.2%}) break a rule: {_in_words(by_rule)}. Most are in "
        + ", ".join(f"{uri} ({sum(refused[uri].values()):,})" for uri in worst)
        + f". From {settings.quarantine_share_at_most:.2%} on something has changed where the events are written, so "
        "nothing was published. The rows stand in quarantine/ as they came. Mend what writes them, or set "
        "ingest.quarantine_share_at_most higher if that is how they are."
    )


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count:,}" for rule, count in sorted(counts.items(), key=lambda of: (-of[1], of[0])))
