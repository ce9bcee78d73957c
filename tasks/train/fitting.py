"""From a graph and settings to two fits: decides where they run, writes the ranks' spec, reads what they found."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from models.distributed import SPLITS
from models.losses import temperature_of
from models.plan import CPU_THREAD, GPU, Cost, Rates, Size, cheapest, cost_of, needed_bytes
from models.train import Spec
from tasks.config import TrainConfig
from tasks.contracts import Fitted, Graph
from tasks.errors import (
    DiskFull,
    NightError,
    RankMismatch,
    RunConfigError,
    TrainingDiverged,
    TrainingLost,
    TrainingOutOfMemory,
)
from tasks.places import ensure_trainable
from tasks.ranks import Launch, Work, run_ranks
from tasks.run import PROJECT_ROOT, file_sha256, fingerprint_of
from tasks.train.curve import write_curve
from tasks.train.start import COLD, Start

# The ranks' own patience with each other. Long: while the first makes the start of a large graph, the others wait in
# one exchange. A rank that hangs is found by its silence, not by this.
GROUP_TIMEOUT_S = 1800
# What changes no number stays out of the ranks' spec, and out of the stage's key (tasks/train/task.py).
SUPERVISION = {"silence_s", "deadline_s", "relaunches", "checkpoint_s"}
WHERE = {"ranks", "nodes", "rdzv_endpoint", "split", "device", "threads"}
ENDINGS: dict[str, tuple[type[NightError], str]] = {
    "TrainingDiverged": (TrainingDiverged, "Lower train.learning_rate (half of it is a good try)."),
    "TrainingOutOfMemory": (
        TrainingOutOfMemory,
        "A rank holds about 8 tables of nodes x train.width x 4 bytes (divided by the ranks unless train.split=data) "
        "and 16 bytes a like: lower train.width, raise train.batches_per_epoch, or take more devices.",
    ),
    "RankMismatch": (RankMismatch, "Bring the same code, graph folder and work folder to every node, then run again."),
    "DiskFull": (DiskFull, "Free space there or set NIGHTGRAPH_WORK to a larger disk, then run again."),
}
log = logging.getLogger("nightgraph.train")


def _named(name: str, message: str) -> NightError:
    kind, what_to_do = ENDINGS[name]
    return kind(f"{message}. Nothing was published. {what_to_do}")


TRAINING = Work(
    module="models.train",
    name="training",
    silence_limit="train.silence_s",
    deadline_limit="train.deadline_s",
    goes_on="from the last checkpoint if there is one",
    lost=TrainingLost,
    if_lost="Run the night again to go on from the last checkpoint; with fewer train.ranks if memory is short.",
    named=_named,
)


@dataclass(frozen=True)
class Place:
    """Where a fit runs. Part of the stage's key: sums are added up in another order on other ranks or threads."""

    device: str  # cuda or cpu
    ranks: int  # of each node
    threads: int  # of each rank
    nodes: int = 1
    split: str = "data"

    @property
    def world(self) -> int:
        return self.ranks * self.nodes


def fit_twice(
    graph: Graph,
    settings: TrainConfig,
    place: Place,
    folder: Path,
    *,
    k: int,
    on_progress: Callable[[dict[str, Any]], None],
    start: Start = COLD,
) -> Fitted:
    """Both fits in one launch of the ranks; once more at half the learning rate where they diverge.

    Raises TrainingDiverged, TrainingLost, TrainingOutOfMemory, RankMismatch.
    """
    spec = Spec(
        graph_folder=graph.folder,
        output_folder=str(folder),
        num_users=graph.num_users,
        num_items=graph.num_items,
        device=place.device,
        threads=place.threads,
        split=place.split,
        k=k,
        timeout_s=GROUP_TIMEOUT_S,
        checkpoint_s=settings.checkpoint_s,
        start=start.path,
        keeps_layer_0=settings.warm_start and graph.validation_from_us is not None,
        **settings.model_dump(exclude=SUPERVISION | WHERE | {"temperature", "warm_start"}),
        # By the train part, for both fits: the served one must take the judged one's recipe.
        temperature=settings.temperature
        or temperature_of(users=graph.num_users, items=graph.num_items, likes=graph.num_train),
    )
    launch = Launch(
        TRAINING,
        folder / "spec.json",
        ranks=place.ranks,
        threads=place.threads,
        nodes=place.nodes,
        rdzv_endpoint=settings.rdzv_endpoint,
        project_root=PROJECT_ROOT,
        silence_s=settings.silence_s,
        deadline_s=settings.deadline_s,
        relaunches=settings.relaunches,
    )
    log.info(
        "training on %d rank%s%s (%s, %d threads each)",
        place.world,
        "s" if place.world > 1 else "",
        f" of {place.nodes} nodes" if place.nodes > 1 else "",
        place.device,
        place.threads,
    )
    if place.device == "cpu" and place.ranks * place.threads > (os.cpu_count() or 1):
        log.warning("%d threads share %d cores: fewer ranks are faster", place.ranks * place.threads, os.cpu_count())
    try:
        result = _train(spec, launch, on_progress)
    except TrainingDiverged as diverged:
        spec = replace(spec, learning_rate=spec.learning_rate / 2)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        what = str(diverged).split(". Nothing was published")[0]
        log.warning("%s; once more, at a learning rate of %g", what, spec.learning_rate)
        result = _train(spec, launch, on_progress)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if start.path:
        Path(start.path).unlink()
    return replace(_fitted(folder, spec, result, place), started=start.told)


