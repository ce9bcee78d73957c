"""Signs of a model that has collapsed or was mixed up, each on tables where the truth is known."""

import numpy as np
import pytest
import torch

from models.graph import interactions_by_user
from models.health import USERS_AT_MOST, knows_own_likes, some_of, table_health

ROWS, WIDTH = 400, 16
EVERYBODY = np.arange(ROWS)


def random_table(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH + 1, generator=torch.Generator().manual_seed(seed))


def test_rows_in_every_direction_use_nearly_all_of_them() -> None:
    health = table_health(random_table(), EVERYBODY)
    assert WIDTH - 1 < health.effective_rank <= WIDTH + 1e-9
    assert abs(health.mean_cosine) < 0.02
    assert health.zero_share == 0.0


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_effective_rank_of_equal_directions_is_their_number(rank: int) -> None:
    basis = torch.linalg.qr(random_table(1)[:WIDTH, :WIDTH])[0][:rank]
    table = torch.cat([torch.randn(ROWS, rank) @ basis, torch.ones(ROWS, 1)], dim=1)
    assert table_health(table, EVERYBODY).effective_rank == pytest.approx(rank, rel=0.02)


def test_rows_that_all_point_one_way_have_a_cosine_of_one_whatever_their_length() -> None:
    table = torch.rand(ROWS, 1) * torch.randn(1, WIDTH + 1)
    assert table_health(table, EVERYBODY).mean_cosine == pytest.approx(1.0)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    table = random_table(2)[:30]
    unit = torch.nn.functional.normalize(table[:, :-1].double(), dim=1)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert table_health(table, np.arange(30)).mean_cosine == pytest.approx(float(pairs.mean()))


def test_zeros_have_no_rank_and_rows_that_are_not_asked_for_do_not_count() -> None:
    table = torch.zeros(ROWS, WIDTH + 1)
    table[:, -1] = 1.0
    health = table_health(table, EVERYBODY)
    assert (health.effective_rank, health.zero_share) == (0.0, 1.0)
    table[:10] = random_table()[:10]
    assert table_health(table, np.arange(10)).zero_share == 0.0
    assert table_health(table, np.arange(20)).zero_share == 0.5


def test_who_has_their_own_row_knows_their_likes_and_who_has_anothers_does_not() -> None:
    """Two tastes: users and items of one have one direction, those of the other the opposite one."""
    rng = np.random.default_rng(0)
    taste_U, taste_I = np.arange(ROWS) % 2, np.arange(60) % 2
    users = np.repeat(np.arange(ROWS), 8)
    items = np.concatenate([rng.choice(np.flatnonzero(taste_I == taste), 8, replace=False) for taste in taste_U])
    liked = interactions_by_user(users, items, num_users=ROWS)
    item_ID = torch.from_numpy(np.stack([2.0 * taste_I - 1.0, np.full(60, 0.3)], axis=1)).float()
    user_UD = torch.from_numpy(np.stack([2.0 * taste_U - 1.0, np.ones(ROWS)], axis=1)).float()
    well = knows_own_likes(user_UD, item_ID, liked, EVERYBODY, seed=0)
    assert well.min() > 0.55
    expected = (
        30 / 52 + 22 / 52 / 2
    )  # of what is not their own 30 are of the other taste and 22 of theirs, which is no better
    assert well.mean() == pytest.approx(expected, abs=0.01)
    flipped = knows_own_likes(-user_UD, item_ID, liked, EVERYBODY, seed=0)
    assert flipped.max() < 0.45
    np.testing.assert_array_equal(well, knows_own_likes(user_UD, item_ID, liked, EVERYBODY, seed=0))


def test_of_many_users_some_are_taken_and_always_the_same() -> None:
    many = np.arange(3 * USERS_AT_MOST)
    some = some_of(many, seed=1)
    assert len(np.unique(some)) == USERS_AT_MOST
    np.testing.assert_array_equal(some, some_of(many, seed=1))
    np.testing.assert_array_equal(some_of(many[:5], seed=1), many[:5])
