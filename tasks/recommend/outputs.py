"""What is published beside the lists: each item's nearest items, and the served vectors for a vector index.

    similar_items      item_id, rank int32 from 1, similar_item_id, score float32; sorted by item_id, rank
    user_embeddings    user_id, embedding: fixed-size list of float32; sorted by user_id
    item_embeddings    item_id, embedding

Items that nobody liked stand in none of them. Users without a trained row have the vector that they were folded in
with, if they were. The bytes follow from the tables and the settings alone,
as those of the lists do.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from models.fold_in import fold_in, rows_to_fold_in
from models.graph import Csr, load_csr
from models.rivals import popularity
from models.scorers import InnerProduct, rows_where, slices
from models.selection import Allowed
from models.topk import NO_ITEM, TopK
from tasks.config import RecommendConfig
from tasks.contracts import Graph, Output, OutputFile
from tasks.recommend.shards import write_rows
from tasks.run import file_sha256, read_ids

ROWS_A_FILE = 2_000_000  # of similar items: what is in memory while they are written, some 40 bytes each
EMBEDDING_BYTES_A_FILE = 256 * 2**20
EMBEDDING_BYTES_A_GROUP = 4 * 2**20  # in memory at a time; also what a look-up of one vector reads
ROWS_AT_ONCE = 65_536  # of a table that is worked on in float64
log = logging.getLogger("nightgraph.recommend")


def write_outputs(
    graph: Graph,
    served_path: str,
    settings: RecommendConfig,
    folder: Path,
    *,
    allowed_I: npt.NDArray[np.bool_],
    block_bytes: int,
    threads: int,
) -> tuple[Output, ...]:
    """Those that the settings ask for, as files in `folder`. Raises OSError (ENOSPC) where the disk is full.

    allowed_I: the items that the rules leave to anybody; no other is near one.

    At its peak it holds, beside ids and what top-K needs, the item table twice and one part of `block_bytes`.
    """
    if not settings.similar_items and not settings.embeddings:
        return ()
    liked = load_csr(graph.folder, "liked_all")
    user_ids, item_ids = read_ids(Path(graph.folder))
    items = _by_id(item_ids, popularity(liked, graph.num_items) > 0)
    outputs = []
    if settings.similar_items:
        log.info("looking for the %d nearest of each of %s items", settings.similar_items, f"{len(items):,}")
    with safe_open(served_path, framework="pt") as tables:
        if settings.similar_items:
            item_rank_I = np.load(Path(graph.folder) / "item_rank.npy")
            nearest = NearestItems(tables.get_tensor("item_ID"), items, item_rank_I, allowed_I)
            files = _write_similar(
                nearest, item_ids, settings.similar_items, folder, block_bytes=block_bytes, threads=threads
            )
            outputs.append(Output("similar_items", files))
        if settings.embeddings:
            has_row_U, user_vectors = _user_vectors(graph.folder, liked, tables)
            users, item_ID = _by_id(user_ids, has_row_U), tables.get_tensor("item_ID")
            files = _write_embeddings("user", user_ids, users, user_vectors, item_ID.shape[1], folder)
            outputs.append(Output("user_embeddings", files))
            files = _write_embeddings("item", item_ids, items, lambda rows: item_ID[rows], item_ID.shape[1], folder)
            outputs.append(Output("item_embeddings", files))
    for output in outputs:
        log.info("%s: %s rows in %d files", output.name, f"{sum(f.rows for f in output.files):,}", len(output.files))
    return tuple(outputs)


def _by_id(ids: pl.Series, has_row: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The trained rows, in the order of their ids."""
    by_id = ids.arg_sort().to_numpy().astype(np.int64)
    return by_id[has_row[by_id]]


# ---- similar items


class NearestItems:
    """Cosines of item vectors without their last number, which is the bias: what sells says nothing about likeness."""

    def __init__(
        self,
        item_ID: Tensor,
        items: npt.NDArray[np.int64],
        item_rank_I: npt.NDArray[np.integer],
        allowed_I: npt.NDArray[np.bool_],
    ) -> None:
        """`items`: the rows that count, by id. One whose vector is all zeros has no direction, hence no neighbours."""
        unit_ID = item_ID[:, :-1].clone()
        length_I = np.empty(len(unit_ID))
        for rows in slices(len(unit_ID), ROWS_AT_ONCE):
            own_RD = unit_ID[rows]
            length_R = torch.linalg.vector_norm(own_RD.double(), dim=1)
            length_I[rows] = length_R.numpy()
            own_RD /= length_R.clamp(min=torch.finfo(torch.float32).tiny).float()[:, None]
        has_row_I = np.zeros(len(item_ID), dtype=bool)
        has_row_I[items] = length_I[items] > 0
        self.items = items[has_row_I[items]]
        self.scorer = InnerProduct(unit_ID, unit_ID, rows_where(has_row_I), has_row_I)
        self.item_rank_I = item_rank_I
        self.allowed = Allowed(allowed_I[None], np.zeros(len(item_ID), dtype=np.int64))
        self.itself = Csr(np.arange(len(item_ID) + 1), np.arange(len(item_ID), dtype=np.int32))

    def top(self, k: int, *, block_bytes: int, threads: int) -> TopK:
        """Its lists are the K nearest of each item asked for, with their cosines; NO_ITEM where there are fewer."""
        return TopK(
            [self.scorer],
            k=k,
            excluded=self.itself,
            item_rank_I=self.item_rank_I,
            allowed=self.allowed,
            block_bytes=block_bytes,
            threads=threads,
        )


