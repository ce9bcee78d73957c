"""How much memory a process of the recommend stage takes, and how shards and blocks are cut so that a cap is kept."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from safetensors import safe_open

from models.fold_in import rows_to_fold_in
from models.graph import load_csr
from models.selection import noted_bytes, padded_width
from models.topk import BYTES_PER_RANKED, BYTES_PER_SCORE, RANKED_AT_ONCE
from tasks.config import RecommendConfig
from tasks.errors import RunConfigError
from tasks.recommend.lists import Sources
from tasks.recommend.outputs import EMBEDDING_BYTES_A_GROUP, ROWS_A_FILE
from tasks.recommend.shards import ROW_GROUP_ROWS

MIB = 2**20
LIBRARIES_BYTES = 512 * MIB  # Python, torch, Polars, compiled code; what a night's own process holds before is its
WRITER_BYTES = 64 * MIB  # row groups on their way into the file
THREAD_BYTES = 8 * MIB
BLOCK_OF_THREAD_AT_MOST = 128 * MIB  # larger ones are no faster
BLOCK_AT_LEAST = 16 * MIB
LARGEST_SHARD_SHARE = 0.5  # of what the fixed part leaves, for the rows of a shard; blocks get the rest
# A block is one part products or scores, one part lists (models/topk.py), two parts reasons on their way into rows.
PARTS_OF_A_BLOCK = 4
PERSON_BYTES, ITEM_BYTES = 160, 64  # row numbers, segments, weights, where a row begins; and where what stands
BYTES_PER_GROUP_ITEM = 40  # the rule that forbids, scores, their order: rules.py, models/recency.py and selection.py
COPIES_OF_IDS = 3  # while people of events and of the users table are brought together


@dataclass(frozen=True)
class Memory:
    """A plan that keeps to the cap. Bytes, of each process."""

    users_per_shard: int
    list_length: int
    fixed_bytes: int  # libraries, tables, ids, what people have met
    shard_bytes: int  # a shard's rows while they are written
    all_blocks_bytes: int
    threads_bytes: int

    @property
    def block_bytes(self) -> int:
        """What top-K is granted."""
        return self.all_blocks_bytes // PARTS_OF_A_BLOCK

    @property
    def peak_bytes(self) -> int:
        return self.fixed_bytes + self.shard_bytes + self.all_blocks_bytes + self.threads_bytes

    def in_words(self) -> str:
        parts = {
            "fixed": self.fixed_bytes,
            "rows of a shard": self.shard_bytes,
            "block": self.all_blocks_bytes,
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
    """peak = fixed + rows of a shard + block + threads, where

    fixed    LIBRARIES_BYTES and WRITER_BYTES; the served tables, and the item table as the scan has it for each tier
             that multiplies by it; what people like and have met; ids COPIES_OF_IDS times; PERSON_BYTES and ITEM_BYTES
             each; what rules and tiers need (_bytes_of_rules). Or what write_outputs needs afterwards, if that is more
    shard    users x list length x bytes_per_row
    block    what is left, up to BLOCK_OF_THREAD_AT_MOST for each thread
    threads  THREAD_BYTES each, and what the scan notes (models/selection.noted_bytes; later tiers ask for 2 K), and the
             deeper rankings that a cap on categories asks for

    How people are cut into shards follows the cap and the data alone, never threads or ranks: the same bytes on any
    machine. Raises RunConfigError where the cap is too small, with the least that is enough.
    """
    graph = Path(sources.graph_folder)
    user_ids, item_ids = Ids.of(graph / "user_ids.parquet"), Ids.of(graph / "item_ids.parquet")
    list_length = max(1, min(settings.k, sources.num_items))
    fixed = (
        LIBRARIES_BYTES
        + WRITER_BYTES
        + Path(sources.served_path).stat().st_size
        + _bytes_of_copies(sources)
        + sum(_bytes_of_arrays(graph, name) for name in ("liked_all", "popular_all", "liked_at", "seen_all"))
        + COPIES_OF_IDS * sources.num_people * user_ids.bytes_each
        + COPIES_OF_IDS * sources.num_items * item_ids.bytes_each
        + PERSON_BYTES * sources.num_people
        + ITEM_BYTES * sources.num_items
        + _bytes_of_rules(sources, settings)
    )
    fixed = max(fixed, _fixed_bytes_of_outputs(sources, settings, user_ids, item_ids))  # one after the other
    user_bytes = list_length * bytes_per_row(user_ids, item_ids, settings.reasons)
    least_users = min(settings.users_per_shard, max(1, ROW_GROUP_ROWS // list_length), max(1, sources.num_people))
    # Where scores are written out, one block at a time holds those of one user at least.
    least_block = max(BLOCK_AT_LEAST, PARTS_OF_A_BLOCK * BYTES_PER_SCORE * sources.num_items)
    cap = settings.memory_mib * MIB
    threads_bytes = threads * _bytes_of_thread(sources, settings, list_length)
    least = fixed + int(least_users * user_bytes / LARGEST_SHARD_SHARE) + least_block + threads_bytes
    if cap < least:
        raise RunConfigError(
            f"recommend.memory_mib is {settings.memory_mib:,}, and {-(-least // MIB):,} is the least that is enough: "
            f"{fixed / MIB:,.0f} MiB for libraries, the model's tables, ids, rules and what {sources.num_people:,} "
            f"people have met, {threads_bytes / MIB:,.0f} for {threads} threads, the rest for rows and "
            "scores. Nothing was published. Set recommend.memory_mib to that or more."
        )
    users = int((cap - fixed) * LARGEST_SHARD_SHARE) // user_bytes
    users_per_shard = max(1, min(settings.users_per_shard, users))
    shard_bytes = min(users_per_shard, sources.num_people) * user_bytes
    left = cap - fixed - shard_bytes - threads_bytes
    return Memory(
        users_per_shard=users_per_shard,
        list_length=list_length,
        fixed_bytes=fixed,
        shard_bytes=shard_bytes,
        all_blocks_bytes=min(left, max(threads * BLOCK_OF_THREAD_AT_MOST, least_block)),
        threads_bytes=threads_bytes,
    )


def bytes_per_row(user_ids: Ids, item_ids: Ids, reasons: int) -> int:
    """Of a finished row in memory: ids, rank and score 4 each, tier 16, a place in the list of reasons 8, what would
    stand there without rules 4; of each reason kind 16, share 4 and the item's id. And a quarter for what malloc keeps
    between blocks."""
    reason = 16 + 4 + item_ids.bytes_each
    row = user_ids.bytes_each + item_ids.bytes_each + 4 + 4 + 16 + 8 + 4 + reasons * reason
    return row + row // 4


def _bytes_of_copies(sources: Sources) -> int:
    """The items as models/selection.ByProduct has them, in 32 bits, and which column is whose."""
    products = 2 if sources.num_folded else 1
    padded = padded_width(_columns(sources.served_path, "item_ID") + 1)
    return products * sources.num_items * (4 * padded + 16)


def _bytes_of_thread(sources: Sources, settings: RecommendConfig, list_length: int) -> int:
    needed = THREAD_BYTES + noted_bytes(2 * list_length)
    if settings.at_most_per_category is not None:
        needed += BYTES_PER_RANKED * max(RANKED_AT_ONCE, sources.num_items)
    return needed


def _fixed_bytes_of_outputs(sources: Sources, settings: RecommendConfig, user_ids: Ids, item_ids: Ids) -> int:
    """What outputs.write_outputs holds beside its block, after the lists have been let go."""
    graph, items = Path(sources.graph_folder), _bytes_of_table(sources.served_path, "item_ID")
    needed = LIBRARIES_BYTES + WRITER_BYTES + _bytes_of_arrays(graph, "liked_all") + items
    needed += COPIES_OF_IDS * (sources.num_people * user_ids.bytes_each + sources.num_items * item_ids.bytes_each)
    needed += PERSON_BYTES * sources.num_people + ITEM_BYTES * sources.num_items
    needed += _bytes_of_rules(sources, settings)  # which items nobody may get
    if settings.similar_items:
        rows = min(sources.num_items * settings.similar_items, max(ROWS_A_FILE, settings.similar_items))
        row = 2 * item_ids.bytes_each + 4 + 4
        needed += items + _bytes_of_copies(replace(sources, num_folded=0)) + rows * (row + row // 4)
    if settings.embeddings:
        # The served tables are a map of the file: all of it stands in memory once it was read.
        needed += Path(sources.served_path).stat().st_size + 4 * EMBEDDING_BYTES_A_GROUP
        needed += _bytes_of_arrays(graph, "seen_all") + _bytes_of_folding(sources)
    return needed


def _bytes_of_rules(sources: Sources, settings: RecommendConfig) -> int:
    """And of tiers: what stands beside the model's tables, or stood there while it was read."""
    graph, tables = Path(sources.graph_folder), Path(sources.tables_folder)
    needed = BYTES_PER_GROUP_ITEM * (1 + sources.num_segments) * sources.num_items
    needed += sum(8 * (tables / f"{name}.parquet").stat().st_size for name in sources.table_rows)
    needed += _bytes_of_folding(sources)
    if settings.seen_days is not None:
        needed += 4 * _bytes_of_arrays(graph, "seen_at")
    if "blocked" in sources.table_rows:
        needed += 10 * _bytes_of_arrays(graph, "seen_all") + 80 * sources.table_rows["blocked"]
    return needed


def _bytes_of_folding(sources: Sources) -> int:
    graph = Path(sources.graph_folder)
    needed = sources.num_folded * 3 * 4 * _columns(sources.served_path, "item_ID")  # rows while they are added up
    if sources.num_folded:
        rows = rows_to_fold_in(load_csr(graph, "liked_all"))
        needed += 40 * int(load_csr(graph, "seen_all").counts()[rows].sum())
    return needed


def _bytes_of_arrays(graph: Path, name: str) -> int:
    return sum(path.stat().st_size for path in graph.glob(f"{name}.*npy"))


def _bytes_of_table(path: str, name: str) -> int:
    with safe_open(path, framework="np") as tables:
        rows, columns = tables.get_slice(name).get_shape()
    return int(rows) * int(columns) * 4


def _columns(path: str, name: str) -> int:
    with safe_open(path, framework="np") as tables:
        return int(tables.get_slice(name).get_shape()[1])
