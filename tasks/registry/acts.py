"""What changes the registry: nights append; people forget and compact."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tasks.errors import PublishConflict, RegistryInvalid
from tasks.registry.commits import KINDS, Column, Commit, File, Kind, Segment, file_key, next_commit, wins
from tasks.registry.rows import FORGOTTEN, UNKNOWN, Registry, hash_of, open_registry
from tasks.store import Store

ROWS_PER_GROUP = 1_000_000
MOST_ROWS = 2**31 - 1  # row numbers are int32


def extend(store: Store, registry: Registry, users: pl.Series, items: pl.Series) -> Registry:
    """Give rows to the ids that have none, in the order of the ids, and return the registry in which all have one.

    Nothing is written where all are known or forgotten. Raises RegistryInvalid, SchemaDrift, PublishUnresolved.
    """
    asked: dict[Kind, pl.Series] = {"users": users, "items": items}
    while True:
        new = {kind: _unknown(registry, kind, ids) for kind, ids in asked.items()}
        if not any(len(ids) for ids in new.values()):
            return registry
        commit = next_commit(registry.commit, act="append")
        ids = {kind: _appended(registry, kind, new[kind]) for kind in KINDS}
        commit = commit.model_copy(
            update={kind: _with_tail(store, commit, kind, ids[kind], len(new[kind])) for kind in KINDS}
        )
        if wins(store, commit):
            return Registry(commit, ids, registry.forgotten)
        registry = open_registry(store)  # another night was first: what it numbered stays as it is


def _unknown(registry: Registry, kind: Kind, ids: pl.Series) -> pl.Series:
    distinct = registry.as_registered(kind, ids.unique())
    return distinct.filter(pl.Series(registry.rows_of(kind, distinct) == UNKNOWN, dtype=pl.Boolean)).sort()


def _appended(registry: Registry, kind: Kind, new: pl.Series) -> pl.Series:
    known = registry.ids[kind]
    if len(known) + len(new) > MOST_ROWS:
        raise RegistryInvalid(
            f"the registry has {len(known):,} {kind} and {len(new):,} more would pass {MOST_ROWS:,}, the largest row "
            "number. Nothing was published. Compact the registry (make compact-registry)."
        )
    return pl.concat([known, new.rename("id")]) if len(known) else new.rename("id")


def _with_tail(store: Store, commit: Commit, kind: Kind, ids: pl.Series, num_new: int) -> Column:
    """The column with the new ids in one more file. Smaller files before it go into it: there are never more than
    log2(rows), and an id is written again at most as often."""
    column = commit.column(kind)
    if not num_new:
        return column
    kept = list(column.segments)
    rows = num_new
    while kept and kept[-1].rows <= rows:
        rows += kept.pop().rows
    segment = _write(store, commit, kind, ids.slice(len(ids) - rows), first_row=len(ids) - rows)
    return Column(id_type=str(ids.dtype), segments=(*kept, segment))


def _write(store: Store, commit: Commit, kind: Kind, ids: pl.Series, *, first_row: int) -> Segment:
    content = _as_parquet(pl.DataFrame({"id": ids}))
    key = file_key(kind, commit)
    store.put_once(key, content)
    return Segment(key=key, first_row=first_row, rows=len(ids), bytes=len(content), sha256=_sha256(content))


def _as_parquet(frame: pl.DataFrame) -> bytes:
    target = io.BytesIO()
    frame.write_parquet(target, compression="zstd", compression_level=1, row_group_size=ROWS_PER_GROUP)
    return target.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- deliberate acts


@dataclass(frozen=True)
class Act:
    """What a deliberate act left: the registry now, and the files that no version is made of which anybody will open.

    They hold ids that should be gone: remove them.
    """

    registry: Registry
    to_remove: tuple[str, ...]
    rows: npt.NDArray[np.int32]  # those that the forgotten ids had; -1 for an id that had none


def forget(store: Store, kind: Kind, ids: pl.Series) -> Act:
    """Take ids out for ever: their rows stay empty, and rows_of answers FORGOTTEN for them from now on.

    Ids that never had a row are kept out, too. Doing it again changes nothing and answers the same.
    Raises RegistryInvalid, SchemaDrift, PublishUnresolved.
    """
    while True:
        registry = open_registry(store)
        asked = registry.as_registered(kind, ids.unique().sort())
        rows = registry.rows_of(kind, asked)
        commit = registry.commit
        if (rows == FORGOTTEN).all():
            had = [registry.forgotten[hash_of(commit, kind, one)] for one in asked]
            return Act(registry, _replaced(store, commit), np.array(had, dtype=np.int32))
        commit = next_commit(commit, act="forget", forgotten=commit.forgotten + 1)
        now = _without(registry, commit, kind, asked, rows)
        commit = commit.model_copy(
            update={
                kind: _rewritten(store, commit, kind, now.ids[kind], rows, str(asked.dtype)),
                "hashes": _write_hashes(store, commit, now.forgotten),
            }
        )
        if wins(store, commit):
            now = Registry(commit, now.ids, now.forgotten)
            had = [now.forgotten[hash_of(commit, kind, one)] for one in asked]
            return Act(now, _replaced(store, commit), np.array(had, dtype=np.int32))


def _without(registry: Registry, commit: Commit, kind: Kind, asked: pl.Series, rows: npt.NDArray[np.int32]) -> Registry:
    ids = registry.ids[kind]
    is_taken = np.zeros(len(ids), dtype=bool)
    is_taken[rows[rows >= 0]] = True
    emptied = ids.set(pl.Series(is_taken), None) if is_taken.any() else ids
    hashes = {hash_of(commit, kind, one): int(row) for one, row in zip(asked, rows, strict=True) if row != FORGOTTEN}
    return Registry(commit, registry.ids | {kind: emptied}, registry.forgotten | hashes)


def _rewritten(
    store: Store, commit: Commit, kind: Kind, ids: pl.Series, rows: npt.NDArray[np.int32], id_type: str
) -> Column:
    """The column with every file that held one of the rows written anew."""
    column = commit.column(kind)
    segments = []
    for number, segment in enumerate(column.segments):
        if ((rows >= segment.first_row) & (rows < segment.first_row + segment.rows)).any():
            of_this = commit.model_copy(update={"attempt": f"{commit.attempt}-{number}"})  # one act, several files
            part = ids.slice(segment.first_row, segment.rows)
            segment = _write(store, of_this, kind, part, first_row=segment.first_row)
        segments.append(segment)
    return Column(id_type=column.id_type or id_type, segments=tuple(segments))


def _write_hashes(store: Store, commit: Commit, forgotten: dict[bytes, int]) -> File | None:
    if not forgotten:
        return None
    table = pl.DataFrame(
        {
            "hash": pl.Series(list(forgotten), dtype=pl.Binary),
            "row": pl.Series(list(forgotten.values()), dtype=pl.Int32),
        }
    ).sort("hash")
    content = _as_parquet(table)
    key = file_key("forgotten", commit)
    store.put_once(key, content)
    return File(key=key, rows=len(table), bytes=len(content), sha256=_sha256(content))


def _replaced(store: Store, commit: Commit) -> tuple[str, ...]:
    """Files of earlier versions and of writers that lost. Not those for a later number: somebody may be writing one."""
    newest = f"v{commit.number:08d}"
    there = [stored.key for stored in store.list("registry")]
    return tuple(key for key in there if key.rsplit("/", 1)[1][: len(newest)] <= newest and key not in commit.files())


def compact(store: Store, registry: Registry, keep: dict[Kind, npt.NDArray[np.bool_]]) -> Act:
    """Number the rows to keep anew, in the order they had, in a new epoch; forgotten rows are dropped in any case.

    `keep` is by row of `registry`; rows that were given out since are kept. What is keyed by the old epoch (digested
    days, last night's model) is of no use any more: the next night reads every day and starts cold.
    Raises RegistryInvalid, PublishUnresolved, and PublishConflict where somebody else compacted meanwhile.
    """
    base = registry
    while True:
        commit = next_commit(base.commit, act="compact", epoch=base.commit.epoch + 1)
        ids = {kind: _kept(base.ids[kind], keep[kind]) for kind in KINDS}
        forgotten = dict.fromkeys(base.forgotten, UNKNOWN)  # they must not come back, and have no row any more
        columns: dict[str, object] = {kind: _in_one_file(store, commit, kind, ids[kind]) for kind in KINDS}
        commit = commit.model_copy(update=columns | {"hashes": _write_hashes(store, commit, forgotten)})
        if wins(store, commit):
            now = Registry(commit, ids, forgotten)
            return Act(now, _replaced(store, commit), np.empty(0, dtype=np.int32))
        base = open_registry(store)
        if base.version.epoch != registry.version.epoch:
            raise PublishConflict(
                "somebody else compacted the id registry meanwhile, so the rows to keep are no longer the same. Theirs "
                "stands, nothing was changed by this one. Run again."
            )


def _kept(ids: pl.Series, keep: npt.NDArray[np.bool_]) -> pl.Series:
    given_out_since = np.ones(len(ids) - len(keep), dtype=bool)
    return ids.filter(pl.Series(np.concatenate([keep, given_out_since])) & ids.is_not_null())


def _in_one_file(store: Store, commit: Commit, kind: Kind, ids: pl.Series) -> Column:
    segments = (_write(store, commit, kind, ids, first_row=0),) if len(ids) else ()
    return Column(id_type=commit.column(kind).id_type, segments=segments)
