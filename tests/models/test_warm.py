"""A fit that starts from an earlier night's tables: it goes on where that one ended, and is a fit like any other."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import models.train
from models.distributed import Ranks
from models.graph import interactions_by_user, load_adjacency, load_csr, normalised_adjacency
from models.identity import identity_of
from models.lightgcn import Matrix
from models.train import fit
from models.warm import fill_in
from tasks.contracts import Graph
from tests.worlds import build_graph_of, spec_for, two_taste_world, validation_of

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(two_taste_world().seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def start(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a judged fit of nine epochs left, for both fits of the next night."""
    folder = tmp_path_factory.mktemp("earlier")
    spec = spec_for(graph, folder, keeps_layer_0=True, max_epochs=9, learning_rate=0.02)
    fit(spec, ALONE, "judged", epochs=9, validation=None, identity="")
    return write_start(folder / "start.safetensors", load_file(folder / "judged-layer-0.safetensors")["layer_0_ND"])


def write_start(path: Path, layer_0_ND: torch.Tensor) -> str:
    known_N = torch.ones(len(layer_0_ND), dtype=torch.uint8)
    save_file({"known_N": known_N, "judged_ND": layer_0_ND.half(), "served_ND": layer_0_ND.half().clone()}, path)
    return str(path)


def test_a_warm_fit_begins_where_the_earlier_one_ended(graph: Graph, start: str, tmp_path: Path) -> None:
    def losses(label: str, **changes: object) -> list[float]:
        spec = spec_for(graph, tmp_path / label, max_epochs=9, learning_rate=0.02, **changes)
        return [e.loss for e in fit(spec, ALONE, "judged", epochs=9, validation=None, identity="").curve]

    cold, warm = losses("cold"), losses("warm", start=start)
    assert next(epoch for epoch, loss in enumerate(cold, 1) if loss <= warm[0]) >= 4


def test_what_is_left_are_the_tables_of_the_best_look(graph: Graph, tmp_path: Path) -> None:
    """Propagated over the same graph they are the vectors that were judged."""
    spec = spec_for(graph, tmp_path, keeps_layer_0=True, max_epochs=30, validate_every=1)
    judged = fit(spec, ALONE, "judged", epochs=30, validation=validation_of(spec), identity="")
    assert judged.epochs < len(judged.curve)
    layer = load_file(tmp_path / "judged-layer-0.safetensors")["layer_0_ND"]
    adjacency = Matrix.of(load_adjacency(graph.folder, "adjacency_train"))
    mean_ND = (layer + adjacency @ layer + adjacency @ (adjacency @ layer)) / 3
    users_UD = torch.nn.functional.normalize(mean_ND[: graph.num_users], dim=1) / spec.temperature
    torch.testing.assert_close(users_UD, load_file(tmp_path / "judged.safetensors")["user_UD"][:, :-1])


def test_known_rows_stay_and_new_ones_look_like_their_neighbours() -> None:
    """Users 0 and 1 like item 0; user 2, who is new, likes item 1, and new item 2; user 3 likes only new item 3."""
    liked = interactions_by_user(np.array([0, 1, 2, 2, 3]), np.array([0, 0, 1, 2, 3]), 4)
    adjacency = Matrix.of(normalised_adjacency(liked, 4))
    table_ND = torch.tensor([[3.0, 0], [3, 0], [0, 0], [0, 0], [2, 0], [0, 5], [0, 0], [0, 0]])
    known_N = torch.tensor([True, True, False, False, True, True, False, False])
    filled_ND = fill_in(table_ND, known_N, adjacency, 4, seed=1)
    assert torch.equal(filled_ND[known_N], table_ND[known_N])
    torch.testing.assert_close(filled_ND[2], torch.tensor([0.0, 3.0]))  # as item 1 points, as long as users are
    torch.testing.assert_close(filled_ND[6], torch.tensor([0.0, 2.0]))  # as user 2 points; the median length of items
    assert 0 < filled_ND[[3, 7]].abs().max() < 0.1, "whom nothing known is near starts at noise"


def test_rows_that_a_fit_did_not_train_are_left_as_zeros(tmp_path: Path) -> None:
    """The first user likes something after the cut only: the judged fit knows nothing of them, the served one does."""
    seen = two_taste_world().seen.with_columns(
        first_liked_us=pl.when(pl.col("user_id") == "u000")
        .then(pl.col("first_liked_us") + 10**15)
        .otherwise(pl.col("first_liked_us"))
    )
    graph = build_graph_of(seen, tmp_path / "graph")
    for which in ("judged", "served"):
        spec = spec_for(graph, tmp_path, keeps_layer_0=True, max_epochs=1)
        fit(spec, ALONE, which, epochs=1, validation=None, identity="")
    rows = [load_file(tmp_path / f"{which}-layer-0.safetensors")["layer_0_ND"] for which in ("judged", "served")]
    assert [bool((table[0] == 0).all()) for table in rows] == [True, False]
    assert [int((table == 0).all(dim=1).sum()) for table in rows] == [1, 0]


