"""What a published night leaves for the next one's training to start from, and which earlier night that is.

    models/dt=DATE/run=ATTEMPT/warm.safetensors     named by the night's commit, write-once

Float16 tables of layer 0, a row for each node of the night, in the order of the registry's rows:

user_rows, item_rows                                             (U,), (I,) ascending: rows of the registry
judged_user_UD, judged_item_ID, served_user_UD, served_item_ID   what its two fits ended with

and in the file's header the recipe that they belong to (`Recipe`). Trained numbers tell what people like to whoever
holds a person's row number: this is for the job alone, not for readers.
"""

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tasks.contracts import WarmSource
from tasks.errors import ObjectChanged, ObjectNotFound, StoreDenied
from tasks.store import Store

FORMAT = 1
FITS = ("judged", "served")
TENSORS = ("user_rows", "item_rows", *(f"{fit}_{table}" for fit in FITS for table in ("user_UD", "item_ID")))
BLOCK_BYTES = 16 * 2**20
LONGEST_HEADER = 1 << 20
COMMITS = re.compile(r"_meta/commits/(\d{4}-\d{2}-\d{2})/v\d{8}\.json")
Rows = npt.NDArray[np.int64]
log = logging.getLogger("nightgraph.warm")


def warm_key(as_of: date, attempt: str) -> str:
    return f"models/dt={as_of.isoformat()}/run={attempt}/warm.safetensors"


# ---- which night


def find_source(store: Store, before: date) -> tuple[WarmSource | None, str]:
    """What the newest commit of an earlier date left, or why there is nothing. Raises the Store* errors.

    Never a commit of the same date: a rerun of a night starts where the night did.
    """
    commits = [stored.key for stored in store.list("_meta/commits") if COMMITS.fullmatch(stored.key)]
    newest = max((key for key in commits if key.split("/")[2] < before.isoformat()), default=None)
    if newest is None:
        return None, "no earlier night was published"
    night = newest.split("/")[2]
    try:
        left = json.loads(store.read(newest)[0]).get("warm")
        source = left and WarmSource(date.fromisoformat(night), left["key"], left["bytes"], left["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, ObjectNotFound):
        return _aloud(f"{store.uri_of(newest)} is damaged")
    if source is None:
        return None, f"the night of {night} left no tables to start from"
    found = {stored.key: stored.num_bytes for stored in store.list(str(Path(source.key).parent))}
    if found.get(source.key) != source.num_bytes:
        return _aloud(f"{store.uri_of(source.key)} is {'cut short' if source.key in found else 'gone'}")
    return source, ""


def _aloud(why: str) -> tuple[None, str]:
    log.warning("training starts cold: %s", why)
    return None, why


def fetch_source(store: Store, source: WarmSource, target: Path) -> str:
    """The file at `target`, or why not: every byte is checked before one is parsed. Raises StoreUnavailable."""
    digest = hashlib.sha256()
    try:
        with store.open(source.key) as stream, open(target, "wb") as copy:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                copy.write(block)
    except (ObjectNotFound, ObjectChanged, StoreDenied) as error:
        return f"{store.uri_of(source.key)} cannot be read ({type(error).__name__})"
    if digest.hexdigest() != source.sha256:
        return f"{store.uri_of(source.key)} is not what was written"
    return ""


# ---- what is in the file


@dataclass(frozen=True)
class Recipe:
    """What tables belong to. Those of other numbers are no start: rows of another registry, another shape, a leak."""

    registry_epoch: int
    width: int
    layers: int
    loss: str
    validation_from_us: int  # the judged fit knows nothing from here on ...
    test_from_us: int  # ... but for the number of its epochs, which likes before this one chose
    registry_forgotten: int = 0  # acts of forgetting that it knew of

    def why_not(self, earlier: "Recipe") -> str:
        """Why a fit of this recipe must not start from an earlier one's tables; empty where it may.

        The earlier judged fit must not have learned from a like that tonight's is judged by, or the choice of epochs
        and the figures would say more than a stranger's future does. Its own start was held to the same rule.
        """
        for name, what in (
            ("registry_epoch", "the registry's epoch"),
            ("width", "train.width"),
            ("layers", "train.layers"),
            ("loss", "train.loss"),
        ):
            was, is_now = getattr(earlier, name), getattr(self, name)
            if was != is_now:
                return f"{what} was {was} then and is {is_now} now"
        if earlier.registry_forgotten != self.registry_forgotten:
            # Their own rows are taken out of the file; what others' rows learned from them goes by starting anew.
            return "somebody was forgotten since then"
        if earlier.validation_from_us > self.validation_from_us or earlier.test_from_us > self.test_from_us:
            return "its judged fit has learned from likes that tonight's is judged by"
        return ""


def save_warm(path: Path, recipe: Recipe, rows: dict[str, Rows], tables: dict[str, npt.NDArray[Any]]) -> None:
    """`tables` by name as in the module's head, in the order of `rows` ("user", "item"), which may be any."""
    order = {kind: np.argsort(rows[kind], kind="stable") for kind in ("user", "item")}
    arrays = {f"{kind}_rows": rows[kind][order[kind]] for kind in order}
    for name, table in tables.items():
        arrays[name] = table[order[name.split("_")[1]]].astype(np.float16)
    save_file(arrays, path, metadata={"format": str(FORMAT), "recipe": json.dumps(asdict(recipe), sort_keys=True)})


def recipe_of(path: Path) -> Recipe | None:
    """None where this code cannot read the file."""
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        return Recipe(**json.loads(header["recipe"])) if header.get("format") == str(FORMAT) else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def read_user_rows(stream: BinaryIO) -> tuple[int, Rows]:
    """(the registry's epoch, the rows of users) of a file in the store, without reading its tables.

    Raises ValueError where it is no such file.
    """
    try:
        num_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(num_bytes, LONGEST_HEADER)))
        start, end = header["user_rows"]["data_offsets"]
        stream.seek(8 + num_bytes + start)
        epoch = json.loads(header["__metadata__"]["recipe"])["registry_epoch"]
        kind = {"I32": np.int32, "I64": np.int64}[header["user_rows"]["dtype"]]
        return epoch, np.frombuffer(stream.read(end - start), kind).astype(np.int64)
    except (KeyError, TypeError) as error:
        raise ValueError("no tables to start from") from error


def without_users(path: Path, target: Path, forgotten: Rows) -> int:
    """Write the file again without these users' rows; how many it had."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in TENSORS}
        header = file.metadata()
    kept = ~np.isin(arrays["user_rows"], forgotten)
    for name in ("user_rows", *(f"{fit}_user_UD" for fit in FITS)):
        arrays[name] = arrays[name][kept]
    save_file(arrays, target, metadata=header)
    return int((~kept).sum())
