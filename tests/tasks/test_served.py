"""Planted bad models and lists: each is refused by name, and healthy fits with other seeds pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.graph import load_csr
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Recommendations
from tasks.evaluate.served import check_served, wilson_low
from tasks.recommend.everyone import recommend_everyone
from tests.worlds import build_graph_of, fit_here, met_once

USERS, ITEMS, TASTES, LIKES = 600, 120, 6, 10
LISTS = RecommendConfig(k=10, similar_items=0, reasons=0)
Tables = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Night:
    graph: Graph
    fitted: Fitted
    lists: Recommendations


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Six tastes; a fifth of what somebody likes is of another's."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        own = rng.permutation(np.arange(user % TASTES, ITEMS, TASTES))[: LIKES + user % 5]
        rows += [(f"u{user:03d}", f"i{item:03d}") for item in {*own, *rng.integers(0, ITEMS, 2)}]
    seen = pl.DataFrame(sorted(rows), schema=["user_id", "item_id"], orient="row").with_columns(
        timestamp_us=pl.Series(rng.permutation(len(rows)) * 3_600_000_000), liked=pl.lit(True)
    )
    return build_graph_of(met_once(seen), tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def healthy(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Night:
    fitted = fit_here(graph, tmp_path_factory.mktemp("fit"))
    return Night(graph, fitted, recommend_everyone(graph, fitted, LISTS, tmp_path_factory.mktemp("lists")))


def failed(night: Night) -> set[str]:
    return {check.gate for check in check_served(night.graph, night.fitted, night.lists) if not check.passed}


def with_tables(night: Night, folder: Path, change: Callable[[Tables], None]) -> Night:
    """The served fit changed, and lists made of what it is then: nothing but its tables can tell."""
    tables = load_file(night.fitted.served_path)
    change(tables)
    path = folder / "changed.safetensors"
    save_file({name: table.contiguous() for name, table in tables.items()}, path)
    fitted = replace(night.fitted, served_path=str(path))
    (folder / "lists").mkdir()
    return replace(night, fitted=fitted, lists=recommend_everyone(night.graph, fitted, LISTS, folder / "lists"))


def test_a_healthy_night_passes_every_check(healthy: Night) -> None:
    assert failed(healthy) == set()
    assert len(list(check_served(healthy.graph, healthy.fitted, healthy.lists))) == 4


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_fit_with_another_seed_is_as_healthy(seed: int, graph: Graph, tmp_path: Path) -> None:
    fitted = fit_here(graph, tmp_path, seed=seed)
    (tmp_path / "lists").mkdir()
    assert failed(Night(graph, fitted, recommend_everyone(graph, fitted, LISTS, tmp_path / "lists"))) == set()


def users_of(kind: str) -> np.ndarray:
    return {"a tenth": np.arange(0, USERS, 10), "all": np.arange(USERS)}[kind]


def shuffled(table: torch.Tensor, rows: np.ndarray) -> None:
    table[torch.from_numpy(rows)] = table[torch.from_numpy(np.random.default_rng(3).permutation(rows))]


def of_another_taste(tables: Tables, rows: np.ndarray) -> None:
    """Each of these users has the row of a user of the next taste."""
    tables["user_UD"][torch.from_numpy(rows)] = tables["user_UD"][torch.from_numpy((rows + 1) % USERS)].clone()


def rank_one(tables: Tables) -> None:
    for name in ("user_UD", "item_ID"):
        table = tables[name]
        table[:, :-1] = table[:, :1] @ table[:1, :-1]


def noise(table: torch.Tensor) -> None:
    table[:, :-1] = torch.randn(table[:, :-1].shape, generator=torch.Generator().manual_seed(0))


BAD_MODELS: dict[str, tuple[Callable[[Tables], object], str]] = {
    "a tenth of the users shuffled": (lambda t: of_another_taste(t, users_of("a tenth")), "model: users know"),
    "all users shuffled": (lambda t: shuffled(t["user_UD"], users_of("all")), "model: users know"),
    "all items shuffled": (lambda t: shuffled(t["item_ID"], np.arange(ITEMS)), "model: users know"),
    "users turned round": (lambda t: t["user_UD"][:, :-1].neg_(), "model: users know"),
    "users of noise": (lambda t: noise(t["user_UD"]), "model: users know"),
    "items of noise": (lambda t: noise(t["item_ID"]), "model: users know"),
    "all users alike": (lambda t: t["user_UD"][:, :-1].copy_(t["user_UD"][:1, :-1].clone()), "model: users differ"),
    "all items alike": (lambda t: t["item_ID"][:, :-1].copy_(t["item_ID"][:1, :-1].clone()), "model: items differ"),
    "rank one": (rank_one, "model: users differ"),
    "users of zeros": (lambda t: t["user_UD"][:, :-1].zero_(), "model: users differ"),
    "items of zeros": (lambda t: t["item_ID"][:, :-1].zero_(), "model: items differ"),
    "some users of zeros": (lambda t: t["user_UD"][:20, :-1].zero_(), "model: users differ"),
    "users nearly of one direction": (lambda t: t["user_UD"][:, 0].add_(1e4), "model: users differ"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_planted_bad_model_is_refused_though_its_lists_are_whole(name: str, healthy: Night, tmp_path: Path) -> None:
    change, gate = BAD_MODELS[name]
    bad = with_tables(healthy, tmp_path, change)  # type: ignore[arg-type]
    found = failed(bad)
    assert any(one.startswith(gate) for one in found), found


def test_heavy_users_with_anothers_rows_are_found_though_the_light_ones_are_well(
    healthy: Night, tmp_path: Path
) -> None:
    counts = load_csr(healthy.graph.folder, "liked_all").counts()
    heavy = np.flatnonzero(counts > np.median(counts))[::8]
    bad = with_tables(healthy, tmp_path, lambda tables: of_another_taste(tables, heavy))
    assert failed(bad) == {"model: users know their likes"}
    detail = next(c.detail for c in check_served(bad.graph, bad.fitted, bad.lists) if "know" in c.gate)
    light, heavy_words = detail.removeprefix("others' likes score above their own: ").split(", ")[:2]
    assert int(light.split()[0]) < int(heavy_words.split()[0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_healthy(number: float, healthy: Night, tmp_path: Path) -> None:
    """The room that recommends refuses it first; the gate does not rely on that."""
    tables = load_file(healthy.fitted.served_path)
    tables["user_UD"][:, 3] = number
    path = tmp_path / "broken.safetensors"
    save_file(tables, path)
    assert "model: users differ" in failed(replace(healthy, fitted=replace(healthy.fitted, served_path=str(path))))


# ---- lists that are whole, and not this model's


SCORES = "lists: scores that the served model does not give"


def with_lists(night: Night, folder: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Night:
    parts = []
    for number, part in enumerate(night.lists.parts):
        path = folder / f"part-{number}.parquet"
        change(pl.read_parquet(part.path)).write_parquet(path)
        parts.append(replace(part, path=str(path)))
    return replace(night, lists=replace(night.lists, parts=tuple(parts)))


def test_yesterdays_lists_under_tonights_name_are_refused(healthy: Night, graph: Graph, tmp_path: Path) -> None:
    yesterday = fit_here(graph, tmp_path, seed=9)
    (tmp_path / "lists").mkdir()
    lists = recommend_everyone(graph, yesterday, LISTS, tmp_path / "lists")
    assert failed(replace(healthy, lists=lists)) == {SCORES}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.with_columns(user_id=pl.col("user_id").shift(10).fill_null("u000")),
        lambda rows: rows.with_columns(item_id=pl.col("item_id").reverse()),
        lambda rows: rows.with_columns(score=pl.col("score") * 1.01),
        lambda rows: rows.with_columns(score=pl.lit(float("nan"), pl.Float32)),
    ],
    ids=["of the user before", "other items", "a little more", "no numbers"],
)
def test_rows_that_the_model_would_score_otherwise_are_refused(
    change: Callable[[pl.DataFrame], pl.DataFrame], healthy: Night, tmp_path: Path
) -> None:
    assert failed(with_lists(healthy, tmp_path, change)) == {SCORES}


def test_the_lower_bound_of_a_share_is_wilsons() -> None:
    assert wilson_low(0, 100) == pytest.approx(0.0, abs=1e-12)
    assert wilson_low(10, 100) == pytest.approx(0.0552, abs=1e-4)
    assert wilson_low(50, 100) == pytest.approx(0.4038, abs=1e-4)
    assert wilson_low(0, 0) == 0.0
