"""Does a folded-in row agree with a trained one? People held back from training, beside the fit that has them.

    make bench-fold-in [DATA=folder] [ONLY="ml100k gowalla"]

MovieLens-100K and -small, each user's last tenth as validation, five fits that each hold back a fifth of the people;
Gowalla, a tenth of each user's train likes as validation, 3,000 people held back once. Test likes are not read. Beside
the way that nights take stand the variants that it was chosen among, all with the same lengths. Prints the table and
merges it into benchmarks/results/fold_in.json.
"""

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import carve_validation, merge_results, read_split, spec_of, write_arrays, write_movielens
from models.distributed import Ranks
from models.fold_in import HALF_AT, fold_in
from models.graph import Csr, interactions_by_user, load_csr, save_arrays
from models.metrics import bootstrap_interval, hits, ndcg, recall
from models.processes import keep_freed_memory
from models.rivals import popularity
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from models.topk import top_k
from models.train import fit, make_repeatable
from models.validation import Validation

DATA_SETS = {"ml100k": "movielens-100k", "mlsmall": "movielens-small", "gowalla": "gowalla"}
FOLDS = 5
GOWALLA_HELD_BACK = 3000
BUCKETS = {"all": (1, None), "1": (1, 1), "2_4": (2, 4), "5_9": (5, 9), "10_up": (10, None)}
DRAWS = 5  # of the likes that a row is made of, where not all are; a person's numbers are means over them
K = 20
SEED = 3
Tables = dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    train: Csr
    validation: Csr
    seen: Csr
    num_items: int


@dataclass(frozen=True)
class Found:
    """Of some people: numbers each."""

    recall: np.ndarray
    ndcg: np.ndarray
    overlap: np.ndarray  # share of the list that the fit with these people gives them too
    over_popular: np.ndarray  # recall, minus popularity's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--only", nargs="*", help="some of the data sets")
    options = parser.parse_args()
    make_repeatable(2)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    for name in options.only or DATA_SETS:
        with tempfile.TemporaryDirectory() as scratch:
            figures, variants = measure(name, read(name, Path(options.data), Path(scratch)), Path(scratch))
        merge_results("fold_in", name, figures, variants)


def read(name: str, data: Path, scratch: Path) -> Data:
    if name == "gowalla":
        liked, _, num_items = read_split(data / DATA_SETS[name])
        train, validation = carve_validation(liked)
        return Data(train, validation, train, num_items)
    ratings = data / DATA_SETS[name] / "ratings.parquet"
    folder, _, num_items = write_movielens(ratings, "per_user_time", scratch / "graph")
    train, validation = load_csr(folder, "liked_train"), load_csr(folder, "liked_validation")
    return Data(train, validation, load_csr(folder, "seen_before_validation"), num_items)


def held_back(name: str, data: Data) -> Iterator[np.ndarray]:
    """The people of each fold, ascending."""
    judged = np.flatnonzero((data.validation.counts() > 0) & (data.train.counts() > 0))
    shuffled = np.random.default_rng(SEED).permutation(judged)
    if name == "gowalla":
        yield np.sort(shuffled[:GOWALLA_HELD_BACK])
        return
    for fold in range(FOLDS):
        yield np.sort(shuffled[fold::FOLDS])


