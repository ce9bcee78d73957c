"""Training, alone and on two ranks that talk: the same tastes, the same curve, the same bytes when repeated."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models.lightgcn
import models.topk
import models.train
from models.clock import Clock
from models.distributed import Ranks
from models.graph import interactions_by_user, load_csr, normalised_adjacency, save_arrays
from models.identity import identity_of
from models.lightgcn import LightGCN
from models.progress import Failure, Progress
from models.rivals import popularity
from models.scorers import InnerProduct, for_everybody, rows_where
from models.topk import top_k
from models.train import Fit, Spec, begin, fit
from tasks.contracts import Graph
from tests.worlds import (
    World,
    build_graph_of,
    graph_of_random_likes,
    met_once,
    spec_for,
    two_taste_world,
    validation_of,
)

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
PROJECT_ROOT = Path(__file__).resolve().parents[2]
# Root mean square of the entrywise difference, over the root mean square of the embeddings. Ranks change the order
# in which likes are added up, nothing else: six epochs of Adam make at most 8e-7 of it here, a tenth of this.
RMS_OF_TWO_RANKS = 1e-5


@pytest.fixture(scope="module")
def world() -> World:
    return two_taste_world()


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(world.seen, tmp_path_factory.mktemp("graph"))


@dataclass(frozen=True)
class Trained:
    folder: Path
    result: dict[str, dict]

    def tables(self, which: str) -> dict[str, np.ndarray]:
        return load_file(self.folder / f"{which}.safetensors")

    def losses(self, which: str) -> list[float]:
        return [epoch["loss"] for epoch in self.result[which]["curve"]]


def train_alone(spec: Spec) -> Trained:
    judged = fit(spec, ALONE, "judged", epochs=spec.max_epochs, validation=validation_of(spec), identity="")
    served = fit(spec, ALONE, "served", epochs=judged.epochs, validation=None, identity="")
    return Trained(Path(spec.output_folder), {"judged": asdict(judged), "served": asdict(served)})


def train_on_two_ranks(spec: Spec) -> Trained:
    """Two processes that talk over gloo, started by the command that runs by hand too."""
    spec_path = Path(spec.output_folder) / "spec.json"
    spec_path.write_text(json.dumps(asdict(spec)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "models.train", str(spec_path)]
    environment = {k: v for k, v in os.environ.items() if k != "NIGHTGRAPH_PARENT_PID"}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(PROJECT_ROOT)}
    finished = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, timeout=120, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return Trained(Path(spec.output_folder), json.loads((Path(spec.output_folder) / "result.json").read_text()))


def train_by_hand(spec: Spec, **environment: str) -> dict[str, bytes]:
    """`python -m models.train` in a process of its own; the bytes that it wrote."""
    spec_path = Path(spec.output_folder) / "spec.json"
    spec_path.write_text(json.dumps(asdict(spec)))
    inherited = {k: v for k, v in os.environ.items() if k not in ("NIGHTGRAPH_PARENT_PID", "MKL_CBWR")}
    subprocess.run(
        [sys.executable, "-m", "models.train", str(spec_path)],
        cwd=PROJECT_ROOT,
        env=inherited | environment,
        timeout=120,
        check=True,
    )
    return {path.name: path.read_bytes() for path in Path(spec.output_folder).glob("*.safetensors")}


@pytest.fixture(scope="module")
def products_can_be_strict() -> bool:
    """Whether this machine's MKL, when told to, adds up in one order whatever the threads. Asked of torch alone."""
    program = (
        "import torch\n"
        "left, right = torch.randn(118, 1352), torch.randn(1352, 64)\n"
        "def product(threads):\n"
        "    torch.set_num_threads(threads)\n"
        "    return left @ right\n"
        "assert all(torch.equal(product(1), product(threads)) for threads in (2, 3))\n"
    )
    told = os.environ | {"MKL_CBWR": "AUTO,STRICT"}
    return subprocess.run([sys.executable, "-c", program], env=told, capture_output=True, timeout=120).returncode == 0


