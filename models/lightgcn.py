"""LightGCN (He, Deng, Wang, Li, Zhang, Wang: "LightGCN", SIGIR 2020): embeddings averaged over graph propagation.

The file knows one device and no ranks; models/distributed.py wraps the module.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.graph import Adjacency
from models.losses import sampled_softmax_loss
from models.sampling import Batch


class _MeanOfLayers(torch.autograd.Function):
    """(E + AE + ... + A^L E) / (L + 1), He et al. eq. 8 with equal weights.

    A is symmetric, so the gradient is the same mean of layers of the incoming gradient: no activation is kept, and
    autograd's own (slow) backward of a sparse product is never asked for.
    """

    @staticmethod
    def forward(ctx, table_ND: Tensor, adjacency: Tensor, layers: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.adjacency, ctx.layers = adjacency, layers
        return mean_of_layers(table_ND, adjacency, layers)

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return mean_of_layers(grad_ND.contiguous(), ctx.adjacency, ctx.layers), None, None


def mean_of_layers(table_ND: Tensor, adjacency: Tensor, layers: int) -> Tensor:
    """A running sum: two tables live at a time, however many layers.

    torch_geometric's LGConv gives the same numbers (a test holds them to 1e-6 of each other). On its edge_index it is
    30 to 110 times slower, since it normalises at each call and gathers edge by edge; on this very CSR, normalised
    once, it is as fast (benchmarks/README.md, "Propagation"), and would keep activations for its backward.
    """
    total_ND, layer_ND = table_ND.clone(), table_ND
    for _ in range(layers):
        layer_ND = adjacency @ layer_ND
        total_ND += layer_ND
    return total_ND.div_(layers + 1)


def adjacency_tensor(adjacency: Adjacency, device: torch.device | str = "cpu") -> Tensor:
    """The stored arrays as a torch CSR matrix, (N, N)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(beta state|not writable|is not supported).*")
        return torch.sparse_csr_tensor(
            torch.from_numpy(np.array(adjacency.indptr)),
            torch.from_numpy(np.array(adjacency.indices)),
            torch.from_numpy(np.array(adjacency.values)),
            size=(adjacency.num_nodes, adjacency.num_nodes),
            check_invariants=False,
        ).to(device)


class LightGCN(nn.Module):
    """One table of node embeddings, and the graph they are averaged over.

    The score of user u and item i is cosine(u, i) / temperature + bias of i, of the propagated embeddings.
    """

    def __init__(
        self,
        table_ND: Tensor,
        adjacency: Tensor,
        item_bias_I: Tensor,
        *,
        num_users: int,
        layers: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(table_ND)
        # Not buffers: DistributedDataParallel would broadcast them at every step, and cannot hold sparse ones.
        self.adjacency = adjacency
        self.item_bias_I = item_bias_I
        self.num_users = num_users
        self.layers = layers
        self.temperature = temperature

    def forward(self, batch: Batch) -> Tensor:
        """The batch's share of the loss. All of it happens in here: gradients are exchanged only through forward."""
        user_UD, item_ID = self._unit_embeddings(_MeanOfLayers.apply(self.table, self.adjacency, self.layers))
        return batch.weight * sampled_softmax_loss(
            user_UD[batch.users] / self.temperature, item_ID, self.item_bias_I, batch
        )

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """(U, D + 1) and (I, D + 1), made so that their inner product is the score: the bias is one more column."""
        user_UD, item_ID = self._unit_embeddings(mean_of_layers(self.table.detach(), self.adjacency, self.layers))
        ones_U1 = user_UD.new_ones(len(user_UD), 1)
        return (
            torch.cat([user_UD / self.temperature, ones_U1], dim=1),
            torch.cat([item_ID, self.item_bias_I[:, None]], dim=1),
        )

    def _unit_embeddings(self, propagated_ND: Tensor) -> tuple[Tensor, Tensor]:
        unit_ND = F.normalize(propagated_ND, dim=1)
        return unit_ND[: self.num_users], unit_ND[self.num_users :]


def spectral_start(
    adjacency: Tensor, num_users: int, width: int, seed: int, after_each: Callable[[], None] = lambda: None
) -> Tensor:
    """The first `width` singular vectors of the normalised user-item matrix, (N, D), root mean square 0.1.

    Randomised range finder with power iterations (Halko, Martinsson, Tropp 2011). Training starts where a linear
    model would end, which saves most of the passes. Columns beyond the matrix's rank are drawn at random.
    """
    num_nodes = adjacency.shape[0]
    num_items = num_nodes - num_users
    columns = min(width + 16, num_users, num_items)
    generator = torch.Generator().manual_seed(seed)
    random_IC = torch.randn(num_items, columns, generator=generator).to(adjacency.device)

    def to_users(item_IC: Tensor) -> Tensor:
        zeros_UC = item_IC.new_zeros(num_users, item_IC.shape[1])
        return through(torch.cat([zeros_UC, item_IC]))[:num_users]

    def to_items(user_UC: Tensor) -> Tensor:
        zeros_IC = user_UC.new_zeros(num_items, user_UC.shape[1])
        return through(torch.cat([user_UC, zeros_IC]))[num_users:]

    def through(node_NC: Tensor) -> Tensor:
        product_NC = adjacency @ node_NC
        after_each()
        return product_NC

    def orthonormal(matrix_NC: Tensor) -> Tensor:
        with one_thread():
            basis_NC = torch.linalg.qr(matrix_NC).Q
        after_each()
        return basis_NC

    basis_UC = orthonormal(to_users(random_IC))
    for _ in range(3):
        basis_UC = orthonormal(to_users(orthonormal(to_items(basis_UC))))
    projected_IC = to_items(basis_UC)
    with one_thread():
        right_IC, singular_C, left_CC = torch.linalg.svd(projected_IC, full_matrices=False)
    after_each()
    kept = min(width, columns)
    root_C = singular_C[:kept].sqrt()
    table_ND = torch.cat([(basis_UC @ left_CC.T)[:, :kept] * root_C, right_IC[:, :kept] * root_C])
    with one_thread():
        mean_square = table_ND.square().mean()
    table_ND *= 0.1 / mean_square.sqrt().clamp(min=1e-12)
    noise_ND = 0.01 * torch.randn(num_nodes, width, generator=generator).to(adjacency.device)
    noise_ND[:, :kept] += table_ND
    return noise_ND


@contextmanager
def one_thread() -> Iterator[None]:
    """For what rounds by the number of threads: LAPACK's factorisations, and a sum over a whole tensor.

    The factorisations are of tall, thin matrices, where threads gain next to nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
