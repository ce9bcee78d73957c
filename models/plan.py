"""How a fit is laid out on ranks, decided before it starts: what each split needs in memory, moves and multiplies.

Sizes are counted, not measured: N nodes, E likes, D columns, L layers, P ranks, 4 bytes a number. The rates that turn
counts into seconds are rough on purpose; they order the splits, they do not promise a time (benchmarks/README.md has
what was measured).
"""

from dataclasses import dataclass

from models.lightgcn import COLUMNS_AT_ONCE, COLUMNS_AT_ONCE_ON_GPU
from models.losses import USERS_AT_ONCE, USERS_AT_ONCE_ON_GPU

TABLES = 8  # table, gradient, Adam's two moments, propagated, its gradient, and two more while one becomes the other
START_TABLES = 9  # of width + 16 columns: bases, their factorisations, products
ROW_TABLES = 7  # of the rows that a step needs: as fetched, of length one, per temperature, gradients of each


@dataclass(frozen=True)
class Size:
    """What is trained. `likes` is the larger of the two fits'."""

    users: int
    items: int
    likes: int
    width: int
    layers: int
    batches_per_epoch: int
    negatives: int

    @property
    def nodes(self) -> int:
        return self.users + self.items


@dataclass(frozen=True)
class Rates:
    """Of one rank. Multiply-adds a second where rows are gathered (the graph) and where they are not (scores).

    And how much of either is done at once, which decides memory.
    """

    gathered: float
    dense: float
    bytes_moved: float  # to other ranks, a second
    step: float  # seconds that any step costs: calls, draws, the optimiser's
    message: float  # seconds that a message costs, however short
    columns_at_once: int = COLUMNS_AT_ONCE
    users_at_once: int = USERS_AT_ONCE


CPU_THREAD = Rates(gathered=5e9, dense=6e10, bytes_moved=1e9, step=0.005, message=0.0003)
GPU = Rates(
    gathered=3e11,
    dense=1e13,
    bytes_moved=1e11,
    step=0.002,
    message=0.00005,
    columns_at_once=COLUMNS_AT_ONCE_ON_GPU,
    users_at_once=USERS_AT_ONCE_ON_GPU,
)


@dataclass(frozen=True)
class Cost:
    """One split on so many ranks."""

    split: str
    bytes_of_rank: int  # of the device, at the peak of a step
    bytes_of_graph: int  # the stored arrays, mapped into memory once for all ranks of a machine
    bytes_of_start: int  # of the machine's memory, in the first rank, which makes the start for all of them
    bytes_moved: int  # that a rank sends in a step
    seconds_of_step: float


def cost_of(split: str, size: Size, ranks: int, rates: Rates) -> Cost:
    """The cost model. `data` on one rank is a fit that is not split."""
    table = 4 * size.nodes * size.width
    whole_graph = 2 * size.likes * 8 + 4 * size.nodes
    likes_of_share = size.likes / size.batches_per_epoch / ranks
    items_of_share = min(size.items, likes_of_share + size.negatives)
    rows_of_share = size.users / size.batches_per_epoch / ranks + items_of_share
    own = table if split == "data" else table / ranks
    # A checkpoint or a look at validation puts a table together; averaged gradients have a copy of their own.
    together = 0 if ranks == 1 else table if split == "data" else 2 * table
    graph = whole_graph / ranks if split == "rows" else whole_graph
    strip = 4 * size.nodes * min(size.width, rates.columns_at_once)
    scores = 12 * rates.users_at_once * size.negatives
    step = ROW_TABLES * 4 * rows_of_share * size.width + 40 * likes_of_share + scores
    fetched = 2 * (ranks - 1) / ranks * 4 * rows_of_share * size.width  # rows there, gradients back
    moved = {
        "data": 2 * (ranks - 1) / ranks * table,
        "columns": fetched,
        "rows": fetched + 2 * size.layers * (ranks - 1) / ranks * table,
    }[split]
    strips = -(-size.width // rates.columns_at_once)
    exchanges = {"data": 1, "columns": 2, "rows": 2 + 2 * size.layers * strips}[split]
    messages = 2 * (ranks - 1) * exchanges
    gathered = 4 * size.layers * size.likes * size.width / (1 if split == "data" else ranks)
    dense = 3 * size.users / size.batches_per_epoch / ranks * size.negatives * size.width
    return Cost(
        split=split,
        bytes_of_rank=int(TABLES * own + together + graph + 3 * strip + step),
        bytes_of_graph=int(whole_graph),
        bytes_of_start=int(2 * whole_graph + START_TABLES * 4 * size.nodes * (size.width + 16)),
        bytes_moved=int(moved),
        seconds_of_step=rates.step
        + gathered / rates.gathered
        + dense / rates.dense
        + moved / rates.bytes_moved
        + messages * rates.message,
    )


def needed_bytes(cost: Cost, cpu_ranks: int) -> int:
    """What a device must hold, beside code: a GPU (`cpu_ranks` 0) one rank; a machine's memory all of its CPU ranks.

    The first rank makes the start before it trains. For GPUs that happens in the machine's memory, not in theirs.
    """
    if cpu_ranks == 0:
        return cost.bytes_of_rank
    first = max(cost.bytes_of_rank + cost.bytes_of_graph, cost.bytes_of_start)  # the start counts the mapped graph
    return (cpu_ranks - 1) * cost.bytes_of_rank + first


def cheapest(costs: list[Cost], bytes_of_device: float, *, cpu_ranks: int) -> Cost | None:
    """The fastest that fits, the simplest of equals (they stand in that order); None where none fits."""
    fitting = [cost for cost in costs if needed_bytes(cost, cpu_ranks) <= bytes_of_device]
    return min(fitting, key=lambda cost: cost.seconds_of_step) if fitting else None
