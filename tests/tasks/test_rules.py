"""Rules by name, applied before the best are chosen; tiers that fill what they leave; and all of it counted."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models import recency
from models.graph import Csr, load_csr
from models.recency import LEAST_WEIGHT, Likes, popular_in_groups, popular_of_everybody, weight_of_likes
from models.selection import NO_ITEM
from tasks.config import RecommendConfig
from tasks.contracts import RULES, TIERS, Fitted, Graph, Recommendations, Tables
from tasks.errors import NothingAllowed
from tasks.evaluate.allowed import read_known
from tasks.evaluate.gate import check_lists
from tasks.recommend.everyone import recommend_everyone
from tasks.recommend.lists import Everybody, Sources
from tasks.recommend.rules import NONE, read_people, read_rules
from tests.worlds import World, build_graph_of, fit_here, met_once, name, two_taste_world

AS_OF = date(1970, 2, 1)  # the world's events end in January
MIDNIGHT_US = int(datetime(1970, 2, 1, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US = 86_400_000_000
ITEMS = [f"i{number:03d}" for number in range(60)]
KINDS = {
    "available": pl.Boolean,
    "categories": pl.List(pl.String),
    "segments": pl.List(pl.String),
    "published_at": pl.Int64,
}
MakeTables = Callable[..., Tables]


@pytest.fixture(scope="module")
def world() -> World:
    """Two tastes. u038 has met everything; u039 everything but i000 to i003."""
    world = two_taste_world()
    rows = [("u038", item) for item in ITEMS] + [("u039", item) for item in ITEMS[4:]]
    met = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(
        timestamp_us=pl.lit(0, pl.Int64), liked=pl.lit(False)
    )
    others = world.seen.filter(~pl.col("user_id").is_in(["u038", "u039"]))
    return replace(world, seen=pl.concat([others, met_once(met).select(others.columns)]).sort("user_id", "item_id"))


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph_of(world.seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def fitted(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_here(graph, tmp_path_factory.mktemp("fit"))


@pytest.fixture
def tables(tmp_path: Path) -> MakeTables:
    """As ingest leaves them. Items are given as facts by item; items that no fact names do not stand in the table."""

    def make(
        *,
        users: list[str] | None = None,
        blocked: list[tuple[str, str]] | None = None,
        segment: dict[str, str] | None = None,
        **facts: dict[str, object],
    ) -> Tables:
        frames: dict[str, pl.DataFrame] = {}
        if users is not None:
            frames["users"] = pl.DataFrame({"user_id": sorted(users)}, schema={"user_id": pl.String})
        if blocked is not None:
            columns = ["user_id", "item_id"]
            frames["blocked"] = pl.DataFrame(sorted(blocked), schema=dict.fromkeys(columns, pl.String), orient="row")
        if segment is not None:
            rows = {"user_id": list(segment), "segment": list(segment.values())}
            frames["segments"] = pl.DataFrame(rows).sort("user_id")
        if facts:
            listed = sorted(set().union(*facts.values()))
            told = {fact: [of_items.get(item) for item in listed] for fact, of_items in facts.items()}
            kinds = {"item_id": pl.String} | {fact: KINDS[fact] for fact in facts}
            frames["items"] = pl.DataFrame({"item_id": listed, **told}, schema=kinds)
        folder = tmp_path / f"tables-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for table, frame in frames.items():
            frame.write_parquet(folder / f"{table}.parquet")
        return Tables(str(folder), folder.name, {table: len(frame) for table, frame in frames.items()}, {})

    return make


@pytest.fixture
def night(graph: Graph, fitted: Fitted, tmp_path: Path) -> Callable[..., tuple[Recommendations, pl.DataFrame]]:
    """The finished lists, passed by the gate, which works out the rules in its own way."""

    def make(told: Tables, **changes: object) -> tuple[Recommendations, pl.DataFrame]:
        config = RecommendConfig(**{"k": 10, "popular_half_life_days": 0, **changes})  # type: ignore[arg-type]
        folder = tmp_path / f"lists-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        finished = recommend_everyone(graph, fitted, config, folder, tables=told, as_of=AS_OF)
        checks = check_lists(finished, read_known(graph.folder, told, config, AS_OF))
        assert [check for check in checks if not check.passed] == []
        rows = pl.concat([pl.read_parquet(part.path) for part in finished.parts])
        assert sum(finished.rows_by_tier.values()) == finished.rows == len(rows)
        return finished, rows

    return make


def list_of(rows: pl.DataFrame, user: str) -> list[str]:
    return rows.filter(pl.col("user_id") == user)["item_id"].to_list()


# ---- rule by rule: K stays K, nothing forbidden, each counted under its name


def test_without_tables_only_what_was_met_is_left_out(world: World, tables: MakeTables, night: Callable) -> None:
    finished, rows = night(tables())
    assert rows.join(world.seen, on=["user_id", "item_id"], how="semi").is_empty()
    assert finished.removed_by_rule["seen"] > 0
    assert {rule for rule, count in finished.removed_by_rule.items() if count} == {"seen"}
    assert list(finished.removed_by_rule) == list(RULES)
    assert (finished.people, finished.short_by_reason) == (40, {"seen": 2})


def test_blocked_pairs_are_left_out_for_their_user_alone(tables: MakeTables, night: Callable) -> None:
    _, before = night(tables())
    first = list_of(before, "u001")[0]
    finished, rows = night(tables(blocked=[("u001", first), ("u001", "i059")]))
    assert first not in list_of(rows, "u001")
    assert len(list_of(rows, "u001")) == 10
    others = pl.col("user_id") != "u001"
    assert rows.filter(others).equals(before.filter(others))
    assert finished.removed_by_rule["blocked"] >= 1


@pytest.mark.parametrize(
    ("fact", "rule"), [(dict.fromkeys(ITEMS[:50], True), "unlisted"), (dict.fromkeys(ITEMS, True), "unavailable")]
)
def test_what_is_not_available_goes_to_nobody_and_lists_stay_whole(
    fact: dict[str, bool], rule: str, tables: MakeTables, night: Callable
) -> None:
    if rule == "unavailable":
        fact = fact | dict.fromkeys(ITEMS[50:], False)
    finished, rows = night(tables(available=fact))
    assert not set(rows["item_id"]) & set(ITEMS[50:])
    assert finished.removed_by_rule[rule] > 0
    assert set(rows.group_by("user_id").len().filter(pl.col("user_id") < "u038")["len"]) == {10}


def test_what_goes_to_nobody_is_near_nothing_and_what_some_may_have_is(tables: MakeTables, night: Callable) -> None:
    """Its own neighbours are published still: a page of something sold out says what is like it."""
    available = dict.fromkeys(ITEMS[:50], True) | dict.fromkeys(ITEMS[50:], False)
    told = tables(available=available, segments={"i000": ["vip"]}, segment={"u001": "vip"})
    finished, _ = night(told)
    (similar,) = finished.outputs
    rows = pl.concat([pl.read_parquet(file.path) for file in similar.files])
    assert not set(rows["similar_item_id"]) & set(ITEMS[50:])
    assert "i000" in set(rows["similar_item_id"])
    assert set(ITEMS[50:]) <= set(rows["item_id"])
    assert set(rows.group_by("item_id").len()["len"]) == {10}


def test_an_items_table_without_available_leaves_everything_available(tables: MakeTables, night: Callable) -> None:
    _, rows = night(tables(categories={"i001": ["x"]}))
    _, without = night(tables())
    assert rows.equals(without)


def test_ages_count_back_from_the_nights_date_and_published_at_goes_before_the_first_event(
    world: World, tables: MakeTables, night: Callable
) -> None:
    born = {"i000": MIDNIGHT_US - 2 * DAY_US, "i001": MIDNIGHT_US - 2 * DAY_US + 1, "i002": MIDNIGHT_US + DAY_US}
    finished, rows = night(tables(published_at=born), min_item_age_days=2, seen_days=1)
    listed = set(rows["item_id"])
    assert not {"i001", "i002"} & listed
    assert finished.removed_by_rule["too_new"] > 0
    first = dict(world.seen.group_by("item_id").agg(pl.col("first_seen_us").min()).rows())
    oldest_day = 25
    finished, rows = night(tables(published_at=born), max_item_age_days=oldest_day, seen_days=1)
    old = {item for item in ITEMS[3:] if first[item] < MIDNIGHT_US - oldest_day * DAY_US}
    assert old
    assert not old & set(rows["item_id"])
    assert finished.removed_by_rule["too_old"] > 0


def test_items_of_a_segment_go_to_its_people_alone(tables: MakeTables, night: Callable) -> None:
    for_odd = {item: ["odd", "other"] for item in ITEMS[1::2]} | {"i000": []}
    segment = {f"u{number:03d}": ("odd" if number % 4 == 1 else "even") for number in range(0, 40) if number % 3}
    finished, rows = night(tables(segments=for_odd, segment=segment))
    of_odd = rows.filter(pl.col("item_id").is_in(ITEMS[1::2]))
    assert set(of_odd["user_id"]) <= {user for user, which in segment.items() if which == "odd"}
    assert len(of_odd) > 0
    assert finished.removed_by_rule["segment"] > 0


def test_at_most_n_of_a_category_the_best_of_it(tables: MakeTables, night: Callable) -> None:
    kinds = {item: [f"kind {int(item[1:]) % 3}"] for item in ITEMS[:57]}
    finished, rows = night(tables(categories=kinds), at_most_per_category=2)
    _, without = night(tables())
    kind = pl.DataFrame({"item_id": list(kinds), "kind": [own[0] for own in kinds.values()]})
    counts = rows.join(kind, on="item_id").group_by("user_id", "kind").len()
    assert counts["len"].max() == 2
    best = without.filter(pl.col("rank") == 1).select("user_id", "item_id")
    assert rows.join(best, on=["user_id", "item_id"], how="semi").height == best.height
    assert finished.removed_by_rule["category"] > 0
    assert finished.short_by_reason["category"] > 30, "three kinds of two, and three without a kind"


def test_an_item_against_several_rules_counts_under_the_first(tables: MakeTables, night: Callable) -> None:
    _, rows = night(tables())
    first = list_of(rows, "u001")[0]
    everything = {
        "blocked": [("u001", first)],
        "available": dict.fromkeys(ITEMS, True) | {first: False},
        "segments": {first: ["nobody's"]},
    }
    finished, _ = night(tables(**everything), min_item_age_days=0)
    alone, _ = night(tables(available=everything["available"]))
    assert finished.removed_by_rule["blocked"] == 1
    assert finished.removed_by_rule["unavailable"] == alone.removed_by_rule["unavailable"] - 1
    assert finished.removed_by_rule["segment"] == 0


def test_what_was_met_before_the_window_may_come_again(world: World, tables: MakeTables, night: Callable) -> None:
    _, rows = night(tables(), seen_days=20)
    again = rows.join(world.seen, on=["user_id", "item_id"], how="inner")
    assert len(again) > 0
    assert again["timestamp_us"].max() < MIDNIGHT_US - 20 * DAY_US
    recent = world.seen.filter(pl.col("timestamp_us") >= MIDNIGHT_US - 20 * DAY_US)
    assert rows.join(recent, on=["user_id", "item_id"], how="semi").is_empty()
    assert len(list_of(rows, "u038")) == 10, "they met everything on the first day"


# ---- short lists


def test_what_is_counted_in_many_shards_is_what_is_counted_in_one(
    graph: Graph, fitted: Fitted, tables: MakeTables, night: Callable, tmp_path: Path
) -> None:
    told = tables(
        blocked=[(f"u{number:03d}", ITEMS[number]) for number in range(38)],
        available=dict.fromkeys(ITEMS[:25], True),
        categories={item: [f"kind {int(item[1:]) % 4}"] for item in ITEMS},
        users=["u100", "u101"],
    )
    one, rows = night(told, at_most_per_category=2)
    small = RecommendConfig.model_construct(  # config does not allow so small shards; the function does
        k=10, popular_half_life_days=0, at_most_per_category=2, users_per_shard=6
    )
    many = recommend_everyone(graph, fitted, small, tmp_path, tables=told, as_of=AS_OF)
    assert (len(one.parts), len(many.parts)) == (1, 7)
    for count in ("removed_by_rule", "users_by_tier", "rows_by_tier", "short_by_reason", "short_lists", "people"):
        assert getattr(many, count) == getattr(one, count), count
    first = rows.filter(pl.col("rank") == 1).group_by("tier").len()
    assert many.users_by_tier == dict.fromkeys(TIERS, 0) | dict(first.rows())
    assert all(many.removed_by_rule[rule] for rule in ("seen", "blocked", "unlisted", "category"))
    assert (
        sum(many.short_by_reason.values())
        == many.people - rows.group_by("user_id").len().filter(pl.col("len") == 10).height
    )


def test_a_list_is_short_for_a_reason_with_a_name(tables: MakeTables, night: Callable) -> None:
    finished, _ = night(tables(), k=1000)
    assert (finished.short_lists, finished.short_by_reason) == (40, {"catalogue": 40})
    finished, rows = night(tables(available=dict.fromkeys(ITEMS[:5], True)))
    assert finished.short_by_reason == {"seen": 2, "unlisted": 38}
    assert rows.group_by("user_id").len()["len"].max() <= 5
    blocked = [("u001", item) for item in ITEMS[:58]]
    finished, rows = night(tables(blocked=blocked))
    assert finished.short_by_reason == {"seen": 2, "blocked": 1}
    assert set(list_of(rows, "u001")) <= {"i058", "i059"}


def test_who_has_met_everything_gets_no_row_and_is_counted(tables: MakeTables, night: Callable) -> None:
    finished, rows = night(tables())
    assert list_of(rows, "u038") == []
    assert sorted(list_of(rows, "u039")) == ITEMS[:4]
    assert (finished.people, finished.users, sum(finished.users_by_tier.values())) == (40, 39, 39)


def test_rules_that_forbid_everything_end_the_night_by_name(tables: MakeTables, night: Callable) -> None:
    with pytest.raises(NothingAllowed, match=r"forbid all 60 items to everybody \(too_new 60\)"):
        night(tables(), min_item_age_days=1000)
    with pytest.raises(NothingAllowed, match=r"\(unavailable 10, unlisted 50\)"):
        night(tables(available=dict.fromkeys(ITEMS[:10], False)))


def test_k_of_zero_and_ages_that_no_item_has_are_refused_by_the_settings() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        RecommendConfig(k=0)
    with pytest.raises(ValidationError, match="no item has such an age"):
        RecommendConfig(min_item_age_days=3, max_item_age_days=2)


# ---- everybody, and their tiers


def test_the_users_table_adds_people_and_they_get_what_is_popular(
    world: World, tables: MakeTables, night: Callable
) -> None:
    strange = ["👩‍🚀 \"quoted\" 'ada'", "u000", "zz"]
    finished, rows = night(tables(users=strange))
    assert (finished.people, finished.users) == (42, 41)
    likes = dict(world.seen.filter("liked").group_by("item_id").len().rows())
    most_liked = sorted(ITEMS, key=lambda item: (-likes.get(item, 0), item))[:10]
    for user in (strange[0], "zz"):
        own = rows.filter(pl.col("user_id") == user)
        assert own["item_id"].to_list() == most_liked
        assert set(own["tier"]) == {"popular"}
        assert own["score"].to_list() == [likes[item] for item in most_liked]
        total = sum(likes.values())
        for reason, item in zip(own["reasons"], most_liked, strict=True):
            assert reason.to_list() == [
                {"kind": "popular", "item_id": None, "share": pytest.approx(likes[item] / total)}
            ]
    assert rows.equals(rows.sort("user_id", "rank"))
    assert set(rows.filter(pl.col("user_id") == "u000")["tier"]) == {"graph"}


def test_a_newcomer_of_a_segment_gets_what_is_popular_there_then_everywhere(
    world: World, tables: MakeTables, night: Callable
) -> None:
    segment = {"u001": "odd", "u003": "odd", "zoe": "odd"}
    finished, rows = night(tables(users=["zoe"], segment=segment), k=40)
    in_segment = world.seen.filter(pl.col("user_id").is_in(["u001", "u003"]) & pl.col("liked"))
    likes = dict(in_segment.group_by("item_id").len().rows())
    own = rows.filter(pl.col("user_id") == "zoe")
    first = own.filter(pl.col("tier") == "segment")
    assert first["item_id"].to_list() == sorted(likes, key=lambda item: (-likes[item], item))
    assert first["rank"].to_list() == list(range(1, len(likes) + 1))
    assert [reason[0]["share"] for reason in first["reasons"]] == pytest.approx(
        [likes[item] / sum(likes.values()) for item in first["item_id"]]
    )
    assert {reason[0]["kind"] for reason in first["reasons"]} == {"segment"}
    assert set(own.filter(pl.col("rank") > len(likes))["tier"]) == {"popular"}
    assert finished.users_by_tier["segment"] == 1


def test_reasons_are_as_many_as_were_asked_for(world: World, tables: MakeTables, night: Callable) -> None:
    liked = set(world.seen.filter("liked").select("user_id", "item_id").rows())
    for at_most in (3, 1, 0):
        _, rows = night(tables(), reasons=at_most)
        of_graph = rows.filter(pl.col("tier") == "graph")
        assert of_graph["reasons"].list.len().max() == at_most
        because = of_graph.explode("reasons").drop_nulls("reasons").unnest("reasons", separator=".")
        assert set(because["reasons.kind"]) <= {"liked"}
        assert set(because.select("user_id", "reasons.item_id").rows()) <= liked
        assert because["reasons.share"].is_between(0.0, 1.0).all()


def test_an_old_like_counts_less_and_never_nothing(graph: Graph, tables: MakeTables, night: Callable) -> None:
    moments = np.array([MIDNIGHT_US, MIDNIGHT_US - 10 * DAY_US, MIDNIGHT_US - 10_000 * DAY_US])
    np.testing.assert_array_equal(weight_of_likes(moments, 10.0), [1.0, 0.5, LEAST_WEIGHT])
    np.testing.assert_array_equal(weight_of_likes(moments, 0.0), [1.0, 1.0, 1.0])
    assert weight_of_likes(moments[:0], 10.0).shape == (0,)
    _, decayed = night(tables(users=["zz"]), popular_half_life_days=1.0)
    _, counted = night(tables(users=["zz"]))
    assert list_of(decayed, "zz") != list_of(counted, "zz")


def test_the_half_life_is_as_long_as_the_newest_likes_took_and_a_week_at_least() -> None:
    a_like_a_day = np.arange(20_000) * DAY_US
    assert weight_of_likes(a_like_a_day, None)[-1 - 4_999] == 0.5
    assert weight_of_likes(a_like_a_day[:100], None)[0] == 0.5, "fewer likes than that: all the time there is"
    a_thousand_a_day = np.arange(20_000) * (DAY_US // 1000)
    assert weight_of_likes(a_thousand_a_day, None)[-1 - 7_000] == 0.5


def test_popularity_says_what_a_count_by_hand_says(graph: Graph, tables: MakeTables) -> None:
    """Decayed sums by loops, of everybody and in each segment."""
    told = tables(segment={f"u{number:03d}": f"s{number % 3}" for number in range(0, 40, 2)})
    people = read_people(graph.folder, told)
    liked, when = load_csr(graph.folder, "liked_all"), np.load(Path(graph.folder) / "liked_at.npy")
    likes = Likes(liked, when, 7.0)
    everybody, groups = np.zeros(60), np.zeros((3, 60))
    for user in range(40):
        for entry in range(liked.indptr[user], liked.indptr[user + 1]):
            value = 2.0 ** (-((when.max() - when[entry]) / DAY_US) / 7.0)
            everybody[liked.indices[entry]] += value
            if people.segment_P[user] >= 0:
                groups[people.segment_P[user], liked.indices[entry]] += value
    ours = popular_of_everybody(likes, 60)
    np.testing.assert_allclose(ours.scores.score_GI[0], everybody, rtol=1e-6)
    in_segments = popular_in_groups(likes, 60, people.segment_P, num_groups=3)
    expected = np.where(groups > 0, groups, -np.inf)
    np.testing.assert_allclose(in_segments.scores.score_GI, expected, rtol=1e-6)
    np.testing.assert_allclose(in_segments.total_G, groups.sum(axis=1))


def test_popularity_has_the_same_bits_in_pieces_of_any_size(
    graph: Graph, tables: MakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = read_people(graph.folder, tables(segment={f"u{number:03d}": f"s{number % 3}" for number in range(30)}))
    liked, when = load_csr(graph.folder, "liked_all"), np.load(Path(graph.folder) / "liked_at.npy")
    for half_life in (None, 3.0, 0.0):
        likes = Likes(liked, when, half_life)
        whole = popular_of_everybody(likes, 60), popular_in_groups(likes, 60, people.segment_P, num_groups=3)
        for size in (1, 7, 100):
            monkeypatch.setattr(recency, "LIKES_AT_ONCE", size)
            pieces = popular_of_everybody(likes, 60), popular_in_groups(likes, 60, people.segment_P, num_groups=3)
            for one, other in zip(whole, pieces, strict=True):
                np.testing.assert_array_equal(one.scores.score_GI, other.scores.score_GI)
                np.testing.assert_array_equal(one.total_G, other.total_G)
        monkeypatch.undo()


def test_lists_do_not_depend_on_how_people_are_cut(graph: Graph, fitted: Fitted, tables: MakeTables) -> None:
    told = tables(users=["a", "zz"], segment={"zz": "x", "u003": "x"}, blocked=[("u005", "i005")])
    config = RecommendConfig(k=10, at_most_per_category=3)
    everybody = Everybody(Sources.of(graph, fitted, config, told, AS_OF))
    whole = pl.concat([block.rows for block in everybody.lists(0, 42, block_bytes=2**26, threads=1)])
    one_by_one = [
        block.rows for start in range(42) for block in everybody.lists(start, start + 1, block_bytes=2**20, threads=1)
    ]
    assert pl.concat(one_by_one).equals(whole)


def test_sources_cross_to_ranks_as_json(graph: Graph, fitted: Fitted, tables: MakeTables) -> None:
    sources = Sources.of(graph, fitted, RecommendConfig(), tables(users=["zz"]), AS_OF)
    assert Sources(**json.loads(json.dumps(asdict(sources)))) == sources
    assert sources.num_people == 41
    undated = Sources.of(graph, fitted, RecommendConfig(), None, None)
    last = datetime(1970, 1, 1) + timedelta(microseconds=int(np.load(Path(graph.folder) / "seen_at.npy").max()))
    assert undated.as_of == (last.date() + timedelta(days=1)).isoformat()


def test_names_that_break_things_and_somebody_who_likes_everything(
    world: World, tables: MakeTables, tmp_path: Path
) -> None:
    """Ids are opaque, in rows, tables and reasons; who likes the whole catalogue gets nothing, and nobody else less."""
    strange = ["🦉", 'say "hi"', "it's", "a,b;c", "%s {0} \\n", "<b>&amp;", " lead", "ß/é/日本語", "NULL", "-1"]
    items = {item: f"{strange[number % 10]} {number}" for number, item in enumerate(ITEMS)}
    users = {f"u{number:03d}": f"{strange[number % 10]}-{number}" for number in range(40)}
    renamed = world.seen.with_columns(
        pl.col("user_id").replace_strict(users),
        pl.col("item_id").replace_strict(items),
        liked=pl.col("liked") | (pl.col("user_id") == "u038"),
    ).with_columns(first_liked_us=pl.when("liked").then("first_seen_us"))
    graph = build_graph_of(renamed.sort("user_id", "item_id"), tmp_path / "graph")
    fitted = fit_here(graph, tmp_path / "fit")
    told = tables(blocked=[(users["u001"], items["i001"])], available=dict.fromkeys(items.values(), True))
    config = RecommendConfig(k=10)
    (tmp_path / "lists").mkdir()
    finished = recommend_everyone(graph, fitted, config, tmp_path / "lists", tables=told, as_of=AS_OF)
    checks = check_lists(finished, read_known(graph.folder, told, config, AS_OF))
    assert [check for check in checks if not check.passed] == []
    rows = pl.concat([pl.read_parquet(part.path) for part in finished.parts])
    assert set(rows["item_id"]) <= set(items.values())
    assert set(rows["user_id"]) == set(users.values()) - {users["u038"]}
    because = rows.explode("reasons").select(pl.col("reasons").struct.field("item_id")).drop_nulls().to_series()
    assert set(because) <= set(items.values())
    assert finished.short_by_reason == {"seen": 2}


# ---- any tables at all


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_the_rules_say_of_every_pair_what_a_loop_says(seed: int, graph: Graph, tables: MakeTables) -> None:
    """And the gate's own way to them says the same."""
    rng = np.random.default_rng(seed)
    users = [*(f"u{number:03d}" for number in range(40)), "new"]
    some = rng.permutation(ITEMS)[:40]
    names = ["a", "b", "c"]
    segment = {user: str(rng.choice(names[:2])) for user in rng.permutation(users)[:20]}
    available = {item: [True, False, None][rng.choice(3, p=[0.7, 0.2, 0.1])] for item in some}
    segments = {item: list(rng.permutation(names)[: rng.integers(0, 3)]) for item in some[:20]}
    published = {item: int(MIDNIGHT_US - rng.integers(0, 30) * DAY_US) for item in some[10:30]}
    blocked = {(str(rng.choice(users)), str(rng.choice(ITEMS))) for _ in range(30)}
    told = tables(
        users=["new"],
        segment=segment,
        blocked=list(blocked),
        available=available,
        segments=segments,
        published_at=published,
    )
    config = RecommendConfig(k=10, seen_days=int(rng.integers(1, 30)), min_item_age_days=3, max_item_age_days=28)
    people = read_people(graph.folder, told)
    rules = read_rules(graph.folder, told, people, config, AS_OF)
    known = read_known(graph.folder, told, config, AS_OF)
    seen, seen_at = load_csr(graph.folder, "seen_all"), np.load(Path(graph.folder) / "seen_at.npy")
    first_seen = np.load(Path(graph.folder) / "item_first_seen.npy")
    order = sorted(users)
    expected = np.full((41, 60), NONE)
    for person, user in enumerate(order):
        for item, item_id in enumerate(ITEMS):
            born = published.get(item_id, first_seen[item])
            row = users.index(user)
            entry = [] if row == 40 else np.flatnonzero(seen.indices[seen.indptr[row] : seen.indptr[row + 1]] == item)
            met = len(entry) and seen_at[seen.indptr[row] + entry[0]] >= MIDNIGHT_US - config.seen_days * DAY_US
            broken = {
                "seen": met,
                "blocked": (user, item_id) in blocked,
                "unavailable": available.get(item_id) is False,
                "unlisted": available.get(item_id) is None,
                "too_new": MIDNIGHT_US - born < 3 * DAY_US,
                "too_old": MIDNIGHT_US - born > 28 * DAY_US,
                "segment": bool(segments.get(item_id)) and segment.get(user) not in segments[item_id],
            }
            expected[person, item] = next((RULES.index(rule) for rule, bad in broken.items() if bad), NONE)
    everybody, every_item = np.arange(41), np.tile(np.arange(60, dtype=np.int32), (41, 1))
    np.testing.assert_array_equal(rules.forbidding(everybody, every_item), expected)
    np.testing.assert_array_equal(rules.forbidding(everybody[:2], np.full((2, 3), NO_ITEM, np.int32)), NONE)
    left = np.stack([((expected == NONE) | (expected > rule)).sum(axis=1) for rule in range(7)], axis=1)
    np.testing.assert_array_equal(rules.left_after(everybody), left)
    np.testing.assert_array_equal(known.allowed(everybody), expected == NONE)
    np.testing.assert_array_equal(known.num_allowed(), (expected == NONE).sum(axis=1))


