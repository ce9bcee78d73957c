"""What a graph model must beat to earn its cost. Each gives scores in the same form as LightGCN (models/topk.py)."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from models.graph import Csr, normalised_adjacency
from models.lightgcn import Matrix, leading_singular_vectors
from models.scorers import Scorer
from models.selection import PARTS

NUMBERS_AT_ONCE = 2_000_000  # of the graph filter's users near to users; 12 bytes each, and again while multiplied
BYTES_PER_PAIR = 80  # of two items with a user in common, while the nearest are sorted out


def popularity(liked: Csr, num_items: int) -> npt.NDArray[np.float32]:
    """(I,) how many users like each item."""
    return np.bincount(liked.indices, minlength=num_items).astype(np.float32)


def popularity_scorer(liked: Csr, num_items: int) -> Scorer:
    """The same scores for everybody."""
    score_I = torch.from_numpy(popularity(liked, num_items))
    return lambda users: score_I.repeat(len(users), 1)


def item_knn_scorer(
    liked: Csr, num_items: int, *, neighbours: int, shrink: float, block_bytes: int = 256 * 2**20
) -> Scorer:
    """Item-based collaborative filtering (Sarwar et al. 2001; Deshpande and Karypis 2004).

    Similarity is the cosine of two items' users, shrunk: common / (norm x norm + shrink). An item keeps its nearest
    `neighbours`. A user's score of an item is the sum of its similarities to what the user likes; an item similar
    to none of them has no score.

    Memory: the likes twice, the neighbours twice (at most 16 bytes x I x neighbours), and block_bytes for the
    similarities of the items at hand, or BYTES_PER_PAIR x I if that is more. Never I x I.
    """
    matrix_UI = _matrix(liked, num_items)
    by_item_IU = matrix_UI.T.tocsr()
    norm_I = np.sqrt(np.diff(by_item_IU.indptr)).astype(np.float32)
    nearest = []
    for items in _blocks_of_items(by_item_IU, matrix_UI, block_bytes // BYTES_PER_PAIR):
        common = (by_item_IU[items] @ matrix_UI).tocoo()
        keep = common.row + items.start != common.col
        row, column = common.row[keep], common.col[keep]
        similarity = common.data[keep] / (norm_I[row + items.start] * norm_I[column] + shrink)
        del common
        shape = (items.stop - items.start, num_items)
        nearest.append(_nearest(row, column, similarity.astype(np.float32), neighbours, shape))
    to_neighbours_II = sp.vstack(nearest, format="csr").T.tocsr()

    def score(users: npt.NDArray[np.int64]) -> Tensor:
        score_BI = torch.full((len(users), num_items), -torch.inf)
        some = max(1, len(users) // PARTS)
        for start in range(0, len(users), some):
            part = matrix_UI[users[start : start + some]] @ to_neighbours_II
            row = np.repeat(np.arange(start, start + part.shape[0]), np.diff(part.indptr))
            score_BI.numpy()[row, part.indices] = part.data
        return score_BI

    return score


def ease_scorer(liked: Csr, num_items: int, *, regularisation: float) -> Scorer:
    """EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): a linear model of items by items.

    B = I - P / diag(P) with P = (R^T R + regularisation)^-1, so its diagonal is zero; a user's scores are R_u B.
    Memory: 8 bytes x I^2 three times while it is fitted, 4 bytes x I^2 after; time grows with I^3: small catalogues.
    """
    matrix_UI = _matrix(liked, num_items)
    gram_II = torch.from_numpy((matrix_UI.T @ matrix_UI).toarray().astype(np.float64))
    gram_II.diagonal().add_(regularisation)
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(gram_II))
    inverse_II.div_(-inverse_II.diagonal().clone())
    inverse_II.fill_diagonal_(0.0)
    weight_II = inverse_II.float().numpy()

    def score(users: npt.NDArray[np.int64]) -> Tensor:
        score_BI = torch.from_numpy(matrix_UI[users] @ weight_II)
        score_BI[torch.from_numpy(liked.counts()[users] == 0)] = -torch.inf  # no history, no opinion
        return score_BI

    return score


def graph_filter_scorer(liked: Csr, num_items: int, *, width: int, low_pass: float, seed: int = 0) -> Scorer:
    """GF-CF (Shen et al. 2021, "How Powerful is Graph Convolution for Recommendation?"): a filter, no training.

    With R' = D_U^-1/2 R D_I^-1/2, a user's scores are R_u (R'^T R' + low_pass D_I^-1/2 V V^T D_I^1/2): what items
    near the user's say, and the user's likes seen through the graph's `width` smoothest directions V. Memory: the
    likes three times, I x width; for some users at a time their nearness to all users.
    """
    matrix_UI = _matrix(liked, num_items)
    degree_I = popularity(liked, num_items)
    root_I = np.sqrt(np.maximum(degree_I, 1.0))
    root_U = np.sqrt(np.maximum(liked.counts(), 1)).astype(np.float32)
    normal_UI = (sp.diags(1.0 / root_U) @ matrix_UI @ sp.diags(1.0 / root_I)).tocsr().astype(np.float32)
    to_users_IU = normal_UI.T.tocsr()
    adjacency = Matrix.of(normalised_adjacency(liked, num_items))
    smooth_IC = leading_singular_vectors(adjacency, liked.num_rows, width, seed)[2].numpy()
    into_IC, out_of_IC = smooth_IC / root_I[:, None], smooth_IC * root_I[:, None]

    def score(users: npt.NDArray[np.int64]) -> Tensor:
        score_BI = torch.empty(len(users), num_items)
        # Near to how many users is counted at most: popular items are near to nearly everybody.
        near_B = np.minimum(matrix_UI[users] @ degree_I, liked.num_rows)
        for part in _slices_of(near_B + num_items, NUMBERS_AT_ONCE):
            likes_bI = matrix_UI[users[part]]
            near_bI = (likes_bI @ to_users_IU) @ normal_UI
            smooth_bI = low_pass * ((likes_bI @ into_IC) @ out_of_IC.T)
            score_BI.numpy()[part] = near_bI.toarray() + smooth_bI
        score_BI[torch.from_numpy(liked.counts()[users] == 0)] = -torch.inf  # no history, no opinion
        return score_BI

    return score


def _slices_of(size_B: np.ndarray, at_once: float) -> Iterator[slice]:
    """Neighbouring rows whose sizes are at most so much together; a row with more stands alone."""
    end_B, start, before = np.cumsum(size_B, dtype=np.float64), 0, 0.0
    while start < len(end_B):
        stop = max(start + 1, int(np.searchsorted(end_B, before + at_once, side="right")))
        yield slice(start, stop)
        start, before = stop, end_B[stop - 1]


def _blocks_of_items(by_item_IU: sp.csr_matrix, matrix_UI: sp.csr_matrix, pairs: int) -> Iterator[slice]:
    """Neighbouring items whose similarities are at most so many; an item with more stands alone."""
    likes_of_users_I = by_item_IU @ np.diff(matrix_UI.indptr).astype(np.float64)
    yield from _slices_of(np.minimum(likes_of_users_I, matrix_UI.shape[1]), pairs)


def _nearest(
    rows: np.ndarray, columns: np.ndarray, similarity: np.ndarray, neighbours: int, shape: tuple[int, int]
) -> sp.csr_matrix:
    """Each row's largest entries; equal ones by ascending column, so that the same graph gives the same neighbours."""
    order = np.lexsort((columns, -similarity, rows))
    rows, columns, similarity = rows[order], columns[order], similarity[order]
    first = np.searchsorted(rows, rows)  # where each entry's row begins
    keep = np.arange(len(rows)) - first < neighbours
    return sp.csr_matrix((similarity[keep], (rows[keep], columns[keep])), shape=shape, dtype=np.float32)


def _matrix(liked: Csr, num_items: int) -> sp.csr_matrix:
    ones = np.ones(len(liked.indices), dtype=np.float32)
    return sp.csr_matrix((ones, liked.indices, liked.indptr), shape=(liked.num_rows, num_items))
