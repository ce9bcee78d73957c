"""Events and settings of a whole night that is over in seconds."""

import polars as pl

from tasks.config import NightlyConfig


# 24 users and 20 items; the even ones like the even ones.
def two_taste_events(*, days: int = 5, first_user: int = 0) -> pl.DataFrame:
    """Rows of an event log in which every user rates 10 items of their taste 5 and two of the other one 2."""
    rows = []
    for user in range(24):
        liked = [(user % 2) + 2 * ((user // 2 + step) % 10) for step in range(8)]
        disliked = [1 - (user % 2) + 2 * ((user // 2 + step) % 10) for step in range(2)]
        for position, (item, rating) in enumerate([(i, 5.0) for i in liked] + [(i, 2.0) for i in disliked]):
            second = (position * days * 86_400) // 10 + user
            rows.append((f"user-{first_user + user:03d}", f"item-{item:02d}", rating, 1_763_000_000 + second))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")


QUICK = NightlyConfig.model_validate(
    {
        "graph": {"split": "per_user_time"},
        "train": {"max_epochs": 3, "width": 8, "negatives": 16, "batches_per_epoch": 2, "relaunches": 0},
        "evaluate": {"k": 5, "resamples": 100},
        "recommend": {"k": 5},
    }
)
