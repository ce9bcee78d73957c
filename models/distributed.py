"""The only file that knows ranks: who I am, which part of the table is mine, what crosses between ranks and when.

One step is the same on any number of ranks: propagate, collect the rows that the batch needs, score a share of the
batch's users, give the gradients back, propagate them. What differs is where the numbers lie:

data     every rank holds the whole table and graph and scores its share; DistributedDataParallel averages gradients.
columns  every rank holds some columns of the table for all nodes, and the whole graph. LightGCN has no weight matrix,
         so columns propagate alone: only the batch's rows cross, once there and once back.
rows     every rank holds some nodes: their rows of table and graph. Each layer needs everybody's rows; then as above.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.clock import Clock
from models.graph import Adjacency
from models.lightgcn import Matrix
from models.processes import PARENT_PID_VARIABLE, die_with_parent

SPLITS = ("data", "columns", "rows")
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` equal ones. One process needs no group and makes no connection."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def first_decides(self, value: float) -> float:
        """The first rank's value, for everybody: two ranks that stop at different steps wait for ever."""
        if self.world == 1:
            return value
        answer = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(answer, src=0)
        return float(answer.item())

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def everybodys(self, value: T) -> list[T]:
        """What each rank says, by rank."""
        said = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(said, value)
        return said

    def first_tells(self, value: T) -> T:
        """What the first rank says."""
        return self.everybodys(value)[0]

    def from_first(self, table_ND: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """The first rank's table on every rank, so that no rank starts a rounding apart from another."""
        if self.world == 1:
            assert table_ND is not None
            return table_ND.to(self.device)
        whole_ND = torch.empty(shape, device=self.device) if table_ND is None else table_ND.to(self.device)
        dist.broadcast(whole_ND, src=0)
        return whole_ND

    def lay_out(self, split: str, adjacency: Adjacency, width: int) -> "Layout":
        """This rank's layout. Raises ValueError where there are more ranks than columns or rows to hold."""
        if self.world == 1 or split == "data":
            return Whole(self, Matrix.of(adjacency, self.device))
        if split == "columns":
            return Columns(self, Matrix.of(adjacency, self.device), width)
        return Rows(self, adjacency)


class _OnRanks:
    """What does not depend on the layout."""

    ranks: Ranks
    matrix: Matrix

    @property
    def loss_factor(self) -> float:
        """The ranks' losses are parts of one sum, and so are the gradients that they give back."""
        return 1.0

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def whole_matrix(self, adjacency: Adjacency) -> Matrix:
        """For the start, which is made on the CPU; the one at hand where that is whole and there already."""
        here = isinstance(self, Whole | Columns) and self.ranks.device.type == "cpu"
        return self.matrix if here else Matrix.of(adjacency)

    def collect(self, own: Tensor, wanted: list[Tensor], clock: Clock) -> Tensor:
        """(W, D) the rows that this rank wants; differentiable. `wanted` says by rank what each of them does."""
        return cast(Tensor, _Collect.apply(own, self, wanted, clock))


@dataclass(frozen=True)
class Whole(_OnRanks):
    """The whole table on every rank."""

    ranks: Ranks
    matrix: Matrix

    def own(self, table_ND: Tensor) -> Tensor:
        return table_ND.clone()

    def whole(self, own_ND: Tensor) -> Tensor:
        return own_ND

    def multiply(self, own: Tensor) -> Tensor:
        return self.matrix @ own

    def wrap(self, model: nn.Module) -> nn.Module:
        """Gradients averaged over ranks, starting from the first rank's parameters."""
        return model if self.ranks.world == 1 else DistributedDataParallel(model)

    @property
    def loss_factor(self) -> float:
        """Losses are parts of one sum; DistributedDataParallel averages where it should add up."""
        return float(self.ranks.world)

    def fetch(self, own: Tensor, wanted: list[Tensor]) -> Tensor:
        return own.index_select(0, wanted[self.ranks.rank])

    def give_back(self, grad_WD: Tensor, wanted: list[Tensor], like: Tensor) -> Tensor:
        grad = torch.zeros_like(like)
        return grad.index_copy_(0, wanted[self.ranks.rank], grad_WD)  # the rows are distinct


@dataclass(frozen=True)
class Columns(_OnRanks):
    """Some columns of every node; as many as can be, alike for all ranks or one more."""

    ranks: Ranks
    matrix: Matrix
    width: int

    def __post_init__(self) -> None:
        if self.width < self.ranks.world:
            raise ValueError(f"{self.width} columns cannot be shared out among {self.ranks.world} ranks")

    @property
    def cuts(self) -> list[int]:
        return [self.width * rank // self.ranks.world for rank in range(self.ranks.world + 1)]

    @property
    def widths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.cuts)]

    def own(self, table_ND: Tensor) -> Tensor:
        return table_ND[:, self.cuts[self.ranks.rank] : self.cuts[self.ranks.rank + 1]].contiguous()

    def whole(self, own_NC: Tensor) -> Tensor:
        parts = [own_NC.new_empty(len(own_NC), width) for width in self.widths]
        parts[self.ranks.rank].copy_(own_NC)
        _everybody_tells(parts)
        return torch.cat(parts, dim=1)

    def multiply(self, own: Tensor) -> Tensor:
        return self.matrix @ own

    def fetch(self, own_NC: Tensor, wanted: list[Tensor]) -> Tensor:
        """Each rank's wanted rows of these columns go out; the own wanted rows of all columns come in."""
        rows = len(wanted[self.ranks.rank])
        received = _exchange(
            self.ranks, [own_NC.index_select(0, nodes) for nodes in wanted], [(rows, width) for width in self.widths]
        )
        return torch.cat(received, dim=1)

    def give_back(self, grad_WD: Tensor, wanted: list[Tensor], like: Tensor) -> Tensor:
        parts = [part.contiguous() for part in grad_WD.split(self.widths, dim=1)]
        received = _exchange(self.ranks, parts, [(len(nodes), like.shape[1]) for nodes in wanted])
        grad = torch.zeros_like(like)
        for nodes, part in zip(wanted, received, strict=True):  # in the order of ranks, always
            grad.index_add_(0, nodes, part)
        return grad


