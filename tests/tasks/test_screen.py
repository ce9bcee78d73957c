"""What a night started by hand shows at its end, and the three people it shows."""

import io
from dataclasses import replace
from datetime import UTC, date, datetime

import polars as pl
import pytest
from rich.console import Console, RenderableType

from tasks.config import NightlyConfig
from tasks.contracts import (
    Evaluation,
    Fitted,
    Graph,
    Inspection,
    Interactions,
    Measured,
    ModelScore,
    Night,
    Published,
    Recommendations,
    StageCost,
    Tables,
    Verdict,
)
from tasks.errors import GateRefused
from tasks.report.markdown import to_markdown
from tasks.report.people import Given, Person, Reason, person_of, three_people
from tasks.report.screen import already_screen, error_panel, night_screen, person_screen, published_screen, show

FOLDER = "file:///a/folder/with/a/rather/long/name/so/that/no/line/of/eighty/columns/can/hold/the/whole/of/it"
PUBLISHED = Published(
    as_of=date(2026, 11, 23),
    version=3,
    attempt="20261123T031205Z-0123abcd",
    run_key="key",
    already=False,
    commit_uri=f"{FOLDER}/_meta/commits/2026-11-23/v00000003.json",
    latest_uri=f"{FOLDER}/_meta/LATEST.json",
    files=tuple(f"{FOLDER}/recs/dt=2026-11-23/run=20261123T031205Z-0123abcd/part-{n:05d}.parquet" for n in range(5)),
    rows=20_000,
    users=1_000,
    is_latest=True,
)
NEXT = [(f'make nightly RATINGS="{FOLDER}/ratings.csv" FORCE=1', "the whole night again")]
MOMENT = datetime(2026, 11, 22, tzinfo=UTC)


def night(*, quarantined: dict[str, int] | None = None, rival_recall: float = 0.2, rows_in: int = 1_000) -> Night:
    """LightGCN's recall is 0.30 (0.25 to 0.35)."""
    events = Interactions("", rows_in, 700, 200, quarantined or {}, 40, 60, MOMENT, MOMENT, set_aside={"older": 50})
    graph = Graph("", "", "global_time", 40, 60, 700, 560, 70, 70, 30, 30, 20)
    fitted = Fitted("", "", "", "", 3, 0.2, 1.0, 1.0, 1, 1, "cpu", "data", 0.01, 0, "", 640)
    scores = [("lightgcn", Measured(0.3, 0.25, 0.35)), ("popularity", Measured(rival_recall, 0.1, 0.5))]
    evaluation = Evaluation(
        "", 20, tuple(ModelScore(model, "test", 40, value, value, 0.5) for model, value in scores), {}, {}, {}
    )
    lists = Recommendations("", (), "", 20, 40, 800, {"graph": 800}, 0, 0, 60)
    costs = (StageCost("ingest", 1.25, 2**20 * 300, False), StageCost("train", 0.1, 0, True))
    return Night(
        PUBLISHED.as_of,
        "key",
        FOLDER,
        NightlyConfig(),
        events,
        graph,
        fitted,
        evaluation,
        lists,
        Verdict(True, ()),
        PUBLISHED,
        costs,
    )


def seen(screen: RenderableType, *, width: int = 80, colours: bool = False) -> str:
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=colours, color_system="standard" if colours else None)
    show(console, screen)
    return written.getvalue()


def person(
    *, liked: str = "A", gets: str = "B", tier: str = "graph", user_id: str = "7", reasons: tuple[Reason, ...] = ()
) -> Person:
    return Person(user_id, 12, [liked], [Given(1, gets, tier, list(reasons))])


# ---- the screen


def test_the_screen_has_the_rows_the_stages_the_metrics_and_the_people() -> None:
    text = seen(night_screen(night(), [person(liked="Tide", gets="Harbour", tier="popular")], NEXT))
    for words in (
        "night of 2026-11-23, version 3, live",
        "1,000  events read",
        "-200  seen, not liked",
        "700  likes of 40 users x 60 items",
        "1.2       300",
        "reused",
        "0.3000 (0.2500-0.3500)",
        "user 7",
        "liked lately (12 likes in all)",
        "Tide",
        "Harbour  (popular)",
    ):
        assert words in text


def with_rules(found: Night) -> Night:
    lists = replace(
        found.recommendations,
        people=42,
        rows_by_tier={"graph": 780, "fold_in": 0, "segment": 0, "popular": 20},
        users_by_tier={"graph": 39, "fold_in": 0, "segment": 0, "popular": 1},
        removed_by_rule={"seen": 420, "blocked": 7, "unavailable": 0},
        short_lists=2,
        short_by_reason={"seen": 1, "category": 1},
    )
    tables = Tables("", "", {"users": 3, "blocked": 9}, {"blocked: unknown user": 5})
    return replace(found, recommendations=lists, tables=tables)


