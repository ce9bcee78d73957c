"""The judged fit and its rivals in, figures out; then figures and finished lists in, a verdict out."""

import logging

from prefect import task

from tasks.contracts import Evaluation, Fitted, Graph, NightDiff, Recommendations, Run, Tables, TierScore, Verdict
from tasks.errors import is_worth_a_retry
from tasks.evaluate.allowed import read_known, read_segments
from tasks.evaluate.gate import judge_night, refuse_unless_passed
from tasks.evaluate.judging import evaluate_fit
from tasks.evaluate.quality import check_change
from tasks.evaluate.served import check_served
from tasks.run import finish_stage

BLOCK_SHARE = 8  # of the memory, for a block of scores: beside it stand the rivals
log = logging.getLogger("nightgraph.evaluate")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def evaluate(run: Run, graph: Graph, fitted: Fitted, tables: Tables) -> Evaluation:
    """What the judged fit is worth, on validation and, once, on test; and what each tier of the lists is."""
    half_life_days = run.config.recommend.popular_half_life_days
    return finish_stage(
        run,
        "evaluate",
        Evaluation,
        lambda folder: _evaluate(run, graph, fitted, tables),
        inputs=(graph.fingerprint, fitted.fingerprint, tables.fingerprint, run.config.evaluate, half_life_days),
    )


def _evaluate(run: Run, graph: Graph, fitted: Fitted, tables: Tables) -> Evaluation:
    block_bytes = run.config.recommend.memory_mib * 2**20 // BLOCK_SHARE
    segment_U, segment_names = read_segments(graph.folder, tables)
    evaluation = evaluate_fit(
        graph,
        fitted,
        run.config.evaluate,
        block_bytes=block_bytes,
        half_life_days=run.config.recommend.popular_half_life_days,
        segment_U=segment_U,
        segment_names=segment_names,
    )
    for score in evaluation.scores:
        if score.part == "test":
            log.info(
                "test, %s users: %s recall@%d %.4f, ndcg %.4f",
                f"{score.num_users:,}",
                score.model,
                evaluation.k,
                score.recall.mean,
                score.ndcg.mean,
            )
    for model, value in evaluation.rivals_ahead(run.config.gate.metric).items():
        log.warning(
            "%s is ahead of lightgcn beyond noise: by %.4f (%.4f to %.4f) in %s@%d on test",
            model,
            value.mean,
            value.low,
            value.high,
            run.config.gate.metric,
            evaluation.k,
        )
    warn_of_tiers(evaluation)
    return evaluation


def warn_of_tiers(evaluation: Evaluation) -> None:
    """Where a tier that the model scores is worth nothing beside the popular list that is served.

    Nobody is refused their list for it, and the gate holds against popularity; but whoever runs the night should know.
    """
    for tier in ("graph", "fold_in"):
        failing = "; ".join(_whom_in_words(score) for score in evaluation.not_above_popular(tier))
        if failing:
            log.warning(
                "%s does not beat popular beyond noise, in recall@%d on validation, for people with %s",
                tier,
                evaluation.k,
                failing,
            )


def _whom_in_words(score: TierScore) -> str:
    events = {"": "likes", "met": "no like", "1": "1 event"}.get(score.events, f"{score.events} events")
    over = score.recall_over_popular
    return f"{events} ({over.low:+.4f} to {over.high:+.4f}, {score.num_users:,} people)"


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def judge(
    run: Run,
    graph: Graph,
    fitted: Fitted,
    tables: Tables,
    evaluation: Evaluation,
    recommendations: Recommendations,
    diff: NightDiff,
) -> Verdict:
    """Every check of the gate: on the finished files, on the model that they come from, and on the evaluation."""
    settings = run.config.recommend
    return finish_stage(
        run,
        "judge",
        Verdict,
        lambda folder: judge_night(
            run.config.gate,
            evaluation,
            recommendations,
            read_known(graph.folder, tables, settings, run.as_of),
            [*check_served(graph, fitted, recommendations), check_change(run.config.gate, diff)],
        ),
        inputs=(
            evaluation.fingerprint,
            fitted.fingerprint,
            recommendations.fingerprint,
            tables.fingerprint,
            run.config.gate,
            settings,
            repr(diff),
        ),
    )


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def check_gate(verdict: Verdict) -> None:
    """Raises GateRefused where the verdict does not let the night go live."""
    refuse_unless_passed(verdict)
    log.info(
        "gate: %d checks passed%s", len(verdict.checks), f", {verdict.overridden} overridden" * bool(verdict.overridden)
    )
