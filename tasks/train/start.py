"""Where tonight's two fits start: at an earlier night's tables if they may, cold with a reason otherwise.

Both or neither. The served fit takes the number of epochs that the judged one found, which says nothing for a fit that
starts elsewhere.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tasks.contracts import Graph, OutputFile, Run
from tasks.run import file_sha256
from tasks.store import open_store
from tasks.warm import FITS, Recipe, Rows, fetch_source, recipe_of, save_warm

log = logging.getLogger("nightgraph.train")


@dataclass(frozen=True)
class Start:
    path: str  # what models/warm.py reads; empty: cold
    told: str


COLD = Start("", "cold")


def choose_start(run: Run, graph: Graph, folder: Path) -> Start:
    """Fetches the earlier night's tables into `folder`, in the order of tonight's rows. Raises the Store* errors."""
    if not run.config.train.warm_start:
        return COLD
    tonight = recipe_of_night(run, graph)
    if tonight is None:
        why = "a like that trained yesterday can judge tonight, since each user's last part grows with their likes"
        return _cold(f"graph.split is {graph.split}, where {why}")
    if run.warm is None:
        return _cold(run.cold_because)
    fetched, aligned = folder / "earlier.safetensors", folder / "start.safetensors"
    try:
        why_not = fetch_source(open_store(run.store_uri), run.warm, fetched) or _why_not(tonight, fetched)
        if why_not:
            log.warning("the tables of the night of %s are not started from", run.warm.as_of)
            return _cold(f"{why_not} (the night of {run.warm.as_of})")
        known = _align(fetched, graph, aligned)
    finally:
        fetched.unlink(missing_ok=True)
    told = f"from the night of {run.warm.as_of}, which knew {known:,} of {graph.num_users + graph.num_items:,} rows"
    log.info("training starts %s", told)
    return Start(str(aligned), told)


def _cold(why: str) -> Start:
    log.info("training starts cold: %s", why)
    return Start("", f"cold: {why}")


def _why_not(tonight: Recipe, fetched: Path) -> str:
    earlier = recipe_of(fetched)
    return tonight.why_not(earlier) if earlier else "its tables are of a format that this code does not know"


def recipe_of_night(run: Run, graph: Graph) -> Recipe | None:
    """None where the split has no moment for everybody: nothing could be started from such tables, or start them."""
    if graph.validation_from_us is None or graph.test_from_us is None:
        return None
    return Recipe(
        registry_epoch=run.registry_epoch,
        registry_forgotten=run.registry_forgotten,
        width=run.config.train.width,
        layers=run.config.train.layers,
        loss=run.config.train.loss,
        validation_from_us=graph.validation_from_us,
        test_from_us=graph.test_from_us,
    )


def registry_rows(graph: Graph) -> dict[str, Rows]:
    """The registry's row of each of the graph's."""
    folder = Path(graph.folder)
    return {kind: np.load(folder / f"{kind}_registry_rows.npy").astype(np.int64) for kind in ("user", "item")}


def _align(fetched: Path, graph: Graph, aligned: Path) -> int:
    """What models/warm.py reads; how many of tonight's rows the earlier night knew."""
    tonight = registry_rows(graph)
    tables: dict[str, npt.NDArray[Any]] = {}
    with safe_open(fetched, framework="np") as earlier:
        places = {kind: _places(earlier.get_tensor(f"{kind}_rows"), tonight[kind]) for kind in ("user", "item")}
        for which in FITS:
            parts = []
            for kind, table in (("user", f"{which}_user_UD"), ("item", f"{which}_item_ID")):
                then = earlier.get_tensor(table)
                rows = np.zeros((len(places[kind]), then.shape[1]), dtype=then.dtype)
                is_known = places[kind] >= 0
                rows[is_known] = then[places[kind][is_known]]
                parts.append(rows)
            tables[f"{which}_ND"] = np.concatenate(parts)
    known_N = np.concatenate([places["user"] >= 0, places["item"] >= 0])
    save_file({"known_N": known_N.astype(np.uint8), **tables}, aligned)
    return int(known_N.sum())


def _places(then: Rows, now: Rows) -> npt.NDArray[np.int64]:
    """Where each row of `now` stands in `then`, which is ascending; -1 where it does not."""
    if len(then) == 0:
        return np.full(len(now), -1)
    place = np.minimum(np.searchsorted(then, now), len(then) - 1)
    return np.where(then[place] == now, place, -1)


# ---- what tonight leaves


def leave_for_the_next(run: Run, graph: Graph, folder: Path) -> OutputFile | None:
    """The layer-0 tables of both fits in one file, instead of the two that the ranks left."""
    recipe = recipe_of_night(run, graph)
    left = {which: folder / f"{which}-layer-0.safetensors" for which in FITS}
    if recipe is None or not all(path.exists() for path in left.values()):
        return None
    tables: dict[str, npt.NDArray[Any]] = {}
    for which, path in left.items():
        layer_0_ND = load_file(path)["layer_0_ND"].astype(np.float16)
        tables[f"{which}_user_UD"] = layer_0_ND[: graph.num_users]
        tables[f"{which}_item_ID"] = layer_0_ND[graph.num_users :]
    target = folder / "warm.safetensors"
    save_warm(target, recipe, registry_rows(graph), tables)
    for path in left.values():
        path.unlink()
        path.with_suffix(".sha256").unlink()
    return OutputFile(str(target), graph.num_users + graph.num_items, target.stat().st_size, file_sha256(target))
