"""Give up the registry's rows that nobody needs: what would go, and the act itself.

A row is needed if a digested day of this epoch holds it and some of that day's files are still there. Giving up too
many would lose nothing but time: in the new epoch the next night reads every day anew and numbers whom it meets.
"""

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from tasks import due
from tasks.contracts import Compacted
from tasks.errors import ObjectNotFound
from tasks.ingest.days import DigestedUnit
from tasks.ingest.forgetting import FOLDERS, MARKERS, objects_in_use
from tasks.ingest.people import replaced_registry_files
from tasks.registry import KINDS, Kind, Registry, compact, open_registry
from tasks.store import Store

ROWS_AT_ONCE = 1 << 20

log = logging.getLogger("nightgraph.compact")


def compact_rows(store: Store, *, apply: bool) -> Compacted:
    """What it gave up or, unless `apply`, would. What a killed one left to do is done by the next.

    Raises RegistryInvalid, PublishUnresolved, and PublishConflict where somebody else compacted meanwhile.
    """
    registry = open_registry(store)
    units = list(_units_of(store, registry))
    keep = _rows_in_use(store, registry, units)
    rows = {kind: len(registry.ids[kind]) for kind in KINDS}
    kept = {kind: int((keep[kind] & registry.ids[kind].is_not_null().to_numpy()).sum()) for kind in KINDS}
    waiting = 0
    # A new epoch costs the next night its digested days and its warm start, so it has to give something up; without
    # units no night ran since the last one, which gave up what there was.
    applies = apply and bool(units) and kept != rows
    if applies:
        compact(store, registry, keep)
        log.info("the registry is in epoch %d", registry.version.epoch + 1)
    if apply:
        waiting = _write_down_what_is_left(store)
    return Compacted(
        store_uri=store.uri,
        applied=applies,
        epoch=registry.version.epoch,
        units=len(units),
        users=rows["users"],
        users_kept=kept["users"],
        items=rows["items"],
        items_kept=kept["items"],
        due=waiting,
    )


def _units_of(store: Store, registry: Registry) -> Iterator[DigestedUnit]:
    """Those whose rows are this epoch's."""
    for stored in store.list(MARKERS):
        try:
            unit = TypeAdapter(DigestedUnit).validate_json(store.read(stored.key)[0])
        except ValidationError:  # it names nothing: the night that needs it digests its day anew
            continue
        if unit.epoch == registry.version.epoch:
            yield unit


def _rows_in_use(store: Store, registry: Registry, units: list[DigestedUnit]) -> dict[Kind, npt.NDArray[np.bool_]]:
    keep: dict[Kind, npt.NDArray[np.bool_]] = {kind: np.zeros(len(registry.ids[kind]), dtype=bool) for kind in KINDS}
    places = {key.partition("/")[0] for unit in units for key in unit.files}
    there = {stored.key for place in sorted(places) for stored in store.list(place)}
    for unit in units:
        if there.isdisjoint(unit.files):
            continue
        for run in unit.runs:
            try:
                _mark(store, run.key, keep)
            except (pa.ArrowException, OSError, ObjectNotFound) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                log.warning("%s cannot be read: rows that only it has are given up", run.key)
    return keep


def _mark(store: Store, key: str, keep: dict[Kind, npt.NDArray[np.bool_]]) -> None:
    with store.open(key) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=["user_row", "item_row"]):
            keep["users"][batch["user_row"].to_numpy()] = True
            keep["items"][batch["item_row"].to_numpy()] = True


def _write_down_what_is_left(store: Store) -> int:
    """Days and refused rows that no day of this epoch names, and files of earlier versions of the registry."""
    replaced_registry_files(store)
    in_use = objects_in_use(store)
    left = [stored for folder in FOLDERS for stored in store.list(folder) if stored.key not in in_use]
    return due.write_down(store, left)