def _write_similar(
    nearest: NearestItems, ids: pl.Series, k: int, folder: Path, *, block_bytes: int, threads: int
) -> tuple[OutputFile, ...]:
    k = max(1, min(k, len(ids) - 1))
    top = nearest.top(k, block_bytes=block_bytes, threads=threads)
    files = []
    for number, items in enumerate(_cut(nearest.items, max(1, ROWS_A_FILE // k))):
        frames = []
        for block in top.lists(items):
            line, column = np.nonzero(block.item_BK != NO_ITEM)
            frames.append(
                pl.DataFrame(
                    {
                        "item_id": ids.gather(block.users[line]),
                        "rank": pl.Series((column + 1).astype(np.int32), dtype=pl.Int32),
                        "similar_item_id": ids.gather(block.item_BK[line, column]),
                        "score": pl.Series(block.score_BK[line, column], dtype=pl.Float32),
                    }
                )
            )
        path = folder / f"similar_items-{number:05d}.parquet"
        rows = pl.concat(frames, rechunk=False) if frames else _no_similar(ids.dtype)
        write_rows(rows, path, list_length=k)
        files.append(_finished(path, len(rows)))
    return tuple(files)


def _no_similar(id_type: pl.DataType) -> pl.DataFrame:
    return pl.DataFrame(schema={"item_id": id_type, "rank": pl.Int32, "similar_item_id": id_type, "score": pl.Float32})


def _cut(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """At least one piece: a table without rows is a file without rows."""
    for start in range(0, max(1, len(rows)), size):
        yield rows[start : start + size]


# ---- embeddings


def _user_vectors(
    graph_folder: str, liked: Csr, tables: Any
) -> tuple[npt.NDArray[np.bool_], Callable[[Tensor], Tensor]]:
    """(who has a vector, rows -> vectors): the trained ones, and those folded in from what people met."""
    user_UD = tables.get_tensor("user_UD")
    has_row_U = liked.counts() > 0
    without = rows_to_fold_in(liked)
    if len(without) == 0:
        return has_row_U, lambda rows: user_UD[rows]
    seen = load_csr(graph_folder, "seen_all")
    folded = fold_in(seen, without, tables.get_tensor("fold_ID"), tables.get_tensor("fold_length"))
    has_row_U[without] = folded.has_row_R
    folded_row_U = torch.full((len(has_row_U),), -1)
    folded_row_U[torch.from_numpy(without)] = torch.arange(len(without))

    def vectors(rows: Tensor) -> Tensor:
        found, own = user_UD[rows], folded_row_U[rows]
        found[own >= 0] = folded.user_RD[own[own >= 0]]
        return found

    return has_row_U, vectors


def _write_embeddings(
    name: str,
    ids: pl.Series,
    rows: npt.NDArray[np.int64],
    vectors_of: Callable[[Tensor], Tensor],
    width: int,
    folder: Path,
) -> tuple[OutputFile, ...]:
    kind = pa.list_(pa.float32(), width)
    schema = pa.schema([(f"{name}_id", ids.head(0).to_arrow().type), ("embedding", kind)])
    files = []
    for number, in_file in enumerate(_cut(rows, max(1, EMBEDDING_BYTES_A_FILE // (4 * width)))):
        path = folder / f"{name}_embeddings-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            for some in _cut(in_file, max(1, EMBEDDING_BYTES_A_GROUP // (4 * width))):
                vectors = pa.array(vectors_of(torch.from_numpy(some)).numpy().reshape(-1))
                columns = [ids.gather(some).to_arrow(), pa.FixedSizeListArray.from_arrays(vectors, type=kind)]
                file.write_table(pa.Table.from_arrays(columns, schema=schema))
        files.append(_finished(path, len(in_file)))
    return tuple(files)


def _finished(path: Path, rows: int) -> OutputFile:
    return OutputFile(str(path), rows, path.stat().st_size, file_sha256(path))
