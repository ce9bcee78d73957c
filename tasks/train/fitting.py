"""From a graph and settings to two fits: writes the ranks' spec, has them trained, reads what they found."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from models.train import Spec
from tasks.config import TrainConfig
from tasks.contracts import Fitted, Graph
from tasks.errors import DeviceUnavailable
from tasks.run import PROJECT_ROOT, file_sha256, fingerprint_of
from tasks.train.supervisor import train_on_ranks

log = logging.getLogger("nightgraph.train")


@dataclass(frozen=True)
class Place:
    """Where a fit runs. Part of the stage's key: sums are added up in another order on other ranks or threads."""

    device: str  # cuda or cpu
    ranks: int
    threads: int  # of each rank


def fit_twice(
    graph: Graph,
    settings: TrainConfig,
    place: Place,
    folder: Path,
    *,
    k: int,
    on_progress: Callable[[dict[str, Any]], None],
) -> Fitted:
    """Both fits in one launch of the ranks. Raises TrainingDiverged, TrainingLost."""
    spec = Spec(
        graph_folder=graph.folder,
        output_folder=str(folder),
        num_users=graph.num_users,
        num_items=graph.num_items,
        device=place.device,
        threads=place.threads,
        k=k,
        timeout_s=max(30, settings.silence_s),
        **settings.model_dump(exclude={"ranks", "device", "threads", "silence_s", "relaunches"}),
    )
    spec_path = folder / "spec.json"
    spec_path.write_text(json.dumps(asdict(spec), indent=1))
    plural = "s" if place.ranks > 1 else ""
    log.info("training on %d rank%s (%s, %d threads each)", place.ranks, plural, place.device, place.threads)
    result = train_on_ranks(
        spec_path,
        ranks=place.ranks,
        threads=place.threads,
        silence_s=settings.silence_s,
        relaunches=settings.relaunches,
        project_root=PROJECT_ROOT,
        on_progress=on_progress,
    )
    return _fitted(folder, result, place)


def choose_place(settings: TrainConfig) -> Place:
    """Asking for more GPUs than there are is an error, not a slower night: raises DeviceUnavailable."""
    device, ranks = _device_and_ranks(settings)
    return Place(device, ranks, settings.threads or max(1, (os.cpu_count() or 1) // ranks))


def _device_and_ranks(settings: TrainConfig) -> tuple[str, int]:
    gpus = torch.cuda.device_count() if settings.device != "cpu" else 0
    if settings.device == "cuda" and gpus < (settings.ranks or 1):
        raise DeviceUnavailable(
            f"train.device is cuda with {settings.ranks or 1} ranks, and this machine has {gpus} usable GPUs. "
            "Nothing was started. Set train.device to auto or cpu, or lower train.ranks."
        )
    if settings.device != "cpu" and gpus >= (settings.ranks or 1):
        return "cuda", settings.ranks or gpus
    return "cpu", settings.ranks or 1


def _fitted(folder: Path, result: dict[str, Any], place: Place) -> Fitted:
    judged, served = folder / "judged.safetensors", folder / "served.safetensors"
    with safe_open(served, framework="np") as tables:
        shapes = [tables.get_slice(name).get_shape() for name in ("user_UD", "item_ID")]
    recalls = [e["validation_recall"] for e in result["judged"]["curve"] if e["validation_recall"] is not None]
    return Fitted(
        folder=str(folder),
        judged_path=str(judged),
        served_path=str(served),
        fingerprint=fingerprint_of(file_sha256(judged), file_sha256(served)),
        epochs=result["judged"]["epochs"],
        best_validation_recall=max(recalls),
        seconds_judged=result["judged"]["seconds"],
        seconds_served=result["served"]["seconds"],
        ranks=place.ranks,
        threads=place.threads,
        device=place.device,
        num_parameters=sum(rows * (columns - 1) for rows, columns in shapes),  # the last column is not learned
    )
