"""Leave the night's report behind, whatever became of the night: in the dashboard, and in the store as an audit."""

import logging
import secrets
from datetime import UTC, datetime
from typing import Any

from prefect import Flow, State, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun

from tasks.contracts import (
    Evaluation,
    Fitted,
    Graph,
    Interactions,
    Night,
    Published,
    Recommendations,
    Run,
    Verdict,
)
from tasks.errors import NightError
from tasks.report.audit import write_audit
from tasks.report.markdown import to_markdown
from tasks.run import stage_costs
from tasks.store import open_store

log = logging.getLogger("nightgraph.report")
ARTIFACT_KEY = "night"
FAILURE_KEY = "night-failed"


@task(persist_result=False, result_serializer="json")
def report(
    run: Run,
    interactions: Interactions,
    graph: Graph,
    fitted: Fitted,
    evaluation: Evaluation,
    recommendations: Recommendations,
    verdict: Verdict,
    published: Published | None,
) -> None:
    """A Markdown artifact, and `_meta/audits/DATE/<attempt>.json` with every figure of it.

    An audit that cannot be written is a warning: the night itself has been decided by then.
    """
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
    )
    create_markdown_artifact(to_markdown(night), key=ARTIFACT_KEY, description=f"The night of {run.as_of}")
    attempt = published.attempt if published else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    try:
        write_audit(open_store(run.store_uri), night, attempt)
    except NightError as error:
        log.warning("the audit could not be written: %s", error)


@task(persist_result=False, result_serializer="json")
def report_unchanged(earlier: Published) -> Published:
    """Say in the dashboard that this night changed nothing, and pass it on."""
    create_markdown_artifact(
        f"# Night of {earlier.as_of}: nothing new\n\nVersion {earlier.version} was published before, from the same "
        f"events, settings and code: `{earlier.commit_uri}`, {earlier.rows:,} rows for {earlier.users:,} users.",
        key=ARTIFACT_KEY,
        description=f"The night of {earlier.as_of}",
    )
    return earlier


def report_failure(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for nights that end early: the error's name and words where people look for the report."""
    create_markdown_artifact(
        f"# This night ended without publishing\n\n{state.message}\n\nThe recommendations that were live still are.",
        key=FAILURE_KEY,
        description="Why this night did not publish",
    )