def test_a_row_that_the_earlier_fit_never_trained_counts_as_new() -> None:
    liked = interactions_by_user(np.array([0, 1]), np.array([0, 0]), 2)
    adjacency = Matrix.of(normalised_adjacency(liked, 1))
    known_N = torch.tensor([True, False, True])
    filled_ND = fill_in(torch.tensor([[1.0, 1], [9, 9], [2, 0]]), known_N, adjacency, 2, seed=1)
    torch.testing.assert_close(filled_ND[1], torch.tensor([2.0**0.5, 0.0]))


@pytest.mark.parametrize("dies_in", [3, 14])
def test_a_warm_fit_that_died_goes_on_from_its_checkpoint_and_leaves_the_same_bytes(
    graph: Graph, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int
) -> None:
    settings = {"max_epochs": 6, "patience": 100, "checkpoint_s": 0.0, "start": start, "keeps_layer_0": True}
    undisturbed = spec_for(graph, tmp_path / "undisturbed", **settings)
    spec = spec_for(graph, tmp_path / "died", **settings)
    validation = validation_of(spec)
    fit(undisturbed, ALONE, "judged", epochs=6, validation=validation, identity="a")
    step, steps = models.train.Training.step, []

    def dies(self: models.train.Training, *arguments: object, **named: object) -> float:
        steps.append(1)
        if len(steps) == dies_in:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(models.train.Training, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(spec, ALONE, "judged", epochs=6, validation=validation, identity="a")
    monkeypatch.undo()
    assert fit(spec, ALONE, "judged", epochs=6, validation=validation, identity="a").resumed_at == (dies_in - 1) // 4
    for name in ("judged.safetensors", "judged-layer-0.safetensors"):
        assert (tmp_path / "undisturbed" / name).read_bytes() == (tmp_path / "died" / name).read_bytes()


def test_a_best_look_whose_layer_0_is_damaged_is_not_gone_on_from(graph: Graph, tmp_path: Path) -> None:
    spec = spec_for(graph, tmp_path, max_epochs=4, validate_every=1, checkpoint_s=0.0, keeps_layer_0=True)
    validation = validation_of(spec)
    fit(spec, ALONE, "judged", epochs=3, validation=validation, identity="a")
    with open(tmp_path / "judged-layer-0.safetensors", "r+b") as file:
        file.seek(-5, 2)
        file.write(b"\xff")
    assert fit(spec, ALONE, "judged", epochs=4, validation=validation, identity="a").resumed_at == 0


def test_where_a_fit_starts_is_part_of_what_it_is(graph: Graph, start: str, tmp_path: Path) -> None:
    """By the bytes, not by the name: a checkpoint of another start is another training's."""
    other = write_start(tmp_path / "other.safetensors", torch.ones(graph.num_users + graph.num_items, 8))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(start).read_bytes())
    identities = [
        identity_of(graph.folder, spec_for(graph, tmp_path, start=str(path)).settings(), world=1)
        for path in (start, moved, other, "")
    ]
    assert identities[0] == identities[1]
    assert len({str(identity) for identity in identities}) == 3


def test_likes_of_people_the_earlier_night_did_not_know_are_learned(graph: Graph, start: str, tmp_path: Path) -> None:
    """Half the users are taken out of the start; their recommendations are of their taste all the same."""
    tables = load_file(start)
    tables["known_N"][: graph.num_users // 2] = 0
    for fit_name in ("judged_ND", "served_ND"):
        tables[fit_name][: graph.num_users // 2] = 0.0
    save_file(tables, tmp_path / "start.safetensors")
    spec = spec_for(graph, tmp_path, start=str(tmp_path / "start.safetensors"))
    fit(spec, ALONE, "served", epochs=2, validation=None, identity="")
    found = load_file(tmp_path / "served.safetensors")
    seen = load_csr(graph.folder, "seen_all")
    score_UI = (found["user_UD"] @ found["item_ID"].T).numpy()
    for user in range(graph.num_users):
        score_UI[user, seen.indices[seen.indptr[user] : seen.indptr[user + 1]]] = -np.inf
    best_UK = np.argsort(-score_UI, axis=1)[:, :5]
    assert (best_UK % 2 == np.arange(graph.num_users)[:, None] % 2)[: graph.num_users // 2].mean() > 0.95
