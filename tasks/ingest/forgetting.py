"""Leave people out of what earlier nights digested: the runs of a day, and its refused rows.

A day's marker says which objects count. Those that hold somebody are written again under names of their own, the marker
moves on to them by compare-and-swap, and what nothing names any more is due for removal (tasks/due.py). The day keeps
its name: it is not read again.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks import due
from tasks.contracts import RewrittenDays
from tasks.errors import ObjectChanged, ObjectExists, ObjectNotFound, UploadCorrupt
from tasks.registry import read_version
from tasks.run import file_sha256
from tasks.store import Store
from tasks.without import Theirs, damaged, fetch, holds, still_holding, write_without

MARKERS = "_meta/days"
FOLDERS = ("days", "quarantine")
KINDS = ("runs", "quarantine")  # of a marker's objects

log = logging.getLogger("nightgraph.forget")


def rewrite_days(store: Store, theirs: Theirs, *, scratch: Path) -> RewrittenDays:
    """Every digested day without them. What cannot be rewritten is named in `failed`, and the rest is done."""
    units = rows = 0
    failed: dict[str, str] = {}
    for stored in store.list(MARKERS):
        if _read(store, stored.key)[0].get("epoch", 0) != theirs.epoch:
            continue  # of no use since the registry was compacted: what holds somebody is due, below
        try:
            left_out = _rewrite_unit(store, stored.key, theirs, scratch)
        except UploadCorrupt as error:
            failed[stored.key] = f"{type(error).__name__}: {error}"
            continue
        if left_out:
            units += 1
            rows += left_out
    if units:
        log.info("%d digested days without %d rows of people to forget", units, rows)
    due.write_down(store, still_holding(store, FOLDERS, theirs, in_use=objects_in_use(store), failed=failed))
    return RewrittenDays(units, rows, failed)


def objects_in_use(store: Store) -> frozenset[str]:
    """Keys that the marker of some day of the registry's epoch names."""
    epoch = read_version(store).epoch
    markers = [_read(store, stored.key)[0] for stored in store.list(MARKERS)]
    used = [marker for marker in markers if marker.get("epoch", 0) == epoch]
    return frozenset(one["key"] for marker in used for kind in KINDS for one in marker.get(kind, []))


def _read(store: Store, key: str) -> tuple[dict[str, Any], str]:
    """A damaged marker names nothing: the night that needs it digests its day anew."""
    content, etag = store.read(key)
    try:
        marker = json.loads(content)
    except ValueError:
        marker = {}
    return (marker if isinstance(marker, dict) else {}), etag


def _rewrite_unit(store: Store, key: str, theirs: Theirs, scratch: Path) -> int:
    while True:
        marker, etag = _read(store, key)
        try:
            left_out = {kind: _rewrite_objects(store, marker, kind, theirs, scratch) for kind in KINDS}
        except ObjectNotFound:
            return 0  # the night that needs it finds that, too, and digests its day anew
        if not any(left_out.values()):
            return 0
        # They were valid once, and are counted by file; the night counts them as forgotten.
        marker["forgotten"] = marker.get("forgotten", 0) + left_out["runs"]
        try:
            store.compare_and_swap(key, json.dumps(marker, indent=1).encode(), etag=etag)
        except ObjectChanged:
            continue  # a night wrote it meanwhile, or only the answer was lost: look again
        return sum(left_out.values())


def _rewrite_objects(store: Store, marker: dict[str, Any], kind: str, theirs: Theirs, scratch: Path) -> int:
    """Puts what replaces them in their places. A run that nothing is left of is left out."""
    kept, left_out = [], 0
    for one in marker.get(kind, []):
        if not holds(store, one["key"], theirs):
            kept.append(one)
            continue
        source, target = scratch / "as-it-was.parquet", scratch / "without.parquet"
        if fetch(store, one["key"], source) != one["sha256"]:
            raise damaged(store, one["key"], "it has another SHA-256 than it was written with")
        left_out += len(write_without(source, target, theirs))
        if pq.read_metadata(target).num_rows:
            kept.append(_put(store, one["key"], target))
    marker[kind] = kept
    return left_out


def _put(store: Store, replaced: str, path: Path) -> dict[str, Any]:
    sha256 = file_sha256(path)
    folder, _, name = replaced.rpartition("/")
    stem = "-".join(name.removesuffix(".parquet").split("-")[:2])  # run-00000
    key = f"{folder}/{stem}-{sha256[:16]}.parquet"
    try:
        store.put_once(key, path)
    except ObjectExists:
        log.info("%s is there already, by an earlier try", key)
    return {"key": key, "num_bytes": path.stat().st_size, "sha256": sha256}
