"""A GPU beside the CPU: products, losses, whole fits, lists, memory, failures, one rank of nccl.

Needs numpy, scipy and torch alone, and no other room: it also runs where a GPU is, and nothing of ours installed.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.clock import Clock
from models.distributed import Ranks
from models.graph import Csr, interactions_by_user, load_csr, normalised_adjacency, save_arrays
from models.lightgcn import Matrix, _MeanOfLayers
from models.losses import bpr_loss, sampled_softmax_loss
from models.plan import GPU, Size, cost_of
from models.sampling import TripletSampler, UserSampler
from models.scorers import InnerProduct, for_everybody, rows_where
from models.selection import Allowed
from models.sparse import inner_products, sparse_times_dense
from models.topk import CategoryCap, Lists, TopK, joined
from models.train import Spec, Training, begin, fit, sampler_of
from models.validation import Validation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ON_CPU, ON_GPU = Ranks(0, 1, CPU), Ranks(0, 1, CUDA)
# Root mean square of the difference over that of the values: both add up float32 numbers, in unlike orders.
ROUNDING = 1e-6
OF_A_FIT = 1e-3  # after tens of steps of Adam, each of which magnifies roundings


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def apart(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def likes_of_tastes(users: int, items: int, *, tastes: int, share: float, seed: int = 0) -> Csr:
    """Everybody likes some items of their own taste, popular ones more often, and a few others."""
    rng = np.random.default_rng(seed)
    same_UI = (np.arange(users)[:, None] % tastes) == (np.arange(items) % tastes)
    popularity_I = rng.random(items) ** 2 + 0.1
    chance_UI = share * popularity_I / popularity_I.mean() * np.where(same_UI, tastes, 0.1)
    return interactions_by_user(*np.nonzero(rng.random((users, items)) < chance_UI), num_users=users)


def spec_of(folder: Path, users: int, items: int, **changes: object) -> Spec:
    settings: dict[str, object] = {
        "graph_folder": str(folder),
        "output_folder": str(folder),
        "num_users": users,
        "num_items": items,
        "device": "cuda",
        "threads": 1,
        "split": "data",
        "precision": "float32",
        "k": 10,
        "loss": "softmax",
        "width": 32,
        "layers": 2,
        "temperature": 0.2,
        "popularity_bias": 0.5,
        "negatives": 200,
        "batches_per_epoch": 4,
        "max_epochs": 10,
        "patience": 10,
        "validate_every": 2,
        "learning_rate": 0.02,
        "weight_decay": 0.0,
        "seed": 2020,
        "timeout_s": 60,
        "checkpoint_s": 1e9,
    }
    return Spec(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """600 users, 400 items, four tastes; of each user's likes every fifth is held out."""
    folder = tmp_path_factory.mktemp("graph")
    liked = likes_of_tastes(600, 400, tastes=4, share=0.04)
    user_E = np.repeat(np.arange(600), liked.counts())
    held_E = np.arange(len(user_E)) % 5 == 0
    train, target = (interactions_by_user(user_E[part], liked.indices[part], 600) for part in (~held_E, held_E))
    for part in ("train", "all"):
        save_arrays(folder, f"liked_{part}", train)
        save_arrays(folder, f"adjacency_{part}", normalised_adjacency(train, 400))
    save_arrays(folder, "seen_before_validation", train)
    save_arrays(folder, "liked_validation", target)
    np.save(folder / "item_rank.npy", np.arange(400)[::-1])
    return spec_of(folder, 600, 400)


def beside(spec: Spec, folder: Path, **changes: object) -> Spec:
    folder.mkdir(exist_ok=True)
    return replace(spec, output_folder=str(folder), **changes)  # type: ignore[arg-type]


# ---- products and losses


@pytest.mark.parametrize("width", [1, 13, 64, 128])
@pytest.mark.parametrize("layers", [1, 3])
def test_propagation_and_its_gradient_are_the_cpus_to_rounding(width: int, layers: int) -> None:
    liked = likes_of_tastes(700, 300, tastes=3, share=0.03)
    adjacency = normalised_adjacency(liked, 320)  # twenty items without an edge
    table_ND = torch.randn(1020, width, generator=torch.Generator().manual_seed(0))
    pull_ND = torch.randn(1020, width, generator=torch.Generator().manual_seed(1))
    answers = []
    for device in (CPU, CUDA):
        matrix, leaf = Matrix.of(adjacency, device), table_ND.to(device, copy=True).requires_grad_()
        mean = _MeanOfLayers.apply(leaf, matrix.__matmul__, layers, Clock(device))
        (mean * pull_ND.to(device)).sum().backward()
        answers.append((mean, leaf.grad))
    for on_cpu, on_gpu in zip(*answers, strict=True):
        assert on_gpu.device.type == "cuda"
        assert apart(on_gpu, on_cpu) < ROUNDING


