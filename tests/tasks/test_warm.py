"""Two nights in a row: the second one starts from the first one's tables, or cold with a reason; never from a leak."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from models.graph import load_csr
from models.train import fit
from tasks.config import NightlyConfig
from tasks.contracts import Graph, OutputFile, Run, WarmSource
from tasks.run import file_sha256
from tasks.store import Store, open_store
from tasks.train.start import Start, choose_start, leave_for_the_next
from tasks.warm import Recipe, find_source, recipe_of, warm_key, without_users
from tests.models.test_warm import ALONE
from tests.worlds import build_graph_of, fit_here, met_once, spec_for, two_taste_world, validation_of

YESTERDAY, TONIGHT = date(2026, 11, 22), date(2026, 11, 23)
CONFIG = NightlyConfig.model_validate({"train": {"width": 8, "warm_start": True}})
RECIPE = Recipe(registry_epoch=0, width=8, layers=2, loss="softmax", validation_from_us=700, test_from_us=800)


# ---- which night


@pytest.fixture
def publish_with_tables(make_night: Callable, tmp_path: Path, store_uri: str) -> Callable[[date, bytes], WarmSource]:
    def publish(as_of: date, content: bytes = b"tables") -> WarmSource:
        path = tmp_path / f"{as_of}.safetensors"
        path.write_bytes(content)
        left = OutputFile(str(path), 3, len(content), file_sha256(path))
        night = make_night(store_uri, as_of=as_of)
        published = replace(night, fitted=replace(night.fitted, warm=left)).publish()
        return WarmSource(as_of, warm_key(as_of, published.attempt), len(content), left.sha256)

    return publish


def test_the_source_is_the_newest_commit_of_an_earlier_date(
    publish_with_tables: Callable[..., WarmSource], store_uri: str
) -> None:
    """So a rerun of a date, and one after it was published, starts where the date's first night did."""
    store = open_store(store_uri)
    assert find_source(store, TONIGHT) == (None, "no earlier night was published")
    publish_with_tables(date(2026, 11, 20), b"older")
    earlier = publish_with_tables(YESTERDAY, b"yesterday's")
    assert find_source(store, TONIGHT) == (earlier, "")
    publish_with_tables(TONIGHT, b"tonight's")
    publish_with_tables(date(2026, 11, 24), b"tomorrow's")
    assert find_source(store, TONIGHT) == (earlier, "")
    assert store.read(earlier.key)[0] == b"yesterday's"


def test_a_night_that_left_nothing_is_not_passed_over_for_an_older_one(
    publish_with_tables: Callable[..., WarmSource], make_night: Callable, store_uri: str
) -> None:
    publish_with_tables(date(2026, 11, 20))
    make_night(store_uri, as_of=YESTERDAY).publish()
    found = find_source(open_store(store_uri), TONIGHT)
    assert found == (None, "the night of 2026-11-22 left no tables to start from")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "warm.safetensors is gone"),
        (lambda path: path.write_bytes(b"tab"), "warm.safetensors is cut short"),
    ],
)
def test_tables_that_are_gone_or_cut_short_make_a_cold_night_and_are_said_aloud(
    publish_with_tables: Callable[..., WarmSource],
    tmp_path: Path,
    store_uri: str,
    damage: Callable[[Path], object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if store_uri.startswith("s3"):
        pytest.skip("a file is damaged by hand")
    source = publish_with_tables(YESTERDAY)
    damage(Path(store_uri) / source.key)
    found, why = find_source(open_store(store_uri), TONIGHT)
    assert found is None
    assert said in why
    assert any(said in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_a_damaged_commit_of_yesterday_makes_a_cold_night(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for number, content in enumerate((b"{", b"[]", json.dumps({"warm": {"key": "models/x"}}).encode()), start=1):
        store.put_once(f"_meta/commits/{YESTERDAY}/v{number:08d}.json", content)
        found, why = find_source(store, TONIGHT)
        assert found is None
        assert "is damaged" in why


# ---- what may be started from


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"registry_epoch": 1}, "the registry's epoch was 1 then and is 0 now"),
        ({"width": 16}, "train.width was 16 then and is 8 now"),
        ({"layers": 3}, "train.layers was 3 then and is 2 now"),
        ({"loss": "bpr"}, "train.loss was bpr then and is softmax now"),
        ({"registry_forgotten": 1}, "somebody was forgotten since then"),
        ({"validation_from_us": 701}, "its judged fit has learned from likes that tonight's is judged by"),
        ({"test_from_us": 801}, "its judged fit has learned from likes that tonight's is judged by"),
        ({}, ""),
        ({"validation_from_us": 1, "test_from_us": 2}, ""),
    ],
)
def test_tables_of_other_numbers_or_of_a_later_cut_are_no_start(change: dict, said: str) -> None:
    assert RECIPE.why_not(replace(RECIPE, **change)) == said