def test_the_screen_says_why_lists_are_short() -> None:
    assert "2  lists are shorter: seen 1, category 1" in seen(night_screen(with_rules(night()), [], NEXT))
    assert "up to 20 for each user" in seen(night_screen(with_rules(night()), [], NEXT))
    assert "shorter" not in seen(night_screen(night(), [], NEXT))
    assert "recommendations, 20 for each user" in seen(night_screen(night(), [], NEXT))


def flat(text: str) -> str:
    return " ".join(text.split())


def test_event_files_that_were_set_aside_are_named_on_the_screen() -> None:
    found = night()
    aside = Inspection(28, {}, {f"events/{n}.parquet": "it is cut off" for n in range(5)})
    text = seen(night_screen(replace(found, interactions=replace(found.interactions, inspection=aside)), [], NEXT))
    assert "5 event files are set aside, and no event of theirs counts: events/0.parquet: it is cut off;" in flat(text)
    assert "and 2 more" in flat(text)
    assert "set aside, and no event" not in seen(night_screen(found, [], NEXT))


def test_the_report_says_what_rules_took_and_where_lists_begin() -> None:
    found = night()
    history = {"with_history": 1, "without_history": 1}
    evaluation = replace(found.evaluation, users_by_history=history)
    text = to_markdown(replace(with_rules(found), evaluation=evaluation))
    for words in (
        "Tables: users 3, blocked 9 rows. Rows left out of them: blocked: unknown user 5.",
        "| popular | 1 | 20 |",
        "| seen | 420 | 50.0% |",
        "| blocked | 7 | 0.8% |",
        "2 lists are shorter than 20, because of: seen 1, category 1.",
    ):
        assert words in text
    assert "unavailable" not in text
    assert "No list is shorter than 20." in to_markdown(replace(found, evaluation=evaluation))


def test_the_report_names_files_that_were_widened_or_set_aside() -> None:
    found = with_rules(night())
    evaluation = replace(found.evaluation, users_by_history={"with_history": 40, "without_history": 0})
    found = replace(found, evaluation=evaluation)
    plain = to_markdown(replace(found, interactions=replace(found.interactions, inspection=Inspection(30))))
    assert "Event files: 30 accepted.\n" in plain
    odd = Inspection(28, {"events/a.parquet": ["user_id Int32 -> Int64"]}, {"events/b.parquet": "it is cut short"})
    text = to_markdown(replace(found, interactions=replace(found.interactions, inspection=odd)))
    assert "Event files: 29 accepted, 1 of them in narrower types, which were widened, 1 set aside." in text
    overridden = replace(found.interactions, odd_days="no event in the files of 2026-11-22 is of that day")
    assert "Overridden: no event in the files of" in to_markdown(replace(found, interactions=overridden))
    assert "- `events/a.parquet`: widened, user_id Int32 -> Int64\n- `events/b.parquet`: set aside, it is cut" in text


@pytest.mark.parametrize(("rival", "words"), [(0.2, "ahead of"), (0.26, "level with"), (0.36, "behind")])
def test_a_rival_beyond_the_interval_is_ahead_or_behind_and_within_it_level(rival: float, words: str) -> None:
    assert f"LightGCN is {words} popularity on test recall." in seen(night_screen(night(rival_recall=rival), [], NEXT))


def test_rows_set_aside_stand_under_their_rule_and_are_never_called_refused() -> None:
    text = seen(night_screen(night(quarantined={"null_user_id": 40, "null_rating": 0}), [], NEXT))
    assert "-40  quarantined: null_user_id" in text
    assert "null_rating" not in text
    assert "refused" not in text
    assert "are quarantined" not in text, "4 % is no reason for a warning"


def test_a_test_of_a_handful_of_people_is_not_called_a_comparison() -> None:
    found = night()
    text = seen(night_screen(replace(found, graph=replace(found.graph, num_test_users=2)), [], NEXT))
    assert "Only 2 users could be tested" in text
    assert "LightGCN is" not in text


def test_many_rows_set_aside_are_a_warning_in_yellow() -> None:
    screen = night_screen(night(quarantined={"null_user_id": 1, "null_rating": 100}), [], NEXT)
    assert "101 of 1,000 events (10%) are quarantined, most by null_rating" in seen(screen)
    assert "\x1b[33m101 of 1,000" in seen(screen, colours=True)


def test_no_uri_and_no_command_breaks_in_the_middle() -> None:
    lines = [line.strip() for line in seen(night_screen(night(), [person()], NEXT)).splitlines()]
    for uri in (PUBLISHED.latest_uri, PUBLISHED.commit_uri, *PUBLISHED.files[:3]):
        assert [line.split()[-1] for line in lines if uri in line] == [uri]
    assert NEXT[0][0] in lines
    assert "and 2 more files" in lines


