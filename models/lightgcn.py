"""LightGCN (He, Deng, Wang, Li, Zhang, Wang: "LightGCN", SIGIR 2020): embeddings averaged over graph propagation.

The file knows no ranks: how the table and the graph are laid out on them is in models/distributed.py, which hands in
the product with the adjacency and the rows that a step needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clock import Clock
from models.graph import Adjacency
from models.losses import bpr_loss, sampled_softmax_loss
from models.sampling import Step, Triplets
from models.sparse import sparse_times_dense

START_ROOT_MEAN_SQUARE = 0.1  # of the table that a fit starts from: what a step of Adam is worth depends on it
COLUMNS_AT_ONCE = 32  # each column propagates alone; so few of them keep the gathered rows in the cache
COLUMNS_AT_ONCE_ON_GPU = 128  # where narrow strips are only more products, each of them short


@dataclass(frozen=True)
class Matrix:
    """A sparse matrix on a device, in CSR: int32 pointers and columns, float32 values."""

    indptr: Tensor
    indices: Tensor
    values: Tensor

    @staticmethod
    def of(adjacency: Adjacency, device: torch.device | str = "cpu", rows: slice = slice(None)) -> "Matrix":
        """The stored arrays, or some neighbouring rows of them."""
        start, stop, _ = rows.indices(adjacency.num_nodes)
        indptr = np.array(adjacency.indptr[start : stop + 1])
        entries = slice(indptr[0], indptr[-1])
        arrays = (indptr - indptr[0], np.array(adjacency.indices[entries]), np.array(adjacency.values[entries]))
        return Matrix(*(torch.from_numpy(array).to(device) for array in arrays))

    def __matmul__(self, dense: Tensor) -> Tensor:
        return sparse_times_dense(self.indptr, self.indices, self.values, dense)


class Layout(Protocol):
    """Which part of the table is here, and how a step gets at the rest (models/distributed.py)."""

    def multiply(self, own: Tensor) -> Tensor:
        """This part of the adjacency's product with the whole of what `own` is a part of."""

    def collect(self, own: Tensor, wanted: list[Tensor], clock: Clock) -> Tensor:
        """The rows that this rank wants, at full width; differentiable."""


class Tables(NamedTuple):
    """What scores: user_UD @ item_ID.T, both D + 1 wide. scale_U: what each user's propagated row was multiplied by."""

    user_UD: Tensor
    item_ID: Tensor
    scale_U: Tensor


class _MeanOfLayers(torch.autograd.Function):
    """(E + AE + ... + A^L E) / (L + 1), He et al. eq. 8 with equal weights.

    A is symmetric, so the gradient is the same mean of layers of the incoming gradient: no activation is kept, and
    autograd's own (slow) backward of a sparse product is never asked for.
    """

    @staticmethod
    def forward(ctx, table, multiply, layers, clock):  # type: ignore[no-untyped-def]
        ctx.multiply, ctx.layers, ctx.clock = multiply, layers, clock
        with clock.part("propagate"):
            return mean_of_layers(table, multiply, layers)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        with ctx.clock.part("backward"):
            return mean_of_layers(grad, ctx.multiply, ctx.layers), None, None, None


def mean_of_layers(table: Tensor, multiply: Callable[[Tensor], Tensor], layers: int) -> Tensor:
    """A running sum, some columns at a time: beside table and answer live two strips, however many layers there are.

    torch_geometric's LGConv gives the same numbers (a test holds them to 1e-6 of each other); benchmarks/README.md,
    "Propagation", has what the strips, the format and the missing activations are worth.
    """
    mean = torch.empty_like(table)
    at_once = COLUMNS_AT_ONCE_ON_GPU if table.is_cuda else COLUMNS_AT_ONCE
    for start in range(0, table.shape[1], at_once):
        columns = slice(start, start + at_once)
        layer = table[:, columns].contiguous()
        total = layer.clone()
        for _ in range(layers):
            layer = multiply(layer)
            total += layer
        mean[:, columns] = total.div_(layers + 1)
    return mean


