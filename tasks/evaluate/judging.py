"""The judged fit beside simpler models (models/rivals.py): the same users, the same catalogue, the same items left out.

Every user with a like in the part counts, also those without a history: they get popularity's list from every model.
It counts all likes alike, here and for the gate; the list that is served, where recent ones count more, is measured
with the tiers. No negatives are sampled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from models.graph import Csr, load_csr, load_likes
from models.metrics import gini, is_head, novelty
from models.rivals import ease_scorer, graph_filter_scorer, item_knn_scorer, popularity, popularity_scorer
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from tasks.config import EvaluateConfig
from tasks.contracts import Evaluation, Fitted, Graph, Measured, ModelScore
from tasks.evaluate.measuring import PerUser, interval, intervals, measure
from tasks.evaluate.slices import score_slices
from tasks.evaluate.tiers import score_tiers
from tasks.run import fingerprint_of

MODEL = "lightgcn"


def evaluate_fit(
    graph: Graph,
    fitted: Fitted,
    settings: EvaluateConfig,
    *,
    block_bytes: int,
    half_life_days: float | None = None,
    segment_U: npt.NDArray[np.int64] | None = None,
    segment_names: Sequence[str] = (),
) -> Evaluation:
    """What every model's lists are worth on validation and test, in slices too, and the paired difference on test.

    half_life_days as the lists have it (models/recency.py). segment_U: each user's segment, -1: none, by
    its number in segment_names; for the tiers and slices.
    """
    liked, _ = load_likes(graph.folder, "train")
    tables = load_file(fitted.judged_path)
    fill = for_everybody(popularity(liked, graph.num_items), graph.num_users)
    scorers = dict(_scorers(graph, tables, liked, settings, block_bytes))
    popularity_I = popularity(liked, graph.num_items)
    head_I = is_head(popularity_I, settings.head_share)
    scores = []
    by_part: dict[str, dict[str, PerUser]] = {"validation": {}, "test": {}}
    for part, by_model in by_part.items():
        target = load_csr(graph.folder, f"liked_{part}")
        users = np.flatnonzero(target.counts() > 0)
        for name, scorer in scorers.items():
            measured = measure(
                graph,
                scorer,
                fill,
                target,
                users,
                part,
                settings.k,
                block_bytes,
                also_at=settings.also_at,
                head_I=head_I,
            )
            scores.append(_score(name, part, measured, settings, popularity_I, head_I, graph.num_users))
            by_model[name] = replace(measured, at={})  # in the score by now
    validation, test = by_part.values()
    test_users = np.flatnonzero(load_csr(graph.folder, "liked_test").counts() > 0)
    with_history = liked.counts()[test_users] > 0
    over_popularity = {
        metric: interval(getattr(test[MODEL], metric) - getattr(test["popularity"], metric), settings)
        for metric in ("recall", "ndcg")
    }
    evaluation = Evaluation(
        fingerprint="",
        k=settings.k,
        scores=tuple(scores),
        over_popularity=over_popularity,
        recall_by_history={name: _by_history(measured.recall, with_history) for name, measured in test.items()},
        users_by_history={
            "with_history": int(with_history.sum()),
            "without_history": int(len(with_history) - with_history.sum()),
        },
        rivals_over=_rivals_over(test, settings),
        slices=score_slices(
            test[MODEL],
            test["popularity"],
            liked.counts()[test_users],
            None if segment_U is None else segment_U[test_users],
            segment_names,
            settings,
        ),
        tiers=score_tiers(
            graph,
            tables,
            validation[MODEL],
            settings,
            half_life_days=half_life_days,
            segment_U=segment_U,
            block_bytes=block_bytes,
        ),
    )
    return Evaluation(**{**vars(evaluation), "fingerprint": fingerprint_of(repr(evaluation))})


def _scorers(
    graph: Graph, tables: dict[str, Tensor], liked: Csr, settings: EvaluateConfig, block_bytes: int
) -> Iterator[tuple[str, Scorer]]:
    learned = load_csr(graph.folder, "liked_train")  # what the graph has; rivals learn from every like before the cut
    is_known_I = popularity(learned, graph.num_items) > 0
    yield MODEL, InnerProduct(tables["user_UD"], tables["item_ID"], rows_where(learned.counts() > 0), is_known_I)
    yield "popularity", popularity_scorer(liked, graph.num_items)
    yield (
        "item_knn",
        item_knn_scorer(
            liked,
            graph.num_items,
            neighbours=settings.knn_neighbours,
            shrink=settings.knn_shrink,
            block_bytes=block_bytes,
        ),
    )
    if graph.num_items <= settings.ease_items_at_most:
        yield "ease", ease_scorer(liked, graph.num_items, regularisation=settings.ease_regularisation)
    if graph.num_likes <= settings.filter_likes_at_most:
        yield (
            "graph_filter",
            graph_filter_scorer(liked, graph.num_items, width=settings.filter_width, low_pass=settings.filter_low_pass),
        )


def _score(
    name: str,
    part: str,
    measured: PerUser,
    settings: EvaluateConfig,
    popularity_I: np.ndarray,
    head_I: np.ndarray,
    num_users: int,
) -> ModelScore:
    at = intervals(measured.at, settings)
    return ModelScore(
        model=name,
        part=part,
        num_users=len(measured.recall),
        recall=at["recall"][settings.k],
        ndcg=at["ndcg"][settings.k],
        coverage=measured.coverage,
        at=at,
        novelty=novelty(measured.exposure_I, popularity_I, num_users),
        gini=gini(measured.exposure_I),
        popular_share=float(measured.exposure_I[head_I].sum() / max(1, measured.exposure_I.sum())),
    )


def _rivals_over(test: dict[str, PerUser], settings: EvaluateConfig) -> dict[str, dict[str, Measured]]:
    return {
        name: {
            metric: interval(getattr(rival, metric) - getattr(test[MODEL], metric), settings)
            for metric in ("recall", "ndcg")
        }
        for name, rival in test.items()
        if name != MODEL
    }


def _by_history(recall_B: np.ndarray, with_history: np.ndarray) -> dict[str, float]:
    return {
        name: float(recall_B[which].mean()) if which.any() else 0.0
        for name, which in (("with_history", with_history), ("without_history", ~with_history))
    }