@pytest.mark.parametrize("seed", range(4))
def test_lists_under_any_rules_pass_the_gate_and_count_what_was_removed(
    seed: int, world: World, graph: Graph, fitted: Fitted, tables: MakeTables, night: Callable
) -> None:
    """removed_by_rule against lists without any rule, and with `seen` alone, one person and item at a time."""
    rng = np.random.default_rng(seed)
    kinds = {item: [f"k{kind}" for kind in rng.permutation(4)[: rng.integers(0, 3)]] for item in ITEMS}
    available = {item: bool(rng.random() < 0.8) for item in ITEMS[:55]}
    blocked = [(f"u{rng.integers(40):03d}", str(rng.choice(ITEMS))) for _ in range(50)]
    segment = {f"u{number:03d}": str(rng.choice(["a", "b"])) for number in range(0, 40, 2)}
    segments = {item: ["a"] for item in ITEMS[::7]}
    told = tables(
        users=["new", "zoe"],
        blocked=list(set(blocked)),
        segment=segment,
        available=available,
        segments=segments,
        categories=kinds,
    )
    config = {"at_most_per_category": 3, "min_item_age_days": 8, "k": 12}
    finished, rows = night(told, **config)
    people = read_people(graph.folder, told)
    rules = read_rules(graph.folder, told, people, RecommendConfig(**config), AS_OF)  # type: ignore[arg-type]
    without = Sources.of(graph, fitted, RecommendConfig(k=12, popular_half_life_days=0), told, AS_OF)
    nothing = Csr(np.zeros(len(people) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    listed = set(rows.select("user_id", "item_id").rows())
    removed = dict.fromkeys(RULES, 0)
    for met in (nothing, rules.seen):
        free = Everybody(without)
        allowed = free.rules.rule_GI * 0 - 1
        free.rules = replace(free.rules, seen=met, blocked=nothing, excluded=met, rule_GI=allowed)
        would_be = pl.concat([b.rows for b in free.lists(0, len(people), block_bytes=2**26, threads=1)])
        if met is nothing:
            would_be = would_be.filter(pl.col("tier") == pl.col("tier").first().over("user_id"))
        for user, item in would_be.select("user_id", "item_id").rows():
            person = np.array([people.user_ids.to_list().index(user)])
            number = int(rules.forbidding(person, np.array([[ITEMS.index(item)]], dtype=np.int32))[0, 0])
            rule = RULES[number] if number != NONE else "none" if (user, item) in listed else "category"
            if rule != "none" and (rule == "seen") == (met is nothing):
                removed[rule] += 1
    assert finished.removed_by_rule == removed
    assert finished.users_by_tier == dict.fromkeys(TIERS, 0) | dict(
        rows.filter(pl.col("rank") == 1).group_by("tier").len().rows()
    )


def test_the_world_is_what_these_tests_take_it_for(world: World) -> None:
    assert name("u", 38, False) == "u038"
    assert world.seen["timestamp_us"].max() < MIDNIGHT_US
