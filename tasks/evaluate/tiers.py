"""What each tier of the lists is worth, on validation and by the judged fit, beside popular for the same people.

Popular is the list that is served, made of the train likes: recent ones count more (models/recency.py). The models'
table and the gate stay beside popularity, which counts all likes alike.

graph    everybody with likes in the train part
fold_in  what the method is worth: the same people as if they had no row; it is made of their train likes alone
         (models/fold_in.py). By how many likes; where fewer than PEOPLE_AT_LEAST have so many, people with more stand
         in, of whose likes only so many are used, drawn at random. The judged fit has seen their likes, hence its
         items' embeddings a little of them; `make bench-fold-in` measures people whom it has not. And `met`, whom a
         night really serves by it: people without a like, hence without a row, by what they had met.
segment  everybody whose segment has likes in the train part: what is popular in it. By tonight's segments: who was in
         which at the cut, no table says
popular  everybody who had met nothing
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.fold_in import fold_in
from models.graph import Csr, load_csr, load_likes
from models.recency import Likes, popular_in_groups, popular_of_everybody
from models.rivals import popularity
from models.scorers import InnerProduct, Scorer
from tasks.config import EvaluateConfig
from tasks.contracts import Graph, TierScore
from tasks.evaluate.measuring import SEED, PerUser, interval, measure

BUCKETS = {"1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, None)}  # name -> events, at least and at most
PEOPLE_AT_LEAST, PEOPLE_AT_MOST = 500, 2000


def score_tiers(
    graph: Graph,
    tables: dict[str, Tensor],
    by_fit: PerUser,
    settings: EvaluateConfig,
    *,
    half_life_days: float | None,
    segment_U: npt.NDArray[np.int64] | None,
    block_bytes: int,
) -> tuple[TierScore, ...]:
    """`by_fit` is of all validation users, in their order; what fills its lists nobody reaches who has k items with
    likes left. Tiers without a person are left out.

    segment_U: -1 is no segment; None: no table names any. Memory: 40 bytes x segments x items.
    """
    liked, met = load_csr(graph.folder, "liked_train"), load_csr(graph.folder, "seen_before_validation")
    target = load_csr(graph.folder, "liked_validation")
    users = np.flatnonzero(target.counts() > 0)
    likes = Likes(*load_likes(graph.folder, "train"), half_life_days)
    popular = popular_of_everybody(likes, graph.num_items).scores

    def measured(scorer: Scorer, people: np.ndarray) -> PerUser:
        return measure(graph, scorer, popular, target, people, "validation", settings.k, block_bytes)

    by_popular = measured(popular, users)

    def score(tier: str, events: str, people: np.ndarray, found: PerUser, shortened: int = 0) -> TierScore:
        place = np.searchsorted(users, people)
        return TierScore(
            tier=tier,
            events=events,
            num_users=len(people),
            num_shortened=shortened,
            recall=interval(found.recall, settings),
            ndcg=interval(found.ndcg, settings),
            recall_over_popular=interval(found.recall - by_popular.recall[place], settings),
            ndcg_over_popular=interval(found.ndcg - by_popular.ndcg[place], settings),
        )

    def at(of_all: PerUser, people: np.ndarray) -> PerUser:
        place = np.searchsorted(users, people)
        return PerUser(of_all.recall[place], of_all.ndcg[place], of_all.exposure_I)

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
        found = measured(scorer, people[kept])
        scores.append(score("fold_in", events, people[kept], found, int(shortened[kept].sum())))
    if segment_U is not None:
        in_segments = popular_in_groups(likes, graph.num_items, segment_U, num_groups=int(segment_U.max()) + 1)
        liking = users[np.isin(segment_U[users], np.flatnonzero(in_segments.total_G > 0.0))]
        if len(liking):
            scores.append(score("segment", "", liking, measured(in_segments.scores, liking)))
    newcomers = users[(liked.counts()[users] == 0) & (met.counts()[users] == 0)]
    if len(newcomers):
        scores.append(score("popular", "", newcomers, at(by_popular, newcomers)))
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
