"""Where events come from: folders, days, columns and kinds; whether a day is there, and whether it looks like one."""

import hashlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from flows.by_hand import night_settings, parse
from tasks.config import IngestConfig, NightlyConfig, TrainConfig
from tasks.contracts import Run
from tasks.errors import DeviceUnavailable, InputIncomplete, InputMissing, RunConfigError, SchemaDrift, VolumeAnomaly
from tasks.ingest.inspection import inspect_files
from tasks.ingest.opening import plan_run, read_pinned, scan_likes, traces_of
from tasks.ingest.planner import Machine
from tasks.ingest.readiness import Clock
from tasks.ingest.rules import settings_of_rules
from tasks.ingest.scan import scan_file
from tasks.ingest.sources import day_of, night_after, pin_inputs, within_window
from tasks.store import open_store

NIGHT = date(2026, 11, 23)
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
NOON_S = int(MIDNIGHT.timestamp()) - 43_200
EVENTS: dict[str, list[Any]] = {
    "user_id": ["ada", "ada", "ben", "ben", "cleo"],
    "item_id": ["tea", "rye", "tea", "jam", "rye"],
    "rating": [5.0, 4.0, 4.0, 2.0, 5.0],
    "timestamp": [NOON_S + second for second in range(5)],
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(str(tmp_path / "store"))


def path_of(store: Any, key: str) -> Path:
    return Path(store.uri.removeprefix("file://")) / key


def put(store: Any, key: str, columns: dict[str, Any] = EVENTS, *, written_at: datetime = MIDNIGHT) -> None:
    path = path_of(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)
    os.utime(path, (written_at.timestamp(), written_at.timestamp()))


def put_days(store: Any, rows: dict[date, int], folder: str = "events") -> None:
    for on, count in rows.items():
        noon_s = int(datetime(on.year, on.month, on.day, 12, tzinfo=UTC).timestamp())
        columns = {
            "user_id": [f"user-{number % 7}" for number in range(count)],
            "item_id": [f"item-{number % 11}" for number in range(count)],
            "rating": [4.0] * count,
            "timestamp": [noon_s + number for number in range(count)],
        }
        types = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
        put(store, f"{folder}/dt={on}/a.parquet", pl.DataFrame(columns, schema=types).to_dict(as_series=True))


def days_before(night: date, count: int) -> list[date]:
    return [night - timedelta(days=back) for back in range(count, 0, -1)]


class Watch:
    """A clock that moves while somebody sleeps, and lets things happen meanwhile."""

    def __init__(self, at: datetime = MIDNIGHT) -> None:
        self.at = at
        self.slept_s: list[float] = []
        self.happens: Iterator[Any] = iter(())

    def clock(self) -> Clock:
        return Clock(read=lambda: self.at, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.at += timedelta(seconds=seconds)
        next(self.happens, None)


def plan(
    store: Any,
    work: Path,
    watch: Watch | None = None,
    *,
    as_of: date | None = None,
    train: TrainConfig | None = None,
    **ingest: Any,
) -> Run:
    return plan_run(
        store,
        NightlyConfig(ingest=IngestConfig(**ingest), train=train or TrainConfig()),
        as_of=as_of,
        scheduled_on=None,
        work_root=str(work),
        code_version="1",
        force=False,
        machine=Machine(1 << 40, 1 << 40, threads=2),
        clock=(watch or Watch()).clock(),
    )


def scan(store: Any, **ingest: Any) -> pl.DataFrame:
    settings = IngestConfig(**ingest)
    schema = inspect_files(store, pin_inputs(store, settings), settings)
    columns = ("user_id", "item_id", "timestamp_us", "kind", "rule")
    return pl.concat([scan_file(file, schema, settings).select(columns) for file in schema.files]).collect()


# ---- folders and days


def test_events_of_several_prefixes_are_one_night_and_other_folders_are_none_of_it(store: Any) -> None:
    put(store, "shop/clicks/a.parquet")
    put(store, "app/dt=2026-11-22/b.parquet")
    put(store, "events/c.parquet")
    put(store, "app/_tmp/d.parquet")
    found = pin_inputs(store, IngestConfig(prefixes=("shop/clicks", "app/")))
    assert [one.key for one in found] == ["app/dt=2026-11-22/b.parquet", "shop/clicks/a.parquet"]


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        (["items/"], "holds something else"),
        (["_meta/"], "pattern"),
        (["../other"], "pattern"),
        (["events/", "events/web/"], "read twice"),
        (["events", "events/"], "read twice"),
        ([], "at least 1"),
    ],
)
def test_a_prefix_that_is_no_folder_of_events_is_refused(prefixes: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IngestConfig(prefixes=prefixes)  # type: ignore[arg-type]


def test_without_files_the_error_says_where_was_looked(store: Any) -> None:
    with pytest.raises(InputMissing, match=r"shop/ or .*app/.*ingest\.prefixes.*ingest\.columns"):
        pin_inputs(store, IngestConfig(prefixes=("shop", "app")))


@pytest.mark.parametrize(
    ("key", "on"),
    [
        ("events/dt=2026-11-21/a.parquet", date(2026, 11, 21)),
        ("events/region=eu/date=2026-11-21/hour=07/a.parquet", date(2026, 11, 21)),
        ("events/day=2026-11-21/a.parquet", date(2026, 11, 21)),
        ("events/dt=2026-02-30/a.parquet", None),
        ("events/dt=2026-11/a.parquet", None),
        ("events/dt=2026-11-21.parquet", None),
        ("events/a.parquet", None),
    ],
)
def test_a_day_is_read_from_a_folder_anywhere_in_the_key(key: str, on: date | None) -> None:
    assert day_of(key) == on


def test_the_night_is_the_day_after_the_last_day_in_the_keys_without_reading_a_row(store: Any, tmp_path: Path) -> None:
    put(store, "events/dt=2026-11-21/a.parquet")
    put(store, "events/dt=2026-11-20/b.parquet")
    put(store, "events/dt=2999-01-01/c.parquet")  # a day that its own file cannot know yet
    assert night_after(pin_inputs(store, IngestConfig())) == date(2026, 11, 22)
    path_of(store, "events/dt=2999-01-01/c.parquet").unlink()
    assert plan(store, tmp_path).as_of == date(2026, 11, 22)
    put(store, "events/flat.parquet")
    assert plan(store, tmp_path).as_of == NIGHT, "with a file of no day, after the last event"


def test_a_window_reads_its_days_and_one_on_either_side(store: Any, tmp_path: Path) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT + timedelta(days=2), 9), 20))
    run = plan(store, tmp_path, as_of=NIGHT, window_days=3)
    read = [day_of(one.key) for one in read_pinned(run.inputs_path)]
    assert read == [date(2026, 11, day) for day in (19, 20, 21, 22, 23)]
    put(store, "events/flat.parquet")
    keys = [one.key for one in within_window(pin_inputs(store, IngestConfig()), NIGHT, IngestConfig(window_days=1))]
    assert "events/flat.parquet" in keys