class LightGCN(nn.Module):
    """One table of node embeddings, and the graph they are averaged over; this rank's part of both.

    With the sampled softmax the score of user u and item i is cosine(u, i) / temperature + bias of i, of the
    propagated embeddings; with BPR, as in the paper, it is their inner product.
    """

    def __init__(
        self,
        own: Tensor,
        layout: Layout,
        item_bias_I: Tensor,
        *,
        num_users: int,
        layers: int,
        loss: str,
        temperature: float,
        decay: float = 0.0,
        low_precision: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(own)
        # Not buffers: DistributedDataParallel would broadcast them at every step, and cannot hold sparse ones.
        self.layout = layout
        self.item_bias_I = item_bias_I
        self.num_users = num_users
        self.layers = layers
        self.loss = loss
        self.temperature = temperature
        self.decay = decay
        self.low_precision = low_precision
        self.clock = clock or Clock()

    def forward(self, step: Step) -> Tensor:
        """This rank's part of the step's loss. All of it happens in here: DDP's gradients meet only through forward."""
        propagated = _MeanOfLayers.apply(self.table, self._multiply, self.layers, self.clock)
        row_WD = self.layout.collect(propagated, step.wanted, self.clock)
        share = step.share
        if isinstance(share, Triplets):
            start_WD = self.layout.collect(self.table, step.wanted, self.clock)
            with self.clock.part("score"):
                return bpr_loss(row_WD, start_WD, share, decay=self.decay)
        with self.clock.part("score"):
            return sampled_softmax_loss(
                row_WD, self.item_bias_I, share, temperature=self.temperature, low_precision=self.low_precision
            )

    def _multiply(self, own: Tensor) -> Tensor:
        if self.low_precision:
            return self.layout.multiply(own.bfloat16()).float()
        return self.layout.multiply(own)

    @torch.no_grad()
    def propagated(self) -> Tensor:
        """This rank's part of the propagated table; in full precision, so that `hop` is what it is made of."""
        return mean_of_layers(self.table.detach(), self.layout.multiply, self.layers)

    @torch.no_grad()
    def hop(self) -> Tensor:
        """This rank's part of (N, D), the first hop: what a node adds to a neighbour's propagated row, per edge weight.

        P = (E + A E + ... + A^L E) / (L + 1) = E / (L + 1) + A H with H = (E + ... + A^(L-1) E) / (L + 1): a node's own
        term, and a sum over its neighbours, each times its edge's weight. Without layers nothing is added.
        """
        if self.layers == 0:
            return torch.zeros_like(self.table)
        mean = mean_of_layers(self.table.detach(), self.layout.multiply, self.layers - 1)
        return mean.mul_(self.layers / (self.layers + 1))

    def tables(self, propagated_ND: Tensor) -> Tables:
        """Made so that the inner product of a user's and an item's row is the score: the bias is one more column.

        The one place where the bias enters what is scored, listed, explained and handed out.
        """
        user_UD, item_ID = propagated_ND[: self.num_users], propagated_ND[self.num_users :]
        bias_I1 = self.item_bias_I[:, None].to(item_ID)
        scale_U = user_UD.new_ones(len(user_UD))
        if self.loss == "softmax":
            scale_U = 1.0 / (torch.linalg.vector_norm(user_UD, dim=1).clamp_min(1e-12) * self.temperature)
            user_UD, item_ID = F.normalize(user_UD, dim=1) / self.temperature, F.normalize(item_ID, dim=1)
        return Tables(
            torch.cat([user_UD, user_UD.new_ones(len(user_UD), 1)], dim=1),
            torch.cat([item_ID, bias_I1], dim=1),
            scale_U,
        )


def spectral_start(
    adjacency: Matrix, num_users: int, width: int, seed: int, after_each: Callable[[], None] = lambda: None
) -> Tensor:
    """The first `width` singular vectors of the normalised user-item matrix, (N, D), scaled as starts are.

    Training starts where a linear model would end, which saves most of the passes. Columns beyond the matrix's rank
    are drawn at random.
    """
    left_UC, singular_C, right_IC = leading_singular_vectors(adjacency, num_users, width, seed, after_each)
    kept, root_C = len(singular_C), singular_C.sqrt()
    table_ND = torch.cat([left_UC * root_C, right_IC * root_C])
    scale_start(table_ND)
    generator = torch.Generator().manual_seed(seed + 1)
    noise_ND = 0.01 * torch.randn(len(table_ND), width, generator=generator).to(table_ND.device)
    noise_ND[:, :kept] += table_ND
    return noise_ND


def scale_start(table_ND: Tensor) -> None:
    """In place, to a root mean square of START_ROOT_MEAN_SQUARE. The same bits whatever the number of threads."""
    with one_thread():
        mean_square = table_ND.square().mean()
    table_ND *= START_ROOT_MEAN_SQUARE / mean_square.sqrt().clamp(min=1e-12)


def leading_singular_vectors(
    adjacency: Matrix, num_users: int, width: int, seed: int, after_each: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """(U, C), (C,), (I, C) of D_U^-1/2 R D_I^-1/2, largest first; C is `width` or all that there are.

    Randomised range finder with three power iterations and 16 columns more than asked for (Halko, Martinsson, Tropp
    2011). The same bits whatever the number of threads. A vector and its opposite serve alike and libraries differ in
    which they give: each is turned to lie on the same side of a random direction, or the start would depend on the CPU.
    """
    num_items = len(adjacency.indptr) - 1 - num_users
    columns = min(width + 16, num_users, num_items)
    generator = torch.Generator().manual_seed(seed)
    random_IC = torch.randn(num_items, columns, generator=generator).to(adjacency.values.device)

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
    side_C = torch.where(random_IC[:, 0] @ right_IC < 0, -1.0, 1.0)
    return ((basis_UC @ left_CC.T) * side_C)[:, :kept], singular_C[:kept], (right_IC * side_C)[:, :kept]


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
