"""What stands beside the lists: similar items by exact cosine, and vectors whose inner product is the score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.scorers import InnerProduct
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Recommendations
from tasks.errors import GateRefused
from tasks.publish.columns import columns_of
from tasks.recommend import outputs
from tasks.recommend.everyone import recommend_everyone
from tasks.recommend.outputs import NearestItems
from tests.worlds import World, build_graph_of, fit_here, name, two_taste_world

EVERYTHING = RecommendConfig(k=10, similar_items=5, embeddings=True)


@pytest.fixture(scope="module", params=[False, True], ids=["strings", "integers"])
def integer_ids(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def world(integer_ids: bool) -> World:
    """Two tastes. Users 30 and 33, of one each, like nothing of what they met, and nobody likes item 7."""
    world = two_taste_world(integer_ids=integer_ids)
    folded = pl.col("user_id").is_in([name("u", number, integer_ids) for number in (30, 33)])
    unliked = folded | (pl.col("item_id") == name("i", 7, integer_ids))
    return replace(world, seen=world.seen.with_columns(liked=pl.col("liked") & ~unliked))


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(world.seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def fitted(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_here(graph, tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def night(graph: Graph, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Recommendations:
    return recommend_everyone(graph, fitted, EVERYTHING, tmp_path_factory.mktemp("lists"))


def table(night: Recommendations, name: str) -> pl.DataFrame:
    files = next(output.files for output in night.outputs if output.name == name)
    return pl.concat([pl.read_parquet(file.path) for file in files])


def test_every_liked_item_has_its_nearest_of_the_same_taste_and_never_itself(
    night: Recommendations, world: World, integer_ids: bool
) -> None:
    similar = table(night, "similar_items")
    unliked = name("i", 7, integer_ids)
    assert set(similar["item_id"]) == set(world.taste_of_item) - {unliked}
    assert unliked not in similar["similar_item_id"].to_list()
    assert similar.filter(pl.col("item_id") == pl.col("similar_item_id")).is_empty()
    assert similar.equals(similar.sort("item_id", "rank"))
    assert similar["rank"].to_list() == [1, 2, 3, 4, 5] * 59
    assert similar.n_unique(["item_id", "similar_item_id"]) == len(similar)
    same = [world.taste_of_item[a] == world.taste_of_item[b] for a, _, b, _ in similar.iter_rows()]
    assert np.mean(same) > 0.95


def test_the_score_is_the_cosine_without_the_bias(night: Recommendations, graph: Graph, fitted: Fitted) -> None:
    item_ids = pl.read_parquet(Path(graph.folder) / "item_ids.parquet")["item_id"].to_list()
    vectors = load_file(fitted.served_path)["item_ID"][:, :-1].double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    row = {item: number for number, item in enumerate(item_ids)}
    similar = table(night, "similar_items")
    nobodys = [row[item] for item in item_ids if item not in set(similar["item_id"])]
    assert len(nobodys) == 1, "item 7, whose direction is noise: it can be near to anything, and is never listed"
    for item, rank, other, score in similar.iter_rows():
        cosines = unit @ unit[row[item]]
        assert score == pytest.approx(cosines[row[other]], abs=1e-6)
        better = np.sort(np.delete(cosines, [row[item], *nobodys]))[::-1]
        assert score == pytest.approx(better[rank - 1], abs=1e-6)


def test_equal_cosines_stand_in_the_order_of_their_ids_whatever_the_vectors_lengths() -> None:
    vectors = torch.tensor([[1.0, 0.0, 9.0], [4.0, 0.0, 0.0], [0.5, 0.0, 5.0], [0.0, 2.0, 0.0], [0.0, 0.0, 7.0]])
    rank_of_id = np.array([3, 1, 2, 0, 4])  # by id: 3, 1, 2, 0, 4
    by_id = np.argsort(rank_of_id)
    nearest = NearestItems(vectors, by_id, rank_of_id, np.ones(len(vectors), dtype=bool))
    assert nearest.items.tolist() == [3, 1, 2, 0], "what has only a bias has no direction"
    found = {
        int(item): (near.tolist(), scores.tolist())
        for block in nearest.top(4, block_bytes=2**20, threads=1).lists(nearest.items)
        for item, near, scores in zip(block.users, block.item_BK, block.score_BK, strict=True)
    }
    assert found[0][0] == [1, 2, 3, -1]
    assert found[0][1][:3] == [1.0, 1.0, 0.0]
    assert found[3][0] == [1, 2, 0, -1]


def test_the_inner_product_of_two_published_vectors_is_the_published_score_to_the_last_bit(
    night: Recommendations,
) -> None:
    users, items = table(night, "user_embeddings"), table(night, "item_embeddings")
    lists = pl.concat([pl.read_parquet(part.path) for part in night.parts])
    lists = lists.filter(pl.col("tier").is_in(["graph", "fold_in"]))
    assert lists["tier"].n_unique() == 2
    assert lists.filter(pl.col("tier") == "fold_in")["user_id"].n_unique() == 2, "each with a vector of their own"
    pairs = lists.join(users, on="user_id").join(items, on="item_id", suffix="_of_item")
    assert len(pairs) == len(lists) > 0
    user_BD = torch.from_numpy(pairs["embedding"].to_numpy().copy())
    item_BD = torch.from_numpy(pairs["embedding_of_item"].to_numpy().copy())
    every = np.arange(len(pairs))
    exactly = InnerProduct(user_BD, item_BD, every, np.ones(len(pairs), dtype=bool)).exact(
        every, torch.arange(len(pairs))[:, None]
    )
    assert exactly[:, 0].tolist() == pairs["score"].to_list()
    assert (user_BD * item_BD).sum(dim=1).numpy() == pytest.approx(pairs["score"].to_numpy(), abs=1e-5)


def test_embeddings_are_sorted_by_id_of_fixed_size_and_of_whoever_has_a_vector(
    night: Recommendations, world: World, integer_ids: bool
) -> None:
    users, items = table(night, "user_embeddings"), table(night, "item_embeddings")
    assert set(users["user_id"]) == set(world.taste_of_user), "30 and 33 are folded in from what they met"
    assert set(items["item_id"]) == set(world.taste_of_item) - {name("i", 7, integer_ids)}
    assert users["user_id"].is_sorted()
    assert items["item_id"].is_sorted()
    assert users.schema["embedding"] == items.schema["embedding"] == pl.Array(pl.Float32, 9)


def test_the_tables_have_the_columns_of_the_format(night: Recommendations) -> None:
    for output in night.outputs:
        assert columns_of(output.name, [(file.path, file.rows) for file in output.files])


def test_columns_in_another_order_are_not_those_of_the_format(night: Recommendations, tmp_path: Path) -> None:
    for output in night.outputs:
        rows = pl.read_parquet(output.files[0].path)
        rows.select(rows.columns[::-1]).write_parquet(tmp_path / "backwards.parquet")
        with pytest.raises(GateRefused, match=f"files of {output.name} do not all have the columns of output format"):
            columns_of(output.name, [(str(tmp_path / "backwards.parquet"), len(rows))])


def test_nothing_stands_beside_the_lists_where_nothing_is_asked_for(
    graph: Graph, fitted: Fitted, night: Recommendations, tmp_path: Path
) -> None:
    alone = recommend_everyone(graph, fitted, RecommendConfig(k=10, similar_items=0), tmp_path)
    assert alone.outputs == ()
    assert alone.parts[0].sha256 == night.parts[0].sha256
    assert alone.fingerprint != night.fingerprint
    assert [output.name for output in night.outputs] == ["similar_items", "user_embeddings", "item_embeddings"]


def test_blocks_and_threads_change_no_byte_and_cutting_into_files_no_row(
    graph: Graph, fitted: Fitted, night: Recommendations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (block_bytes, threads) in enumerate([(1, 1), (4096, 3)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        again = outputs.write_outputs(
            graph,
            fitted.served_path,
            EVERYTHING,
            folder,
            allowed_I=np.ones(graph.num_items, dtype=bool),
            block_bytes=block_bytes,
            threads=threads,
        )
        assert [f.sha256 for o in again for f in o.files] == [f.sha256 for o in night.outputs for f in o.files]
    monkeypatch.setattr(outputs, "ROWS_A_FILE", 50)
    monkeypatch.setattr(outputs, "EMBEDDING_BYTES_A_FILE", 9 * 4 * 7)
    monkeypatch.setattr(outputs, "EMBEDDING_BYTES_A_GROUP", 9 * 4 * 2)
    cut = recommend_everyone(graph, fitted, EVERYTHING, tmp_path)
    assert [len(output.files) for output in cut.outputs] == [6, 6, 9]
    assert pq.read_metadata(cut.outputs[1].files[0].path).num_row_groups == 4, "two vectors in memory at a time"
    for output in cut.outputs:
        assert table(cut, output.name).equals(table(night, output.name))


def test_more_neighbours_than_there_are_others_are_all_of_them(graph: Graph, fitted: Fitted, tmp_path: Path) -> None:
    all_of_them = recommend_everyone(graph, fitted, RecommendConfig(k=10, similar_items=1000), tmp_path)
    assert table(all_of_them, "similar_items").group_by("item_id").len()["len"].unique().to_list() == [58]


def test_a_model_without_a_direction_is_a_table_without_rows(graph: Graph, fitted: Fitted, tmp_path: Path) -> None:
    tables = load_file(fitted.served_path)
    tables["item_ID"][:, :-1] = 0.0
    save_file(tables, tmp_path / "flat.safetensors")
    flat = replace(fitted, served_path=str(tmp_path / "flat.safetensors"))
    lists = recommend_everyone(graph, flat, RecommendConfig(k=10), tmp_path)
    assert table(lists, "similar_items").is_empty()
    columns_of("similar_items", [(file.path, file.rows) for file in lists.outputs[0].files])