def test_a_window_without_a_day_says_so(store: Any, tmp_path: Path) -> None:
    put_days(store, {date(2026, 10, 1): 5})
    with pytest.raises(InputMissing, match=r"last 3 days before 2026-11-23.*ingest\.window_days"):
        plan(store, tmp_path, as_of=NIGHT, window_days=3)


# ---- columns and kinds


def test_a_teams_own_table_is_read_by_its_own_names_also_where_one_is_ours_for_something_else(store: Any) -> None:
    put(store, "events/ours.parquet")
    other = {"item_id": EVENTS["user_id"], "user_id": EVENTS["item_id"], "rating": ["fine"] * 5}
    theirs = {**other, "stars": EVENTS["rating"], "timestamp": [None] * 5, "at": EVENTS["timestamp"]}
    put(store, "theirs/a.parquet", theirs)
    names = {"user_id": "item_id", "item_id": "user_id", "rating": "stars", "timestamp": "at"}
    assert scan(store, prefixes=("theirs",), columns=names).equals(scan(store))


def test_a_mapped_column_that_is_missing_is_named_as_it_should_be_called(store: Any) -> None:
    put(store, "events/a.parquet")
    with pytest.raises(SchemaDrift, match=r"column 'member': found no such column.*ingest\.columns"):
        scan(store, columns={"user_id": "member"})
    with pytest.raises(ValidationError, match="named for two things"):
        IngestConfig(columns={"user_id": "item_id"})  # type: ignore[arg-type]


