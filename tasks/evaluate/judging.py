"""The judged fit beside simpler models (models/rivals.py): the same users, the same catalogue, the same items left out.

Every user with a like in the part counts, also those without a history: they get the popular list from every model,
as they would be served. No negatives are sampled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from models.graph import Csr, load_csr
from models.metrics import bootstrap_interval, hits, ndcg, recall
from models.rivals import ease_scorer, graph_filter_scorer, item_knn_scorer, popularity, popularity_scorer
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from models.topk import top_k
from tasks.config import EvaluateConfig
from tasks.contracts import Evaluation, Fitted, Graph, Measured, ModelScore
from tasks.run import fingerprint_of

MODEL = "lightgcn"
SEED = 7


@dataclass(frozen=True)
class _PerUser:
    """One model on one part, a number a user: what means, intervals and paired differences are made of."""

    recall: np.ndarray
    ndcg: np.ndarray
    coverage: float


def evaluate_fit(graph: Graph, fitted: Fitted, settings: EvaluateConfig, *, block_bytes: int) -> Evaluation:
    """Recall@k, NDCG@k and coverage of every model on validation and test, and the paired difference on test."""
    liked = load_csr(graph.folder, "liked_train")
    scorers = dict(_scorers(graph, fitted, liked, settings, block_bytes))
    scores, test = [], {}
    for part in ("validation", "test"):
        target = load_csr(graph.folder, f"liked_{part}")
        users = np.flatnonzero(target.counts() > 0)
        for name, scorer in scorers.items():
            measured = _measure(graph, scorer, liked, target, users, part, settings.k, block_bytes)
            scores.append(_score(name, part, measured, settings))
            if part == "test":
                test[name] = measured
    with_history = liked.counts()[np.flatnonzero(load_csr(graph.folder, "liked_test").counts() > 0)] > 0
    over_popularity = {
        metric: Measured(*_interval(getattr(test[MODEL], metric) - getattr(test["popularity"], metric), settings))
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
    )
    return Evaluation(**{**vars(evaluation), "fingerprint": fingerprint_of(repr(evaluation))})


def _scorers(
    graph: Graph, fitted: Fitted, liked: Csr, settings: EvaluateConfig, block_bytes: int
) -> Iterator[tuple[str, Scorer]]:
    tables = load_file(fitted.judged_path)
    popularity_I = popularity(liked, graph.num_items)
    yield MODEL, InnerProduct(tables["user_UD"], tables["item_ID"], rows_where(liked.counts() > 0), popularity_I > 0)
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


def _measure(
    graph: Graph,
    scorer: Scorer,
    liked: Csr,
    target: Csr,
    users: np.ndarray,
    part: str,
    k: int,
    block_bytes: int,
) -> _PerUser:
    recalls, ndcgs = [], []
    listed = np.zeros(graph.num_items, dtype=bool)
    for block in top_k(
        [scorer, for_everybody(popularity(liked, graph.num_items), graph.num_users)],
        users=users,
        excluded=load_csr(graph.folder, f"seen_before_{part}"),
        k=k,
        item_rank_I=np.load(Path(graph.folder) / "item_rank.npy"),
        block_bytes=block_bytes,
    ):
        hit_BK = hits(block.item_BK, block.users, target, graph.num_items)
        num_targets_B = target.counts()[block.users]
        recalls.append(recall(hit_BK, num_targets_B))
        ndcgs.append(ndcg(hit_BK, num_targets_B))
        listed[block.item_BK[block.item_BK >= 0]] = True
    return _PerUser(np.concatenate(recalls), np.concatenate(ndcgs), float(listed.mean()))


def _score(name: str, part: str, measured: _PerUser, settings: EvaluateConfig) -> ModelScore:
    return ModelScore(
        model=name,
        part=part,
        num_users=len(measured.recall),
        recall=Measured(*_interval(measured.recall, settings)),
        ndcg=Measured(*_interval(measured.ndcg, settings)),
        coverage=measured.coverage,
    )


def _interval(value_B: np.ndarray, settings: EvaluateConfig) -> tuple[float, float, float]:
    return bootstrap_interval(value_B, resamples=settings.resamples, seed=SEED)


def _by_history(recall_B: np.ndarray, with_history: np.ndarray) -> dict[str, float]:
    return {
        name: float(recall_B[which].mean()) if which.any() else 0.0
        for name, which in (("with_history", with_history), ("without_history", ~with_history))
    }
