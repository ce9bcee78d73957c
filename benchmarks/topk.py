"""Top-K for everybody beside implicit, faiss, plain torch, and the bare matrix product: one run, interleaved.

    make bench-topk [DATA=folder]

Gowalla's train likes, 2 threads, K 20, liked items left out (faiss cannot leave them out and is timed without: its
better case). Every contestant starts from float32 tables in memory and ends with item numbers and scores in memory;
indexes and copies are built before the clock starts, ours inside it. Rounds of all, the best of each counts; of a
million items, one round.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of one contestant do not spin through the next one's time

import faiss
import implicit
import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from implicit.cpu.als import AlternatingLeastSquares
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import merge_results, read_split, spec_of, write_arrays
from models import selection
from models import topk as ours
from models.distributed import Ranks
from models.graph import Csr
from models.reasons import histories_of, reasons
from models.scorers import InnerProduct
from models.topk import Lists, joined, top_k
from models.train import fit
from tasks.recommend.rows import Why, rows_of
from tasks.recommend.shards import Shard, write_rows, write_shard

THREADS = 2
ROUNDS = 5
PARTS = ("speed", "lists")
PRODUCTS = 200  # of one timing of the bare rate
ALONE = Ranks(0, 1, torch.device("cpu"))
GAP = 1e-5  # scores nearer than this may stand in either order: float32 cannot tell them apart


@dataclass(frozen=True)
class Case:
    """Tables, likes to leave out, and the length of lists."""

    user_UD: Tensor
    item_ID: Tensor
    liked: Csr
    k: int = 20

    @property
    def num_users(self) -> int:
        return len(self.user_UD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    liked, _, num_items = read_split(Path(options.data) / "gowalla")
    with tempfile.TemporaryDirectory() as scratch:
        served = train(liked, num_items, Path(scratch))
        trained = Case(served["user_UD"], served["item_ID"], liked)
        if "speed" in options.only:
            figures, table = speed(trained, options.rounds)
            figures |= floor(trained, table["trained d 64"]["ours"])
            figures |= growth(liked.num_rows, num_items, options.rounds)
            figures |= exactness(trained)
            versions = {"implicit": implicit.__version__, "faiss": faiss.__version__, "torch": torch.__version__}
            details = {"seconds": table, "versions": versions, "path": path_that_ran(64)}
            merge_results("topk", "speed", figures, details)
        if "lists" in options.only:
            figures = reasons_cost(served, liked, options.rounds)
            figures |= writing(served, liked, Path(scratch), options.rounds)
            merge_results("topk", "lists", figures, {})


def path_that_ran(width: int) -> str:
    if not ours.AVAILABLE:
        return "torch"
    return f"compiled, product in {'bfloat16' if selection.half_is_faster(width) else 'float32'}"


def train(liked: Csr, num_items: int, folder: Path) -> dict[str, Tensor]:
    """One served fit by the defaults, 64 wide."""
    write_arrays(folder / "graph", liked, liked, num_items)
    spec = spec_of(folder / "graph", liked.num_rows, num_items, threads=THREADS, width=64)
    fit(spec, ALONE, "served", epochs=spec.max_epochs, validation=None, identity="")
    return load_file(folder / "graph" / "served.safetensors")


def gaussian(num_users: int, num_items: int, width: int, liked: Csr | None = None, k: int = 20) -> Case:
    generator = torch.Generator().manual_seed(width)
    nothing = Csr(np.zeros(num_users + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    return Case(
        torch.randn(num_users, width, generator=generator),
        torch.randn(num_items, width, generator=generator),
        nothing if liked is None else liked,
        k,
    )


# ---- the contestants


def by_us(case: Case, threads: int = THREADS) -> Lists:
    scorer = InnerProduct(case.user_UD, case.item_ID, np.arange(case.num_users), np.ones(len(case.item_ID), dtype=bool))
    blocks = top_k(
        [scorer],
        users=np.arange(case.num_users),
        k=case.k,
        excluded=case.liked,
        item_rank_I=np.arange(len(case.item_ID)),
        threads=threads,
    )
    return joined(list(blocks))


def by_us_in_32_bits(case: Case) -> Lists:
    """As on a CPU that does not multiply faster in 16 bits."""
    kept, selection.half_is_faster = selection.half_is_faster, lambda _: False  # type: ignore[assignment]
    try:
        return by_us(case)
    finally:
        selection.half_is_faster = kept


def by_us_in_torch(case: Case) -> Lists:
    """As where numba cannot be imported."""
    kept, ours.AVAILABLE = ours.AVAILABLE, False
    try:
        return by_us(case)
    finally:
        ours.AVAILABLE = kept


def by_torch(case: Case, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """What one writes by hand: product, mask, topk, in blocks of users."""
    items, values = [], []
    for start in range(0, case.num_users, block):
        rows = np.arange(start, min(start + block, case.num_users))
        score_BI = case.user_UD[start : start + block] @ case.item_ID.T
        position, item = case.liked.rows_of(rows)
        score_BI[torch.from_numpy(position), torch.from_numpy(item.astype(np.int64))] = -torch.inf
        value, index = torch.topk(score_BI, case.k)
        items.append(index.numpy())
        values.append(value.numpy())
    return np.concatenate(items), np.concatenate(values)


def by_implicit(case: Case) -> Callable[[], Any]:
    model = AlternatingLeastSquares(factors=case.user_UD.shape[1], num_threads=THREADS)
    model.user_factors, model.item_factors = case.user_UD.numpy(), case.item_ID.numpy()
    ones = np.ones(len(case.liked.indices), dtype=np.float32)
    shape = (case.num_users, len(case.item_ID))
    likes = sp.csr_matrix((ones, case.liked.indices, case.liked.indptr), shape=shape)
    users = np.arange(case.num_users)
    return lambda: model.recommend(users, likes, N=case.k, filter_already_liked_items=True)


def by_faiss(case: Case) -> Callable[[], Any]:
    index = faiss.IndexFlatIP(case.item_ID.shape[1])
    index.add(case.item_ID.numpy())
    users = case.user_UD.numpy()
    return lambda: index.search(users, case.k)


def bare_numpy(case: Case, block: int = 1024) -> None:
    """The product alone, written out and overwritten block after block."""
    user_UD, item_ID = case.user_UD.numpy(), case.item_ID.numpy()
    score_BI = np.empty((block, len(item_ID)), dtype=np.float32)
    for start in range(0, case.num_users, block):
        rows = user_UD[start : start + block]
        np.matmul(rows, item_ID.T, out=score_BI[: len(rows)])


def bare_torch(case: Case, block: int = 1024) -> None:
    score_BI = torch.empty(block, len(case.item_ID))
    for start in range(0, case.num_users, block):
        rows = case.user_UD[start : start + block]
        torch.mm(rows, case.item_ID.T, out=score_BI[: len(rows)])


def best_of(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values() if rounds > 1 else ():
        work()  # compiled, and pages at hand
    for _ in range(rounds):
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(runs) for name, runs in seconds.items()}


# ---- the parts


def speed(trained: Case, rounds: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    num_users, num_items, liked = trained.num_users, len(trained.item_ID), trained.liked
    cases = {
        "trained d 64": trained,
        "random d 64": gaussian(num_users, num_items, 64, liked),
        "random d 128": gaussian(num_users, num_items, 128, liked),
        "random d 256": gaussian(num_users, num_items, 256, liked),
        "random d 64, K 100": gaussian(num_users, num_items, 64, liked, k=100),
        "10,000 users x 1 M items": gaussian(10_000, 1_000_000, 64),
    }
    table = {}
    for name, case in cases.items():
        users_at_once = 1024 if len(case.item_ID) < 10**6 else 128
        contestants: dict[str, Callable[[], Any]] = {
            "ours": partial(by_us, case),
            "implicit": by_implicit(case),
            "faiss": by_faiss(case),
            "torch": partial(by_torch, case, users_at_once),
            "bare product, numpy": partial(bare_numpy, case, users_at_once),
            "bare product, torch": partial(bare_torch, case, users_at_once),
        }
        if name.endswith("d 64"):
            contestants["ours, 32 bits"] = partial(by_us_in_32_bits, case)
            contestants["ours, torch path"] = partial(by_us_in_torch, case)
        table[name] = best_of(contestants, rounds if num_items == len(case.item_ID) else 1)
        tell(name, case, table[name])
    first, random = table["trained d 64"], table["random d 64"]
    bare = min(first["bare product, numpy"], first["bare product, torch"])
    return {
        "users_per_second": num_users / first["ours"],
        "vs_implicit": first["implicit"] / first["ours"],
        "vs_faiss": first["faiss"] / first["ours"],
        "vs_torch": first["torch"] / first["ours"],
        "vs_bare_matmul": first["ours"] / bare,
        "vs_faiss_random": random["faiss"] / random["ours"],
        "vs_implicit_random": random["implicit"] / random["ours"],
        "vs_faiss_trained_32_bits": first["faiss"] / first["ours, 32 bits"],
        "vs_implicit_trained_32_bits": first["implicit"] / first["ours, 32 bits"],
        **{
            f"vs_{rival}_{key}": table[name][rival] / table[name]["ours"]
            for key, name in (
                ("d128", "random d 128"),
                ("d256", "random d 256"),
                ("k100", "random d 64, K 100"),
                ("1m_items", "10,000 users x 1 M items"),
            )
            for rival in ("implicit", "faiss", "torch")
        },
    }, table


def tell(name: str, case: Case, seconds: dict[str, float]) -> None:
    print(f"\n{name}: {case.num_users:,} users x {len(case.item_ID):,} items, K {case.k}")
    for contestant, took in sorted(seconds.items(), key=lambda row: row[1]):
        ratio = took / seconds["ours"]
        print(
            f"  {contestant:<22}{took:8.2f} s  {case.num_users / took:>10,.0f} users/s  {ratio:6.2f} x ours", flush=True
        )


def floor(case: Case, seconds: float) -> dict[str, float]:
    """What the multiply-adds alone cost at the fastest rate found: products that stay in the cache, one a thread."""
    figures = {}
    operations = 2.0 * case.num_users * len(case.item_ID) * case.item_ID.shape[1]
    for dtype, name in ((torch.float32, "32_bits"), (torch.bfloat16, "16_bits")):
        rates = []
        for rows, columns in ((256, 4096), (512, 4096), (512, 8192), (1024, 4096)):
            taken = best_of({"": partial(products_in_threads, rows, columns, dtype)}, ROUNDS)[""]
            rates.append(THREADS * PRODUCTS * 2.0 * rows * columns * 64 / taken)
        figures[f"peak_gflops_{name}"] = max(rates) / 1e9
        figures[f"floor_seconds_{name}"] = operations / max(rates)
    figures["seconds_over_floor"] = seconds / min(figures["floor_seconds_16_bits"], figures["floor_seconds_32_bits"])
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)
    return figures


def products_in_threads(rows: int, columns: int, dtype: torch.dtype) -> None:
    def work(_: int) -> None:
        user_BD, item_CD = torch.ones(rows, 64, dtype=dtype), torch.ones(columns, 64, dtype=dtype)
        score_BC = torch.empty(rows, columns, dtype=dtype)
        for _ in range(PRODUCTS):
            torch.mm(user_BD, item_CD.T, out=score_BC)

    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, range(THREADS)))


def growth(num_users: int, num_items: int, rounds: int) -> dict[str, float]:
    """Seconds over those of half the users, half the items, a tenth of K."""
    base = gaussian(num_users, num_items, 64)
    half_users = Case(base.user_UD[: num_users // 2], base.item_ID, gaussian(num_users // 2, 1, 1).liked)
    half_items = Case(base.user_UD, base.item_ID[: num_items // 2], base.liked)
    cases = {"whole": base, "half users": half_users, "half items": half_items}
    cases |= {f"K {k}": Case(base.user_UD, base.item_ID, base.liked, k) for k in (10, 100)}
    seconds = best_of({name: partial(by_us, case) for name, case in cases.items()}, rounds)
    print("\ngrowth: " + ", ".join(f"{name} {took:.2f} s" for name, took in seconds.items()), flush=True)
    return {
        "users_x2": seconds["whole"] / seconds["half users"],
        "items_x2": seconds["whole"] / seconds["half items"],
        "k100_over_k10": seconds["K 100"] / seconds["K 10"],
    }


def exactness(trained: Case) -> dict[str, float]:
    """Lists that differ from a float64 brute force where scores lie further apart than GAP."""
    sample = np.sort(np.random.default_rng(0).choice(trained.num_users, 2000, replace=False))
    _, item = trained.liked.rows_of(sample)
    likes = Csr(np.concatenate([[0], np.cumsum(trained.liked.counts()[sample])]), item)
    twins = gaussian(500, 2000, 64)
    signs = gaussian(500, 3000, 64)
    cases = {
        "trained Gowalla": Case(trained.user_UD[torch.from_numpy(sample)], trained.item_ID, likes),
        "random": gaussian(1000, 40_000, 64),
        "all scores equal": Case(torch.ones(300, 8), torch.ones(5000, 8), gaussian(300, 1, 1).liked),
        "duplicated items": Case(twins.user_UD, twins.item_ID.repeat_interleave(3, dim=0), twins.liked),
        "zeros and negatives": Case(
            signs.user_UD.abs(), -signs.item_ID.abs().relu_() * (signs.item_ID > 0), signs.liked
        ),
        "one item": Case(torch.ones(50, 4), torch.ones(1, 4), gaussian(50, 1, 1).liked),
    }
    wrong = {name: mismatches(case) for name, case in cases.items()}
    print(
        "\nlists that differ from float64: " + ", ".join(f"{name} {count}" for name, count in wrong.items()), flush=True
    )
    return {"exactness_mismatches": sum(wrong.values()), "exactness_lists": sum(c.num_users for c in cases.values())}


def mismatches(case: Case) -> int:
    found = by_us(case)
    score_UI = case.user_UD.double().numpy() @ case.item_ID.double().numpy().T
    position, item = case.liked.rows_of(np.arange(case.num_users))
    score_UI[position, item] = -np.inf
    width = min(case.k, score_UI.shape[1])
    best_UK = -np.sort(-score_UI, axis=1)[:, :width]
    listed = found.item_BK[:, :width]
    distinct = np.array([len(set(row.tolist())) for row in listed]) == width
    own_UK = np.take_along_axis(score_UI, listed.astype(np.int64), axis=1)
    ascending = (np.diff(listed, axis=1) > 0) | (np.diff(found.score_BK[:, :width], axis=1) < 0)
    right = (np.abs(own_UK - best_UK) <= GAP).all(axis=1) & distinct & ascending.all(axis=1) & (listed >= 0).all(axis=1)
    return int((~right).sum())


def reasons_cost(served: dict[str, Tensor], liked: Csr, rounds: int) -> dict[str, float]:
    case = Case(served["user_UD"], served["item_ID"], liked)
    histories = histories_of(liked, scale_U=served["scale_U"], hop_ID=served["hop_ID"])
    users = np.arange(case.num_users)

    def explained() -> None:
        lists = by_us(case)
        reasons(histories, users, lists.item_BK, lists.score_BK, case.item_ID, threads=THREADS)

    seconds = best_of({"without": lambda: by_us(case), "with": explained}, rounds)
    print(f"\nreasons: {seconds['without']:.2f} s without, {seconds['with']:.2f} s with", flush=True)
    return {"reasons_cost": seconds["with"] / seconds["without"]}


def writing(served: dict[str, Tensor], liked: Csr, folder: Path, rounds: int) -> dict[str, float]:
    """A shard's finished rows, reasons and all, against Polars' own defaults on the same frame."""
    case = Case(served["user_UD"], served["item_ID"], liked)
    lists = by_us(case)
    users = np.arange(case.num_users)
    histories = histories_of(liked, scale_U=served["scale_U"], hop_ID=served["hop_ID"])
    found = reasons(histories, users, lists.item_BK, lists.score_BK, case.item_ID, threads=THREADS)
    why = Why(np.zeros(found.item_BKR.shape, dtype=np.int8), found.item_BKR, found.share_BKR)
    rows = rows_of(lists, why, pl.Series("user_id", users), pl.Series("item_id", np.arange(len(case.item_ID))))
    shard = Shard(0, 0, case.num_users)
    seconds = best_of(
        {
            "ours": lambda: write_rows(rows, folder / "ours.parquet", list_length=case.k),
            "polars": lambda: rows.write_parquet(folder / "polars.parquet"),
            "sealed": lambda: write_shard(folder, shard, rows, key="", list_length=case.k, counts={}),
        },
        2 * rounds,
    )
    print(
        f"\nwrite {len(rows):,} rows: " + ", ".join(f"{name} {took:.3f} s" for name, took in seconds.items()),
        flush=True,
    )
    return {
        "write_vs_polars": seconds["polars"] / seconds["ours"],
        "write_sealed_vs_polars": seconds["polars"] / seconds["sealed"],
    }


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # implicit advises on BLAS threads
        main()
    sys.exit(0)
