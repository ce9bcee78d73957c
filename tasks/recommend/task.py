"""The served fit in, everybody's lists out; users a second and time left go to the dashboard and to the log."""

import logging
from pathlib import Path

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts import Fitted, Graph, Recommendations, Run, Tables
from tasks.errors import is_worth_a_retry
from tasks.progress import ProgressBar
from tasks.recommend.everyone import WHERE, recommend_everyone
from tasks.recommend.worker import Progress
from tasks.run import finish_stage

EVERY_S = 5.0
log = logging.getLogger("nightgraph.recommend")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def recommend(run: Run, graph: Graph, fitted: Fitted, tables: Tables) -> Recommendations:
    """Exact top-K for every user, as Parquet parts in the work folder; a rerun goes on at the first missing one."""
    settings = run.config.recommend.model_dump(exclude=WHERE)
    recommendations = finish_stage(
        run,
        "recommend",
        Recommendations,
        lambda folder: _recommend(run, graph, fitted, tables, folder),
        inputs=(graph.fingerprint, fitted.fingerprint, tables.fingerprint, settings),
        resumes=True,
    )
    log.info(
        "%s rows for %s users in %d files",
        f"{recommendations.rows:,}",
        f"{recommendations.users:,}",
        len(recommendations.parts),
    )
    return recommendations


def _recommend(run: Run, graph: Graph, fitted: Fitted, tables: Tables, folder: Path) -> Recommendations:
    bar = ProgressBar(
        create_progress_artifact,
        update_progress_artifact,
        key="recommendations",
        starting="looking for finished shards",
        every_s=EVERY_S,
    )

    def tell(progress: Progress) -> None:
        done = 100.0 * progress.done / max(1, progress.people)
        bar.tell(done, lambda: in_words(progress), is_last=progress.done == progress.people)

    return recommend_everyone(
        graph, fitted, run.config.recommend, folder, tables=tables, as_of=run.as_of, on_progress=tell
    )


def in_words(progress: Progress) -> str:
    """One line for the dashboard and the terminal."""
    left = progress.seconds_left
    return (
        f"{progress.done:,} of {progress.people:,} users"
        + (f", {progress.rate:,.0f} a second" if progress.rate else "")
        + (f", {left:,.0f} s left" if left is not None else "")
        + (f" ({progress.reused:,} finished earlier)" if progress.reused else "")
    )
