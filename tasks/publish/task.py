"""The publishing stages as Prefect sees them."""

import secrets
from datetime import UTC, datetime
from functools import cache

from prefect import task
from prefect.runtime import flow_run

from tasks.contracts import Evaluation, Fitted, Published, Recommendations, Run, Verdict
from tasks.errors import is_worth_a_retry
from tasks.publish.night import find_published, publish_night
from tasks.run import measured
from tasks.store import open_store


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
    return now, f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def publish(
    run: Run, fitted: Fitted, evaluation: Evaluation, recommendations: Recommendations, verdict: Verdict
) -> Published:
    """Upload, read back, commit, move LATEST.json. Readers see all of it or nothing."""
    now, attempt = _attempt(f"{flow_run.id} {flow_run.run_count}" if flow_run.id else secrets.token_hex(8))
    store = open_store(run.store_uri)
    with measured(run, "publish"):
        return publish_night(store, run, fitted, evaluation, recommendations, verdict, now=now, attempt=attempt)
