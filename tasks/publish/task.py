"""The publishing stages as Prefect sees them."""

import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path

from prefect import task
from prefect.runtime import flow_run
from pydantic import SecretStr

from tasks.config import IngestConfig
from tasks.contracts import (
    Evaluation,
    Fitted,
    LiveLists,
    LiveNight,
    NightDiff,
    Published,
    Recommendations,
    Retained,
    RewrittenNights,
    Run,
    Swept,
    Verdict,
)
from tasks.due import sweep
from tasks.errors import ObjectNotFound, is_worth_a_retry
from tasks.publish.attempts import new_attempt
from tasks.publish.difference import compared
from tasks.publish.manifest import ingest_settings
from tasks.publish.night import find_published, publish_night
from tasks.publish.reader import open_latest
from tasks.publish.retention import retain
from tasks.publish.rewrite import files_in_use, rewrite_nights, without_who_left_meanwhile
from tasks.publish.rollback import live_night, release, repair, roll_back
from tasks.registry import open_registry
from tasks.run import measured
from tasks.store import open_store
from tasks.without import theirs_of


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def already_published(run: Run) -> Published | None:
    """The night itself, if this date's newest version came from the same inputs, settings and code. Never when forced.

    Moves LATEST.json on where an earlier night died between its commit and that.
    """
    return find_published(open_store(run.store_uri), run)


@cache
def _attempt(flow_run_and_count: str) -> tuple[datetime, str]:
    """One for all tries of a run, or a retry after a lost answer could not know its own commit, and would add one."""
    now = datetime.now(UTC)
    return now, new_attempt(now)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def compare_with_live(run: Run, recommendations: Recommendations) -> NightDiff:
    """What would change for readers. A live night that cannot be read keeps no night back: readers need a new one."""
    with measured(run, "compare"):
        return compared(open_store(run.store_uri), run, recommendations)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def publish(
    run: Run, fitted: Fitted, evaluation: Evaluation, recommendations: Recommendations, verdict: Verdict
) -> Published:
    """Upload, read back, commit, move LATEST.json. Readers see all of it or nothing."""
    now, attempt = _attempt(f"{flow_run.id} {flow_run.run_count}" if flow_run.id else secrets.token_hex(8))
    store = open_store(run.store_uri)
    with measured(run, "publish"):
        published = publish_night(store, run, fitted, evaluation, recommendations, verdict, now=now, attempt=attempt)
        return without_who_left_meanwhile(store, run, published, now=now)


# ---- forgetting


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def read_live_lists(store_uri: str, people: Sequence[SecretStr]) -> LiveLists:
    """Where the live night's events are, and who of them has a list in it."""
    try:
        night = open_latest(store_uri)
    except ObjectNotFound:
        return LiveLists(IngestConfig(), "", (False,) * len(people))
    typed = [one.get_secret_value() for one in people]
    return LiveLists(ingest_settings(night.manifest), night.user_id_type, tuple(map(night.has_list, typed)))


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def leave_out_of_nights(store_uri: str, scratch: str) -> RewrittenNights:
    """Every kept night as a new version without whoever is forgotten; what that replaces is due."""
    store = open_store(store_uri)
    return rewrite_nights(store, theirs_of(open_registry(store)), now=datetime.now(UTC), scratch=Path(scratch))


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def remove_what_is_due(store_uri: str, in_use: frozenset[str]) -> Swept:
    """What has been due for the grace, and is neither `in_use` nor named by a night."""
    store = open_store(store_uri)
    return sweep(store, in_use=in_use | files_in_use(store))


# ---- what an operator does


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def bring_back(store_uri: str, to: date, version: int | None, who: str, reason: str) -> LiveNight | None:
    """Readers get that kept night again, and stay with it until it is released. Tried again, it is one rollback."""
    store = open_store(store_uri)
    store.probe()
    roll_back(store, to, version=version, who=who, reason=reason, now=datetime.now(UTC))
    return live_night(store)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def let_go(store_uri: str, who: str, reason: str) -> LiveNight | None:
    """Readers go on to the newest night."""
    store = open_store(store_uri)
    store.probe()
    release(store, who=who, reason=reason, now=datetime.now(UTC))
    return live_night(store)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def rebuild_latest(store_uri: str) -> LiveNight | None:
    """LATEST.json says again what the log says."""
    store = open_store(store_uri)
    store.probe()
    repair(store)
    return live_night(store)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def remove_old_nights(store_uri: str, keep_dates: int, apply: bool) -> Retained:
    """Without `apply` nothing is removed, and what would be is said."""
    store = open_store(store_uri)
    store.probe()
    return retain(store, keep_dates=keep_dates, apply=apply)
