"""Train LightGCN twice: one fit to judge, one fit to serve. `python -m models.train spec.json`, alone or by torchrun.

Reads the arrays that the spec names, writes beside the spec: progress.json, heartbeat-<rank> and checkpoints while it
runs, judged.safetensors, served.safetensors and, last, result.json; or failure.json, which names why it ended. Knows
files and ranks, nothing else.

The served fit sees everything, so nothing can be measured on it: it takes the number of epochs that the judged fit
found on validation.
"""

import errno
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import Checkpoint, is_as_written, newest_checkpoint, save_checkpoint, write_sealed
from models.clock import Clock
from models.distributed import Layout, Ranks, join_ranks
from models.fold_in import fold_table
from models.graph import Csr, load_adjacency, load_csr
from models.identity import file_sha256, identity_of
from models.lightgcn import LightGCN, Tables, spectral_start
from models.processes import die_with_parent, keep_freed_memory
from models.progress import Epoch, Failure, Progress, write_json
from models.rivals import popularity
from models.sampling import Share, Step, Triplets, TripletSampler, UserSampler
from models.validation import Validation
from models.warm import warm_start


@dataclass(frozen=True)
class Spec:
    """What the ranks are told. Folder names are absolute; tasks/config.py says what the settings mean."""

    graph_folder: str
    output_folder: str
    num_users: int
    num_items: int
    device: str
    threads: int
    split: str
    precision: str
    k: int
    loss: str
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
    checkpoint_s: float
    start: str = ""  # tables of an earlier night to start from (models/warm.py); none: the spectral start
    keeps_layer_0: bool = False  # leave <fit>-layer-0.safetensors, for a later night to start from

    def settings(self) -> dict[str, object]:
        """What decides the numbers, beside graph, code and ranks."""
        surroundings = ("graph_folder", "output_folder", "timeout_s", "checkpoint_s")
        settings = {name: value for name, value in vars(self).items() if name not in surroundings}
        return settings | {"start": file_sha256(Path(self.start)) if self.start else ""}


@dataclass(frozen=True)
class Fit:
    epochs: int
    curve: list[Epoch]
    seconds: float
    seconds_by_part: dict[str, float]  # of this process: what a checkpoint brought along is not in it
    collision_rate: float
    resumed_at: int  # epochs that a checkpoint brought along


def fit(spec: Spec, ranks: Ranks, which: str, *, epochs: int, validation: Validation | None, identity: str) -> Fit:
    """One fit from its start, or from its newest checkpoint, to `<which>.safetensors`.

    With a validation it stops when recall has not risen for `patience` looks, and keeps the best look's embeddings.
    The learning rate falls to zero over `max_epochs` either way, so that a fit of as many epochs takes the same path.
    """
    beat(spec, ranks)
    clock = Clock(ranks.device)
    with clock.part("start"):
        liked = load_csr(spec.graph_folder, "liked_train" if which == "judged" else "liked_all")
        training = begin(spec, ranks, which, liked, clock)
        progress = training.resume(identity)
    sampler = sampler_of(spec, liked, ranks.device, training.likeness_U)
    total_steps = spec.max_epochs * sampler.num_steps
    while progress.epoch < epochs and not progress.has_stopped_rising(spec.patience * spec.validate_every):
        epoch = progress.epoch + 1
        sums = torch.zeros(3, dtype=torch.float64)  # of the epoch: loss, collisions, pairs that could collide
        for number, step in enumerate(clock.each("sample", sampler.epoch(epoch, ranks.rank, ranks.world))):
            done = (progress.epoch * sampler.num_steps + number) / total_steps
            loss = training.step(step, learning_rate=spec.learning_rate * (1.0 - done), at=(epoch, number))
            sums += torch.tensor([loss, *collisions_of(step.share)])
            beat(spec, ranks)
        recall = None
        if validation is not None and (epoch % spec.validate_every == 0 or epoch == epochs):
            with clock.part("evaluate"):
                tables = training.tables()
                recall = validation.recall(tables, ranks, lambda: beat(spec, ranks))
            if progress.is_best(recall):
                save_tables(spec, ranks, tables, training, which)
        loss_sum, collisions, pairs = ranks.total(sums.to(ranks.device)).tolist()
        progress.add(loss_sum / sampler.num_steps, recall, collisions=int(collisions), pairs=int(pairs))
        with clock.part("checkpoint"):
            if ranks.is_first:
                progress.tell(Path(spec.output_folder), epochs)
            training.save_if_due(progress, identity)
            beat(spec, ranks)
    if validation is None:
        save_tables(spec, ranks, training.tables(), training, which)
    add_fold_table(spec, ranks, training, which)
    return Fit(
        epochs=epochs if validation is None else progress.best_epoch,
        curve=progress.curve,
        seconds=progress.seconds,
        seconds_by_part={part: round(seconds, 4) for part, seconds in clock.seconds.items()},
        collision_rate=progress.collision_rate,
        resumed_at=progress.resumed_at,
    )


