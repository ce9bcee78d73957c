"""A graph in, two fits out; the ranks' progress goes to the dashboard and to the log."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts import Fitted, Graph, Run
from tasks.errors import is_worth_a_retry
from tasks.progress import ProgressBar
from tasks.run import finish_stage
from tasks.train.fitting import SUPERVISION, WHERE, Place, choose_place, fit_twice
from tasks.train.start import choose_start, leave_for_the_next


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
        inputs=(graph.fingerprint, numbers, asdict(place), run.config.evaluate.k, run.warm.sha256 if run.warm else ""),
        resumes=True,
    )


def _fit(run: Run, graph: Graph, place: Place, folder: Path) -> Fitted:
    bar = ProgressBar(create_progress_artifact, update_progress_artifact, key="training", starting="starting the ranks")

    def tell(progress: dict[str, Any]) -> None:
        done = 50.0 * progress["epoch"] / progress["epochs"] + (50.0 if progress["fit"] == "served" else 0.0)
        bar.tell(done, lambda: in_words(progress), is_last=progress["epoch"] == progress["epochs"])

    start = choose_start(run, graph, folder)
    fitted = fit_twice(graph, run.config.train, place, folder, k=run.config.evaluate.k, on_progress=tell, start=start)
    return replace(fitted, warm=leave_for_the_next(run, graph, folder))


def in_words(progress: dict[str, Any]) -> str:
    """One line for the dashboard and the terminal."""
    recall = progress["validation_recall"]
    return (
        f"{progress['fit']} fit, epoch {progress['epoch']} of at most {progress['epochs']}: loss {progress['loss']:.4f}"
        + (f", validation recall {recall:.4f}" if recall is not None else "")
        + f", at most {progress['seconds_left']:.0f} s left"
        + (f" (went on from epoch {progress['resumed_at']})" if progress["resumed_at"] else "")
    )