def test_a_product_in_bfloat16_loses_what_bfloat16_loses() -> None:
    adjacency = normalised_adjacency(likes_of_tastes(700, 300, tastes=3, share=0.03), 300)
    table_ND = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    low_ND = Matrix.of(adjacency, CUDA) @ table_ND.to(CUDA).bfloat16()
    assert low_ND.dtype == torch.bfloat16
    assert 1e-4 < apart(low_ND, Matrix.of(adjacency) @ table_ND) < 1e-2


def test_sparse_products_with_empty_rows_are_the_cpus() -> None:
    liked = interactions_by_user(np.array([1, 1, 3]), np.array([0, 4, 2]), num_users=6)
    arrays = (torch.from_numpy(liked.indptr.astype(np.int32)), torch.from_numpy(liked.indices))
    left_RD, right_CD = torch.randn(6, 7), torch.randn(5, 7)
    on_gpu = [tensor.to(CUDA) for tensor in (*arrays, left_RD, right_CD)]
    scores_E = inner_products(*arrays, left_RD, right_CD)
    assert apart(inner_products(*on_gpu), scores_E) < ROUNDING
    product_RD = sparse_times_dense(on_gpu[0], on_gpu[1], scores_E.to(CUDA), on_gpu[3])
    assert apart(product_RD, sparse_times_dense(*arrays, scores_E, right_CD)) < ROUNDING
    assert not product_RD[[0, 2, 4, 5]].any()


@pytest.mark.parametrize("negatives", [50, 8192])
@pytest.mark.parametrize("temperature", [0.2, 0.02])  # the second spreads scores too far for one ceiling
def test_the_sampled_softmax_and_its_gradient_are_the_cpus(negatives: int, temperature: float) -> None:
    liked = likes_of_tastes(700, 500, tastes=4, share=0.05)
    bias_I = torch.linspace(-1, 1, 500)
    answers = []
    for device in (CPU, CUDA):
        sampler = UserSampler(liked, 500, batches_per_epoch=1, negatives=negatives, seed=0, device=device)
        share = next(iter(sampler.epoch(1, rank=0, world=1))).share
        row_WD = torch.randn(len(share.nodes), 48, generator=torch.Generator().manual_seed(3)).to(device)
        row_WD.requires_grad_()
        loss = sampled_softmax_loss(row_WD, bias_I.to(device), share, temperature=temperature)
        loss.backward()
        answers.append((loss, row_WD.grad))
    assert len(share.collision_user) > 0
    for on_cpu, on_gpu in zip(*answers, strict=True):
        assert apart(on_gpu, on_cpu) < 10 * ROUNDING / temperature  # exp magnifies the roundings of its argument