def test_event_types_become_kinds_and_one_without_a_weight_breaks_a_rule(store: Any) -> None:
    columns = {name: values for name, values in EVENTS.items() if name != "rating"}
    put(store, "events/a.parquet", {**columns, "event_type": ["view", "purchase", "like", "wink", None]})
    found = scan(store, event_weights={"view": 0.1, "purchase": 1.0, "like": 0.5}, like_threshold=1)
    assert found["kind"].to_list() == [2, 1, 0, None, None], "places in like, purchase, view"
    assert found["rule"].to_list() == [None, None, None, "unknown_event_type", "unknown_event_type"]


def test_ratings_make_two_kinds_and_implicit_events_one(store: Any) -> None:
    put(store, "events/a.parquet")
    assert scan(store)["kind"].to_list() == [1, 1, 1, 0, 1]
    assert scan(store, like_threshold=None)["kind"].to_list() == [1] * 5


def test_weights_and_window_are_applied_after_digesting_and_everything_else_is_not() -> None:
    weights = {"view": 0.1, "buy": 1.0}
    plain = settings_of_rules(IngestConfig(event_weights=weights, like_threshold=1))
    later = IngestConfig(
        event_weights={"view": 9.0, "buy": 3.0}, weight_half_life_days=7, window_days=3, like_threshold=2.0
    )
    assert settings_of_rules(later) == plain
    for other in ({"columns": {"user_id": "u"}}, {"event_weights": {"view": 1.0}}, {"bot_events_per_day": 9}):
        assert settings_of_rules(IngestConfig(**{"event_weights": weights, "like_threshold": 1, **other})) != plain
    assert settings_of_rules(IngestConfig(like_threshold=3.0)) != settings_of_rules(IngestConfig())


@pytest.mark.parametrize(
    "typed",
    [
        ["ingest.event_weights=view:0.1,purchase:1"],
        ["ingest.event_weights={view:0.1,purchase:1}"],  # JSON after a shell has taken its quotes
        ['ingest.event_weights={"view": 0.1, "purchase": 1}'],
    ],
)
def test_weights_names_and_folders_can_be_typed_on_the_command_line(typed: list[str]) -> None:
    more = ["ingest.prefixes=web/,app/", "ingest.columns=user_id:member,timestamp:at", "ingest.like_threshold=1"]
    config, _ = night_settings(parse(["--set", *typed, *more]))
    assert config.ingest.event_weights == {"view": 0.1, "purchase": 1.0}
    assert config.ingest.prefixes == ("web/", "app/")
    assert (config.ingest.columns.user_id, config.ingest.columns.timestamp) == ("member", "at")
    assert config.ingest.columns.item_id == "item_id"
    assert NightlyConfig.model_validate_json(config.model_dump_json()) == config


def test_a_half_life_without_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs ingest\.event_weights"):
        IngestConfig(weight_half_life_days=7)


def test_weights_without_a_threshold_of_their_own_are_refused_for_the_default_is_one_of_ratings() -> None:
    with pytest.raises(ValidationError, match=r"default of 4 is meant for ratings.*heaviest event here weighs 1\)"):
        IngestConfig(event_weights={"view": 0.1, "purchase": 1.0})
    assert IngestConfig(event_weights={"buy": 9.0}, like_threshold=4.0).like_threshold == 4.0
    whole = IngestConfig(event_weights={"buy": 1.0}, like_threshold=None)
    assert IngestConfig.model_validate(whole.model_dump(mode="json")) == whole, "what a manifest says is settings again"


