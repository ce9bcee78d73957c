"""What a night will take, from footers alone: memory, disk and time of each stage, against what the machine has.

R rows, U users, I items (tasks/ingest/footers.py), N = U + I, L likes: the rows, or LIKED_SHARE of them where a
threshold decides. Of pairs no footer tells; each row is taken for one of its own, which is the most there can be.
D train.width, K recommend.k. Bytes of all processes together, on top of NIGHT_BYTES:

ingest     CHILD_BYTES + READ_BYTES x the rows of the largest day, PIECE_ROWS at most; or of merging RANGE_BYTES x R, as
           many events as ingest.memory_mib has in memory at most, and GROUP_BYTES x R for the groups that are folded
graph      GRAPH_BYTES + PAIR_BYTES x min(R, PAIRS_AT_ONCE) + EDGE_BYTES x min(L, LIKES_COUNTED) + ID_BYTES x N
train      RANK_BYTES + models/plan.needed_bytes of the cheapest split; on GPUs, what the first rank makes the start of
evaluate   MEASURE_BYTES + LIKE_BYTES x L + 24 I x neighbours + 8 N x filter_width and 24 I^2, where these rivals run
recommend  what evaluate had, which stays with the process + 4 N D + the rows of a shard, or recommend.memory_mib
judge      what recommend had + LIST_ROW_BYTES x U x K

Disk is what stands in the work folder at once. Seconds are rough on purpose: they tell minutes from hours.
benchmarks/planner.py holds the memory against measured peaks; the constants are from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from models.plan import CPU_THREAD, GPU, Size, cheapest, cost_of, needed_bytes
from tasks.config import NightlyConfig
from tasks.errors import InputTooLarge
from tasks.ingest.footers import ids_of_all
from tasks.ingest.inspection import EventFile
from tasks.ingest.sources import day_of

MIB, GIB = 2**20, 2**30
UNITS = ((GIB, "GiB"), (MIB, "MiB"), (2**10, "KiB"))
NIGHT_BYTES = 640 * MIB  # Python, torch, Polars, Prefect and its server
CHILD_BYTES = 370 * MIB  # the process that reads files
RANK_BYTES = 500 * MIB  # a process that trains, before its tables
MEASURE_BYTES = 150 * MIB
PIECE_ROWS = 1 << 21  # tasks/ingest/digest.py has no more in memory at once
READ_BYTES, LIKE_BYTES, LIST_ROW_BYTES = 160, 200, 200
EVENT_BYTES = 64  # by which tasks/ingest/merge.py lays out a range of users
RANGE_BYTES, GROUP_BYTES, EVENTS_IN_GROUPS = 20, 16, 5_000_000
GRAPH_BYTES = 40 * MIB
PAIRS_AT_ONCE = 2_000_000  # as many as tasks/graph/pairs.py has in memory
LIKES_COUNTED = 40_000_000  # the adjacency is written in pieces too: more likes need no more
PAIR_BYTES, EDGE_BYTES, ID_BYTES = 160, 7, 60
SHARD_ROW_BYTES = 160
SERVING_BYTES = 60 * MIB
LIKED_SHARE = 0.6  # of ratings, at the usual threshold
RUN_ROW_BYTES, PAIR_ARRAY_BYTES, GRAPH_PAIR_BYTES = 20, 30, 60  # on disk
ROWS_A_SECOND, PAIRS_A_SECOND, SCORES_A_SECOND, FILTERED_A_SECOND = 1e6, 1e6, 2e10, 1e8  # of a machine of two cores


@dataclass(frozen=True)
class Machine:
    memory_bytes: int  # built in, or what a container may use
    disk_bytes: int  # free, where the work folder is
    threads: int
    gpus: int = 0


@dataclass(frozen=True)
class Sizes:
    rows: int
    users: int
    items: int
    num_bytes: int
    largest_day: int  # rows; of a file where keys have no day

    def likes(self, config: NightlyConfig) -> int:
        return round(self.rows * (LIKED_SHARE if config.ingest.like_threshold is not None else 1.0))


@dataclass(frozen=True)
class StagePlan:
    stage: str
    memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    sizes: Sizes
    stages: tuple[StagePlan, ...]

    @property
    def largest(self) -> StagePlan:
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages)

    def in_words(self, machine: Machine) -> list[str]:
        """A table, a line an entry."""
        seconds = sum(stage.seconds for stage in self.stages)
        head = f"about {self.sizes.rows:,} rows, {self.sizes.users:,} users, {self.sizes.items:,} items"
        lines = [head, f"{'stage':<12}{'memory':>12}{'disk':>12}{'time':>12}"]
        lines += [_line(stage.stage, stage.memory_bytes, stage.disk_bytes, stage.seconds) for stage in self.stages]
        lines.append(_line("the night", self.largest.memory_bytes, self.disk_bytes, seconds))
        lines.append(f"{'here':<12}{_size(machine.memory_bytes):>12}{_size(machine.disk_bytes):>12}")
        return lines


def sizes_of(files: Sequence[EventFile], *, known_users: int = 0, known_items: int = 0) -> Sizes:
    """`known_`: what the registry has of earlier nights."""
    users, items = (
        ids_of_all([file.hints[column] for file in files if column in file.hints], known)
        for column, known in (("user_id", known_users), ("item_id", known_items))
    )
    read = sum(hint.num_bytes for file in files for hint in file.hints.values())
    by_day: dict[object, int] = {}
    for file in files:
        day = day_of(file.key) or file.key
        by_day[day] = by_day.get(day, 0) + file.num_rows
    return Sizes(sum(by_day.values()), users, items, read, max(by_day.values(), default=0))


def plan_night(sizes: Sizes, config: NightlyConfig, machine: Machine) -> Plan:
    rows, users, items = sizes.rows, sizes.users, sizes.items
    nodes, width = users + items, config.train.width
    train, table = _train(sizes, config, machine), 4 * nodes * (width + 1)
    measuring = _measuring_bytes(sizes, config)
    list_rows = users * config.recommend.k
    shard = SHARD_ROW_BYTES * min(users, config.recommend.users_per_shard) * config.recommend.k
    serving = measuring + min(SERVING_BYTES + table + shard, config.recommend.memory_mib * MIB)
    piece = min(sizes.largest_day, PIECE_ROWS)
    in_range = min(rows, config.ingest.memory_mib * MIB // EVENT_BYTES)
    merging = RANGE_BYTES * in_range + GROUP_BYTES * min(in_range, EVENTS_IN_GROUPS)
    reading = min(max(READ_BYTES * piece, merging), config.ingest.memory_mib * MIB)
    scores = SCORES_A_SECOND / width
    stages = (
        StagePlan("ingest", CHILD_BYTES + reading, (RUN_ROW_BYTES + PAIR_ARRAY_BYTES) * rows, 2 + rows / ROWS_A_SECOND),
        StagePlan("graph", _graph_bytes(sizes, config), GRAPH_PAIR_BYTES * rows, 1 + rows / PAIRS_A_SECOND),
        train,
        StagePlan("evaluate", measuring, 0, 5 + users * items / scores + _filter_seconds(sizes, config)),
        StagePlan("recommend", serving, 25 * list_rows, 2 + users * items / scores),
        StagePlan("judge", serving + LIST_ROW_BYTES * list_rows, 0, 1 + list_rows / 1e6),
    )
    return Plan(sizes, tuple(replace(stage, memory_bytes=NIGHT_BYTES + stage.memory_bytes) for stage in stages))


def ensure_it_fits(
    plan: Plan, files: Sequence[EventFile], night: date | None, config: NightlyConfig, machine: Machine
) -> None:
    """Raises InputTooLarge, with what to set."""
    too_much = plan.largest.memory_bytes > machine.memory_bytes
    if not too_much and plan.disk_bytes <= machine.disk_bytes:
        return
    what = (
        f"needs about {_size(plan.largest.memory_bytes)} of memory ({plan.largest.stage}), this machine has "
        f"{_size(machine.memory_bytes)}"
        if too_much
        else f"needs about {_size(plan.disk_bytes)} of disk, and {_size(machine.disk_bytes)} are free for work"
    )
    knobs = [*_days_that_fit(files, night, config, machine), *_width_that_fits(plan, config, machine)]
    told = f"Set {' or '.join(knobs)}, or take a larger machine." if knobs else "Take a larger machine."
    raise InputTooLarge(
        f"{what}, for {plan.sizes.rows:,} rows of about {plan.sizes.users:,} users and {plan.sizes.items:,} items. "
        f"Nothing was read or started. {told} (make plan prints what each stage takes.)"
    )


# ---- the formulas


def _train(sizes: Sizes, config: NightlyConfig, machine: Machine) -> StagePlan:
    settings = config.train
    on_gpus = machine.gpus > 0 and settings.device != "cpu"
    ranks = settings.ranks or (machine.gpus if on_gpus else 1)
    size = Size(
        users=sizes.users,
        items=sizes.items,
        likes=sizes.likes(config),
        width=settings.width,
        layers=settings.layers,
        batches_per_epoch=settings.batches_per_epoch,
        negatives=min(settings.negatives, sizes.items),
    )
    splits = ("data", "columns", "rows") if settings.split == "auto" else (settings.split,)
    costs = [cost_of(split, size, ranks * settings.nodes, GPU if on_gpus else CPU_THREAD) for split in splits]
    cpu_ranks = 0 if on_gpus else ranks
    least = cheapest(costs, float("inf") if on_gpus else machine.memory_bytes, cpu_ranks=cpu_ranks)
    cost = least or min(costs, key=lambda one: needed_bytes(one, cpu_ranks))
    memory = RANK_BYTES * ranks + (cost.bytes_of_start if on_gpus else needed_bytes(cost, cpu_ranks))
    table = 4 * (sizes.users + sizes.items) * (settings.width + 1)
    steps = 2 * settings.max_epochs * settings.batches_per_epoch
    seconds = 10 + steps * cost.seconds_of_step / max(1, machine.threads // ranks if not on_gpus else 1)
    return StagePlan("train", memory, 5 * table, seconds)  # two fits, a checkpoint with two moments


def _graph_bytes(sizes: Sizes, config: NightlyConfig) -> int:
    blocks = PAIR_BYTES * min(sizes.rows, PAIRS_AT_ONCE) + EDGE_BYTES * min(sizes.likes(config), LIKES_COUNTED)
    return GRAPH_BYTES + blocks + ID_BYTES * (sizes.users + sizes.items)


def _measuring_bytes(sizes: Sizes, config: NightlyConfig) -> int:
    settings, items, likes = config.evaluate, sizes.items, sizes.likes(config)
    ease = 24 * items * items if items <= settings.ease_items_at_most else 0
    spectrum = 8 * (sizes.users + items) * settings.filter_width if likes <= settings.filter_likes_at_most else 0
    return MEASURE_BYTES + LIKE_BYTES * likes + 24 * items * settings.knn_neighbours + ease + spectrum


def _filter_seconds(sizes: Sizes, config: NightlyConfig) -> float:
    likes = sizes.likes(config)
    return sizes.users * likes / FILTERED_A_SECOND if likes <= config.evaluate.filter_likes_at_most else 0.0


# ---- what to set


def _days_that_fit(
    files: Sequence[EventFile], night: date | None, config: NightlyConfig, machine: Machine
) -> list[str]:
    """The longest window that the machine can take, by the files of its days; nothing where keys have no days."""
    if night is None:
        return []
    days = sorted({on for file in files if (on := day_of(file.key)) is not None and on < night}, reverse=True)
    if not days or any(day_of(file.key) is None for file in files):
        return []

    def fits(day: date) -> bool:
        kept = [file for file in files if (on := day_of(file.key)) is not None and on >= day]
        plan = plan_night(sizes_of(kept), config, machine)
        return plan.largest.memory_bytes <= machine.memory_bytes and plan.disk_bytes <= machine.disk_bytes

    # Of a window one day more is read on either side (sources.within_window).
    longest = [(night - day).days - 1 for day in days if (night - day).days > 1 and fits(day)]
    return [f"ingest.window_days <= {max(longest)}"] if longest else []


def _width_that_fits(plan: Plan, config: NightlyConfig, machine: Machine) -> list[str]:
    if plan.largest.stage != "train":
        return []
    for width in range(config.train.width - 8, 7, -8):
        narrower = config.model_copy(update={"train": config.train.model_copy(update={"width": width})})
        if plan_night(plan.sizes, narrower, machine).largest.memory_bytes <= machine.memory_bytes:
            return [f"train.width <= {width}"]
    return []


def _line(name: str, memory: int, disk: int, seconds: float) -> str:
    return f"{name:<12}{_size(memory):>12}{_size(disk):>12}{_time(seconds):>12}"


def _size(num_bytes: float) -> str:
    """In the largest unit of which there is one."""
    unit, name = next((found for found in UNITS if num_bytes >= found[0]), UNITS[-1])
    return f"{num_bytes / unit:,.{1 if unit == GIB else 0}f} {name}"


def _time(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