def test_what_stands_beside_the_lists_is_shown_with_its_place() -> None:
    beside = replace(PUBLISHED, outputs={"similar_items": (f"{FOLDER}/outputs/similar_items/part-00000.parquet",)})
    assert f"  beside  {FOLDER}/outputs/similar_items/part-00000.parquet" in seen(already_screen(beside, NEXT))


def test_everything_else_fits_into_eighty_columns() -> None:
    wide = night(quarantined={"malformed_user_id": 300})
    lines = seen(night_screen(wide, [person(liked="long " * 30, gets="words " * 30)], NEXT)).splitlines()
    assert [line for line in lines if len(line) > 80 and FOLDER not in line] == []


def test_a_title_is_shown_as_it_is_whatever_stands_in_it() -> None:
    people = [person(liked="[bold]x[/] [/nothing]", gets="\x1b[31mred\x07\nline", user_id="[red]u[/]")]
    text = seen(night_screen(night(), people, NEXT), colours=True)
    assert "[bold]x[/] [/nothing]" in text
    assert "user [red]u[/]" in text
    assert " [31mred  line" in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text
    endless = seen(night_screen(night(), [person(gets="endless " * 1_000)], NEXT))
    assert len(endless.splitlines()) < 60


def test_a_folder_with_brackets_in_its_name_is_shown_as_it_is() -> None:
    odd = replace(PUBLISHED, latest_uri="file:///a/[bold]b/_meta/LATEST.json")
    assert odd.latest_uri in seen(already_screen(odd, NEXT))


def test_an_unchanged_night_says_that_nothing_new_was_published_and_where_the_old_is() -> None:
    text = seen(already_screen(replace(PUBLISHED, is_latest=False), NEXT), width=200)
    assert "was published before as version 3" in text
    assert "Nothing new was published; that version is not live: a newer night is, or one that is held." in text
    assert PUBLISHED.latest_uri in text


def test_a_night_that_cannot_be_shown_was_published_all_the_same() -> None:
    text = seen(published_screen(PUBLISHED, "its audit is [gone]", NEXT))
    assert "night of 2026-11-23, version 3, live" in text
    assert "20,000 recommendations for 1,000 users" in text
    assert "its audit is [gone]" in text
    assert PUBLISHED.files[0] in text


def test_a_named_error_shows_its_name_and_words() -> None:
    text = seen(error_panel(GateRefused("recall is [low]")))
    assert "GateRefused" in text
    assert "recall is [low]" in text


def test_an_error_without_a_name_claims_nothing_about_what_was_published() -> None:
    text = " ".join(seen(error_panel(KeyError("oh")), width=200).split())
    assert "Internal" in text
    assert "KeyError: 'oh'" in text
    assert "Nothing was published" not in text
    assert "_meta/LATEST.json in the store says" in text


def test_each_row_of_the_three_people_has_its_tier_and_its_largest_reason() -> None:
    reasons = (Reason("liked", "Tide", 0.412), Reason("liked", "Surf", 0.08))
    text = seen(night_screen(night(), [person(gets="Harbour", reasons=reasons)], NEXT))
    assert "Harbour  (graph)" in text
    assert "because of Tide, 41%" in text
    assert "Surf" not in text


def test_one_persons_screen_has_the_whole_list_with_tiers_and_every_reason() -> None:
    gets = [
        Given(1, "Harbour", "graph", [Reason("liked", "Tide", 0.412), Reason("liked", "Surf", 0.08)]),
        Given(2, "Cliff", "fold_in", [Reason("met", "Rock", 0.25)]),
        Given(3, "Pier", "segment", [Reason("segment", "", 0.034)]),
        Given(4, "Crowd", "popular", [Reason("popular", "", 0.012)]),
        Given(5, "Cave", "graph", []),
    ]
    screen = person_screen(Person("7", 1234, ["Tide", "Surf"], gets), "night of 2026-11-23, version 3")
    text = seen(screen, width=120)
    for words in (
        "user 7  night of 2026-11-23, version 3",
        "Likes, the latest first (1,234 in all)",
        "and 1,232 more",
        "because of Tide, 41%",
        "because of Surf, 8.0%",
        "having met Rock, 25%",
        "of what their segment liked lately, 3.4%",
        "of what everybody liked lately, 1.2%",
    ):
        assert words in text
    tiers = [tier for tier in text.split() if tier in ("graph", "fold_in", "segment", "popular")]
    assert tiers.count("graph") == 2
    assert {"fold_in", "segment", "popular"} <= set(tiers)
    assert max(map(len, seen(screen).splitlines())) <= 80


