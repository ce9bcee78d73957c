"""Whether tables of embeddings still tell users and items apart: signs of a model that has collapsed or was mixed up.

A loss can be low, and a mean of test users fine, while some rows are zeros, all rows point the same way, or a tenth of
the users have somebody else's.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.graph import Csr

ROWS_AT_ONCE = 65_536
USERS_AT_MOST = 2_000
LIKES_AT_MOST, OTHERS = 20, 50


@dataclass(frozen=True)
class TableHealth:
    effective_rank: float
    mean_cosine: float
    zero_share: float  # of the rows


def table_health(table_RD: Tensor, rows: npt.NDArray[np.int64]) -> TableHealth:
    """Of some rows, without the last column, which holds no direction (the popularity bias). Memory: D^2 numbers.

    effective_rank: exp of the entropy of the singular values (Roy and Vetterli 2007), 0 of zeros; about how many
    directions the rows use. mean_cosine: of all pairs of rows, 1 where all point the same way. Where a
    number is none, nor is any of these.
    """
    width = table_RD.shape[1] - 1
    gram_DD = torch.zeros(width, width, dtype=torch.float64)
    direction_D = torch.zeros(width, dtype=torch.float64)
    zeros = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some_RD = table_RD[torch.from_numpy(rows[start : start + ROWS_AT_ONCE]), :width].double()
        length_R = torch.linalg.vector_norm(some_RD, dim=1)
        zeros += int((length_R == 0.0).sum())
        gram_DD += some_RD.T @ some_RD
        direction_D += (some_RD / length_R.clamp(min=1e-30)[:, None]).sum(dim=0)
    if not torch.isfinite(gram_DD).all():
        return TableHealth(float("nan"), float("nan"), float("nan"))
    singular_D = torch.linalg.eigvalsh(gram_DD).clamp(min=0.0).sqrt()
    share_D = singular_D / singular_D.sum().clamp(min=1e-30)
    entropy = -(share_D * share_D.clamp(min=1e-30).log()).sum()
    num_rows = max(1, len(rows) - zeros)
    return TableHealth(
        effective_rank=float(entropy.exp()) if singular_D.sum() > 0 else 0.0,
        mean_cosine=float((direction_D.dot(direction_D) - num_rows) / max(1, num_rows * (num_rows - 1))),
        zero_share=zeros / max(1, len(rows)),
    )


def knows_own_likes(
    user_UD: Tensor, item_ID: Tensor, liked: Csr, users: npt.NDArray[np.int64], *, seed: int
) -> npt.NDArray[np.float64]:
    """(B,) how often an item that a user likes scores above one that others like, 0.5 by chance (an AUC).

    The others' items are drawn from all likes, so that what is popular is no help. `users` like something each.
    """
    rng = np.random.default_rng(seed)
    user_rows, item_rows = user_UD.numpy(), item_ID.numpy()  # torch takes longer to begin than this to compute
    found_B = np.empty(len(users))
    for place, user in enumerate(users):
        own = np.asarray(liked.indices[liked.indptr[user] : liked.indptr[user + 1]])
        some = own if len(own) <= LIKES_AT_MOST else rng.choice(own, LIKES_AT_MOST, replace=False)
        drawn = np.asarray(liked.indices[rng.integers(0, len(liked.indices), OTHERS)])
        others = drawn[~np.isin(drawn, own)]
        if not len(others):
            found_B[place] = 0.5
            continue
        scores = (item_rows[np.concatenate([some, others])] * user_rows[user]).sum(axis=1)
        own_N, other_M = scores[: len(some), None], scores[None, len(some) :]
        found_B[place] = (own_N > other_M).mean() + 0.5 * (own_N == other_M).mean()
    return found_B


def some_of(users: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
    """All, or so many of them, drawn without replacement, ascending."""
    if len(users) <= USERS_AT_MOST:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, USERS_AT_MOST, replace=False))