def measure(name: str, data: Data, scratch: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    knows, epochs = fit_of(data, data.train, scratch / "knows")
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    others, seconds = [], []
    for people in held_back(name, data):
        train = without(data.train, people)
        tables, _ = fit_of(data, train, scratch / "others", epochs=epochs)
        started = time.perf_counter()
        fold_in(data.train, people, tables["fold_ID"], tables["fold_length"])
        seconds.append((time.perf_counter() - started) / len(people))
        trained = rows_where(data.train.counts() > 0)
        known = InnerProduct(knows["user_UD"], knows["item_ID"], trained, popularity(data.train, data.num_items) > 0)
        has_row_I = popularity(train, data.num_items) > 0
        stayed = np.flatnonzero(train.counts() > 0)[:: max(1, train.num_rows // 3000)]
        again = InnerProduct(tables["user_UD"], tables["item_ID"], rows_where(train.counts() > 0), has_row_I)
        others.append(overlap(lists(again, data, train, stayed), lists(known, data, data.train, stayed)))
        rng = np.random.default_rng(SEED)
        for bucket, (least, most) in BUCKETS.items():
            inside = people[data.train.counts()[people] >= least]
            theirs = lists(known, data, data.train, inside)
            popular = lists(for_everybody(popularity(train, data.num_items), train.num_rows), data, train, inside)
            floor = judged_by(popular, data, inside)[0]
            given = [("trained", theirs), ("popular", popular)]
            for _ in range(1 if most is None else DRAWS):
                histories = some_likes(rng, data.train, inside, least, most)
                given += [
                    (way, lists(scorer_of(user_RD, tables, inside, train, has_row_I), data, train, inside))
                    for way, user_RD in ways(histories, tables, train).items()
                ]
            of_way: dict[str, list[np.ndarray]] = defaultdict(list)
            for way, item_BK in given:
                recall_B, ndcg_B = judged_by(item_BK, data, inside)
                of_way[way].append(np.stack([recall_B, ndcg_B, overlap(item_BK, theirs), recall_B - floor]))
            for way, draws in of_way.items():
                found[way, bucket].append(Found(*np.mean(draws, axis=0)))
    return told(name, found, np.concatenate(others), float(np.mean(seconds)))


def fit_of(data: Data, train: Csr, folder: Path, *, epochs: int | None = None) -> tuple[Tables, int]:
    """With a validation the epochs are chosen; without, they are given."""
    limit = 6000 if data.train.num_rows > 6000 else None
    write_arrays(folder, train, data.validation, data.num_items, users_at_most=limit)
    save_arrays(folder, "seen_before_validation", data.seen)
    spec = spec_of(folder, train.num_rows, data.num_items)
    alone = Ranks(0, 1, torch.device("cpu"))
    if epochs is None:
        validation = Validation(str(folder), num_items=data.num_items, k=K, seed=SEED)
        judged = fit(spec, alone, "judged", epochs=spec.max_epochs, validation=validation, identity="")
        return load_file(folder / "judged.safetensors"), judged.epochs
    fit(spec, alone, "served", epochs=epochs, validation=None, identity="")
    return load_file(folder / "served.safetensors"), epochs


def without(train: Csr, people: np.ndarray) -> Csr:
    user_E = np.repeat(np.arange(train.num_rows), train.counts())
    kept = ~np.isin(user_E, people)
    return interactions_by_user(user_E[kept], train.indices[kept], train.num_rows)


def some_likes(rng: np.random.Generator, liked: Csr, people: np.ndarray, least: int, most: int | None) -> Csr:
    """A row for each person: all their likes, or so many drawn from them."""
    counts = liked.counts()[people]
    length = counts if most is None else rng.integers(least, np.minimum(most, counts) + 1)
    position, item = liked.rows_of(people)
    order = np.lexsort((rng.random(len(item)), position))
    place = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.sort(order[place < length[position]])
    return interactions_by_user(position[kept], item[kept], len(people))


# ---- the ways to a row


def ways(histories: Csr, tables: Tables, train: Csr) -> dict[str, Tensor]:
    """(R, D + 1) rows of each way."""
    rows, users = np.arange(histories.num_rows), np.flatnonzero(train.counts() > 0)
    item_ID, row_UD = tables["item_ID"][:, :-1], tables["user_UD"][torch.from_numpy(users), :-1]
    hop_UD = sums(train, users, tables["hop_ID"]) / root(train, users)
    own_UD = row_UD / tables["scale_U"][torch.from_numpy(users), None] - hop_UD
    hop_RD = sums(histories, rows, tables["hop_ID"]) / root(histories, rows)
    own_RD = hop_RD @ torch.linalg.lstsq(hop_UD, own_UD).solution
    mean_RD = sums(histories, rows, item_ID)
    plain = {"first_hop": hop_RD, "hop_and_own_term": hop_RD + own_RD, "mean_of_items": mean_RD}
    n_R = torch.from_numpy(histories.counts()).float()
    length_R1 = (tables["fold_length"] * n_R / (n_R + HALF_AT))[:, None]
    ones_R1 = torch.ones(len(rows), 1)
    made = {way: torch.cat([F.normalize(row) * length_R1, ones_R1], dim=1) for way, row in plain.items()}
    folded = fold_in(histories, rows, tables["fold_ID"], tables["fold_length"])
    full = torch.cat([F.normalize(folded.user_RD[:, :-1]) * tables["fold_length"], ones_R1], dim=1)
    return {"fold_in": folded.user_RD, "fold_in_at_full_length": full} | made


def sums(items: Csr, rows: np.ndarray, table_ID: Tensor) -> Tensor:
    position, item = items.rows_of(rows)
    total_RD = torch.zeros(len(rows), table_ID.shape[1])
    return total_RD.index_add_(0, torch.from_numpy(position), table_ID[torch.from_numpy(item.astype(np.int64))])


def root(items: Csr, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(items.counts()[rows]).float().sqrt()[:, None]


# ---- lists and what they are worth


def scorer_of(user_RD: Tensor, tables: Tables, people: np.ndarray, train: Csr, has_row_I: np.ndarray) -> InnerProduct:
    row_U = np.full(train.num_rows, -1)
    row_U[people] = np.arange(len(people))
    return InnerProduct(user_RD, tables["item_ID"], row_U, has_row_I)


def lists(scorer: Scorer, data: Data, train: Csr, people: np.ndarray) -> np.ndarray:
    blocks = top_k(
        [scorer, for_everybody(popularity(train, data.num_items), train.num_rows)],
        users=people,
        k=K,
        excluded=data.seen,
        item_rank_I=np.arange(data.num_items),
    )
    return np.concatenate([block.item_BK for block in blocks])


def judged_by(item_BK: np.ndarray, data: Data, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit_BK = hits(item_BK, people, data.validation, data.num_items)
    num_targets_B = data.validation.counts()[people]
    return recall(hit_BK, num_targets_B), ndcg(hit_BK, num_targets_B)


def overlap(item_BK: np.ndarray, other_BK: np.ndarray) -> np.ndarray:
    return np.array([len(np.intersect1d(*pair)) / K for pair in zip(item_BK, other_BK, strict=True)])


def told(
    name: str, found: dict[tuple[str, str], list[Found]], others: np.ndarray, seconds: float
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures of the way that nights take, of trained rows and of popularity; and all ways beside each other."""
    figures: dict[str, float] = {f"{name}_overlap_of_people_in_both_fits": float(others.mean())}
    figures[f"{name}_microseconds_a_person"] = 1e6 * seconds
    variants: dict[str, dict[str, float]] = {}
    for (way, bucket), parts in found.items():
        whole = Found(*(np.concatenate(values) for values in zip(*(vars(p).values() for p in parts), strict=True)))
        _, low, high = bootstrap_interval(whole.over_popular, resamples=1000, seed=SEED)
        means = {
            "recall": float(whole.recall.mean()),
            "ndcg": float(whole.ndcg.mean()),
            "overlap": float(whole.overlap.mean()),
        }
        over = {"over_popular_low": low, "over_popular_high": high}
        variants[f"events_{bucket}_{way}"] = means | over
        if way in ("trained", "popular", "fold_in"):
            chosen = means | over | {"people": len(whole.recall)} if way == "fold_in" else means
            of = {key: value for key, value in chosen.items() if way == "fold_in" or key != "overlap"}
            figures |= {f"{name}_events_{bucket}_{way}_{key}": value for key, value in of.items()}
        print(
            f"{name:<8} events {bucket:<6} {way:<24} recall {means['recall']:.4f} ndcg {means['ndcg']:.4f} "
            f"overlap {means['overlap']:.3f} over popular {low:+.4f} to {high:+.4f}, {len(whole.recall):,} people",
            flush=True,
        )
    return figures, variants


if __name__ == "__main__":
    main()
