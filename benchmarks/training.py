"""Training: the operator, a BPR step, the adjacency, and the time to the paper's quality, each beside its peer.

    make bench-training [DATA=folder]

Gowalla and MovieLens-1M in the splits of the papers (train.parquet, test.parquet with columns user, item). Defaults
were chosen on validation (`make bench-recipe`); each figure on test is read once, for the defaults. 2 threads. The time
of a fit starts with the arrays of likes and ends with the tables on disk: adjacency, start, every pass, hand-over.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.common import merge_results, read_split, spec_of, write_arrays
from benchmarks.peers import AuthorsStep, assemble_adjacency, coo_of, stacked_mean
from models.clock import Clock
from models.distributed import Ranks
from models.graph import Csr, interactions_by_user, load_adjacency, normalised_adjacency
from models.lightgcn import Matrix, _MeanOfLayers, mean_of_layers
from models.metrics import hits, ndcg, recall
from models.processes import keep_freed_memory
from models.rivals import ease_scorer, graph_filter_scorer, item_knn_scorer, popularity, popularity_scorer
from models.scorers import InnerProduct, Scorer, for_everybody, rows_where
from models.topk import top_k
from models.train import Spec, begin, fit, make_repeatable, sampler_of

ALONE = Ranks(0, 1, torch.device("cpu"))
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    options = parser.parse_args()
    keep_freed_memory()
    make_repeatable(THREADS)
    warnings.simplefilter("ignore")
    data = Path(options.data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        gowalla = read_split(data / "gowalla")
        figures = adjacency_figures(*gowalla) | operator_figures(*gowalla)
        write_arrays(folder / "step", *gowalla)
        spec = spec_of(folder / "step", gowalla[0].num_rows, gowalla[2], threads=THREADS)
        figures |= step_figures(gowalla[0], spec, ALONE)
        details: dict[str, Any] = {}
        for name, prefix, changes in (
            ("gowalla", "gowalla", {"width": 128}),
            ("gowalla", "gowalla_d64", {"width": 64}),
            ("gowalla", "gowalla_bfloat16", {"width": 128, "precision": "bfloat16"}),
            ("movielens-1m", "ml1m", {"width": 128}),
        ):
            split = gowalla if name == "gowalla" else read_split(data / name)
            found, details[prefix] = quality(*split, folder / prefix, prefix, **changes)
            figures |= found
            print({key: round(value, 4) for key, value in found.items()}, flush=True)
        figures["gowalla_seconds_of_authors_epoch"] = (
            figures["gowalla_train_seconds"] / figures["gowalla_authors_epoch_seconds"]
        )
        for name, prefix in (("gowalla", "gowalla"), ("movielens-1m", "ml1m")):
            figures |= rivals_figures(*(gowalla if name == "gowalla" else read_split(data / name)), prefix)
    merge_results("training", "core", figures, details)


# ---- the operator and a step


def adjacency_figures(train: Csr, test: Csr, num_items: int) -> dict[str, float]:
    """Ours on all of Gowalla; the authors' on the first tenth of the users, times what it leaves out."""
    ours = best_of(lambda: normalised_adjacency(train, num_items), 10)
    tenth = interactions_by_user(
        np.repeat(np.arange(train.num_rows // 10), train.counts()[: train.num_rows // 10]),
        train.indices[: train.indptr[train.num_rows // 10]],
        train.num_rows // 10,
    )
    started = time.perf_counter()
    theirs = assemble_adjacency(tenth, num_items)
    seconds = (time.perf_counter() - started) * len(train.indices) / len(tenth.indices)
    mine = normalised_adjacency(tenth, num_items)
    np.testing.assert_allclose(theirs.data, mine.values, rtol=1e-5)
    return {
        "adjacency_milliseconds": 1e3 * ours,
        "adjacency_authors_seconds_scaled": seconds,
        "adjacency_speedup": seconds / ours,
    }


def operator_figures(
    train: Csr, test: Csr, num_items: int, width: int = 64, layers: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """One mean of layers, forward alone and with its backward: ours, LGConv on our CSR and on edges, torch's COO."""
    from torch_geometric.nn import LGConv

    stored = normalised_adjacency(train, num_items)
    matrix, coo = Matrix.of(stored, device), coo_of(stored).to(device)
    csr = torch.sparse_csr_tensor(matrix.indptr, matrix.indices, matrix.values, size=coo.shape)
    edges = coo.indices().flip(0)
    as_it_comes, normalised = LGConv(), LGConv(normalize=False)
    table_ND = torch.randn(coo.shape[0], width, generator=torch.Generator().manual_seed(0)).to(device)

    def by_convolution(convolution: Any, graph: torch.Tensor, start_ND: torch.Tensor) -> torch.Tensor:
        total_ND, layer_ND = start_ND, start_ND
        for _ in range(layers):
            layer_ND = convolution(layer_ND, graph)
            total_ND = total_ND + layer_ND
        return total_ND / (layers + 1)

    ways: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
        "ours": (lambda start_ND: _MeanOfLayers.apply(start_ND, matrix.__matmul__, layers, Clock()), 5),
        "lgconv_on_csr": (lambda start_ND: by_convolution(normalised, csr, start_ND), 3),
        "coo": (lambda start_ND: stacked_mean(start_ND, coo, layers), 3),
        "lgconv_on_edges": (lambda start_ND: by_convolution(as_it_comes, edges, start_ND), 1),
    }
    forward, both = {}, {}
    expected = mean_of_layers(table_ND, matrix.__matmul__, layers)
    for name, (run, repeats) in ways.items():
        with torch.no_grad():
            torch.testing.assert_close(run(table_ND), expected, atol=1e-5, rtol=0)
            forward[name] = best_of(lambda run=run: run(table_ND), repeats)  # type: ignore[misc]
        leaf = table_ND.clone().requires_grad_()
        both[name] = best_of(lambda run=run, leaf=leaf: run(leaf).sum().backward(), repeats)  # type: ignore[misc]
    gathered = 2 * len(train.indices) * width * layers * 4 / bytes_a_second(device)
    return {
        **{f"propagation_speedup_over_{name}": forward[name] / forward["ours"] for name in list(ways)[1:]},
        **{f"propagation_with_backward_speedup_over_{name}": both[name] / both["ours"] for name in list(ways)[1:]},
        "propagation_milliseconds": 1e3 * forward["ours"],
        "propagation_over_bandwidth_floor": forward["ours"] / gathered,
    }


def step_figures(train: Csr, spec: Spec, ranks: Ranks) -> dict[str, float]:
    """BPR as in the paper: 2,048 triplets, d 64, 3 layers. The authors' epoch is a tenth of its steps, times ten."""
    steps = -(-len(train.indices) // 2048)
    spec = replace(
        spec, loss="bpr", width=64, layers=3, batches_per_epoch=steps, weight_decay=1e-4, learning_rate=0.001,
        max_epochs=1000,
    )  # fmt: skip
    training = begin(spec, ranks, "served", train, Clock())
    sampler = sampler_of(spec, train, ranks.device, training.likeness_U)
    graph = coo_of(load_adjacency(spec.graph_folder, "adjacency_all")).to(ranks.device)
    theirs = AuthorsStep(graph, train.num_rows, width=64, layers=3)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number, step in enumerate(sampler.epoch(1, 0, 1)):
        if number == steps // 10:
            break
        share = step.share
        rows = [share.nodes[place] for place in (share.user, share.liked, share.other)]  # type: ignore[union-attr]
        started = time.perf_counter()
        training.step(step, learning_rate=0.001, at=(1, number))
        between = time.perf_counter()
        theirs(rows[0], rows[1] - train.num_rows, rows[2] - train.num_rows)
        seconds["ours"].append(between - started)
        seconds["theirs"].append(time.perf_counter() - between)
    return {
        "bpr_step_speedup": float(np.median(seconds["theirs"]) / np.median(seconds["ours"])),
        "bpr_step_milliseconds": 1e3 * float(np.median(seconds["ours"])),
        "gowalla_authors_epoch_seconds": float(np.sum(seconds["theirs"]) * steps / len(seconds["theirs"])),
    }


def bytes_a_second(device: str = "cpu", size: int = 2**28) -> float:
    """What this machine reads of a large array, summing it up."""
    array = torch.ones(size // 4, device=device)
    return size / best_of(array.sum, 5)


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Seconds; of what is queued on a GPU, too."""
    run()
    times = []
    for _ in range(repeats):
        wait_for_gpu()
        started = time.perf_counter()
        run()
        wait_for_gpu()
        times.append(time.perf_counter() - started)
    return min(times)


def wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


# ---- quality on test


def quality(
    train: Csr, test: Csr, num_items: int, folder: Path, prefix: str, **changes: Any
) -> tuple[dict[str, float], dict[str, Any]]:
    """One fit of all the train part by the defaults, for as many epochs as they allow, and its lists on test."""
    started = time.perf_counter()
    write_arrays(folder, train, test, num_items)
    spec = spec_of(folder, train.num_rows, num_items, threads=THREADS, **changes)
    found = fit(spec, ALONE, "served", epochs=spec.max_epochs, validation=None, identity="")
    seconds = time.perf_counter() - started
    tables = load_file(folder / "served.safetensors")
    popularity_I = popularity(train, num_items)
    scorer = InnerProduct(tables["user_UD"], tables["item_ID"], rows_where(train.counts() > 0), popularity_I > 0)
    figures = on_test(scorer, train, test, num_items, prefix) | {f"{prefix}_train_seconds": seconds}
    details = {
        "seconds_by_part": found.seconds_by_part,
        "collision_rate": found.collision_rate,
        "spec": spec.settings(),
    }
    return figures, details


def on_test(scorer: Scorer, train: Csr, test: Csr, num_items: int, prefix: str) -> dict[str, float]:
    users = np.flatnonzero(test.counts() > 0)
    recalls, ndcgs = [], []
    tiers: list[Scorer] = [scorer, for_everybody(popularity(train, num_items), train.num_rows)]
    for block in top_k(tiers, users=users, excluded=train, k=20, item_rank_I=np.arange(num_items)):
        hit_BK, targets_B = hits(block.item_BK, block.users, test, num_items), test.counts()[block.users]
        recalls.append(recall(hit_BK, targets_B))
        ndcgs.append(ndcg(hit_BK, targets_B))
    return {
        f"{prefix}_recall_at_20": float(np.concatenate(recalls).mean()),
        f"{prefix}_ndcg_at_20": float(np.concatenate(ndcgs).mean()),
    }


def rivals_figures(train: Csr, test: Csr, num_items: int, prefix: str) -> dict[str, float]:
    makers: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: popularity_scorer(train, num_items),
        "item_knn": lambda: item_knn_scorer(train, num_items, neighbours=200, shrink=10.0),
        "graph_filter": lambda: graph_filter_scorer(train, num_items, width=256, low_pass=0.3),
    }
    if num_items <= 10_000:  # 40,981 items would be 27 GB and an hour
        makers["ease"] = lambda: ease_scorer(train, num_items, regularisation=300.0)
    figures: dict[str, float] = {}
    for name, make in makers.items():
        started = time.perf_counter()
        found = on_test(make(), train, test, num_items, f"{prefix}_{name}")
        figures |= found | {f"{prefix}_{name}_seconds_with_lists": time.perf_counter() - started}
        print({key: round(value, 4) for key, value in found.items()}, flush=True)
    return figures


if __name__ == "__main__":
    main()