def begin(spec: Spec, ranks: Ranks, which: str, liked: Csr, clock: Clock) -> "Training":
    """Graph, start and optimiser of one fit."""
    adjacency = load_adjacency(spec.graph_folder, "adjacency_train" if which == "judged" else "adjacency_all")
    layout = ranks.lay_out(spec.split, adjacency, spec.width)
    beat(spec, ranks)  # each part of a large graph's start takes as long as many steps
    start_ND = None
    if ranks.is_first:
        matrix = layout.whole_matrix(adjacency)
        if spec.start:
            start_ND = warm_start(spec.start, which, matrix, spec.num_users, spec.seed)
        else:
            start_ND = spectral_start(matrix, spec.num_users, spec.width, spec.seed, lambda: beat(spec, ranks))
    start_ND = ranks.from_first(start_ND, (adjacency.num_nodes, spec.width))
    beat(spec, ranks)
    popularity_I = popularity(liked, spec.num_items)
    weight = spec.popularity_bias if spec.loss == "softmax" else 0.0  # the paper's scores have no bias
    model = LightGCN(
        layout.own(start_ND),
        layout,
        weight * torch.from_numpy(np.log(np.maximum(popularity_I, 1.0))).to(ranks.device),
        num_users=spec.num_users,
        layers=spec.layers,
        loss=spec.loss,
        temperature=spec.temperature,
        decay=spec.weight_decay,
        low_precision=spec.precision == "bfloat16",
        clock=clock,
    )
    likeness_U = _likeness_of(start_ND[: spec.num_users])
    return Training(spec, ranks, which, layout, model, clock, likeness_U, liked)


def _likeness_of(start_UD: Tensor) -> np.ndarray:
    """(U,) where each user stands along the graph's second direction, its first being how much they like at all."""
    if start_UD.shape[1] < 2:
        return np.zeros(len(start_UD), np.float32)
    return np.nan_to_num((start_UD[:, 1] / start_UD[:, 0]).cpu().numpy())


