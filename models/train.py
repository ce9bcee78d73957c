"""Train LightGCN twice: one fit to judge, one fit to serve. `python -m models.train spec.json`, alone or by torchrun.

Reads the arrays that the spec names, writes beside the spec: progress.json and heartbeat-<rank> while it runs,
judged.safetensors, served.safetensors and, last, result.json. Knows files and ranks, nothing else.

The served fit sees everything, so nothing can be measured on it: it takes the number of epochs that the judged fit
found on validation. A loss that is no number ends the process with a failure.json.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.distributed import Ranks, join_ranks, unwrap
from models.graph import load_adjacency, load_csr
from models.lightgcn import LightGCN, adjacency_tensor, spectral_start
from models.metrics import hits, recall
from models.processes import die_with_parent
from models.rivals import popularity
from models.sampling import BatchSampler
from models.topk import InnerProduct, top_k

VALIDATION_USERS_AT_MOST = 20_000  # a seeded sample beyond; the epoch choice needs no more, the evaluation takes all


@dataclass(frozen=True)
class Spec:
    """What the ranks are told. Folder names are absolute."""

    graph_folder: str
    output_folder: str
    num_users: int
    num_items: int
    device: str
    threads: int
    k: int
    width: int
    layers: int
    temperature: float
    popularity_bias: float
    negatives: int
    batches_per_epoch: int
    max_epochs: int
    patience: int
    validate_every: int
    learning_rate: float
    weight_decay: float
    seed: int
    timeout_s: int


@dataclass(frozen=True)
class Epoch:
    epoch: int
    loss: float
    validation_recall: float | None
    seconds: float


@dataclass(frozen=True)
class Fit:
    epochs: int
    curve: list[Epoch]
    seconds: float
    peak_bytes: int


def fit(spec: Spec, ranks: Ranks, which: str, *, epochs: int, validation: "Validation | None") -> Fit:
    """One fit from its start to `<which>.safetensors`.

    With a validation it stops when recall has not risen for `patience` looks, and keeps the best look's embeddings.
    The learning rate falls to zero over `max_epochs` either way, so that a fit of as many epochs takes the same path.
    """
    started = time.perf_counter()
    beat(spec, ranks)
    part = "train" if which == "judged" else "all"
    liked = load_csr(spec.graph_folder, f"liked_{part}")
    adjacency = adjacency_tensor(load_adjacency(spec.graph_folder, f"adjacency_{part}"), ranks.device)
    beat(spec, ranks)  # each part of a large graph's start takes as long as many steps
    popularity_I = popularity(liked, spec.num_items)
    bias_I = spec.popularity_bias * torch.from_numpy(np.log(np.maximum(popularity_I, 1.0))).to(ranks.device)
    model = LightGCN(
        spectral_start(adjacency, spec.num_users, spec.width, spec.seed, lambda: beat(spec, ranks)),
        adjacency,
        bias_I,
        num_users=spec.num_users,
        layers=spec.layers,
        temperature=spec.temperature,
    )
    replica = ranks.wrap(model)
    beat(spec, ranks)
    sampler = BatchSampler(
        liked,
        spec.num_items,
        batches_per_epoch=spec.batches_per_epoch,
        negatives=spec.negatives,
        seed=spec.seed,
        device=ranks.device,
    )
    total_steps = spec.max_epochs * sampler.num_steps
    optimiser = torch.optim.Adam(replica.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 - step / total_steps)

    curve: list[Epoch] = []
    best = (-1.0, 0)
    for epoch in range(1, epochs + 1):
        epoch_loss = torch.zeros(1, device=ranks.device)
        for batch in sampler.epoch(epoch, rank=ranks.rank, world=ranks.world):
            optimiser.zero_grad(set_to_none=True)
            loss = replica(batch)
            loss.backward()
            optimiser.step()
            schedule.step()
            epoch_loss += loss.detach()
            beat(spec, ranks)
        mean_loss = float(ranks.total(epoch_loss)) / (sampler.num_steps * ranks.world)
        if not np.isfinite(mean_loss):
            raise Diverged(f"the loss of the {which} fit is {mean_loss} in epoch {epoch} of {epochs}")
        measured = None
        if validation is not None and (epoch % spec.validate_every == 0 or epoch == epochs):
            measured = ranks.first_decides(
                validation.recall(model, lambda: beat(spec, ranks)) if ranks.is_first else 0.0
            )
            if measured > best[0]:
                best = (measured, epoch)
                save_embeddings(spec, ranks, model, which)
            beat(spec, ranks)
        curve.append(Epoch(epoch, mean_loss, measured, time.perf_counter() - started))
        report_progress(spec, ranks, which, epoch, epochs, curve)
        if measured is not None and epoch - best[1] >= spec.patience * spec.validate_every:
            break
    if validation is None:
        best = (0.0, epochs)
        save_embeddings(spec, ranks, unwrap(replica), which)
    peak_bytes = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else 0
    return Fit(epochs=best[1], curve=curve, seconds=time.perf_counter() - started, peak_bytes=peak_bytes)


class Validation:
    """Recall@k on the validation likes, the users' train part left out of their lists."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.target = load_csr(spec.graph_folder, "liked_validation")
        self.seen = load_csr(spec.graph_folder, "seen_before_validation")
        self.train = load_csr(spec.graph_folder, "liked_train")
        users = np.flatnonzero(self.target.counts() > 0)
        if len(users) > VALIDATION_USERS_AT_MOST:
            users = np.sort(np.random.default_rng(spec.seed).choice(users, VALIDATION_USERS_AT_MOST, replace=False))
        self.users = users

    def recall(self, model: LightGCN, after_each_block: Callable[[], None] = lambda: None) -> float:
        if len(self.users) == 0:
            return 0.0
        user_UD, item_ID = (table.cpu() for table in model.embeddings())
        fallback_I = popularity(self.train, self.spec.num_items)
        scorer = InnerProduct(user_UD, item_ID, self.train.counts() > 0, fallback_I > 0)
        blocks = top_k(
            scorer,
            fallback_I,
            users=self.users,
            seen=self.seen,
            k=self.spec.k,
            item_rank_I=np.load(Path(self.spec.graph_folder) / "item_rank.npy"),
        )
        recalls = []
        for block in blocks:
            recalls.append(self._recall_of(block.users, block.item_BK))
            after_each_block()
        return float(np.concatenate(recalls).mean())

    def _recall_of(self, users: np.ndarray, item_BK: np.ndarray) -> np.ndarray:
        return recall(hits(item_BK, users, self.target, self.spec.num_items), self.target.counts()[users])


