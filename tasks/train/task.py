"""A graph in, two fits out; the ranks' progress goes to the dashboard and to the log."""

import logging
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts import Fitted, Graph, Run
from tasks.run import finish_stage
from tasks.train.fitting import fit_twice

log = logging.getLogger("nightgraph.train")


@task(persist_result=False, result_serializer="json")
def train(run: Run, graph: Graph) -> Fitted:
    """One fit on the train part, to judge; one on everything, to serve."""
    # How the ranks are supervised changes no number; a night that timed out must not train again for a longer limit.
    numbers = run.config.train.model_dump(exclude={"silence_s", "relaunches"})
    return finish_stage(
        run,
        "train",
        Fitted,
        lambda folder: _fit(run, graph, folder),
        inputs=(graph.fingerprint, numbers, run.config.evaluate.k),
    )


def _fit(run: Run, graph: Graph, folder: Path) -> Fitted:
    artifact_id = create_progress_artifact(0.0, key="training", description="LightGCN: judged fit, then served fit")
    return fit_twice(graph, run.config.train, folder, k=run.config.evaluate.k, on_progress=_ProgressReport(artifact_id))


class _ProgressReport:
    """Passes the ranks' progress on, at most once a second: each update is a request to the server."""

    def __init__(self, artifact_id: Any) -> None:
        self.artifact_id: UUID = artifact_id
        self.told_at = 0.0

    def __call__(self, progress: dict[str, Any]) -> None:
        done = progress["epoch"] / progress["epochs"]
        last = progress["epoch"] == progress["epochs"]
        if not last and time.monotonic() - self.told_at < 1.0:
            return
        self.told_at = time.monotonic()
        recall = progress["validation_recall"]
        log.info(
            "%s fit, epoch %d of at most %d: loss %.4f%s",
            progress["fit"],
            progress["epoch"],
            progress["epochs"],
            progress["loss"],
            f", validation recall {recall:.4f}" if recall is not None else "",
        )
        update_progress_artifact(
            self.artifact_id, progress=50.0 * done + (50.0 if progress["fit"] == "served" else 0.0)
        )
