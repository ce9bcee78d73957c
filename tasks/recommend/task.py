"""The served fit in, everybody's lists out."""

import logging

from prefect import task

from tasks.contracts import Fitted, Graph, Recommendations, Run
from tasks.errors import is_worth_a_retry
from tasks.recommend.lists import recommend_everyone
from tasks.run import finish_stage

log = logging.getLogger("nightgraph.recommend")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def recommend(run: Run, graph: Graph, fitted: Fitted) -> Recommendations:
    """Exact top-K for every user, as Parquet parts in the work folder."""
    recommendations = finish_stage(
        run,
        "recommend",
        Recommendations,
        lambda folder: recommend_everyone(graph, fitted, run.config.recommend, folder),
        inputs=(graph.fingerprint, fitted.fingerprint, run.config.recommend),
    )
    log.info(
        "%s rows for %s users in %d files",
        f"{recommendations.rows:,}",
        f"{recommendations.users:,}",
        len(recommendations.parts),
    )
    return recommendations