def _train(spec: Spec, launch: Launch, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    launch.spec_path.write_text(json.dumps(asdict(spec), indent=1))
    return run_ranks(launch, on_progress)


# ---- where


def choose_place(settings: TrainConfig, graph: Graph) -> Place:
    """Device, ranks, threads and split; the plan is logged before anything starts.

    Raises DeviceUnavailable, RunConfigError, TrainingOutOfMemory.
    """
    device, ranks = _device_and_ranks(settings)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // ranks)
    place = Place(device, ranks, threads, settings.nodes)
    return replace(place, split=_choose_split(settings, graph, place))


def _choose_split(settings: TrainConfig, graph: Graph, place: Place) -> str:
    size = Size(
        users=graph.num_users,
        items=graph.num_items,
        likes=graph.num_likes,
        width=settings.width,
        layers=settings.layers,
        batches_per_epoch=settings.batches_per_epoch,
        negatives=min(settings.negatives, graph.num_items),
    )
    bytes_of_device = _bytes_of_device(place)
    asked = SPLITS if settings.split == "auto" else (settings.split,)
    possible = [split for split in asked if _can_split(split, size, place.world)]
    if not possible:
        raise RunConfigError(
            f"train.split is {settings.split}, and {size.width} columns of {size.nodes:,} nodes cannot be shared out "
            f"among {place.world} ranks. Take at most {min(size.width, size.nodes)} ranks, or train.split=data."
        )
    costs = [
        cost_of(split, size, place.world, _rates(place)) for split in possible if place.world > 1 or split == "data"
    ]
    costs = costs or [cost_of("data", size, 1, _rates(place))]
    cpu_ranks = place.ranks if place.device == "cpu" else 0
    chosen = cheapest(costs, bytes_of_device, cpu_ranks=cpu_ranks)
    for cost in costs:
        log.info("plan: %s%s", in_words(cost), " <- chosen" if cost == chosen else "")
    if chosen is None:
        least = min(costs, key=lambda cost: needed_bytes(cost, cpu_ranks))
        whose = f"{place.ranks} ranks on this machine need" if cpu_ranks else "a rank on its GPU needs"
        raise TrainingOutOfMemory(
            f"{whose} {needed_bytes(least, cpu_ranks) / 2**30:.1f} GiB, and there are {bytes_of_device / 2**30:.1f} "
            f"({in_words(least)}). A rank holds 8 tables of {size.nodes:,} nodes x train.width x 4 bytes "
            "(divided by the ranks unless train.split=data), 16 bytes a like and a step's rows; the first one on a CPU "
            "makes a start of 9 tables. Nothing was started. Lower train.width, raise train.batches_per_epoch, or take "
            "more machines."
        )
    return chosen.split


def in_words(cost: Cost) -> str:
    return (
        f"{cost.split}: {cost.bytes_of_rank / 2**20:,.0f} MiB a rank, {cost.bytes_of_start / 2**20:,.0f} MiB for the "
        "start, "
        f"{cost.bytes_moved / 2**20:,.1f} MiB sent a rank and step, about {1e3 * cost.seconds_of_step:,.0f} ms a step"
    )


def _can_split(split: str, size: Size, world: int) -> bool:
    return {"data": True, "columns": size.width >= world, "rows": size.nodes >= world}[split]


def _rates(place: Place) -> Rates:
    if place.device == "cuda":
        return GPU
    return replace(CPU_THREAD, gathered=CPU_THREAD.gathered * place.threads, dense=CPU_THREAD.dense * place.threads)


def _bytes_of_device(place: Place) -> float:
    """What is built in, not what is free at the moment: the plan must be the same tomorrow."""
    if place.device == "cuda":
        return float(min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(place.ranks)))
    return float(psutil.virtual_memory().total)


def _device_and_ranks(settings: TrainConfig) -> tuple[str, int]:
    gpus = torch.cuda.device_count() if settings.device != "cpu" else 0
    ensure_trainable(settings, gpus)
    if settings.device != "cpu" and gpus >= (settings.ranks or 1):
        return "cuda", settings.ranks or gpus
    return "cpu", settings.ranks or 1


# ---- what came out


def _fitted(folder: Path, spec: Spec, result: dict[str, Any], place: Place) -> Fitted:
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
        ranks=place.world,
        threads=place.threads,
        device=place.device,
        split=place.split,
        learning_rate=spec.learning_rate,
        peak_bytes=max(result["peak_bytes_by_rank"]),
        curve_path=str(write_curve(folder / "curve.svg", result)),
        num_parameters=sum(rows * (columns - 1) for rows, columns in shapes),  # the last column is not learned
        collision_rate=result["served"]["collision_rate"],
    )
