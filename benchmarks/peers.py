"""What the authors' PyTorch code does, said again in our words, to be timed beside ours. Not used by any night.

From the description in He et al. 2020, section 4.1, and the public implementation's structure: an adjacency assembled
in scipy's list-of-lists and dictionary formats, torch's COO product with every layer kept for autograd and stacked, BPR
on 2,048 triplets, Adam.
"""

import warnings

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from models.graph import Adjacency, Csr


def assemble_adjacency(liked: Csr, num_items: int) -> sp.csr_matrix:
    """The normalised adjacency by way of lil and dok matrices, as the authors do it once and cache on disk."""
    ones = np.ones(len(liked.indices), dtype=np.float32)
    likes_UI = sp.csr_matrix((ones, liked.indices, liked.indptr), shape=(liked.num_rows, num_items))
    num_users = liked.num_rows
    whole = sp.dok_matrix((num_users + num_items, num_users + num_items), dtype=np.float32).tolil()
    by_user = likes_UI.tolil()
    whole[:num_users, num_users:] = by_user
    whole[num_users:, :num_users] = by_user.T
    whole = whole.todok()
    degree = np.array(whole.sum(axis=1)).flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inverse = np.power(degree, -0.5)
    inverse[np.isinf(inverse)] = 0.0
    diagonal = sp.diags(inverse)
    return (diagonal @ whole @ diagonal).tocsr()


def coo_of(adjacency: Adjacency) -> Tensor:
    row = np.repeat(np.arange(adjacency.num_nodes), np.diff(adjacency.indptr))
    entries = torch.from_numpy(np.stack([row, np.asarray(adjacency.indices, dtype=np.int64)]))
    shape = (adjacency.num_nodes, adjacency.num_nodes)
    return torch.sparse_coo_tensor(entries, torch.from_numpy(np.array(adjacency.values)), shape).coalesce()


def stacked_mean(table_ND: Tensor, graph: Tensor, layers: int) -> Tensor:
    """Every layer is kept until the backward pass."""
    every = [table_ND]
    for _ in range(layers):
        every.append(torch.sparse.mm(graph, every[-1]))
    return torch.stack(every, dim=1).mean(dim=1)


class AuthorsStep:
    """One BPR step: propagate everything, score 2,048 triplets, back through every layer, Adam."""

    def __init__(self, graph: Tensor, num_users: int, *, width: int, layers: int) -> None:
        generator = torch.Generator().manual_seed(0)
        start_ND = 0.1 * torch.randn(graph.shape[0], width, generator=generator)
        self.table = torch.nn.Parameter(start_ND.to(graph.device))
        self.graph, self.num_users, self.layers = graph, num_users, layers
        self.optimiser = torch.optim.Adam([self.table], lr=0.001)

    def __call__(self, user_B: Tensor, liked_B: Tensor, other_B: Tensor) -> float:
        propagated_ND = stacked_mean(self.table, self.graph, self.layers)
        user_UD, item_ID = propagated_ND[: self.num_users], propagated_ND[self.num_users :]
        margin_B = (user_UD[user_B] * (item_ID[liked_B] - item_ID[other_B])).sum(dim=1)
        rows = (user_B, liked_B + self.num_users, other_B + self.num_users)
        decay = sum(self.table[row].square().sum() for row in rows) / 2 / len(user_B)
        loss = F.softplus(-margin_B).mean() + 1e-4 * decay
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())