def test_likes_and_traces_of_a_person_are_read_through_the_mapping(store: Any) -> None:
    columns = {"member": EVENTS["user_id"], "sku": EVENTS["item_id"], "at": EVENTS["timestamp"]}
    put(store, "web/a.parquet", {**columns, "what": ["view", "buy", "buy", "view", "buy"]})
    put(store, "app/a.parquet", {**columns, "what": ["look", "buy", "buy", "view", "view"]})
    names = {"user_id": "member", "item_id": "sku", "timestamp": "at", "event_type": "what"}
    settings = IngestConfig(
        prefixes=("web", "app"), columns=names, event_weights={"view": 0.0, "buy": 1.0}, like_threshold=1
    )  # type: ignore[arg-type]
    liked = scan_likes(store, settings).collect()
    assert sorted(liked.select("user_id", "item_id").rows()) == [
        ("ada", "rye"),
        ("ada", "rye"),
        ("ben", "tea"),
        ("ben", "tea"),
        ("cleo", "rye"),
    ]
    traces = traces_of(store, "ada", NIGHT, settings)
    assert (traces.before, traces.likes, traces.later, traces.quarantined) == (3, 2, 0, 1)


# ---- readiness


def test_a_day_without_a_sign_is_waited_for_less_and_less_often_and_used_when_it_comes(
    store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 3), 20))
    watch = Watch()

    def later() -> Iterator[None]:
        yield
        yield
        store.put_once("events/dt=2026-11-22/_SUCCESS", b"")
        yield

    watch.happens = later()
    caplog.set_level(logging.INFO, "nightgraph")
    run = plan(store, tmp_path, watch, as_of=NIGHT, ready="success", wait_minutes=60)
    assert run.num_files == 3
    assert watch.slept_s == [15.0, 30.0, 60.0]
    assert "waiting: 1 files of" in caplog.text
    assert "no _SUCCESS or manifest is beside them; asking again in 15 s, until 01:00 UTC" in caplog.text


def test_a_day_that_does_not_come_ends_the_night_at_the_cut_off_and_says_what_is_there(
    store: Any, tmp_path: Path
) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 3), 20))
    watch = Watch()
    with pytest.raises(InputIncomplete, match=r"1 files .*events/ of 2026-11-22.*10 minutes of waiting are over"):
        plan(store, tmp_path, watch, as_of=NIGHT, ready="success", wait_minutes=10)
    assert sum(watch.slept_s) == 600
    with pytest.raises(InputIncomplete, match=r"there is no file under events/ of 2026-11-23"):
        plan(store, tmp_path, as_of=NIGHT + timedelta(days=1), ready="quiet")


def test_a_sign_above_folders_of_the_day_counts_and_that_of_another_day_does_not(store: Any, tmp_path: Path) -> None:
    for part in ("a", "b"):
        put(store, f"events/dt=2026-11-22/hour={part}/x.parquet")
    store.put_once("events/dt=2026-11-21/_SUCCESS", b"")
    with pytest.raises(InputIncomplete, match="no _SUCCESS"):
        plan(store, tmp_path, as_of=NIGHT, ready="success")
    store.put_once("events/dt=2026-11-22/manifest.json", b"{}")
    assert plan(store, tmp_path, as_of=NIGHT, ready="success").num_files == 2


def test_a_quiet_day_is_ready_once_nothing_came_for_so_long(store: Any, tmp_path: Path) -> None:
    put(store, "events/dt=2026-11-22/a.parquet", written_at=MIDNIGHT - timedelta(minutes=4))
    with pytest.raises(InputIncomplete, match="the last since 23:56 UTC, less than 15 minutes ago"):
        plan(store, tmp_path, as_of=NIGHT, ready="quiet")
    watch = Watch()
    assert plan(store, tmp_path, watch, as_of=NIGHT, ready="quiet", wait_minutes=30).num_files == 1
    assert watch.at >= MIDNIGHT + timedelta(minutes=11)


def test_every_prefix_has_to_be_ready(store: Any, tmp_path: Path) -> None:
    for prefix in ("web", "app"):
        put(store, f"{prefix}/dt=2026-11-22/a.parquet")
    store.put_once("web/dt=2026-11-22/_SUCCESS", b"")
    with pytest.raises(InputIncomplete, match="under app/ of 2026-11-22"):
        plan(store, tmp_path, as_of=NIGHT, ready="success", prefixes=("web", "app"))