class Rows(_OnRanks):
    """Some neighbouring nodes: their rows of the table and of the adjacency, with about the same number of entries."""

    def __init__(self, ranks: Ranks, adjacency: Adjacency) -> None:
        self.ranks = ranks
        self.num_nodes = adjacency.num_nodes
        # A row costs its entries, and a little for itself: nodes without edges are shared out as well.
        cost_N = np.asarray(adjacency.indptr[1:], dtype=np.int64) + np.arange(1, adjacency.num_nodes + 1)
        inner = [np.searchsorted(cost_N, cost_N[-1] * rank // ranks.world) for rank in range(1, ranks.world)]
        self.cuts = [0, *(int(cut) for cut in inner), self.num_nodes]
        if min(np.diff(self.cuts)) == 0:
            raise ValueError(f"{self.num_nodes} nodes cannot be shared out among {ranks.world} ranks")
        self.own_rows = slice(self.cuts[ranks.rank], self.cuts[ranks.rank + 1])
        self.matrix = Matrix.of(adjacency, ranks.device, self.own_rows)

    def own(self, table_ND: Tensor) -> Tensor:
        return table_ND[self.own_rows].clone()

    def whole(self, own_RD: Tensor) -> Tensor:
        whole_ND = own_RD.new_empty(self.num_nodes, own_RD.shape[1])
        whole_ND[self.own_rows] = own_RD
        _everybody_tells([whole_ND[a:b] for a, b in pairwise(self.cuts)])
        return whole_ND

    def multiply(self, own: Tensor) -> Tensor:
        return self.matrix @ self.whole(own)

    def fetch(self, own_RD: Tensor, wanted: list[Tensor]) -> Tensor:
        """Nodes are ascending, so what an owner sends is a neighbouring piece of the answer."""
        pieces = [self._pieces(nodes) for nodes in wanted]
        mine = self.ranks.rank
        sent = [own_RD[nodes[piece[mine]] - self.cuts[mine]] for nodes, piece in zip(wanted, pieces, strict=True)]
        shapes = [(piece.stop - piece.start, own_RD.shape[1]) for piece in pieces[mine]]
        return torch.cat(_exchange(self.ranks, sent, shapes))

    def give_back(self, grad_WD: Tensor, wanted: list[Tensor], like: Tensor) -> Tensor:
        pieces = [self._pieces(nodes) for nodes in wanted]
        mine = self.ranks.rank
        shapes = [(piece[mine].stop - piece[mine].start, like.shape[1]) for piece in pieces]
        received = _exchange(self.ranks, [grad_WD[piece] for piece in pieces[mine]], shapes)
        grad = torch.zeros_like(like)
        for nodes, piece, part in zip(wanted, pieces, received, strict=True):
            grad[nodes[piece[mine]] - self.cuts[mine]] += part
        return grad

    def _pieces(self, nodes: Tensor) -> list[slice]:
        at = torch.searchsorted(nodes, torch.tensor(self.cuts, device=nodes.device)).tolist()
        return [slice(a, b) for a, b in pairwise(at)]


Layout = Whole | Columns | Rows


class _Collect(torch.autograd.Function):
    """The batch's rows there, their gradients back."""

    @staticmethod
    def forward(ctx, own, layout, wanted, clock):  # type: ignore[no-untyped-def]
        ctx.layout, ctx.wanted, ctx.clock = layout, wanted, clock
        ctx.save_for_backward(own)
        with clock.part("exchange"):
            return layout.fetch(own, wanted)

    @staticmethod
    def backward(ctx, grad_WD):  # type: ignore[no-untyped-def]
        with ctx.clock.part("exchange"):
            return ctx.layout.give_back(grad_WD, ctx.wanted, ctx.saved_tensors[0]), None, None, None


def _exchange(ranks: Ranks, sent: list[Tensor], shapes: list[tuple[int, int]]) -> list[Tensor]:
    """One contiguous piece to each rank, one from each, by rank. The own piece is handed through, not copied."""
    mine = ranks.rank
    received = [sent[rank] if rank == mine else sent[mine].new_empty(shape) for rank, shape in enumerate(shapes)]
    others = [rank for rank in range(ranks.world) if rank != mine]
    operations = [dist.P2POp(dist.isend, sent[rank], rank) for rank in others if sent[rank].numel()]
    operations += [dist.P2POp(dist.irecv, received[rank], rank) for rank in others if received[rank].numel()]
    for one in dist.batch_isend_irecv(operations) if operations else []:
        one.wait()
    return received


def _everybody_tells(parts: list[Tensor]) -> None:
    """Each rank's part, contiguous, to everybody. Parts may have different sizes, which all_gather does not allow."""
    waiting = [dist.broadcast(part, src=rank, async_op=True) for rank, part in enumerate(parts)]
    for one in waiting:
        one.wait()


def place_among_ranks() -> tuple[int, int]:
    """(rank, number of ranks) by torchrun's environment; alone without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_ranks(device: str, *, timeout_s: int) -> Iterator[Ranks]:
    """Join the group that torchrun's environment describes: nccl between GPUs, gloo between CPUs."""
    rank, world = place_among_ranks()
    place = torch.device("cpu")
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if world == 1:
        yield Ranks(rank, world, place)
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield Ranks(rank, world, place)
    finally:
        gc.collect()  # models that still hold the group: its threads would end after the interpreter, and abort it
        dist.destroy_process_group()


if __name__ == "__main__":  # torchrun that ends with whoever started it, and whose ranks end with it
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    die_with_parent()
    os.environ[PARENT_PID_VARIABLE] = str(os.getpid())
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as lost:
        # One line instead of torchrun's forty: what stands above it in the log are the rank's own last words.
        rank, failure = lost.get_first_failure()
        by = f" ({failure.signal_name()})" if failure.exitcode < 0 else ""
        sys.exit(f"rank {rank} ended first, with exit code {failure.exitcode}{by}")
