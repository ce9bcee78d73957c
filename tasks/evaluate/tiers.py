"""What each tier of the lists is worth, on validation and by the judged fit, beside popularity for the same people.

graph    everybody with likes in the train part
fold_in  the same people as if they had no row: their row is made of their train likes alone (models/fold_in.py). By how
         many likes; where fewer than PEOPLE_AT_LEAST have so many, people with more stand in, of whose likes only so
         many are used, drawn at random. The judged fit has seen their likes, hence its items' embeddings a little of
         them; `make bench-fold-in` measures people whom it has not. And `met`: people who really have no row, by what
         they had met.
popular  everybody who had met nothing
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from models.fold_in import fold_in
from models.graph import Csr, load_csr
from models.rivals import popularity
from models.scorers import InnerProduct
from tasks.config import EvaluateConfig
from tasks.contracts import Graph, TierScore
from tasks.evaluate.measuring import SEED, PerUser, interval, measure

BUCKETS = {"1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, None)}  # name -> events, at least and at most
PEOPLE_AT_LEAST, PEOPLE_AT_MOST = 500, 2000


def score_tiers(
    graph: Graph,
    tables: dict[str, Tensor],
    by_fit: PerUser,
    by_popularity: PerUser,
    settings: EvaluateConfig,
    *,
    block_bytes: int,
) -> tuple[TierScore, ...]:
    """`by_fit` and `by_popularity` are of all validation users, in their order. Tiers without a person are left out."""
    liked, met = load_csr(graph.folder, "liked_train"), load_csr(graph.folder, "seen_before_validation")
    target = load_csr(graph.folder, "liked_validation")
    users = np.flatnonzero(target.counts() > 0)

    def score(tier: str, events: str, people: np.ndarray, found: PerUser, shortened: int = 0) -> TierScore:
        place = np.searchsorted(users, people)
        return TierScore(
            tier=tier,
            events=events,
            num_users=len(people),
            num_shortened=shortened,
            recall=interval(found.recall, settings),
            ndcg=interval(found.ndcg, settings),
            recall_over_popular=interval(found.recall - by_popularity.recall[place], settings),
            ndcg_over_popular=interval(found.ndcg - by_popularity.ndcg[place], settings),
        )

    def at(measured: PerUser, people: np.ndarray) -> PerUser:
        place = np.searchsorted(users, people)
        return PerUser(measured.recall[place], measured.ndcg[place], 0.0)

    scores = []
    with_row = users[liked.counts()[users] > 0]
    if len(with_row):
        scores.append(score("graph", "", with_row, at(by_fit, with_row)))
    for events, people, histories, shortened in _fold_in_people(liked, met, users):
        folded = fold_in(histories, np.arange(len(people)), tables["fold_ID"], tables["fold_length"])
        kept = np.flatnonzero(folded.has_row_R)
        if len(kept) == 0:
            continue
        row_U = np.full(graph.num_users, -1)
        row_U[people[kept]] = kept
        scorer = InnerProduct(folded.user_RD, tables["item_ID"], row_U, popularity(liked, graph.num_items) > 0)
        found = measure(graph, scorer, liked, target, people[kept], "validation", settings.k, block_bytes)
        scores.append(score("fold_in", events, people[kept], found, int(shortened[kept].sum())))
    newcomers = users[(liked.counts()[users] == 0) & (met.counts()[users] == 0)]
    if len(newcomers):
        scores.append(score("popular", "", newcomers, at(by_popularity, newcomers)))
    return tuple(scores)


def _fold_in_people(liked: Csr, met: Csr, users: np.ndarray) -> Iterator[tuple[str, np.ndarray, Csr, np.ndarray]]:
    """For each bucket: who stands in it, ascending; a row of events for each of them; whose events are not all."""
    rng = np.random.default_rng(SEED)
    counts = liked.counts()[users]
    for name, (least, most) in BUCKETS.items():
        inside = counts >= least if most is None else (counts >= least) & (counts <= most)
        people = _some(rng, users[inside], PEOPLE_AT_MOST)
        more = users[:0] if most is None else _some(rng, users[counts > most], max(0, PEOPLE_AT_LEAST - len(people)))
        people = np.sort(np.concatenate([people, more]))
        shortened = np.isin(people, more)
        length = liked.counts()[people]
        if most is not None:
            length = np.where(shortened, rng.integers(least, most + 1, len(people)), length)
        yield name, people, _shortened(rng, liked, people, length), shortened
    without_row = _some(rng, users[(counts == 0) & (met.counts()[users] > 0)], PEOPLE_AT_MOST)
    yield "met", without_row, _shortened(rng, met, without_row, met.counts()[without_row]), np.zeros(len(without_row))


def _some(rng: np.random.Generator, people: np.ndarray, at_most: int) -> np.ndarray:
    return people if len(people) <= at_most else np.sort(rng.choice(people, at_most, replace=False))


def _shortened(rng: np.random.Generator, events: Csr, people: np.ndarray, length: np.ndarray) -> Csr:
    """So many of each person's events, drawn, ascending."""
    position, item = events.rows_of(people)
    order = np.lexsort((rng.random(len(item)), position))
    counts = events.counts()[people]
    place = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.sort(order[place < length[position]])
    return Csr(np.concatenate([[0], np.cumsum(np.minimum(length, counts))]), item[kept])
