"""How fast a like should age in what is popular: recall@20 of the popular list on validation, by half-life.

`make bench-popular DATA=../shared/data`: MovieLens-100K (7 months, 260 likes a day) and MovieLens-small (20 years, 9 a
day), split at one moment as production is; and those of their users who have no history, who get this list and no
other. Validation only: this chooses a default.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import merge_results, write_movielens
from models.graph import load_csr, load_likes
from models.metrics import hits, recall
from models.recency import LIKES_OF_A_HALF_LIFE, Likes, popular_of_everybody
from models.topk import top_k

HALF_LIVES = (1.0, 3.0, 7.0, 14.0, 30.0, 90.0, 365.0, 1000.0, 0.0, None)
SETS = {"ml100k": "movielens-100k", "mlsmall": "movielens-small"}
K = 20


def name_of(half_life: float | None) -> str:
    return "default" if half_life is None else f"{half_life:g} days" if half_life else "never"


def measure(ratings: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Half-life -> recall of all validation users, and of those without a history."""
    folder, _, num_items = write_movielens(ratings, "global_time", folder)
    (liked, moments), target = load_likes(folder, "train"), load_csr(folder, "liked_validation")
    users = np.flatnonzero(target.counts() > 0)
    is_new = liked.counts()[users] == 0
    found = {}
    for half_life in HALF_LIVES:
        popular = popular_of_everybody(Likes(liked, moments, half_life), num_items)
        hit_BK = [
            hits(block.item_BK, block.users, target, num_items)
            for block in top_k(
                [popular.scores],
                users=users,
                k=K,
                excluded=load_csr(folder, "seen_before_validation"),
                item_rank_I=np.arange(num_items),
            )
        ]
        of_user = recall(np.concatenate(hit_BK), target.counts()[users])
        found[name_of(half_life)] = {"all": float(of_user.mean()), "new": float(of_user[is_new].mean())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    details, figures = {}, {}
    for key, name in SETS.items():
        with tempfile.TemporaryDirectory() as scratch:
            details[key] = measure(data / name / "ratings.parquet", Path(scratch) / "graph")
        best = max(values["all"] for values in details[key].values())
        figures[f"{key}_default_recall"] = details[key]["default"]["all"]
        figures[f"{key}_never_recall"] = details[key]["never"]["all"]
        figures[f"{key}_default_over_best"] = details[key]["default"]["all"] / best
        print(f"{key}: half-life, recall@{K} of all, of users without a history")
        for half_life, values in details[key].items():
            print(f"  {half_life:<12}{values['all']:.4f}  {values['new']:.4f}")
    merge_results("popular", f"half-life, {LIKES_OF_A_HALF_LIFE} likes", figures, details)


if __name__ == "__main__":
    main()
