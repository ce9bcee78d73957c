"""Who may look at what: the fit that is judged never sees what it is judged on, the lists come from the other one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models.distributed import Ranks
from models.train import fit
from tasks.config import EvaluateConfig, RecommendConfig
from tasks.contracts import Graph
from tasks.evaluate.judging import evaluate_fit
from tasks.recommend.everyone import recommend_everyone
from tests.worlds import build_graph_of, fit_here, spec_for, two_taste_world, validation_of

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return build_graph_of(two_taste_world().seen, tmp_path / "graph", split="per_user_time")


def remove(graph: Graph, *patterns: str) -> None:
    for pattern in patterns:
        found = list(Path(graph.folder).glob(pattern))
        assert found, pattern
        for path in found:
            path.unlink()


def test_the_judged_fit_needs_nothing_of_test_or_of_everything(graph: Graph, tmp_path: Path) -> None:
    whole = fit_here(graph, tmp_path / "whole")
    remove(graph, "liked_test.*", "seen_before_test.*", "liked_all.*", "adjacency_all.*", "seen_all.*")
    spec = spec_for(graph, tmp_path / "blind")
    fit(spec, ALONE, "judged", epochs=spec.max_epochs, validation=validation_of(spec), identity="")
    assert (tmp_path / "blind" / "judged.safetensors").read_bytes() == Path(whole.judged_path).read_bytes()


def test_the_served_fit_learns_from_everything_and_needs_no_part_of_the_split(graph: Graph, tmp_path: Path) -> None:
    whole = fit_here(graph, tmp_path / "whole")
    remove(graph, "liked_train.*", "adjacency_train.*", "liked_validation.*", "liked_test.*")
    spec = spec_for(graph, tmp_path / "served")
    fit(spec, ALONE, "served", epochs=whole.epochs, validation=None, identity="")
    assert (tmp_path / "served" / "served.safetensors").read_bytes() == Path(whole.served_path).read_bytes()


def test_evaluation_reads_the_judged_fit_only_and_the_lists_the_served_one_only(graph: Graph, tmp_path: Path) -> None:
    fitted = fit_here(graph, tmp_path / "fit")
    aside = tmp_path / "aside"
    shutil.move(fitted.served_path, aside)
    evaluate_fit(graph, fitted, EvaluateConfig(k=5, resamples=100), block_bytes=2**20)
    shutil.move(aside, fitted.served_path)
    Path(fitted.judged_path).unlink()
    recommend_everyone(graph, fitted, RecommendConfig(k=5), tmp_path)


def test_the_served_fit_takes_the_epochs_that_validation_chose(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path / "run", max_epochs=40, patience=1, validate_every=1)
    spec_path = tmp_path / "run" / "spec.json"
    spec_path.write_text(json.dumps(asdict(spec)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment.pop("NIGHTGRAPH_PARENT_PID", None)
    subprocess.run([sys.executable, "-m", "models.train", str(spec_path)], env=environment, check=True, timeout=120)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["judged"]["epochs"] < 40, "validation stopped the judged fit early"
    assert len(result["served"]["curve"]) == result["served"]["epochs"] == result["judged"]["epochs"]