# ---- nights in a row


class Shop:
    """A store with nights in it, as far as their training goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(str(folder / "store"))

    def run(self, warm: WarmSource | None, config: NightlyConfig = CONFIG) -> Run:
        return Run(
            self.store.uri, TONIGHT, "", "", "", config, False, str(self.folder), "", 0, 0, warm, "none was left"
        )

    def train(self, graph: Graph, name: str, warm: WarmSource | None = None, **changes: object) -> WarmSource:
        """Both fits, from `warm` on; what they left, in the store."""
        folder = self.folder / name
        folder.mkdir()
        start = choose_start(self.run(warm), graph, folder)
        fit_here(graph, folder, keeps_layer_0=True, start=start.path, **changes)
        left = leave_for_the_next(self.run(None), graph, folder)
        assert left is not None
        key = warm_key(YESTERDAY, name)
        self.store.put_once(key, Path(left.path))
        return WarmSource(YESTERDAY, key, left.num_bytes, left.sha256)

    def start(self, graph: Graph, warm: WarmSource, config: NightlyConfig = CONFIG) -> Start:
        folder = self.folder / "tonight"
        folder.mkdir(exist_ok=True)
        return choose_start(self.run(warm, config), graph, folder)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def until(share: float) -> pl.DataFrame:
    """The events of the two-taste world's first days."""
    seen = two_taste_world().seen
    return seen.filter(pl.col("timestamp_us") <= seen["timestamp_us"].quantile(share))


def test_the_second_night_goes_on_where_the_first_one_ended(shop: Shop, tmp_path: Path) -> None:
    first, second = build_graph_of(until(0.9), tmp_path / "first"), build_graph_of(until(1.0), tmp_path / "second")
    left = shop.train(first, "yesterday", max_epochs=9, learning_rate=0.02)
    start = shop.start(second, left)
    assert start.told == "from the night of 2026-11-22, which knew 100 of 100 rows"

    def losses(name: str, path: str) -> list[float]:
        spec = spec_for(second, tmp_path / name, start=path, max_epochs=9, learning_rate=0.02)
        return [e.loss for e in fit(spec, ALONE, "judged", epochs=9, validation=None, identity="").curve]

    cold, warm = losses("cold", ""), losses("warm", start.path)
    assert next(epoch for epoch, loss in enumerate(cold, 1) if loss <= warm[0]) >= 4


def test_rows_are_found_again_by_who_they_are_wherever_they_stand(shop: Shop, tmp_path: Path) -> None:
    """Tonight's first user and first item are new, so that all others moved on by one."""
    seen = until(1.0)
    first = build_graph_of(seen, tmp_path / "first")
    left = shop.train(first, "yesterday", max_epochs=1)
    new = met_once(
        pl.DataFrame(
            {"user_id": ["a new one"], "item_id": ["a new thing"], "timestamp_us": [seen["timestamp_us"].max()]},
        ).with_columns(liked=pl.lit(True))
    ).select(seen.columns)
    second = build_graph_of(pl.concat([seen, new]).sort("user_id", "item_id"), tmp_path / "second")
    tables = load_file(shop.start(second, left).path)
    assert tables["known_N"].tolist() == [0] + [1] * 40 + [0] + [1] * 60
    with safe_open(shop.store.uri.removeprefix("file://") + "/" + left.key, framework="pt") as file:
        assert file.get_tensor("judged_user_UD").dtype == tables["judged_ND"].dtype
        stored = {name: file.get_tensor(name) for name in ("served_user_UD", "served_item_ID")}
    sums = sorted(stored["served_user_UD"].float().sum(1).tolist())
    assert sorted(tables["served_ND"][1:41].float().sum(1).tolist()) == pytest.approx(sums)
    assert (tables["served_ND"][[0, 41]] == 0).all()
    assert not (tables["judged_ND"] == tables["served_ND"]).all(), "the judged fit's and the served fit's are two"


def test_a_leak_is_refused_and_it_would_have_been_one(shop: Shop, tmp_path: Path) -> None:
    """Planted: an earlier night whose judged fit learned likes that tonight's is judged by.

    Likes have no pattern here, so a fit that finds many of them again has seen them.
    """
    rng = np.random.default_rng(5)
    user, item = np.nonzero(rng.random((60, 80)) < 0.15)
    seen = met_once(
        pl.DataFrame(
            {
                "user_id": user,
                "item_id": item,
                "timestamp_us": rng.permutation(len(user)) * 1_000_000,
                "liked": np.ones(len(user), dtype=bool),
            }
        )
    )
    tonight = build_graph_of(seen, tmp_path / "tonight-graph")
    assert tonight.validation_from_us is not None
    later = build_graph_of(seen, tmp_path / "later-graph", validation_share=0.01, test_share=0.01)
    left = shop.train(later, "planted", max_epochs=30, validate_every=30)

    refused = shop.start(tonight, left)
    assert refused.path == ""
    assert refused.told == (
        "cold: its judged fit has learned from likes that tonight's is judged by (the night of 2026-11-22)"
    )

    # What it is kept from: the same file, said to be of an honest cut.
    honest = shop.start(replace(tonight, validation_from_us=2**62, test_from_us=2**62), left)
    recalls = {}
    for name, start in (("cold", ""), ("leaked", honest.path)):
        spec = spec_for(tonight, tmp_path / name, start=start, max_epochs=1, validate_every=1)
        judged = fit(spec, ALONE, "judged", epochs=1, validation=validation_of(spec), identity="")
        recalls[name] = judged.curve[0].validation_recall
    assert recalls["leaked"] > 2 * recalls["cold"]


