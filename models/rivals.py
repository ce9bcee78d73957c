"""What a graph model must beat to earn its cost. Each gives scores in the same form as LightGCN (models/topk.py)."""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from models.graph import Csr
from models.topk import Scorer


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

    Memory: similarities are made in blocks of items that hold at most block_bytes, at 48 bytes for each of block x I
    pairs; kept are neighbours x I entries of 8 bytes.
    """
    block = max(1, block_bytes // (48 * max(1, num_items)))
    matrix_UI = _matrix(liked, num_items)
    by_item_IU = matrix_UI.T.tocsr()
    norm_I = np.sqrt(np.diff(by_item_IU.indptr)).astype(np.float32)
    blocks = []
    for start in range(0, num_items, block):
        common = (by_item_IU[start : start + block] @ matrix_UI).tocoo()
        rows, columns = common.row + start, common.col
        keep = rows != columns
        rows, columns = rows[keep], columns[keep]
        similarity = common.data[keep] / (norm_I[rows] * norm_I[columns] + shrink)
        blocks.append(_nearest(rows, columns, similarity.astype(np.float32), neighbours, num_items))
    similarity_II = sp.csr_matrix(sum(blocks))

    def score(users: npt.NDArray[np.int64]) -> Tensor:
        score_BI = torch.from_numpy((matrix_UI[users] @ similarity_II.T).toarray())
        score_BI[score_BI == 0] = -torch.inf
        return score_BI

    return score


def _nearest(
    rows: np.ndarray, columns: np.ndarray, similarity: np.ndarray, neighbours: int, size: int
) -> sp.csr_matrix:
    """Each row's largest entries; equal ones by ascending column, so that the same graph gives the same neighbours."""
    order = np.lexsort((columns, -similarity, rows))
    rows, columns, similarity = rows[order], columns[order], similarity[order]
    first = np.searchsorted(rows, rows)  # where each entry's row begins
    keep = np.arange(len(rows)) - first < neighbours
    return sp.csr_matrix((similarity[keep], (rows[keep], columns[keep])), shape=(size, size), dtype=np.float32)


def _matrix(liked: Csr, num_items: int) -> sp.csr_matrix:
    ones = np.ones(len(liked.indices), dtype=np.float32)
    return sp.csr_matrix((ones, liked.indices, liked.indptr), shape=(liked.num_rows, num_items))