# ---- volume


@pytest.mark.parametrize(("rows", "change"), [(29, "-71%"), (301, "+201%")])
def test_a_newest_day_far_from_the_median_stops_the_night_and_an_override_is_recorded(
    rows: int, change: str, store: Any, tmp_path: Path
) -> None:
    put_days(store, {**dict.fromkeys(days_before(NIGHT, 12), 100), date(2026, 11, 22): rows})
    found = rf"2026-11-22 has {rows} rows, \{change} against the median of the 11 days before it, 100"
    with pytest.raises(VolumeAnomaly, match=rf"{found}.*ingest\.volume_override=accept"):
        plan(store, tmp_path)
    run = plan(store, tmp_path, volume_override="accept", volume_override_reason="Anna: the sale")
    assert change in run.odd_volume
    with pytest.raises(ValidationError, match="who overrides, and why"):
        IngestConfig(volume_override="accept")


@pytest.mark.parametrize("rows", [30, 300])
def test_a_newest_day_within_the_bounds_is_a_day(rows: int, store: Any, tmp_path: Path) -> None:
    put_days(store, {**dict.fromkeys(days_before(NIGHT, 12), 100), date(2026, 11, 22): rows})
    assert plan(store, tmp_path).odd_volume == ""


def test_days_from_the_nights_own_date_on_are_measured_by_nobody(store: Any, tmp_path: Path) -> None:
    put_days(store, {**dict.fromkeys(days_before(NIGHT, 12), 100), NIGHT: 1, NIGHT + timedelta(days=2): 9_000})
    assert plan(store, tmp_path, as_of=NIGHT).odd_volume == ""


def test_fewer_than_seven_days_are_no_measure_and_flat_files_are_none(store: Any, tmp_path: Path) -> None:
    put_days(store, {**dict.fromkeys(days_before(NIGHT, 7), 100), date(2026, 11, 22): 1})
    assert plan(store, tmp_path).odd_volume == ""
    put_days(store, {date(2026, 11, 15): 100})
    with pytest.raises(VolumeAnomaly, match="median of the 7 days"):
        plan(store, tmp_path)


def test_the_median_is_of_a_fortnight_and_not_of_the_time_before(store: Any, tmp_path: Path) -> None:
    """Twenty large days, then fourteen small ones: a small day is usual by now, a large one is not."""
    days = days_before(NIGHT, 35)
    put_days(store, {**dict.fromkeys(days[:20], 90), **dict.fromkeys(days[20:], 20)})
    assert plan(store, tmp_path).odd_volume == ""
    put_days(store, {days[-1]: 90})
    with pytest.raises(VolumeAnomaly, match=r"\+350% against the median of the 14 days before it, 20 "):
        plan(store, tmp_path)


@pytest.mark.parametrize("empty", ["no file", "no rows in its files"])
def test_an_empty_day_in_the_middle_stops_the_night(empty: str, store: Any, tmp_path: Path) -> None:
    days = dict.fromkeys(days_before(NIGHT, 5), 20)
    hole = date(2026, 11, 20)
    if empty == "no file":
        del days[hole]
    else:
        days[hole] = 0
    put_days(store, days)
    with pytest.raises(VolumeAnomaly, match=f"2026-11-20 has {empty}"):
        plan(store, tmp_path)


def test_a_hole_before_the_window_is_nobodys(store: Any, tmp_path: Path) -> None:
    put_days(store, {date(2026, 9, 1): 20, **dict.fromkeys(days_before(NIGHT, 5), 20)})
    assert plan(store, tmp_path, window_days=3).num_files == 4


def test_a_last_day_that_was_not_delivered_stops_the_night_that_is_run_for_it(store: Any, tmp_path: Path) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 5), 20))
    late = NIGHT + timedelta(days=2)
    told = r"2026-11-24, the last day before the night, has no file; the newest day with a file is 2026-11-22 \(2 of 7"
    with pytest.raises(VolumeAnomaly, match=told):
        plan(store, tmp_path, as_of=late)
    run = plan(store, tmp_path, as_of=late, volume_override="accept", volume_override_reason="Anna: closed for Sunday")
    assert "2 of 7 days are empty" in run.odd_volume
    assert plan(store, tmp_path).odd_volume == "", "without a date the night is the one after the last day"
    put(store, "events/flat.parquet")  # it may hold the last days
    assert plan(store, tmp_path, as_of=late).odd_volume == ""