def test_bpr_and_its_gradient_are_the_cpus() -> None:
    liked = likes_of_tastes(700, 500, tastes=4, share=0.05)
    answers = []
    for device in (CPU, CUDA):
        sampler = TripletSampler(liked, 500, likes_per_step=4096, seed=0, device=device)
        share = next(iter(sampler.epoch(1, rank=0, world=1))).share
        rows = [torch.randn(len(share.nodes), 48, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
        row_WD, start_WD = (tensor.to(device).requires_grad_() for tensor in rows)
        loss = bpr_loss(row_WD, start_WD, share, decay=1e-3)
        loss.backward()
        answers.append((loss, row_WD.grad, start_WD.grad))
    for on_cpu, on_gpu in zip(*answers, strict=True):
        assert apart(on_gpu, on_cpu) < 10 * ROUNDING


# ---- fits


def judged(spec: Spec, ranks: Ranks) -> float:
    validation = Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
    found = fit(spec, ranks, "judged", epochs=spec.max_epochs, validation=validation, identity="")
    return max(epoch.validation_recall or 0.0 for epoch in found.curve)


@pytest.mark.parametrize(
    ("loss", "precision"), [("softmax", "float32"), ("softmax", "tf32"), ("softmax", "bfloat16"), ("bpr", "float32")]
)
def test_a_fit_reaches_the_cpus_recall(spec: Spec, tmp_path: Path, loss: str, precision: str) -> None:
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    expected = judged(beside(spec, tmp_path / "cpu", device="cpu", loss=loss), ON_CPU)
    found = judged(beside(spec, tmp_path / "gpu", loss=loss, precision=precision), ON_GPU)
    at_random = spec.k / spec.num_items
    assert expected > 5 * at_random, "there is something to learn"
    assert found == pytest.approx(expected, abs=0.01)


def test_the_same_steps_lead_to_the_cpus_tables(spec: Spec, tmp_path: Path) -> None:
    paths = []
    for ranks in (ON_CPU, ON_GPU):
        own = beside(spec, tmp_path / ranks.device.type, device=ranks.device.type)
        fit(own, ranks, "served", epochs=own.max_epochs, validation=None, identity="")
        paths.append(Path(own.output_folder) / "served.safetensors")
    on_cpu, on_gpu = map(load_file, paths)
    assert on_cpu.keys() == on_gpu.keys()
    for name, table in on_cpu.items():
        assert apart(on_gpu[name], table) < OF_A_FIT, name


def test_a_fit_goes_on_from_a_checkpoint_as_if_it_had_not_ended(spec: Spec, tmp_path: Path) -> None:
    whole = beside(spec, tmp_path / "whole")
    fit(whole, ON_GPU, "served", epochs=10, validation=None, identity="same")
    parts = beside(spec, tmp_path / "parts", checkpoint_s=0.0)
    fit(parts, ON_GPU, "served", epochs=4, validation=None, identity="same")
    assert fit(parts, ON_GPU, "served", epochs=10, validation=None, identity="same").resumed_at == 4
    expected, found = (load_file(Path(one.output_folder) / "served.safetensors") for one in (whole, parts))
    assert apart(found["user_UD"], expected["user_UD"]) < OF_A_FIT


def test_a_rank_that_torchrun_starts_trains_on_the_gpu(spec: Spec, tmp_path: Path) -> None:
    own = beside(spec, tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(asdict(own)))
    command = ["-m", "models.distributed", "--standalone", "--nproc-per-node", "1", "-m", "models.train"]
    subprocess.run([sys.executable, *command, str(tmp_path / "spec.json")], cwd=PROJECT_ROOT, check=True, timeout=120)
    result = json.loads((tmp_path / "result.json").read_text())
    table_bytes = 4 * (own.num_users + own.num_items) * own.width
    assert result["peak_bytes_by_rank"][0] > 6 * table_bytes, "the GPU's memory was counted"
    assert max(epoch["validation_recall"] or 0.0 for epoch in result["judged"]["curve"]) > 0.2


def test_too_little_memory_ends_with_its_name(spec: Spec, tmp_path: Path) -> None:
    """A process that may take a ten-thousandth of the GPU's memory stands for a graph that is too large for it."""
    (tmp_path / "spec.json").write_text(json.dumps(asdict(beside(spec, tmp_path, width=512))))
    program = (
        "import sys, torch; torch.cuda.set_per_process_memory_fraction(1e-4)\n"
        "from models.train import main; main(sys.argv[1])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "spec.json")]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert json.loads((tmp_path / "failure.json").read_text())["name"] == "TrainingOutOfMemory", ended.stderr[-2000:]


# ---- nccl


def first_steps(training: Training, spec: Spec) -> Tensor:
    liked = load_csr(spec.graph_folder, "liked_all")
    sampler = sampler_of(spec, liked, CUDA, training.likeness_U)
    for number, step in enumerate(sampler.epoch(1, 0, 1)):
        training.step(step, learning_rate=spec.learning_rate, at=(1, number))
    return training.model.table.detach().clone()


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_one_rank_under_nccl_takes_the_steps_of_a_rank_alone(spec: Spec, tmp_path: Path, loss: str) -> None:
    """What DistributedDataParallel does with our gradients. Two ranks of nccl need two GPUs."""
    own = replace(spec, loss=loss)
    liked = load_csr(own.graph_folder, "liked_all")
    alone = first_steps(begin(own, ON_GPU, "served", liked, Clock(CUDA)), own)
    torch.cuda.set_device(CUDA)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        training = begin(own, ON_GPU, "served", liked, Clock(CUDA))
        training.replica = DistributedDataParallel(training.model)
        in_group = first_steps(training, own)
        total = torch.ones(3, device=CUDA, dtype=torch.float64)
        dist.all_reduce(total)
        dist.broadcast(in_group, src=0)
        said = [None]
        dist.all_gather_object(said, {"rank": 0})
        assert (total.tolist(), said) == ([1.0] * 3, [{"rank": 0}])
        training.replica = training.model
    finally:
        dist.destroy_process_group()
    assert apart(in_group, alone) < OF_A_FIT


# ---- lists


def case(kind: str) -> tuple[InnerProduct, Csr, np.ndarray]:
    """3,000 users and 5,000 items; `alike`: every item stands there five times, so that ids decide."""
    generator = torch.Generator().manual_seed(7)
    user_UD, item_ID = torch.randn(3000, 65, generator=generator), torch.randn(5000, 65, generator=generator)
    if kind == "alike":
        item_ID = item_ID[torch.arange(5000) % 1000]
    if kind == "crowded":
        item_ID = item_ID[:1] + 1e-6 * item_ID
    rng = np.random.default_rng(7)
    seen = interactions_by_user(*np.nonzero(rng.random((3000, 5000)) < 0.01), num_users=3000)
    scorer = InnerProduct(user_UD, item_ID, rows_where(np.arange(3000) % 100 != 3), np.arange(5000) % 50 != 0)
    return scorer, seen, rng.permutation(5000)


def lists_on(device: torch.device, scorer: InnerProduct, seen: Csr, rank_I: np.ndarray, **rules: object) -> Lists:
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(InnerProduct, "on_gpu_if_it_fits", lambda self, _: self)
        tiers = [scorer, for_everybody(rank_I.astype(np.float32), 3000)]
        top = TopK(tiers, k=20, excluded=seen, item_rank_I=rank_I, block_bytes=64 * 2**20, **rules)  # type: ignore[arg-type]
        assert top.tiers[0].item_ID.device.type == device.type  # type: ignore[union-attr]
        return joined(list(top.lists(np.arange(3000))))


@pytest.mark.parametrize("with_rules", [False, True])
@pytest.mark.parametrize("kind", ["spread", "crowded", "alike"])
def test_lists_have_the_cpus_bytes(kind: str, with_rules: bool) -> None:
    scorer, seen, rank_I = case(kind)
    rules: dict[str, object] = {}
    if with_rules:
        rng = np.random.default_rng(8)
        category_IC = interactions_by_user(np.arange(5000), rng.integers(0, 30, 5000), num_users=5000)
        rules = {
            "allowed": Allowed(rng.random((2, 5000)) < 0.7, np.arange(3000) % 2),
            "cap": CategoryCap(3, category_IC),
            "wishes": True,
        }
    on_gpu, on_cpu = (lists_on(device, scorer, seen, rank_I, **rules) for device in (CUDA, CPU))
    for field, values in vars(on_cpu).items():
        assert values.tobytes() == getattr(on_gpu, field).tobytes(), field


def test_lists_are_those_of_a_full_sort_in_float64_where_scores_lie_apart() -> None:
    scorer, seen, rank_I = case("spread")
    lists = lists_on(CUDA, scorer, seen, rank_I)
    users = np.flatnonzero(scorer.row_U >= 0)[:500]
    score_BI = (scorer.user_RD[users].double() @ scorer.item_ID.double().T).numpy()
    score_BI[:, ~scorer.has_row_I] = -np.inf
    position, item = seen.rows_of(users)
    score_BI[position, item] = -np.inf
    order_BK = np.argsort(-score_BI, axis=1)[:, :21]
    value_BK = np.take_along_axis(score_BI, order_BK, axis=1)
    clear = (np.diff(-value_BK, axis=1) > 1e-5 * np.abs(value_BK[:, :1])).all(axis=1)
    assert clear.mean() > 0.9
    assert (lists.item_BK[users][clear] == order_BK[clear, :20]).all()


def test_equal_scores_stand_by_id_on_a_gpu() -> None:
    scorer, seen, rank_I = case("alike")
    lists = lists_on(CUDA, scorer, seen, rank_I)
    equal = (lists.score_BK[:, 1:] == lists.score_BK[:, :-1]) & (lists.tier_BK[:, 1:] == lists.tier_BK[:, :-1])
    assert equal.sum() > 3000
    rank_BK = rank_I[lists.item_BK]
    assert (rank_BK[:, 1:] > rank_BK[:, :-1])[equal].all()


# ---- memory


def test_a_block_of_lists_takes_no_more_than_it_says() -> None:
    scorer, seen, rank_I = case("spread")
    block_bytes = 64 * 2**20
    lists_on(CUDA, scorer, seen, rank_I)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lists_on(CUDA, scorer, seen, rank_I)
    tables = scorer.user_RD.nbytes + scorer.item_ID.nbytes
    peak = torch.cuda.max_memory_allocated() - before
    assert tables + block_bytes / 4 < peak <= tables + 2 * block_bytes


@pytest.mark.parametrize(("loss", "batches"), [("softmax", 10), ("bpr", 200)])
def test_a_fit_takes_what_the_plan_counts(tmp_path: Path, loss: str, batches: int) -> None:
    users, items, width = 40_000, 30_000, 128
    rng = np.random.default_rng(0)
    pair_E = np.unique(rng.integers(0, users * items, 1_000_000))
    liked = interactions_by_user(pair_E // items, pair_E % items, users)
    save_arrays(tmp_path, "liked_all", liked)
    save_arrays(tmp_path, "adjacency_all", normalised_adjacency(liked, items))
    own = spec_of(tmp_path, users, items, loss=loss, width=width, negatives=4096, batches_per_epoch=batches)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fit(own, ON_GPU, "served", epochs=1, validation=None, identity="")
    peak = torch.cuda.max_memory_allocated() - before
    size = Size(users, items, len(liked.indices), width, own.layers, batches, own.negatives)
    counted = cost_of("data", size, 1, GPU).bytes_of_rank
    print(f"{loss}: peak {peak:,} bytes, counted {counted:,}")
    assert 0.5 * counted < peak <= counted
