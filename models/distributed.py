"""The only file that knows ranks: who I am, how gradients meet, who decides, and that no rank outlives its parent."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.processes import PARENT_PID_VARIABLE, die_with_parent


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` equal ones. One process needs no group and makes no connection."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks, starting from the first rank's parameters."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False)

    def first_decides(self, value: float) -> float:
        """The first rank's value, for everybody: two ranks that stop at different steps wait for ever."""
        if self.world == 1:
            return value
        answer = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(answer, src=0)
        return float(answer.item())

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks."""
        if self.world > 1:
            dist.all_reduce(value)
        return value


@contextmanager
def join_ranks(device: str, *, timeout_s: int) -> Iterator[Ranks]:
    """Join the group that torchrun's environment describes: nccl between GPUs, gloo between CPUs."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
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
        dist.destroy_process_group()


def unwrap(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


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