def broad_graph(folder: Path) -> Graph:
    """200 users and 1,500 items: sums over a step's items are long enough to be split among threads."""
    return graph_of_random_likes(folder, users=200, items=1500, share=0.02)


def test_the_number_of_threads_changes_no_byte_where_the_products_can_be_strict(
    products_can_be_strict: bool, tmp_path: Path
) -> None:
    graph = broad_graph(tmp_path / "graph")
    written = [
        train_by_hand(
            spec_for(graph, tmp_path / str(threads), threads=threads, width=64, negatives=2000, batches_per_epoch=2)
        )
        for threads in (1, 3)
    ]
    assert set(written[0]) == {"judged.safetensors", "served.safetensors"}
    if not products_can_be_strict:
        pytest.skip("torch's products round by the number of threads on this CPU; the stage's key holds the threads")
    assert written[1] == written[0]


@pytest.fixture(scope="module")
def one_rank(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_alone(spec_for(graph, tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def two_ranks(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_two_ranks(spec_for(graph, tmp_path_factory.mktemp("two")))


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
def test_what_is_recommended_is_of_the_users_taste(ranks: str, graph: Graph, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(ranks)
    tables = trained.tables("served")
    liked = load_csr(graph.folder, "liked_all")
    scorer = InnerProduct(
        torch.from_numpy(tables["user_UD"]),
        torch.from_numpy(tables["item_ID"]),
        rows_where(liked.counts() > 0),
        popularity(liked, graph.num_items) > 0,
    )
    (block,) = top_k(
        [scorer, for_everybody(popularity(liked, graph.num_items), graph.num_users)],
        users=np.arange(graph.num_users),
        excluded=load_csr(graph.folder, "seen_all"),
        k=10,
        item_rank_I=np.arange(graph.num_items),
    )
    own_taste = block.item_BK % 2 == block.users[:, None] % 2  # rows are in the order of ids: even and odd
    assert own_taste.mean() > 0.97, "each user has 18 unseen items of their taste and 27 of the other"


def test_two_ranks_learn_what_one_rank_learns(one_rank: Trained, two_ranks: Trained) -> None:
    assert two_ranks.result["ranks"] == 2
    for which in ("judged", "served"):
        for name, table in one_rank.tables(which).items():
            difference = two_ranks.tables(which)[name] - table
            assert np.sqrt((difference**2).mean()) <= RMS_OF_TWO_RANKS * np.sqrt((table**2).mean())
        np.testing.assert_allclose(two_ranks.losses(which), one_rank.losses(which), rtol=1e-5)
        assert two_ranks.result[which]["epochs"] == one_rank.result[which]["epochs"]


def test_the_loss_falls(two_ranks: Trained) -> None:
    losses = two_ranks.losses("judged")
    assert losses[-1] < 0.95 * losses[0]


def test_the_served_fit_takes_the_epochs_that_the_judged_fit_found(one_rank: Trained) -> None:
    judged, served = one_rank.result["judged"], one_rank.result["served"]
    looks = {e["epoch"]: e["validation_recall"] for e in judged["curve"] if e["validation_recall"] is not None}
    assert judged["epochs"] == max(looks, key=lambda epoch: (looks[epoch], -epoch)), "the first best look"
    assert served["epochs"] == judged["epochs"] == len(served["curve"])
    assert all(epoch["validation_recall"] is None for epoch in served["curve"])


def test_training_stops_when_recall_has_not_risen_for_patience_looks(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path, max_epochs=200, patience=2, validate_every=3)
    judged = fit(spec, ALONE, "judged", epochs=200, validation=validation_of(spec), identity="")
    assert len(judged.curve) == judged.epochs + 2 * 3 < 200


def test_the_judged_file_holds_the_best_look_not_the_last(graph: Graph, tmp_path: Path) -> None:
    """The learning rate follows max_epochs, so training of just so many epochs takes the same path."""
    spec = spec_for(graph, tmp_path / "all", max_epochs=40, patience=3, validate_every=1)
    judged = fit(spec, ALONE, "judged", epochs=40, validation=validation_of(spec), identity="")
    assert len(judged.curve) > judged.epochs
    shorter = spec_for(graph, tmp_path / "short", max_epochs=40, patience=3, validate_every=1)
    fit(shorter, ALONE, "judged", epochs=judged.epochs, validation=None, identity="")
    assert (tmp_path / "all/judged.safetensors").read_bytes() == (tmp_path / "short/judged.safetensors").read_bytes()


def test_a_rank_gives_a_sign_of_life_between_any_two_pieces_of_work(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a large graph each piece takes long: loading, a factorisation of the start, a step, a block of validation."""
    spec = spec_for(graph, tmp_path, max_epochs=2, validate_every=1)
    heartbeat = tmp_path / "heartbeat-0"
    pieces: list[str] = []
    silent: list[str] = []

    def works(module: object, name: str) -> None:
        work = getattr(module, name)

        def watched(*arguments: object, **named: object) -> object:
            if not heartbeat.exists():
                silent.append(f"before {name}, after {pieces[-1:]}")
            heartbeat.unlink(missing_ok=True)
            pieces.append(name)
            return work(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    works(models.train, "spectral_start")
    works(torch.linalg, "qr")
    works(torch.linalg, "svd")
    works(LightGCN, "forward")
    works(models.topk, "_fill_in_turn")  # once a block
    monkeypatch.setattr(models.topk, "users_per_block", lambda *_: 5)
    validation = validation_of(spec)
    fit(spec, ALONE, "judged", epochs=2, validation=validation, identity="")
    assert silent == []
    counts = {name: pieces.count(name) for name in pieces}
    blocks = -(-len(validation.users) // 5)
    assert blocks > 1
    assert counts["spectral_start"] == counts["svd"] == 1
    assert (counts["qr"], counts["forward"]) == (7, 2 * 4)
    assert counts["_fill_in_turn"] >= 2 * blocks, "each look goes through its blocks"


def test_another_seed_gives_another_fit(graph: Graph, tmp_path: Path) -> None:
    def losses(seed: int) -> list[float]:
        spec = spec_for(graph, tmp_path / str(seed), seed=seed, max_epochs=1)
        result: Fit = fit(spec, ALONE, "served", epochs=1, validation=None, identity="")
        return [epoch.loss for epoch in result.curve]

    assert losses(1) != losses(2)


def test_a_loss_that_is_no_number_ends_the_fit(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path, temperature=1e-45)
    with pytest.raises(Failure, match=r"the loss of the judged fit is (nan|inf) in epoch 1 of 6, step 1"):
        fit(spec, ALONE, "judged", epochs=6, validation=validation_of(spec), identity="")


def test_a_gradient_that_is_no_number_ends_the_fit_at_that_step_and_is_named(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_for(graph, tmp_path)
    propagate, calls = models.lightgcn.mean_of_layers, []

    def poisoned(*arguments: object) -> torch.Tensor:
        calls.append(1)
        mean_ND = propagate(*arguments)  # type: ignore[arg-type]
        if len(calls) == 6:  # forward and backward of two steps, then the third's backward
            mean_ND[3, 1] = torch.nan
        return mean_ND

    monkeypatch.setattr(models.lightgcn, "mean_of_layers", poisoned)
    with pytest.raises(Failure, match="the gradient of the table of the served fit is nan in epoch 1 of 6, step 3"):
        fit(spec, ALONE, "served", epochs=6, validation=None, identity="")


def test_a_loss_that_rises_instead_of_falling_ends_the_fit() -> None:
    progress = Progress("judged")
    for loss in (6.0, 5.0, 8.9):
        progress.add(loss, None)
    with pytest.raises(
        Failure, match=r"the loss of the judged fit rose from 6 in epoch 1 to 9.1 in epoch 4"
    ) as failure:
        progress.add(9.1, None)
    assert failure.value.name == "TrainingDiverged"


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("dies_in", [3, 14, 25])
def test_a_fit_that_died_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int, loss: str
) -> None:
    """Four steps an epoch: it dies in epoch 1, 4 and 7, with a checkpoint after each."""
    settings = {"max_epochs": 9, "validate_every": 2, "patience": 100, "checkpoint_s": 0.0, "loss": loss}
    undisturbed = spec_for(graph, tmp_path / "undisturbed", **settings)
    spec = spec_for(graph, tmp_path / "died", **settings)
    validation = validation_of(spec)
    whole = fit(undisturbed, ALONE, "judged", epochs=9, validation=validation, identity="a")
    step, steps = models.train.Training.step, []

    def dies(self: models.train.Training, *arguments: object, **named: object) -> float:
        steps.append(1)
        if len(steps) == dies_in:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(models.train.Training, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(spec, ALONE, "judged", epochs=9, validation=validation, identity="a")
    monkeypatch.undo()
    resumed = fit(spec, ALONE, "judged", epochs=9, validation=validation, identity="a")
    assert resumed.resumed_at == (dies_in - 1) // 4
    assert [(e.epoch, e.loss, e.validation_recall) for e in resumed.curve] == [
        (e.epoch, e.loss, e.validation_recall) for e in whole.curve
    ]
    assert (resumed.epochs, resumed.collision_rate) == (whole.epochs, whole.collision_rate)
    written = [(tmp_path / name / "judged.safetensors").read_bytes() for name in ("undisturbed", "died")]
    assert written[0] == written[1]


def test_a_checkpoint_of_another_training_is_not_gone_on_from(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path, max_epochs=4, checkpoint_s=0.0)
    fit(spec, ALONE, "served", epochs=3, validation=None, identity="yesterday's")
    assert fit(spec, ALONE, "served", epochs=4, validation=None, identity="yesterday's").resumed_at == 3
    assert fit(spec, ALONE, "served", epochs=4, validation=None, identity="today's").resumed_at == 0


def test_the_identity_of_a_training_is_its_graph_settings_code_and_ranks(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path)
    ours = identity_of(graph.folder, spec.settings(), world=2)
    assert ours == identity_of(graph.folder, spec_for(graph, tmp_path / "elsewhere", timeout_s=9).settings(), world=2)
    assert ours.differences(identity_of(graph.folder, spec.settings(), world=3)) == ["world"]
    changed = spec_for(graph, tmp_path, learning_rate=0.04).settings()
    assert ours.differences(identity_of(graph.folder, changed, world=2)) == ["settings"]
    other = tmp_path / "graph"
    shutil.copytree(graph.folder, other)
    values = np.load(other / "adjacency_train.values.npy")
    values[7] = np.nextafter(values[7], 1)
    np.save(other / "adjacency_train.values.npy", values)
    assert ours.differences(identity_of(str(other), spec.settings(), world=2)) == ["graph"]


def test_the_bias_of_the_loss_stands_in_the_tables(graph: Graph, one_rank: Trained, tmp_path: Path) -> None:
    popularity_I = popularity(load_csr(graph.folder, "liked_all"), graph.num_items)
    expected = 0.5 * np.log(np.maximum(popularity_I, 1.0))
    np.testing.assert_allclose(one_rank.tables("served")["item_ID"][:, -1], expected, rtol=1e-6)
    assert (one_rank.tables("served")["user_UD"][:, -1] == 1.0).all()
    spec = spec_for(graph, tmp_path, loss="bpr", max_epochs=1)
    fit(spec, ALONE, "served", epochs=1, validation=None, identity="")
    assert (load_file(tmp_path / "served.safetensors")["item_ID"][:, -1] == 0.0).all(), "the paper's scores have none"


def test_bfloat16_reaches_the_products_and_learns_much_the_same(
    graph: Graph, one_rank: Trained, tmp_path: Path
) -> None:
    spec = spec_for(graph, tmp_path, precision="bfloat16")
    found = fit(spec, ALONE, "judged", epochs=spec.max_epochs, validation=validation_of(spec), identity="")
    losses = [epoch.loss for epoch in found.curve]
    assert losses != one_rank.losses("judged")
    np.testing.assert_allclose(losses, one_rank.losses("judged"), rtol=0.02)


def test_a_full_disk_and_a_full_memory_are_named_and_other_errors_are_not(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path)
    for error, name in (
        (OSError(errno.ENOSPC, "No space left on device"), "DiskFull"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "TrainingOutOfMemory",
        ),
        (MemoryError(), "TrainingOutOfMemory"),
        (RuntimeError("shape mismatch"), None),
    ):
        (tmp_path / "failure.json").unlink(missing_ok=True)
        with pytest.raises(type(error)), models.train.named_failures(spec):
            raise error
        written = tmp_path / "failure.json"
        assert (json.loads(written.read_text())["name"] if written.exists() else None) == name


@pytest.mark.parametrize(("loss", "decay_of_adam"), [("softmax", 0.25), ("bpr", 0.0)])
def test_bpr_decays_in_its_loss_and_not_twice(graph: Graph, tmp_path: Path, loss: str, decay_of_adam: float) -> None:
    spec = spec_for(graph, tmp_path, loss=loss, weight_decay=0.25)
    training = begin(spec, ALONE, "served", load_csr(graph.folder, "liked_all"), Clock())
    assert training.optimiser.param_groups[0]["weight_decay"] == decay_of_adam
    assert training.model.decay == 0.25


def test_validation_leaves_out_what_a_user_had_met_liked_or_not(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path)
    validation = validation_of(spec)
    generator = torch.Generator().manual_seed(0)
    tables = (
        torch.randn(graph.num_users, 3, generator=generator),
        torch.randn(graph.num_items, 3, generator=generator),
    )
    train, seen = load_csr(graph.folder, "liked_train"), load_csr(graph.folder, "seen_before_validation")
    target = load_csr(graph.folder, "liked_validation")
    score_UI = (tables[0] @ tables[1].T).numpy()
    score_UI[:, popularity(train, graph.num_items) == 0] = -np.inf
    expected, differs = [], 0
    for user in validation.users:
        met, liked = (csr.indices[csr.indptr[user] : csr.indptr[user + 1]] for csr in (seen, train))
        wanted = set(target.indices[target.indptr[user] : target.indptr[user + 1]].tolist())
        score_I = score_UI[user].copy()
        score_I[met] = -np.inf
        expected.append(len(wanted & set(np.argsort(-score_I, kind="stable")[:10].tolist())) / len(wanted))
        differs += len(met) > len(liked)
    assert differs > 0
    np.testing.assert_allclose(validation.recall_of(tables, validation.users), expected)


def test_a_best_look_that_was_damaged_is_not_kept(graph: Graph, tmp_path: Path) -> None:
    """Its tables are part of where a judged fit stood, and no part of its checkpoint."""
    settings = {"max_epochs": 4, "validate_every": 2, "patience": 100, "checkpoint_s": 0.0}
    spec = spec_for(graph, tmp_path, **settings)
    fit(spec, ALONE, "judged", epochs=3, validation=validation_of(spec), identity="a")
    path = tmp_path / "judged.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-8:] = bytes(8)
    path.write_bytes(bytes(damaged))
    assert fit(spec, ALONE, "judged", epochs=4, validation=validation_of(spec), identity="a").resumed_at == 0


def test_where_the_seconds_went_adds_up(one_rank: Trained) -> None:
    for which in ("judged", "served"):
        parts, whole = one_rank.result[which]["seconds_by_part"], one_rank.result[which]["seconds"]
        assert set(parts) >= {"start", "sample", "propagate", "score", "backward", "exchange", "optimiser"}
        assert 0.5 * whole < sum(parts.values()) <= whole + parts["start"] + 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_gpu_learns_what_the_cpu_learns(graph: Graph, tmp_path: Path, precision: str) -> None:
    on_cpu = spec_for(graph, tmp_path / "cpu", max_epochs=3)
    on_gpu = spec_for(graph, tmp_path / "gpu", max_epochs=3, device="cuda", precision=precision)
    expected = fit(on_cpu, ALONE, "served", epochs=3, validation=None, identity="")
    found = fit(on_gpu, Ranks(0, 1, torch.device("cuda", 0)), "served", epochs=3, validation=None, identity="")
    tolerance = 1e-4 if precision == "float32" else 2e-2
    assert found.curve[-1].loss == pytest.approx(expected.curve[-1].loss, rel=tolerance)
    tables = load_file(tmp_path / "gpu" / "served.safetensors")
    for name, table in load_file(tmp_path / "cpu" / "served.safetensors").items():
        assert np.sqrt(((tables[name] - table) ** 2).mean()) <= 10 * tolerance * np.sqrt((table**2).mean())


def test_bpr_learns_the_tastes_too(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path, loss="bpr", max_epochs=30, validate_every=5)
    judged = fit(spec, ALONE, "judged", epochs=30, validation=validation_of(spec), identity="")
    assert judged.curve[-1].loss < 0.5 * judged.curve[0].loss
    assert max(e.validation_recall or 0.0 for e in judged.curve) > 0.4
    assert judged.collision_rate == 0.0


@pytest.mark.parametrize(
    ("users", "items"), [(1, 1), (1, 7), (7, 1), (6, 5)], ids=["one pair", "one user", "one item", "complete"]
)
def test_a_graph_of_one_user_or_one_item_or_everything_trains_to_finite_tables(
    users: int, items: int, tmp_path: Path
) -> None:
    """Everybody likes everything; user and item rows beside them have no edge at all."""
    liked = interactions_by_user(*np.nonzero(np.ones((users, items))), num_users=users + 1)
    save_arrays(tmp_path, "liked_all", liked)
    save_arrays(tmp_path, "adjacency_all", normalised_adjacency(liked, items + 1))
    world = Graph(str(tmp_path), "", "", users + 1, items + 1, *([users * items] * 4), 0, 0, 0)
    for loss in ("softmax", "bpr"):
        spec = spec_for(world, tmp_path / loss, batches_per_epoch=50, max_epochs=2, loss=loss)
        fit(spec, ALONE, "served", epochs=2, validation=None, identity="")
        tables = load_file(tmp_path / loss / "served.safetensors")
        assert all(np.isfinite(table).all() for table in tables.values())


def test_users_and_items_that_only_the_future_knows_do_not_disturb_the_judged_fit(tmp_path: Path) -> None:
    """The last users and items appear in the last hour only: the train part has empty rows for them."""
    world = two_taste_world()
    late = world.seen["timestamp_us"].max()
    assert isinstance(late, int)
    newcomers = world.seen.head(6).with_columns(
        user_id=world.seen["user_id"].head(6).str.replace("u", "v"),
        item_id=world.seen["item_id"].head(6).str.replace("i", "j"),
        timestamp_us=world.seen["timestamp_us"].head(6) * 0 + late + 1,
        liked=world.seen["liked"].head(6) | True,
    )
    graph = build_graph_of(world.seen.vstack(met_once(newcomers)).sort("user_id", "item_id"), tmp_path / "graph")
    spec = spec_for(graph, tmp_path / "fit", max_epochs=2)
    judged = fit(spec, ALONE, "judged", epochs=2, validation=validation_of(spec), identity="")
    assert all(np.isfinite(epoch.loss) for epoch in judged.curve)
    assert all(np.isfinite(table).all() for table in load_file(tmp_path / "fit" / "judged.safetensors").values())
