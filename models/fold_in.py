"""Rows for people whom a fit has no row for: from their items' embeddings, without training.

A night trains its served fit on all likes, so whom it folds in has events and not one like. Nobody has events that are
newer than the fit: they come with the next night. How good a row of so many likes is, tasks/evaluate/tiers.py measures
on people who have a row, taken as if they had none.

A person's row is the mean of their items' propagated embeddings, taken through one linear map and brought to the length
that trained rows have. The map is fitted on the trained users, whose rows and items are both known: a ridge regression
that, where they say little, leaves items as they are (a multiple of the identity). It holds what a user's own term adds
to their items. Of the variants tried on validation (benchmarks/README.md, "Fold-in") it agrees best with the rows that
training gives to the same people.

With few events the row is shorter, n / (n + HALF_AT) of that length: then the items' popularity, which stands in the
score as its bias, counts for more. Everything is linear in the items, so a score's reasons stay exact
(models/reasons.py).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.graph import Csr
from models.lightgcn import Tables, one_thread
from models.reasons import Histories
from models.scorers import slices
from models.sparse import sparse_times_dense

HALF_AT = 1.0  # events that make a row half as long as a trained one
RIDGE = 0.1  # of the mean square of the items' means
USERS_AT_MOST = 100_000  # that the map is fitted on; a seeded sample beyond
USERS_AT_ONCE = 8192
SEED = 7


@dataclass(frozen=True)
class Folded:
    """`user_RD` is (R, D + 1) in the space of the served user_UD. A row of zeros: no event is of an item with a row."""

    user_RD: Tensor
    has_row_R: npt.NDArray[np.bool_]
    histories: Histories  # what the rows are made of; nobody has an own term


def fold_table(tables: Tables, liked: Csr, degree_I: Tensor) -> tuple[Tensor, Tensor]:
    """(I, D) what each item adds to a folded row before its length, and that length, (1,). A fit exports both.

    `liked` is what the fit was trained on. Items without a like have untrained embeddings; they add nothing. The same
    bits on any number of threads.
    """
    item_ID = tables.item_ID[:, :-1].contiguous()
    users = np.flatnonzero(liked.counts() > 0)
    if len(users) > USERS_AT_MOST:
        users = np.sort(np.random.default_rng(SEED).choice(users, USERS_AT_MOST, replace=False))
    width = item_ID.shape[1]
    square_DD, product_DD = torch.zeros(2, width, width, dtype=torch.float64)
    length = 0.0
    with one_thread():
        for part in slices(len(users), USERS_AT_ONCE):
            mean_bD = _sums(liked, users[part], item_ID).double() / torch.from_numpy(liked.counts()[users[part], None])
            row_bD = tables.user_UD[torch.from_numpy(users[part]), :-1].double()
            square_DD += mean_bD.T @ mean_bD
            product_DD += mean_bD.T @ row_bD
            length += float(torch.linalg.vector_norm(row_bD, dim=1).sum())
        ridge_DD = (RIDGE * square_DD.diagonal().mean() + 1e-12) * torch.eye(width, dtype=torch.float64)
        scale = product_DD.trace() / square_DD.trace().clamp_min(1e-12)  # the best multiple of the identity
        map_DD = torch.linalg.solve(square_DD + ridge_DD, product_DD + scale * ridge_DD)
        fold_ID = item_ID @ map_DD.float()
    fold_ID[degree_I == 0] = 0.0
    return fold_ID, torch.tensor([length / max(1, len(users))], dtype=torch.float32)


def rows_to_fold_in(liked: Csr) -> npt.NDArray[np.int64]:
    """Users of the graph without a like, ascending: they have events, and no fit on `liked` trains a row of theirs."""
    return np.flatnonzero(liked.counts() == 0)


def fold_in(events: Csr, rows: npt.NDArray[np.int64], fold_ID: Tensor, fold_length: Tensor) -> Folded:
    """A row for each of these rows of `events`, whatever else is asked for with it; no retraining."""
    known_I = (fold_ID != 0).any(dim=1).numpy()
    position, item = events.rows_of(rows)
    kept = known_I[item]
    counts_R = np.bincount(position[kept], minlength=len(rows))
    items = Csr(np.concatenate([[0], np.cumsum(counts_R)]), item[kept])
    sum_RD = _sums(items, np.arange(len(rows)), fold_ID)
    norm_R = torch.linalg.vector_norm(sum_RD.double(), dim=1).numpy()
    has_row_R = norm_R > 0
    length_R = float(fold_length) * counts_R / (counts_R + HALF_AT)
    weight_R = np.divide(length_R, norm_R, out=np.zeros(len(rows)), where=has_row_R).astype(np.float32)
    ones_R1 = torch.from_numpy(has_row_R.astype(np.float32))[:, None]
    user_RD = torch.cat([sum_RD * torch.from_numpy(weight_R)[:, None], ones_R1], dim=1)
    return Folded(user_RD, has_row_R, Histories(items, weight_R, fold_ID.numpy()))


def _sums(items: Csr, rows: npt.NDArray[np.int64], table_ID: Tensor) -> Tensor:
    """(R, D) the sum of the table's rows over the items of each row, in their order."""
    position, item = items.rows_of(rows)
    indptr = np.searchsorted(position, np.arange(len(rows) + 1)).astype(np.int32)
    item_E = torch.from_numpy(np.asarray(item, dtype=np.int32))
    return sparse_times_dense(torch.from_numpy(indptr), item_E, torch.ones(len(item_E)), table_ID)
