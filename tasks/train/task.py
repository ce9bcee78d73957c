"""A graph in, two fits out; the ranks' progress goes to the dashboard and to the log."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts import Fitted, Graph, Run
from tasks.errors import is_worth_a_retry
from tasks.run import finish_stage
from tasks.train.fitting import SUPERVISION, WHERE, Place, choose_place, fit_twice

REST_S = 300.0
log = logging.getLogger("nightgraph.train")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def train(run: Run, graph: Graph) -> Fitted:
    """One fit on the train part, to judge; one on everything, to serve."""
    # How the ranks are supervised changes no number; a night that timed out must not train again for a longer limit.
    numbers = run.config.train.model_dump(exclude=SUPERVISION | WHERE)
    place = choose_place(run.config.train, graph)
    return finish_stage(
        run,
        "train",
        Fitted,
        lambda folder: _fit(run, graph, place, folder),
        inputs=(graph.fingerprint, numbers, asdict(place), run.config.evaluate.k),
        resumes=True,
    )


def _fit(run: Run, graph: Graph, place: Place, folder: Path) -> Fitted:
    report = _ProgressReport()
    return fit_twice(graph, run.config.train, place, folder, k=run.config.evaluate.k, on_progress=report)


def in_words(progress: dict[str, Any]) -> str:
    """One line for the dashboard and the terminal."""
    recall = progress["validation_recall"]
    return (
        f"{progress['fit']} fit, epoch {progress['epoch']} of at most {progress['epochs']}: loss {progress['loss']:.4f}"
        + (f", validation recall {recall:.4f}" if recall is not None else "")
        + f", at most {progress['seconds_left']:.0f} s left"
        + (f" (went on from epoch {progress['resumed_at']})" if progress["resumed_at"] else "")
    )


class _ProgressReport:
    """Passes the ranks' progress on, at most once a second: each update is a request to the server.

    A server that does not answer costs its progress bar, never the training: each question takes the client a minute
    of trying then, so the next is asked much later.
    """

    def __init__(self) -> None:
        self.artifact_id: UUID | None = None
        self.told_at = 0.0
        self.rests_until = 0.0
        self._show(0.0)

    def __call__(self, progress: dict[str, Any]) -> None:
        done = progress["epoch"] / progress["epochs"]
        last = progress["epoch"] == progress["epochs"]
        if not last and time.monotonic() - self.told_at < 1.0:
            return
        self.told_at = time.monotonic()
        words = in_words(progress)
        log.info(words)
        self._show(50.0 * done + (50.0 if progress["fit"] == "served" else 0.0), words)

    def _show(self, percent: float, words: str = "starting the ranks") -> None:
        if time.monotonic() < self.rests_until:
            return
        try:
            if self.artifact_id is None:
                made: Any = create_progress_artifact(percent, key="training", description=words)
                self.artifact_id = made
            else:
                update_progress_artifact(self.artifact_id, progress=percent, description=words)
        except Exception as error:
            self.rests_until = time.monotonic() + REST_S
            log.warning("the dashboard's progress bar could not be moved (%s)", type(error).__name__)