def sampler_of(spec: Spec, liked: Csr, device: torch.device, likeness_U: np.ndarray) -> UserSampler | TripletSampler:
    if spec.loss == "bpr":
        likes_per_step = -(-len(liked.indices) // spec.batches_per_epoch)
        return TripletSampler(liked, spec.num_items, likes_per_step=likes_per_step, seed=spec.seed, device=device)
    return UserSampler(
        liked,
        spec.num_items,
        batches_per_epoch=spec.batches_per_epoch,
        negatives=spec.negatives,
        seed=spec.seed,
        device=device,
        likeness_U=likeness_U,
    )


def collisions_of(share: Share | Triplets) -> tuple[int, int]:
    """How many pairs of a user and a negative were likes of theirs (and left out), and how many pairs there were."""
    if isinstance(share, Triplets):
        return 0, 0
    return len(share.collision_user), share.num_users * len(share.negatives)


class Training:
    """A model with its optimiser, on this rank."""

    def __init__(
        self,
        spec: Spec,
        ranks: Ranks,
        which: str,
        layout: Layout,
        model: LightGCN,
        clock: Clock,
        likeness_U: np.ndarray,
        liked: Csr,
    ) -> None:
        self.likeness_U, self.liked = likeness_U, liked
        self.degree_I = torch.from_numpy(popularity(liked, spec.num_items))
        self.is_trained_N = torch.cat([torch.from_numpy(liked.counts()), self.degree_I]) > 0
        self.spec, self.ranks, self.which = spec, ranks, which
        self.layout, self.model, self.clock = layout, model, clock
        self.replica = layout.wrap(model)
        decay = spec.weight_decay if spec.loss == "softmax" else 0.0  # BPR's own decay is part of its loss
        self.optimiser = torch.optim.Adam(model.parameters(), lr=spec.learning_rate, weight_decay=decay, fused=True)
        self.saved_at = time.monotonic()
        self.folder = Path(spec.output_folder) / "checkpoints"

    def step(self, step: Step, *, learning_rate: float, at: tuple[int, int]) -> float:
        """One step of all ranks; this rank's part of the loss. Raises Failure at the first number that is none."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.replica(step)
        self._refuse_unless_finite(at, "loss", loss)
        with self.clock.part("exchange"):  # what is in here and in no part of its own: gradients that DDP averages
            (loss * self.layout.loss_factor).backward()
        with self.clock.part("optimiser"):
            assert self.model.table.grad is not None
            self._refuse_unless_finite(at, "gradient of the table", self.model.table.grad.sum())
            self.optimiser.step()
        return float(loss.detach())

    def _refuse_unless_finite(self, at: tuple[int, int], name: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        if not torch.isfinite(self.model.table.detach().sum()):
            name = f"table, and then the {name},"
        epoch, number = at
        raise Failure(
            "TrainingDiverged",
            f"the {name} of the {self.which} fit is {float(value.detach())} in epoch {epoch} of "
            f"{self.spec.max_epochs}, step {number + 1}",
        )

    def tables(self) -> Tables:
        """On the CPU of every rank."""
        return self.model.tables(self.layout.whole(self.model.propagated()).cpu())

    def hop(self) -> Tensor:
        """(I, D) on the CPU of every rank: what one like of an item adds to its user's row, before the row's scale.

        Times scale_U / sqrt(the user's likes) it is in the space of user_UD (models/reasons.py, models/fold_in.py).
        """
        hop_ID = self.layout.whole(self.model.hop())[self.spec.num_users :].cpu()
        return hop_ID / self.degree_I.clamp_min(1.0).sqrt()[:, None]

    def save_if_due(self, progress: Progress, identity: str) -> None:
        """Every rank's part, written by the first, when the first finds that enough time has passed."""
        due = time.monotonic() - self.saved_at >= self.spec.checkpoint_s
        if self.ranks.first_decides(float(due)) == 0.0:
            return
        moments = self.optimiser.state[self.model.table]
        parts = {"table": self.model.table.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
        tensors = {}
        for name, part in parts.items():  # one after another: only the first rank keeps them, in the machine's memory
            whole_ND = self.layout.whole(part)
            if self.ranks.is_first:
                tensors[name] = whole_ND.cpu()
        if self.ranks.is_first:
            state = {"step": float(moments["step"]), "progress": progress.state()}
            save_checkpoint(self.folder, self.which, identity, Checkpoint(progress.epoch, tensors, state))
        self.saved_at = time.monotonic()

    def resume(self, identity: str) -> Progress:
        """Where the newest checkpoint of this very training left off, or the start."""
        found = None
        if self.ranks.is_first:
            found, passed_over = newest_checkpoint(self.folder, self.which, identity)
            # The best look's tables are not in the checkpoint; without them there is nothing to go on to.
            has_best = found is not None and found.state["progress"]["best_epoch"] > 0
            damaged = [path.name for path in kept_paths(self.spec, self.which) if not is_as_written(path)]
            if has_best and damaged:
                found = None
                passed_over.append(f"{' and '.join(damaged)}, of the best look so far, are not what was written")
            for why in passed_over:
                print(f"checkpoint passed over: {why}", flush=True)
        if self.ranks.first_decides(float(found is not None)) == 0.0:
            return Progress(self.which)
        state = self.ranks.first_tells(found.state if found else {})
        shape = (self.spec.num_users + self.spec.num_items, self.spec.width)
        own = {
            name: self.layout.own(self.ranks.from_first(found.tensors[name] if found else None, shape))
            for name in ("table", "exp_avg", "exp_avg_sq")
        }
        with torch.no_grad():
            self.model.table.copy_(own.pop("table"))
        self.optimiser.state[self.model.table] = {"step": torch.tensor(state["step"]).to(self.model.table), **own}
        return Progress(self.which, state["progress"])


def tables_path(spec: Spec, which: str) -> Path:
    return Path(spec.output_folder) / f"{which}.safetensors"


def layer_0_path(spec: Spec, which: str) -> Path:
    return Path(spec.output_folder) / f"{which}-layer-0.safetensors"


def kept_paths(spec: Spec, which: str) -> list[Path]:
    """What a look that is the best so far leaves."""
    return [tables_path(spec, which), *([layer_0_path(spec, which)] if spec.keeps_layer_0 else [])]


def save_tables(spec: Spec, ranks: Ranks, tables: Tables, training: Training, which: str) -> None:
    """Whole or not at all, as safetensors; 4 bytes a number. Called by every rank, written by the first.

    user_UD, item_ID   (U, D + 1), (I, D + 1): their inner product is the score, the last column is the item's bias
    hop_ID             (I, D) what one like of each item adds to its user's row, before the row's scale
    scale_U            (U,) that scale: user_UD[u, :D] = scale_U[u] x (own term + the sum of hop_ID over u's likes /
                       sqrt(how many they are))

    And, once the fit has ended (`add_fold_table`):

    fold_ID            (I, D) what one event of each item adds to the row of a person who has none, before its length
    fold_length        (1,) the length of trained rows (models/fold_in.py)

    What explains and folds in makes the file larger by 2 I / (U + I): as large again where I = U.

    Where the spec asks for it, layer_0_ND (N, D) in a file of its own: what a later night starts from. Zeros where a
    node has no like in this fit, and so learned nothing.
    """
    hop_ID = training.hop()
    if spec.keeps_layer_0:
        layer_0_ND = training.layout.whole(training.model.table.detach())
        if ranks.is_first:
            layer_0_ND = layer_0_ND.cpu() * training.is_trained_N[:, None]
            write_sealed({"layer_0_ND": layer_0_ND}, layer_0_path(spec, which))
    if ranks.is_first:
        write_sealed(tables._asdict() | {"hop_ID": hop_ID}, tables_path(spec, which))


def add_fold_table(spec: Spec, ranks: Ranks, training: Training, which: str) -> None:
    """Once, from the tables that were kept: at every look it would cost a few hundredths of the training."""
    if not ranks.is_first:
        return
    beat(spec, ranks)
    kept = load_file(tables_path(spec, which))
    tables = Tables(*(kept[name] for name in Tables._fields))
    kept["fold_ID"], kept["fold_length"] = fold_table(tables, training.liked, training.degree_I)
    write_sealed(kept, tables_path(spec, which))
    beat(spec, ranks)


def beat(spec: Spec, ranks: Ranks) -> None:
    """Tell the supervisor that this rank is alive: the file's time is the message."""
    (Path(spec.output_folder) / f"heartbeat-{ranks.rank}").touch()


def make_repeatable(threads: int) -> None:
    """The same arithmetic in every run, before the first product of the process.

    MKL splits a long sum among its threads, so that two machines with unlike cores round unlike; in its strict mode
    it adds up in one order. Where torch has another BLAS, or MKL does not know the CPU, `threads` still decides.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def named_failures(spec: Spec) -> Iterator[None]:
    """Leave a failure.json for the supervisor where the reason has a name."""

    def leave(name: str, message: str) -> None:
        write_json(Path(spec.output_folder) / "failure.json", {"name": name, "message": message})

    try:
        yield
    except Failure as failure:
        leave(failure.name, str(failure))
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            leave("DiskFull", f"the disk of {spec.output_folder} filled up in training")
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            words in str(error)
            for words in ("not enough memory", "can't allocate memory", "ALLOC_FAILED")  # cuBLAS
        ):
            leave("TrainingOutOfMemory", (str(error).splitlines() or ["no memory"])[0][:300])
        raise


def refuse_strangers(spec: Spec, ranks: Ranks) -> str:
    """The identity of this training. Raises Failure where a rank has another graph, other settings or other code."""
    mine = identity_of(spec.graph_folder, spec.settings(), ranks.world)
    for rank, theirs in enumerate(ranks.everybodys(mine)):
        if differs := theirs.differences(mine):
            raise Failure(
                "RankMismatch", f"rank {ranks.rank} and rank {rank} do not have the same {' and '.join(differs)}"
            )
    # Result, tables and progress are the first rank's, and the night looks for them where it started this.
    folder = Path(spec.output_folder)
    if ranks.is_first:
        (folder / "first-rank").write_text(str(os.getpid()))
    first_pid = ranks.first_tells(str(os.getpid()))
    told = folder / "first-rank"
    if not all(ranks.everybodys(told.exists() and told.read_text() == first_pid)):
        raise Failure("RankMismatch", "the ranks do not share one run folder, so the first one's result would be lost")
    return str(mine)


def main(spec_path: str) -> None:
    die_with_parent()
    keep_freed_memory()
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    make_repeatable(spec.threads)
    if spec.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    with named_failures(spec), join_ranks(spec.device, timeout_s=spec.timeout_s) as ranks:
        beat(spec, ranks)
        identity = refuse_strangers(spec, ranks)
        validation = Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
        judged = fit(spec, ranks, "judged", epochs=spec.max_epochs, validation=validation, identity=identity)
        served = fit(spec, ranks, "served", epochs=judged.epochs, validation=None, identity=identity)
        peak_bytes = ranks.everybodys(_peak_bytes(ranks))
        if ranks.is_first:
            fits = {"judged": asdict(judged), "served": asdict(served)}
            where = {"ranks": ranks.world, "split": spec.split, "peak_bytes_by_rank": peak_bytes}
            write_json(Path(spec.output_folder) / "result.json", fits | where)


def _peak_bytes(ranks: Ranks) -> int:
    """Of the GPU's memory, or of this process's."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1])