def test_a_person_without_likes_is_said_to_have_none_and_odd_titles_stay_words() -> None:
    odd = Given(1, "[red]x[/]", "popular", [Reason("liked", "\x1b[31mred", 0.5)])
    text = seen(person_screen(Person("[b]7\n", 0, [], [odd]), "night"), colours=True)
    assert "nothing yet" in text
    assert "[red]x[/]" in text
    assert "user [b]7 " in text
    assert "\x1b[31m" not in text


# ---- the people

LIKES = pl.LazyFrame(
    [(user, item, 100 * item) for user in range(1, 21) for item in range(1, user + 1)],
    schema={"user_id": pl.Int64, "item_id": pl.Int64, "timestamp_us": pl.Int64},
    orient="row",
)
LISTS = pl.LazyFrame(
    [(user, rank, 30 + rank, "graph" if rank < 3 else "popular") for user in range(1, 21) for rank in (1, 2, 3)],
    schema={"user_id": pl.Int64, "rank": pl.Int32, "item_id": pl.Int64, "tier": pl.String},
    orient="row",
)
TITLES = pl.DataFrame({"item_id": [1, 2, 31, 32], "title": ["One", "Two", "Thirty-one", "Thirty-two"]})


def test_three_people_have_few_some_and_many_likes() -> None:
    people = three_people(LIKES, LISTS, TITLES)
    assert [p.num_likes for p in people] == [5, 10, 18]
    assert people == three_people(LIKES, LISTS, TITLES)


def test_titles_stand_where_they_are_known_and_ids_elsewhere_the_latest_likes_first() -> None:
    few = three_people(LIKES, LISTS, TITLES)[0]
    assert few.liked == ["5", "4", "3", "Two", "One"]
    assert [(given.rank, given.title, given.tier) for given in few.gets] == [
        (1, "Thirty-one", "graph"),
        (2, "Thirty-two", "graph"),
        (3, "33", "popular"),
    ]
    assert three_people(LIKES, LISTS, None)[0].liked == ["5", "4", "3", "2", "1"]


def test_titles_with_ids_of_another_width_are_found_and_of_another_kind_are_not() -> None:
    narrow = pl.col("item_id").cast(pl.Int32)
    few = three_people(LIKES.with_columns(narrow), LISTS.with_columns(narrow), TITLES)[0]
    assert few.liked[-1] == "One"
    assert few.gets[0].title == "Thirty-one"
    of_bytes = TITLES.with_columns(pl.col("item_id").cast(pl.Int8))
    assert three_people(LIKES, LISTS, of_bytes)[0].liked[-1] == "One"
    as_text = TITLES.with_columns(pl.col("item_id").cast(pl.String))
    assert three_people(LIKES, LISTS, as_text)[0].liked[-1] == "1"


def test_an_item_liked_twice_is_shown_once_and_counts_once() -> None:
    again = pl.concat([LIKES, LIKES.with_columns(pl.col("timestamp_us") + 1)])
    few = three_people(again, LISTS, TITLES)[0]
    assert few.num_likes == 5
    assert few.liked == ["5", "4", "3", "Two", "One"]


def test_people_who_only_get_what_is_popular_are_not_shown() -> None:
    assert three_people(LIKES, LISTS.with_columns(tier=pl.lit("popular")), TITLES) == []
    one = LISTS.filter(pl.col("user_id") == 4)
    assert [p.user_id for p in three_people(LIKES, one, TITLES)] == ["4"]


def test_reasons_carry_the_titles_of_what_was_liked_and_old_nights_have_none() -> None:
    kind = pl.List(pl.Struct({"kind": pl.String, "item_id": pl.Int64, "share": pl.Float32}))
    why = [
        [{"kind": "liked", "item_id": 2, "share": 0.5}, {"kind": "liked", "item_id": 4, "share": 0.25}],
        [{"kind": "popular", "item_id": None, "share": 0.125}],
        [],
    ]
    own = LISTS.filter(pl.col("user_id") == 5).collect()
    person = person_of(5, LIKES, own.with_columns(reasons=pl.Series(why, dtype=kind)), TITLES)
    assert [given.reasons for given in person.gets] == [
        [Reason("liked", "Two", 0.5), Reason("liked", "4", 0.25)],
        [Reason("popular", "", 0.125)],
        [],
    ]
    assert [given.reasons for given in person_of(5, LIKES, own, TITLES).gets] == [[], [], []]


def test_as_much_is_shown_as_is_asked_for() -> None:
    own = LISTS.filter(pl.col("user_id") == 20).collect()
    person = person_of(20, LIKES, own, None, liked_shown=3, gets_shown=2)
    assert (person.num_likes, person.liked, len(person.gets)) == (20, ["20", "19", "18"], 2)
