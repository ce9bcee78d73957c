"""One GPU: training and top-K on Gowalla, beside the machine's own CPUs and what others' code takes on the same GPU.

    make bench-gpu [DATA=folder]

`--write-likes folder` writes what the run needs, `--likes folder` runs from that: there, numpy, scipy, numba, torch and
torch_geometric are enough, and NIGHTGRAPH_COMMIT says which commit the files are. The CPUs' part runs in a process that
sees no GPU. Validation is a tenth of each user's train likes; test is not touched.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import common
from benchmarks.training import best_of, operator_figures, step_figures
from models import lightgcn, losses
from models.distributed import Ranks
from models.graph import Csr, load_csr, save_arrays
from models.plan import GPU, Size, cost_of
from models.processes import keep_freed_memory
from models.rivals import popularity
from models.scorers import InnerProduct, rows_where
from models.topk import Lists, joined, top_k
from models.train import Fit, Spec, fit, make_repeatable
from models.validation import Validation

K = 20
NEAR = 0.995  # of the CPUs' best recall: where the clock stops for both
BLOCKS = (2**28, 2**32)  # bytes of a block of top-K: the default, and what a GPU has room for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--likes", help="folder that --write-likes wrote")
    parser.add_argument("--write-likes", help="write the likes and the settings, and end")
    parser.add_argument("--on-cpus", help=argparse.SUPPRESS)  # the part that this program starts itself
    options = parser.parse_args()
    keep_freed_memory()
    make_repeatable(os.cpu_count() or 1)
    warnings.simplefilter("ignore")
    if options.on_cpus:
        on_cpus(Path(options.on_cpus))
    elif options.write_likes:
        write_likes(Path(options.data), Path(options.write_likes))
    elif not torch.cuda.is_available():
        sys.exit("bench-gpu: this machine has no GPU that torch can use")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            likes = Path(options.likes) if options.likes else write_likes(Path(options.data), Path(scratch) / "likes")
            run(likes, Path(scratch) / "run")


def write_likes(data: Path, folder: Path) -> Path:
    """Gowalla's train likes, a tenth of them as validation, and the defaults of a night."""
    liked, _, num_items = common.read_split(data / "gowalla")
    parts = dict(zip(("liked_train", "liked_validation"), common.carve_validation(liked), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        save_arrays(folder, name, part)
    spec = common.spec_of(folder, liked.num_rows, num_items)
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    return folder


def run(likes: Path, folder: Path) -> None:
    train, target = (load_csr(likes, name) for name in ("liked_train", "liked_validation"))
    spec = Spec(**json.loads((likes / "spec.json").read_text()))
    common.write_arrays(folder, train, target, spec.num_items)
    cores = os.cpu_count() or 1
    spec = replace(spec, graph_folder=str(folder), output_folder=str(folder), threads=cores, device="cuda")
    ranks = Ranks(0, 1, torch.device("cuda", 0))
    figures = peaks()
    details: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    tell(figures)
    operator = operator_figures(train, target, spec.num_items, device="cuda")
    steps = step_figures(train, spec, ranks)
    figures |= tell(operator | {name.removeprefix("gowalla_"): value for name, value in steps.items()})
    fits = {}
    for name, changes in fits_of().items():
        fits[name], found = one_fit(replace(spec, **changes), ranks, folder / name)
        figures |= tell({f"{name}_{figure}": value for figure, value in found.items()})
        details[name] = {"seconds_by_part": fits[name].seconds_by_part, "curve": curve_of(fits[name])}
    figures |= tell(block_sizes(spec, ranks, folder / "blocks"))
    figures |= tell({"same_bytes_twice": same_bytes_twice(spec, ranks, folder)})
    tables = load_file(folder / "float32" / "judged.safetensors")
    lists, found = lists_of(tables["user_UD"], tables["item_ID"], train, figures)
    figures |= tell(found)
    common.merge_results("gpu", "gpu", figures, details)
    figures = beside_cpus(spec, folder, tables, lists, fits, figures)
    common.merge_results("gpu", "gpu", figures, details | {"cpu_threads": cores})


def tell(figures: dict[str, float]) -> dict[str, float]:
    print({name: float(f"{value:.4g}") for name, value in figures.items()}, flush=True)
    return figures


# ---- the GPU itself


def peaks(size: int = 8192) -> dict[str, float]:
    """What it does at best: a large product of random numbers in float32 and TF32, a copy inside its memory."""
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    figures = {}
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        figures[f"peak_{name}_tflops"] = 2 * size**3 / best_of(lambda: left @ right, 5) / 1e12
    torch.set_float32_matmul_precision("highest")
    source = torch.randn(2**29, device="cuda")
    copy = torch.empty_like(source)
    figures["peak_copy_gbytes_a_second"] = 2 * source.nbytes / best_of(lambda: copy.copy_(source), 5) / 1e9
    return figures


# ---- fits


def fits_of() -> dict[str, dict[str, Any]]:
    """The first warms up: kernels are loaded, libraries opened."""
    precisions = {name: {"precision": name} for name in ("float32", "tf32", "bfloat16")}
    return {"warm_up": {"max_epochs": 2}, **precisions}


def one_fit(spec: Spec, ranks: Ranks, folder: Path) -> tuple[Fit, dict[str, float]]:
    """The judged fit by the defaults, from arrays to tables, with its looks at validation."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = replace(spec, output_folder=str(folder))
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    validation = Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    found = fit(spec, ranks, "judged", epochs=spec.max_epochs, validation=validation, identity="")
    figures = {"train_seconds": time.perf_counter() - started, "epochs": len(found.curve)}
    figures |= {f"seconds_{part}": seconds for part, seconds in found.seconds_by_part.items()}
    figures["best_recall"] = max(epoch.validation_recall or 0.0 for epoch in found.curve)
    if on_gpu:
        likes = len(load_csr(spec.graph_folder, "liked_train").indices)
        size = Size(
            spec.num_users, spec.num_items, likes, spec.width, spec.layers, spec.batches_per_epoch, spec.negatives
        )
        peak = torch.cuda.max_memory_allocated() - before
        figures["peak_bytes"] = peak
        figures["peak_of_planned_bytes"] = peak / cost_of("data", size, 1, GPU).bytes_of_rank
    torch.set_float32_matmul_precision("highest")
    return found, figures


def curve_of(found: Fit) -> list[dict[str, Any]]:
    return [asdict(epoch) for epoch in found.curve]


def seconds_to(found: Fit, recall: float) -> float:
    """From the beginning of the start to the first look that is as good; infinite where none is."""
    looks = (epoch.seconds for epoch in found.curve if (epoch.validation_recall or 0.0) >= recall)
    return found.seconds_by_part["start"] + next(looks, float("inf"))


def block_sizes(spec: Spec, ranks: Ranks, folder: Path) -> dict[str, float]:
    """Seconds of four epochs by how many columns and users are taken at once; 32 and 256 are the CPU's."""
    figures = {}
    kept = lightgcn.COLUMNS_AT_ONCE_ON_GPU, losses.USERS_AT_ONCE_ON_GPU
    for columns, users in ((32, 256), (32, 2048), (64, 2048), (128, 2048), (128, 8192)):
        lightgcn.COLUMNS_AT_ONCE_ON_GPU, losses.USERS_AT_ONCE_ON_GPU = columns, users
        own = replace(spec, max_epochs=4, output_folder=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        found = fit(own, ranks, "served", epochs=4, validation=None, identity="")
        for part in ("propagate", "backward", "score"):
            figures[f"columns_{columns}_users_{users}_seconds_{part}"] = found.seconds_by_part[part]
    lightgcn.COLUMNS_AT_ONCE_ON_GPU, losses.USERS_AT_ONCE_ON_GPU = kept
    return figures


def same_bytes_twice(spec: Spec, ranks: Ranks, folder: Path) -> bool:
    """CUDA's sparse products promise no order of adding; here is whether two fits showed it."""
    tables = []
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        own = replace(spec, max_epochs=4, output_folder=str(folder / name))
        fit(own, ranks, "served", epochs=4, validation=None, identity="")
        tables.append(load_file(folder / name / "served.safetensors"))
    return all(torch.equal(table, tables[1][name]) for name, table in tables[0].items())


# ---- lists


def ours(user_UD: Tensor, item_ID: Tensor, liked: Csr, block_bytes: int) -> Lists:
    scorer = InnerProduct(user_UD, item_ID, rows_where(liked.counts() > 0), popularity(liked, len(item_ID)) > 0)
    users, rank_I = np.arange(len(user_UD)), np.arange(len(item_ID))
    return joined(list(top_k([scorer], users=users, excluded=liked, k=K, item_rank_I=rank_I, block_bytes=block_bytes)))


def plain_torch(user_UD: Tensor, item_ID: Tensor, liked: Csr, block: int) -> np.ndarray:
    """What one writes by hand on a GPU: product, mask, topk, in blocks of users; ties and roundings as they fall."""
    user_UD, item_ID = user_UD.cuda(), item_ID.cuda()
    items = []
    for start in range(0, len(user_UD), block):
        rows = np.arange(start, min(start + block, len(user_UD)))
        score_BI = user_UD[start : start + block] @ item_ID.T
        position, item = liked.rows_of(rows)
        score_BI[torch.from_numpy(position).cuda(), torch.from_numpy(item.astype(np.int64)).cuda()] = -torch.inf
        items.append(torch.topk(score_BI, K).indices.cpu().numpy())
    return np.concatenate(items)


def bare_products(user_UD: Tensor, item_ID: Tensor, block: int) -> None:
    out = torch.empty(block, len(item_ID), device="cuda")
    for rows in user_UD.split(block):
        torch.mm(rows, item_ID.T, out=out[: len(rows)])


def lists_of(user_UD: Tensor, item_ID: Tensor, liked: Csr, peak: dict[str, float]) -> tuple[Lists, dict[str, float]]:
    """All users' lists, from tables in the machine's memory to lists in it."""
    flops = 2 * len(user_UD) * len(item_ID) * user_UD.shape[1]
    figures: dict[str, float] = {}
    for name, block_bytes in zip(("", "large_blocks_"), BLOCKS, strict=True):
        block = block_bytes // (12 * len(item_ID))
        on_gpu = user_UD.cuda(), item_ID.cuda()
        ways: dict[str, Callable[[], Any]] = {
            "ours": partial(ours, user_UD, item_ID, liked, block_bytes),
            "torch": partial(plain_torch, user_UD, item_ID, liked, block),
            "bare_product": partial(bare_products, *on_gpu, block),
        }
        seconds = {way: best_of(run, 3) for way, run in ways.items()}
        figures |= {f"topk_{name}{way}_seconds": value for way, value in seconds.items()}
        figures[f"topk_{name}users_per_second"] = len(user_UD) / seconds["ours"]
        figures[f"topk_{name}share_of_peak"] = flops / seconds["ours"] / peak["peak_float32_tflops"] / 1e12
        figures[f"topk_{name}vs_torch"] = seconds["torch"] / seconds["ours"]
    lists = ours(user_UD, item_ID, liked, BLOCKS[0])
    by_hand = plain_torch(user_UD, item_ID, liked, 1024)
    figures["topk_lists_that_torch_orders_otherwise"] = int((by_hand != lists.item_BK).any(axis=1).sum())
    return lists, figures


# ---- the machine's CPUs


def beside_cpus(
    spec: Spec, folder: Path, tables: dict[str, Tensor], lists: Lists, fits: dict[str, Fit], figures: dict[str, float]
) -> dict[str, float]:
    """The same fit and the same lists without the GPU, and how far apart they are."""
    folder = folder / "cpus"
    folder.mkdir(parents=True)
    save_file({name: tables[name] for name in ("user_UD", "item_ID")}, folder / "tables.safetensors")
    (folder / "spec.json").write_text(json.dumps(asdict(replace(spec, device="cpu", output_folder=str(folder)))))
    command = [sys.executable, "-m", "benchmarks.gpu", "--on-cpus", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, cwd=common.PROJECT_ROOT)
    found = json.loads((folder / "result.json").read_text())
    on_cpus = Fit(**found["fit"] | {"curve": []})
    target = NEAR * found["figures"]["best_recall"]
    figures |= {f"cpus_{name}": value for name, value in found["figures"].items()}
    figures["cpus_seconds_to_recall"] = on_cpus.seconds_by_part["start"] + next(
        look["seconds"] for look in found["fit"]["curve"] if (look["validation_recall"] or 0.0) >= target
    )
    for name in ("float32", "tf32", "bfloat16"):
        figures[f"{name}_seconds_to_recall"] = seconds_to(fits[name], target)
        figures[f"{name}_vs_cpus"] = figures["cpus_seconds_to_recall"] / figures[f"{name}_seconds_to_recall"]
    theirs = np.load(folder / "lists.npz")
    same = (theirs["item_BK"] == lists.item_BK).all(axis=1) & (theirs["score_BK"] == lists.score_BK).all(axis=1)
    figures |= {"topk_lists": len(same), "topk_lists_unlike_the_cpus": int((~same).sum())}
    figures["topk_vs_cpus"] = found["figures"]["topk_seconds"] / figures["topk_ours_seconds"]
    return figures


def on_cpus(folder: Path) -> None:
    """In a process that sees no GPU: the fit, and the lists from the tables that the GPU trained."""
    spec = Spec(**json.loads((folder / "spec.json").read_text()))
    ranks = Ranks(0, 1, torch.device("cpu"))
    one_fit(replace(spec, max_epochs=2), ranks, folder / "warm_up")
    found, figures = one_fit(spec, ranks, folder / "fit")
    tables, liked = load_file(folder / "tables.safetensors"), load_csr(spec.graph_folder, "liked_train")
    lists = ours(tables["user_UD"], tables["item_ID"], liked, BLOCKS[0])
    figures["topk_seconds"] = best_of(lambda: ours(tables["user_UD"], tables["item_ID"], liked, BLOCKS[0]), 2)
    np.savez(folder / "lists.npz", item_BK=lists.item_BK, score_BK=lists.score_BK)
    (folder / "result.json").write_text(json.dumps({"fit": asdict(found), "figures": figures}))


if __name__ == "__main__":
    main()
