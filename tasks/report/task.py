"""Leave the night's report behind, whatever became of the night: in the dashboard, and in the store as an audit."""

import logging
import secrets
from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_markdown_artifact

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
    create_markdown_artifact(to_markdown(night), key="night", description=f"The night of {run.as_of}")
    attempt = published.attempt if published else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    try:
        write_audit(open_store(run.store_uri), night, attempt)
    except NightError as error:
        log.warning("the audit could not be written: %s", error)
