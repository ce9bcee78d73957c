"""Leave the night's report behind, whatever became of the night: in the dashboard, and in the store as an audit."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect import Flow, State, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun

from tasks.contracts import (
    LATEST_KEY,
    Evaluation,
    Fitted,
    Graph,
    Interactions,
    Night,
    NightDiff,
    Published,
    Recommendations,
    Run,
    Tables,
    Verdict,
)
from tasks.errors import ObjectNotFound, is_worth_a_retry
from tasks.report.audit import write_audit
from tasks.report.markdown import to_markdown
from tasks.run import DEFAULT_STORE, STORE_VARIABLE, stage_costs
from tasks.store import open_store

log = logging.getLogger("nightgraph.report")
ARTIFACT_KEY = "night"
FAILURE_KEY = "night-failed"


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def report(
    run: Run,
    interactions: Interactions,
    graph: Graph,
    fitted: Fitted,
    evaluation: Evaluation,
    recommendations: Recommendations,
    verdict: Verdict,
    published: Published | None,
    tables: Tables,
    diff: NightDiff,
) -> None:
    """A Markdown artifact, and `_meta/audits/DATE/<attempt>.json` with every figure of it.

    What cannot be written of it is a warning: the night itself has been decided by then.
    """
    with _only_a_warning("the report"):
        night = Night(
            as_of=run.as_of,
            run_key=run.run_key,
            store_uri=run.store_uri,
            config=run.config,
            interactions=interactions,
            graph=graph,
            fitted=fitted,
            evaluation=evaluation,
            recommendations=recommendations,
            verdict=verdict,
            published=published,
            costs=tuple(stage_costs(run)),
            tables=tables,
            diff=diff,
        )
        _leave_behind(night)


def _leave_behind(night: Night) -> None:
    published = night.published
    attempt = published.attempt if published else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    with _only_a_warning("the audit"):
        write_audit(open_store(night.store_uri), night, attempt)
    _show(to_markdown(night), ARTIFACT_KEY, f"The night of {night.as_of}")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def report_unchanged(earlier: Published) -> Published:
    """Say in the dashboard that this night changed nothing, and pass it on."""
    _show(
        f"# Night of {earlier.as_of}: nothing new\n\nVersion {earlier.version} was published before, from the same "
        f"events, settings and code: `{earlier.commit_uri}`, {earlier.rows:,} rows for {earlier.users:,} users.",
        ARTIFACT_KEY,
        f"The night of {earlier.as_of}",
    )
    return earlier


def report_failure(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for nights that end in an error: its name and words where people look for the report, and what is live."""
    _show(
        f"# This night ended in an error\n\n{state.message}\n\n{_what_is_live()}",
        FAILURE_KEY,
        "Why this night ended early",
    )


def _what_is_live() -> str:
    """Read, not concluded: an error can come after the commit too."""
    try:
        content, _ = open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).read(LATEST_KEY)
        latest = json.loads(content)
        return f"Live in the store now: the night of {latest['as_of']}, version {latest['version']}."
    except ObjectNotFound:
        return "Nothing is live in the store, and nothing was before."
    except Exception as error:
        return f"What is live could not be read just now ({type(error).__name__}): LATEST.json in the store says it."


def _show(markdown: str, key: str, description: str) -> None:
    with _only_a_warning("the dashboard's report"):
        create_markdown_artifact(markdown, key=key, description=description)


@contextmanager
def _only_a_warning(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("%s could not be written: %s", what, error)
