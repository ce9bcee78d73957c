"""How much memory a process of the recommend stage takes, and how shards and blocks are cut so that a cap is kept."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from safetensors import safe_open

from tasks.config import RecommendConfig
from tasks.errors import RunConfigError
from tasks.recommend.lists import Sources
from tasks.recommend.shards import ROW_GROUP_ROWS

MIB = 2**20
LIBRARIES_BYTES = 450 * MIB  # Python, torch, Polars, a compiled kernel; what a night's own process holds before is its
BLOCK_AT_MOST = 256 * MIB  # larger ones are no faster
BLOCK_AT_LEAST = 8 * MIB
THREAD_BYTES = 8 * MIB
LARGEST_SHARD_SHARE = 0.5  # of what the fixed part leaves, for the rows of a shard; blocks get the rest
BYTES_PER_SCORE = 12  # of a block: models/topk.py
BYTES_PER_PERSON = 96  # rows in the graph and in tiers, groups, where their pairs begin
BYTES_PER_LIKE = 40  # its moment, weight and segment, while what is popular is counted
BYTES_PER_GROUP_ITEM = 40  # scores, their order and the rule that forbids: rules.py, tiers.py, models/selection.ByGroup


@dataclass(frozen=True)
class Memory:
    """A plan that keeps to the cap. Bytes, of each process."""

    users_per_shard: int
    list_length: int
    block_bytes: int
    fixed_bytes: int  # libraries, tables, ids, what people have met
    shard_bytes: int  # a shard's rows while they are written
    threads_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.fixed_bytes + self.shard_bytes + self.block_bytes + self.threads_bytes

    def in_words(self) -> str:
        parts = {
            "fixed": self.fixed_bytes,
            "rows of a shard": self.shard_bytes,
            "block": self.block_bytes,
            "threads": self.threads_bytes,
        }
        told = ", ".join(f"{name} {num_bytes / MIB:,.0f}" for name, num_bytes in parts.items())
        return f"memory of a process at most {self.peak_bytes / MIB:,.0f} MiB ({told})"


@dataclass(frozen=True)
class Ids:
    """A column of ids: how many, and what one takes in memory."""

    count: int
    bytes_each: int

    @classmethod
    def of(cls, path: Path) -> "Ids":
        footer = pq.read_metadata(path)
        raw = sum(footer.row_group(group).column(0).total_uncompressed_size for group in range(footer.num_row_groups))
        is_text = footer.schema.column(0).physical_type == "BYTE_ARRAY"
        # Text is a view of 16 bytes, and its characters elsewhere.
        return cls(footer.num_rows, 16 + -(-raw // max(1, footer.num_rows)) if is_text else 8)


def plan_memory(sources: Sources, settings: RecommendConfig, *, threads: int) -> Memory:
    """peak = fixed + rows of a shard + block + threads, each as below.

    fixed    LIBRARIES_BYTES; the served tables, and the item table once more as the scan has it; what people like
             and have met; ids, those of people twice; BYTES_PER_PERSON, BYTES_PER_LIKE and 64 an item;
             BYTES_PER_GROUP_ITEM for each item in each segment and once for everybody; 40 for each pair met where
             there are blocked ones; a row of the model for whoever is folded in
    shard    users x list length x bytes of a row (id types decide), twice: while it is written, groups are encoded
    block    what is left, between BLOCK_AT_LEAST (or one user's scores) and BLOCK_AT_MOST
    threads  THREAD_BYTES each

    How people are cut into shards follows the cap and the data alone, never threads or ranks: the same bytes on any
    machine. Raises RunConfigError where the cap is too small, with the least that is enough.
    """
    graph = Path(sources.graph_folder)
    user_ids, item_ids = Ids.of(graph / "user_ids.parquet"), Ids.of(graph / "item_ids.parquet")
    list_length = max(1, min(sources.k, sources.num_items))
    fixed = (
        LIBRARIES_BYTES
        + Path(sources.served_path).stat().st_size
        + _bytes_of_table(sources.served_path, "item_ID")
        + sum(path.stat().st_size for name in ("liked_all", "seen_all") for path in graph.glob(f"{name}.*.npy"))
        + 2 * sources.num_people * user_ids.bytes_each
        + item_ids.count * item_ids.bytes_each
        + _bytes_of_rules(sources, graph)
    )
    user_bytes = 2 * list_length * bytes_per_row(user_ids, item_ids, settings.reasons)
    least_users = min(settings.users_per_shard, max(1, ROW_GROUP_ROWS // list_length), max(1, sources.num_people))
    least_block = max(BLOCK_AT_LEAST, BYTES_PER_SCORE * sources.num_items)
    cap = settings.memory_mib * MIB
    least = fixed + threads * THREAD_BYTES + max(least_users * user_bytes / LARGEST_SHARD_SHARE, 0) + least_block
    if cap < least:
        raise RunConfigError(
            f"recommend.memory_mib is {settings.memory_mib:,}, and {-(-int(least) // MIB):,} is the least that is "
            f"enough: {fixed / MIB:,.0f} MiB for libraries, the model's tables, ids and what "
            f"{sources.num_people:,} people have met, {threads * THREAD_BYTES / MIB:,.0f} for {threads} threads, the "
            f"rest for rows and scores. Nothing was published. Set recommend.memory_mib to that or more."
        )
    users = int((cap - fixed) * LARGEST_SHARD_SHARE) // user_bytes
    users_per_shard = max(1, min(settings.users_per_shard, users))
    shard_bytes = min(users_per_shard, sources.num_people) * user_bytes
    left = cap - fixed - shard_bytes - threads * THREAD_BYTES
    return Memory(
        users_per_shard=users_per_shard,
        list_length=list_length,
        block_bytes=min(left, max(BLOCK_AT_MOST, least_block)),
        fixed_bytes=fixed,
        shard_bytes=shard_bytes,
        threads_bytes=threads * THREAD_BYTES,
    )


def _bytes_of_rules(sources: Sources, graph: Path) -> int:
    """And of tiers: what stands beside the model's tables for as long as lists are made, at its peak."""
    entries = {name: (graph / f"{name}.indices.npy").stat().st_size // 4 for name in ("liked_all", "seen_all")}
    blocked = 40 * (entries["seen_all"] + sources.table_rows["blocked"]) if "blocked" in sources.table_rows else 0
    return (
        BYTES_PER_PERSON * sources.num_people
        + BYTES_PER_LIKE * entries["liked_all"]
        + (64 + BYTES_PER_GROUP_ITEM * (1 + sources.num_segments)) * sources.num_items
        + blocked
        + sources.num_folded * 4 * _columns(sources.served_path, "item_ID")
    )


def bytes_per_row(user_ids: Ids, item_ids: Ids, reasons: int) -> int:
    """Of a finished row in memory: ids, rank and score 4 each, tier 16, a place in the list of reasons 8; of each
    reason kind 16, share 4 and the item's id."""
    reason = 16 + 4 + item_ids.bytes_each
    return user_ids.bytes_each + item_ids.bytes_each + 4 + 4 + 16 + 8 + reasons * reason


def _bytes_of_table(path: str, name: str) -> int:
    with safe_open(path, framework="np") as tables:
        rows, columns = tables.get_slice(name).get_shape()
    return int(rows) * int(columns) * 4


def _columns(path: str, name: str) -> int:
    with safe_open(path, framework="np") as tables:
        return int(tables.get_slice(name).get_shape()[1])