@pytest.mark.parametrize(("day", "words"), [(22, "the last day before the night"), (20, "a hole that a model")])
def test_a_day_whose_every_file_is_set_aside_is_empty_and_the_file_is_named(
    day: int, words: str, store: Any, tmp_path: Path
) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 12), 20))
    key = f"events/dt=2026-11-{day}/a.parquet"
    path_of(store, key).write_bytes(path_of(store, key).read_bytes()[:-9])
    with pytest.raises(VolumeAnomaly, match=words) as told:
        plan(store, tmp_path, max_bad_files=1)
    assert f"no rows in its files (set aside, for it cannot be read: {key})" in str(told.value)
    run = plan(store, tmp_path, max_bad_files=1, volume_override="accept", volume_override_reason="Anna: known")
    assert key in run.odd_volume


# ---- what checksums name


def sums_of(store: Any, *keys: str) -> bytes:
    """As sha256sum prints them, from the folder of the first key."""
    folder = keys[0].rpartition("/")[0] + "/"
    lines = []
    for key in keys:
        path = path_of(store, key)
        digest = hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        lines.append(f"{digest}  {key.removeprefix(folder)}\n")
    return "".join(lines).encode()


def test_an_event_file_that_checksums_name_and_that_is_not_there_makes_its_day_incomplete(
    store: Any, tmp_path: Path
) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 3), 20))
    day = "events/dt=2026-11-22"
    named = sums_of(store, f"{day}/a.parquet", f"{day}/b.parquet", f"{day}/notes.txt")
    store.put_once(f"{day}/_SHA256SUMS", named)
    words = rf"{day}/b\.parquet is not there, and {day}/_SHA256SUMS names it, .*correct _SHA256SUMS"
    with pytest.raises(InputIncomplete, match=words):
        plan(store, tmp_path, as_of=NIGHT)
    watch = Watch()

    def later() -> Iterator[None]:
        yield
        put(store, f"{day}/b.parquet")
        yield

    watch.happens = later()
    assert plan(store, tmp_path, watch, as_of=NIGHT, wait_minutes=30).num_files == 4
    assert watch.slept_s == [15.0, 30.0], "it is waited for like a day that is late"


def test_checksums_of_days_that_the_night_does_not_read_may_name_what_is_gone(store: Any, tmp_path: Path) -> None:
    put_days(store, dict.fromkeys(days_before(NIGHT, 5), 20))
    gone = "events/dt=2026-10-01/a.parquet"
    line = sums_of(store, "events/dt=2026-11-22/a.parquet").decode().split()[0]
    store.put_once("events/_SHA256SUMS", f"{line}  dt=2026-11-22/a.parquet\n{line}  dt=2026-10-01/a.parquet\n".encode())
    assert plan(store, tmp_path, as_of=NIGHT, window_days=3).num_files == 4
    with pytest.raises(InputIncomplete, match=gone):
        plan(store, tmp_path, as_of=NIGHT)
    put_days(store, {date(2026, 10, 2): 5})
    store.put_once("events/dt=2026-10-02/_SHA256SUMS", b"no checksums")
    assert plan(store, tmp_path, as_of=NIGHT, window_days=3).num_files == 4, "nor is an old manifest opened"


# ---- what else is known before a byte is read


def test_what_cannot_be_trained_here_ends_the_night_before_it_looks_at_anything(store: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="this machine has 0 usable GPUs"):  # there is no event either
        plan(store, tmp_path, train=TrainConfig(device="cuda"))
    far = TrainConfig(nodes=2, ranks=1, rdzv_endpoint="elsewhere:29400")
    with pytest.raises(RunConfigError, match=r"rdzv_endpoint is not among the places"):
        plan(store, tmp_path, train=far)
