"""The night, from raw events to published recommendations: the whole house in one function."""

from datetime import date

from prefect import flow

from tasks.config import NightlyConfig
from tasks.contracts import Published
from tasks.evaluate.task import check_gate, evaluate, judge
from tasks.graph.task import build_graph
from tasks.ingest.task import ingest, open_run, read_tables
from tasks.publish.task import already_published, compare_with_live, publish
from tasks.recommend.task import recommend
from tasks.report.task import report, report_failure, report_unchanged
from tasks.run import clear_work_folder, hold_work_folder
from tasks.train.task import train


@flow(name="nightly", persist_result=False, result_serializer="json", on_failure=[report_failure])
def nightly(config: NightlyConfig = NightlyConfig(), as_of: date | None = None, force: bool = False) -> Published:
    """Raw events in, published recommendations out.

    ingest -> build_graph -> train -> evaluate -> recommend -> compare_with_live -> judge -> publish

    Every stage writes into the run's work folder and returns a small Ref; a rerun of a failed night skips finished
    stages. Readers see nothing until publish moves LATEST, and then all of it.

    Args:
        config: What may be set, one group a stage. The defaults are a good night.
        as_of: The first day (UTC) whose events are not used. Empty: the day of the scheduled start, or, started by
            hand, the day after the last event.
        force: Publish a new version even if this very night has been published already.
    """
    run = open_run(config, as_of, force)
    with hold_work_folder(run):
        if earlier := already_published(run):
            clear_work_folder(run)  # it may have been killed after its commit
            return report_unchanged(earlier)
        interactions = ingest(run)
        tables = read_tables(run, interactions)
        graph = build_graph(run, interactions)
        fitted = train(run, graph)  # two fits: one on the train part, to judge; one on everything, to serve
        evaluation = evaluate(run, graph, fitted, tables)
        recommendations = recommend(run, graph, fitted, tables)
        diff = compare_with_live(run, recommendations)
        verdict = judge(run, graph, fitted, tables, evaluation, recommendations, diff)
        published = None
        try:
            check_gate(verdict)  # GateRefused: the live recommendations stay
            published = publish(run, fitted, evaluation, recommendations, verdict)
        finally:
            report(run, interactions, graph, fitted, evaluation, recommendations, verdict, published, tables, diff)
        clear_work_folder(run)
        return published