def test_a_split_without_a_moment_for_everybody_starts_cold_and_leaves_nothing(shop: Shop, tmp_path: Path) -> None:
    """A user's last part moves back when their likes grow from 19 to 20: train shrinks by one, and knows the next."""
    graph = build_graph_of(until(1.0), tmp_path / "graph", split="per_user_time")
    left = shop.train(build_graph_of(until(1.0), tmp_path / "global"), "yesterday", max_epochs=1)
    assert shop.start(graph, left).told.startswith("cold: graph.split is per_user_time, where a like that trained")
    assert leave_for_the_next(shop.run(None), graph, tmp_path) is None

    def learned(likes: int) -> int:
        seen = pl.DataFrame({"user_id": [1] * likes, "item_id": range(likes), "timestamp_us": range(likes)})
        folder = tmp_path / f"{likes} likes"
        build_graph_of(met_once(seen.with_columns(liked=pl.lit(True))), folder, split="per_user_time")
        return int(load_csr(folder, "liked_train").counts().sum())

    assert (learned(19), learned(20)) == (17, 16)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 16}, "cold: train.width was 8 then and is 16 now (the night of 2026-11-22)"),
        ({"layers": 1}, "cold: train.layers was 2 then and is 1 now (the night of 2026-11-22)"),
        ({"warm_start": False}, "cold"),
    ],
)
def test_other_settings_start_cold(shop: Shop, tmp_path: Path, settings: dict, said: str) -> None:
    graph = build_graph_of(until(1.0), tmp_path / "graph")
    left = shop.train(graph, "yesterday", max_epochs=1)
    config = NightlyConfig.model_validate({"train": {"width": 8, "warm_start": True} | settings})
    assert shop.start(graph, left, config) == Start("", said)


def test_a_damaged_file_is_found_before_a_byte_of_it_is_parsed(shop: Shop, tmp_path: Path) -> None:
    graph = build_graph_of(until(1.0), tmp_path / "graph")
    left = shop.train(graph, "yesterday", max_epochs=1)
    path = Path(shop.store.uri.removeprefix("file://")) / left.key
    good = path.read_bytes()
    path.write_bytes(good[:-3] + b"\xff\xff\xff")
    assert "warm.safetensors is not what was written" in shop.start(graph, left).told
    path.unlink()
    assert "warm.safetensors cannot be read (ObjectNotFound)" in shop.start(graph, left).told
    path.write_bytes(b"{}" + good)  # and one that was written as it is, by another version of this code
    other = replace(left, sha256=file_sha256(path))
    assert "of a format that this code does not know" in shop.start(graph, other).told
    assert not list((tmp_path / "tonight").iterdir()), "what cannot be used is not left lying about"


def test_no_earlier_night_is_a_cold_one_with_its_reason(shop: Shop, tmp_path: Path) -> None:
    graph = build_graph_of(until(1.0), tmp_path / "graph")
    assert choose_start(shop.run(None), graph, tmp_path) == Start("", "cold: none was left")


def test_a_forgotten_persons_row_can_be_taken_out_and_the_rest_stays(shop: Shop, tmp_path: Path) -> None:
    graph = build_graph_of(until(1.0), tmp_path / "graph")
    left = shop.train(graph, "yesterday", max_epochs=1)
    path, target = Path(shop.store.uri.removeprefix("file://")) / left.key, tmp_path / "without.safetensors"
    before = load_file(path)
    forgotten = before["user_rows"][[3, 17]].numpy()
    assert without_users(path, target, forgotten) == 2
    after = load_file(target)
    kept = [row for row in range(40) if row not in (3, 17)]
    assert {name: len(table) for name, table in after.items()} == {
        "user_rows": 38,
        "judged_user_UD": 38,
        "served_user_UD": 38,
        "item_rows": 60,
        "judged_item_ID": 60,
        "served_item_ID": 60,
    }
    assert (after["served_user_UD"] == before["served_user_UD"][kept]).all()
    assert asdict(recipe_of(target) or RECIPE) == asdict(recipe_of(path) or RECIPE)
