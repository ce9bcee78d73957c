"""Tonight's start from an earlier night's tables: rows that it knew as it left them, new ones from their neighbours.

The file that `Spec.start` names, safetensors of any float type, rows in the order of tonight's nodes (users, then
items; rows that the earlier night did not know are zeros):

known_N                 (N,) uint8, 1 where it knew the node
judged_ND, served_ND    (N, D) layer 0 of its two fits
"""

import torch
from safetensors import safe_open
from torch import Tensor

from models.lightgcn import Matrix, scale_start

NOISE = 0.01  # of a row of which nothing is known, as in the start of a fit that knows no earlier one


def warm_start(path: str, which: str, adjacency: Matrix, num_users: int, seed: int) -> Tensor:
    """(N, D) float32 on the CPU. The same bits whatever the number of threads.

    Scaled back to where every fit starts: training makes tables larger, and what grew night after night hardly learned
    any more (benchmarks/README.md, "Warm start"). Scores are cosines, so the scale itself says nothing.
    """
    with safe_open(path, framework="pt") as tables:
        table_ND = tables.get_tensor(f"{which}_ND").float()
        known_N = tables.get_tensor("known_N").bool()
    for side in (slice(0, num_users), slice(num_users, None)):
        # A node that this fit's earlier one never saw in a like has an untrained row, and is as good as new.
        known_N[side] &= torch.linalg.vector_norm(table_ND[side], dim=1) > 0
    start_ND = fill_in(table_ND, known_N, adjacency, num_users, seed)
    scale_start(start_ND)
    return start_ND


def fill_in(table_ND: Tensor, known_N: Tensor, adjacency: Matrix, num_users: int, seed: int) -> Tensor:
    """New rows: what their neighbours' rows say together, as long as known rows of their kind; noise without any.

    Twice, since new users like new items: from known neighbours first, then from those that got a row so.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    noise_ND = NOISE * torch.randn(table_ND.shape, generator=generator)
    table_ND = torch.where(known_N[:, None], table_ND, 0.0)
    has_row_N = known_N.clone()
    length_N = torch.linalg.vector_norm(table_ND, dim=1)
    for _ in range(2):
        from_neighbours_ND = adjacency @ table_ND
        norm_N = torch.linalg.vector_norm(from_neighbours_ND, dim=1)
        for side in (slice(0, num_users), slice(num_users, None)):
            new_n = ~has_row_N[side] & (norm_N[side] > 0)
            if not known_N[side].any() or not new_n.any():
                continue
            typical = length_N[side][known_N[side]].median()
            table_ND[side][new_n] = from_neighbours_ND[side][new_n] * (typical / norm_N[side][new_n])[:, None]
        has_row_N |= torch.linalg.vector_norm(table_ND, dim=1) > 0
    return torch.where(has_row_N[:, None], table_ND, noise_ND)
