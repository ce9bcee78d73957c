"""However the ranks share out the work, they learn what one rank learns; real processes over gloo."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.distributed import Columns, Ranks, Rows
from models.graph import interactions_by_user, normalised_adjacency
from models.lightgcn import Matrix
from tasks.contracts import Graph
from tests.models.parity import first_step_and_one_pass
from tests.worlds import graph_of_random_likes, random_likes, spec_for

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "width": 37,
    "negatives": 60,
    "batches_per_epoch": 3,
    "layers": 2,
}  # 37 columns: no number of ranks divides it
FITS = ("judged", "served")
Measured = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return graph_of_random_likes(tmp_path_factory.mktemp("graph"), users=90, items=140, share=0.06)


@pytest.fixture(scope="module")
def start(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tables that an earlier night could have left, which knew three of four rows."""
    generator = torch.Generator().manual_seed(3)
    nodes = graph.num_users + graph.num_items
    tables = {f"{fit}_ND": 0.1 * torch.randn(nodes, SETTINGS["width"], generator=generator) for fit in FITS}
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_file(tables | {"known_N": (torch.arange(nodes) % 4 > 0).to(torch.uint8)}, path)
    return str(path)


@pytest.fixture(scope="module")
def one_rank(graph: Graph, start: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    alone = Ranks(0, 1, torch.device("cpu"))
    folder = tmp_path_factory.mktemp("one")
    return {
        f"{loss}-{begun}": first_step_and_one_pass(spec_for(graph, folder, loss=loss, start=path, **SETTINGS), alone)
        for loss in ("softmax", "bpr")
        for begun, path in (("cold", ""), ("warm", start))
    }


@pytest.fixture(scope="module")
def many_ranks(graph: Graph, start: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two ranks, and three, in one launch each: every split, both losses, cold and warm."""
    folders = {}
    for ranks in (2, 3):
        folder = folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        (folder / "spec.json").write_text(json.dumps(asdict(spec_for(graph, folder, start=start, **SETTINGS))))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        finished = subprocess.run(
            [*command, "-m", "tests.models.parity", str(folder / "spec.json")],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(PROJECT_ROOT)},
            timeout=120,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr[-4000:]
    return folders


CASES = [
    pytest.param(ranks, split, f"{loss}-{begun}", id=f"{ranks}-{split}-{loss}-{begun}")
    for ranks in (2, 3)
    for split in ("data", "columns", "rows")
    for loss in ("softmax", "bpr")
    for begun in ("cold", "warm")
]


def _name(fit: str, split: str) -> str:
    loss, begun = fit.split("-")
    return f"{loss}-{split}-{begun}.safetensors"


@pytest.mark.parametrize(("ranks", "split", "fit"), CASES)
def test_the_ranks_first_gradient_is_that_of_one_rank(
    ranks: int, split: str, fit: str, one_rank: dict[str, Measured], many_ranks: dict[int, Path]
) -> None:
    theirs = load_file(many_ranks[ranks] / _name(fit, split))["gradient"]
    ours = one_rank[fit]["gradient"]
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize(("ranks", "split", "fit"), CASES)
def test_the_ranks_embeddings_after_one_pass_are_those_of_one_rank(
    ranks: int, split: str, fit: str, one_rank: dict[str, Measured], many_ranks: dict[int, Path]
) -> None:
    theirs = load_file(many_ranks[ranks] / _name(fit, split))
    for name in ("user_UD", "item_ID", "hop_ID", "scale_U", "fold_ID", "fold_length"):
        difference = theirs[name] - one_rank[fit][name]
        assert difference.square().mean().sqrt() <= 1e-4 * one_rank[fit][name].square().mean().sqrt()


@pytest.mark.parametrize(("ranks", "split", "fit"), CASES)
def test_the_ranks_lists_are_those_of_one_rank_wherever_scores_differ_by_more_than_the_rounding(
    ranks: int, split: str, fit: str, one_rank: dict[str, Measured], many_ranks: dict[int, Path]
) -> None:
    theirs = load_file(many_ranks[ranks] / _name(fit, split))
    score_UI, their_score_UI = (t["user_UD"] @ t["item_ID"].T for t in (one_rank[fit], theirs))
    rounding = 2 * (score_UI - their_score_UI).abs().max()
    value_UK, item_UK = torch.sort(score_UI, dim=1, descending=True)
    their_item_UK = torch.argsort(their_score_UI, dim=1, descending=True)
    apart = (value_UK[:, :-1] - value_UK[:, 1:])[:, :21] > rounding
    certain = apart[:, 1:21] & apart[:, :20]  # places 1 to 20 whose neighbours on both sides are further away
    assert certain.float().mean() > 0.9
    assert torch.equal(item_UK[:, 1:21][certain], their_item_UK[:, 1:21][certain])


def test_the_splits_differ_in_what_they_hold_not_in_what_they_hold_together() -> None:
    liked = interactions_by_user(*np.nonzero(random_likes(np.random.default_rng(0), 30, 20, 0.2)), num_users=30)
    adjacency = normalised_adjacency(liked, 20)
    table_ND = torch.randn(50, 7)
    columns = [Columns(Ranks(r, 3, torch.device("cpu")), Matrix.of(adjacency), 7) for r in range(3)]
    assert torch.equal(torch.cat([layout.own(table_ND) for layout in columns], dim=1), table_ND)
    assert sorted(layout.own(table_ND).shape[1] for layout in columns) == [2, 2, 3]
    rows = [Rows(Ranks(r, 3, torch.device("cpu")), adjacency) for r in range(3)]
    assert torch.equal(torch.cat([layout.own(table_ND) for layout in rows]), table_ND)
    entries = [len(layout.matrix.values) for layout in rows]
    assert sum(entries) == len(adjacency.values)
    assert max(entries) < 1.4 * min(entries), "balanced by what there is to multiply, not by rows"
    product_ND = torch.cat([layout.matrix @ table_ND for layout in rows])
    assert torch.equal(product_ND, Matrix.of(adjacency) @ table_ND)


def test_more_ranks_than_columns_or_nodes_are_refused() -> None:
    adjacency = normalised_adjacency(interactions_by_user(np.array([0]), np.array([0]), 1), 1)
    ranks = Ranks(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="2 columns cannot be shared out among 3 ranks"):
        ranks.lay_out("columns", adjacency, 2)
    with pytest.raises(ValueError, match="2 nodes cannot be shared out among 3 ranks"):
        ranks.lay_out("rows", adjacency, 8)