class Diverged(Exception):
    """The loss is no number."""


def save_embeddings(spec: Spec, ranks: Ranks, model: torch.nn.Module, which: str) -> None:
    """user_UD (U, D + 1) and item_ID (I, D + 1) as safetensors; their inner product is the score."""
    if not ranks.is_first:
        return
    assert isinstance(model, LightGCN)
    user_UD, item_ID = model.embeddings()
    save_file(
        {"user_UD": user_UD.cpu().contiguous(), "item_ID": item_ID.cpu().contiguous()},
        Path(spec.output_folder) / f"{which}.safetensors",
    )


def beat(spec: Spec, ranks: Ranks) -> None:
    """Tell the supervisor that this rank is alive: the file's time is the message."""
    (Path(spec.output_folder) / f"heartbeat-{ranks.rank}").touch()


def report_progress(spec: Spec, ranks: Ranks, which: str, epoch: int, epochs: int, curve: list[Epoch]) -> None:
    if ranks.is_first:
        last = curve[-1]
        progress = {"fit": which, "epoch": epoch, "epochs": epochs, **asdict(last)}
        write_json(Path(spec.output_folder) / "progress.json", progress)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all: a reader never sees half a file."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)


def make_repeatable(threads: int) -> None:
    """The same arithmetic in every run, before the first product of the process.

    MKL splits a long sum among its threads, so that two machines with unlike cores round unlike; in its strict mode
    it adds up in one order. Where torch has another BLAS, or MKL does not know the CPU, `threads` still decides.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def main(spec_path: str) -> None:
    die_with_parent()
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    make_repeatable(spec.threads)
    with join_ranks(spec.device, timeout_s=spec.timeout_s) as ranks:
        beat(spec, ranks)
        try:
            judged = fit(spec, ranks, "judged", epochs=spec.max_epochs, validation=Validation(spec))
            served = fit(spec, ranks, "served", epochs=judged.epochs, validation=None)
        except Diverged as diverged:
            if ranks.is_first:
                write_json(Path(spec.output_folder) / "failure.json", {"diverged": str(diverged)})
            raise
        if ranks.is_first:
            result = {"judged": asdict(judged), "served": asdict(served), "ranks": ranks.world}
            write_json(Path(spec.output_folder) / "result.json", result)


if __name__ == "__main__":
    main(sys.argv[1])
