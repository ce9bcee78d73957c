"""`make nightly` as a person meets it: the process that make starts, its screen, its code, and what it leaves."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from rich.console import Console

from deploy.stack import Stack, down, members
from flows import by_hand
from flows.by_hand import night_settings, parse, show_night, store_of
from flows.prefect_server import start_server, wait_for
from tasks.contracts import Published
from tasks.errors import PrefectUnreachable, RunConfigError
from tasks.publish.reader import open_latest
from tasks.store import open_store
from tests.flows.conftest import PROJECT_ROOT, QUICK, two_taste_events

QUICKLY = [
    f"{group}.{field}={value}"
    for group, fields in QUICK.model_dump(exclude_unset=True).items()
    for field, value in fields.items()
]


@dataclass(frozen=True)
class Ended:
    code: int
    text: str  # what was on screen, errors too


@dataclass(frozen=True)
class Place:
    """A folder of its own: the nights' var/ lies here, not in the checkout."""

    folder: Path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {
            "PYTHONPATH": str(PROJECT_ROOT),
            "NIGHTGRAPH_WORK": str(self.folder / "work"),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "COLUMNS": "100",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "flows.by_hand", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> Ended:
        with self.start(*arguments) as night:
            text, _ = night.communicate(timeout=120)
        return Ended(night.returncode, text)

    def processes(self) -> list[psutil.Process]:
        """Whatever lives of the nights of this place, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get("NIGHTGRAPH_WORK") == str(self.folder / "work"):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("by hand"))


@pytest.fixture(scope="module")
def town(place: Place) -> Ended:
    return place.run("--set", "train.max_epochs=2", "evaluate.resamples=100")


@pytest.fixture(scope="module")
def ratings(place: Place) -> Path:
    """24 people and 20 films in two files, as GroupLens ships them."""
    folder = place.folder / "ml-tiny"
    folder.mkdir()
    events = two_taste_events().select(
        userId=pl.col("user_id").str.tail(3).cast(pl.Int64) + 1,
        movieId=pl.col("item_id").str.tail(2).cast(pl.Int64) + 1,
        rating="rating",
        timestamp="timestamp",
    )
    events.write_csv(folder / "ratings.csv")
    movies = [(number, f"Film of {1900 + number}, The", "Drama") for number in range(1, 21)]
    pl.DataFrame(movies, schema=["movieId", "title", "genres"], orient="row").write_csv(folder / "movies.csv")
    return folder / "ratings.csv"


@pytest.fixture(scope="module")
def films(place: Place, town: Ended, ratings: Path) -> Ended:
    """After the town's night: Prefect's database is there by now."""
    return place.run("--ratings", "ml-tiny/ratings.csv", "--set", *QUICKLY)


def store_of_films(place: Place) -> Path:
    return next(path for path in (place.folder / "var").iterdir() if path.name.startswith("ml-tiny-ratings-"))


def objects_in(store: Path) -> dict[Path, int]:
    """Each file and when it was written; hidden ones are no objects."""
    files = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: path.stat().st_mtime_ns for path in files}


# ---- whole nights


def test_the_first_night_shows_the_rows_way_the_metrics_three_people_and_where_it_is(place: Place, town: Ended) -> None:
    assert town.code == 0, town.text
    latest = json.loads((place.folder / "var/demo/_meta/LATEST.json").read_text())
    lines = [line.strip() for line in town.text.splitlines()]
    for words in ("a town of 1,000 residents", "52,144  events read", "LightGCN is ahead of popularity", "item-kNN"):
        assert words in town.text
    assert town.text.count("liked lately (") == 3
    assert town.text.count("user resident-") == 3
    titles = pl.read_parquet(place.folder / "var/demo/items/items.parquet")["title"]
    assert town.text.count("(graph)") == 18, "the tier of each row"
    assert town.text.count("because of ") > 12, "a reason, unless nothing that they like speaks for it"
    assert sum(title in town.text for title in titles) > 15, "three people like and get six things each"
    for uri in (f"file://{place.folder}/var/demo/_meta/LATEST.json", *latest["files"]):
        assert [line for line in lines if line.endswith(uri)], uri


def test_a_line_says_that_prefect_is_starting_before_the_night_begins(town: Ended) -> None:
    said = [line for line in town.text.splitlines() if " s  " in line[:12]]
    before = [line for line in said if "starting Prefect" in line]
    assert len(before) == 1
    assert said.index(before[0]) < next(n for n, line in enumerate(said) if "the night of" in line)


def test_a_night_leaves_no_process_and_nothing_in_the_checkout(place: Place, town: Ended) -> None:
    assert gone(place.processes)
    assert sorted(path.name for path in place.folder.iterdir() if path.name != "ml-tiny") == ["prefect", "var", "work"]


def test_films_are_shown_by_their_titles(place: Place, films: Ended) -> None:
    assert films.code == 0, films.text
    assert "ml-tiny/ratings.csv: 240 rows, written into the store" in films.text
    assert films.text.count("Film of 19") >= 30
    live = open_latest(str(store_of_films(place)), verify=True)
    assert live.scan().select("user_id").unique().collect().height == 24


def test_the_same_night_again_publishes_nothing_and_says_so(place: Place, films: Ended) -> None:
    store = store_of_films(place)
    before = objects_in(store)
    again = place.run("--ratings", "ml-tiny/ratings.csv", "--set", *QUICKLY)
    assert again.code == 0, again.text
    assert "was published before as version 1" in again.text
    assert "Nothing new was published" in again.text
    assert "240 rows, in the store already" in again.text
    assert objects_in(store) == before
    assert (
        f"  make nightly RATINGS=\"ml-tiny/ratings.csv\" SET='{' '.join(QUICKLY)}' FORCE=1" in again.text.splitlines()
    )


def test_a_forced_night_is_a_new_version(place: Place, films: Ended) -> None:
    forced = place.run("--ratings", "ml-tiny/ratings.csv", "--force", "--set", *QUICKLY)
    assert forced.code == 0, forced.text
    assert "version 2, live" in forced.text
    assert open_latest(str(store_of_films(place))).manifest.version == 2


def test_a_night_whose_audit_is_gone_is_shown_as_published_all_the_same(place: Place, films: Ended) -> None:
    store = open_store(str(store_of_films(place)))
    latest = open_latest(store.uri)
    published = Published(
        as_of=latest.manifest.as_of,
        version=latest.manifest.version,
        attempt="of another night",
        run_key="",
        already=False,
        commit_uri="file:///commit",
        latest_uri="file:///latest",
        files=tuple(latest.files),
        rows=120,
        users=24,
        is_latest=True,
    )
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        show_night(published, store, 4.0, console, [("make up", "the dashboard")])
        text = " ".join(console.export_text().split())
    assert "120 recommendations for 24 users" in text
    assert "cannot be shown: the audit" in text
    assert latest.files[0] in text


# ---- interrupted


@contextmanager
def endless_night(place: Place) -> Iterator["subprocess.Popen[str]"]:
    """A night that trains on two ranks and will not end by itself; none is left behind."""
    endless = ["train.max_epochs=1000", "train.patience=100", "train.validate_every=100", "train.ranks=2"]
    arguments = ["--ratings", "ml-tiny/ratings.csv", "--force", "--set", *QUICKLY, *endless]
    night = place.start(*arguments)
    try:
        eventually(lambda: len([process for process in place.processes() if is_rank(process)]) == 2, within_s=60)
        yield night
    finally:
        for process in place.processes():
            with suppress(psutil.Error):
                process.kill()
        night.communicate()


def is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[-1:] != [] and words[-1].endswith("spec.json") and "models.distributed" not in words
    return False


def test_ctrl_c_ends_a_night_within_seconds_with_all_its_processes(place: Place, films: Ended) -> None:
    live = (store_of_films(place) / "_meta/LATEST.json").read_bytes()
    with endless_night(place) as night:
        os.killpg(night.pid, signal.SIGINT)  # as a terminal does: everybody in the foreground gets it
        text, _ = night.communicate(timeout=10)
        assert night.returncode == 130, text
        assert "interrupted; nothing is half published" in text
        assert gone(place.processes)
    assert "Traceback" not in text
    assert (store_of_films(place) / "_meta/LATEST.json").read_bytes() == live


def test_a_killed_night_takes_prefect_s_server_and_its_ranks_with_it(place: Place, films: Ended) -> None:
    with endless_night(place) as night:
        assert len(place.processes()) >= 5, "the night, Prefect's server, torchrun, two ranks"
        night.kill()
        assert gone(place.processes), place.processes()


# ---- what cannot be


def test_a_bad_setting_ends_before_anything_is_started(tmp_path: Path) -> None:
    ended = Place(tmp_path).run("--set", "train.width=1")
    assert ended.code == 1
    assert "RunConfigError" in ended.text
    assert "train.width is '1': input should be greater than or equal to 8" in ended.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "nonsense"], r"no setting nonsense.*GROUP\.FIELD=VALUE.*ingest: prefixes, .*; graph: split, "),
        (["--set", "train.widht=8"], r"no setting train\.widht.*train: ranks, nodes, rdzv_endpoint, split"),
        (["--set", "trian.width=8"], r"no setting trian\.width.*groups and fields are ingest: "),
        (["--set", "train.width"], r"train\.width has no value.*train\.width=VALUE"),
        (["--set", "train.width=wide"], r"^train\.width is 'wide': input should be a valid integer"),
        (
            ["--set", "ingest.columns=userid:member"],
            r"^ingest\.columns has no 'userid'; it has user_id, item_id, rating",
        ),
        (["--set", "ingest.weight_half_life_days=3"], r"^ingest\.weight_half_life_days needs ingest\.event_weights"),
        (["--k", "abc"], r"K=abc is no whole number.*K=20"),
        (["--ranks", "two"], r"RANKS=two is no whole number.*RANKS=2"),
        (["--as-of", "yesterday"], r"AS_OF=yesterday is no date.*AS_OF=2026-11-23"),
        (["--as-of", "2026-02-30"], r"AS_OF=2026-02-30 is no date"),
        (["--ranks", "0"], r"train\.ranks is 0: .*greater than or equal to 1"),
        (["--set", "gate.override=popularity"], r"gate\.override needs gate\.override_reason"),
    ],
)
def test_what_no_night_can_run_with_is_named_with_what_to_write_instead(arguments: list[str], words: str) -> None:
    with pytest.raises(RunConfigError, match=f"(?s){words}") as refusal:
        night_settings(parse(arguments))
    assert "Nothing was started" in str(refusal.value)


def test_the_command_that_is_shown_says_the_same_when_it_is_typed() -> None:
    """Through make: the shell takes the outer marks off, then make's own shell the inner ones."""
    settings = ["gate.override=popularity", "gate.override_reason=Anna, tried it", "train.width=16"]
    command, _ = by_hand._next_steps(parse(["--set", *settings]))[0]
    (typed,) = (word for word in shlex.split(command) if word.startswith("SET="))
    assert shlex.split(typed.removeprefix("SET=")) == settings


def test_a_mistyped_folder_does_not_come_into_being(place: Place, tmp_path: Path) -> None:
    ended = place.run("--store", str(tmp_path / "no" / "such"))
    assert ended.code == 1
    assert "is no folder. Nothing was started or written" in " ".join(ended.text.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_prefect_server_that_cannot_start_has_a_name(tmp_path: Path) -> None:
    """A damaged database of Prefect's own."""
    elsewhere = Place(tmp_path)
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"no database" * 1000)
    ended = elsewhere.run()
    assert ended.code == 1
    assert "ServerNotStarted" in ended.text
    assert "Nothing was started or published" in " ".join(ended.text.replace("│", " ").split())


def test_settings_arrive_as_what_they_are() -> None:
    arguments = ["--k", "7", "--ranks", "2", "--as-of", "2026-11-23"]
    arguments += [
        "--set",
        "ingest.like_threshold=none",
        "graph.test_share=0.2",
        "gate.override=none",
        "train.width=128",
    ]
    config, as_of = night_settings(parse([*arguments, "gate.override_reason=42"]))
    assert (config.recommend.k, config.evaluate.k, config.train.ranks, as_of) == (7, 20, 2, date(2026, 11, 23))
    assert (config.ingest.like_threshold, config.graph.test_share, config.train.width) == (None, 0.2, 128)
    assert (config.gate.override, config.gate.override_reason) == ((), "42")


def test_each_content_of_a_ratings_file_has_a_store_of_its_own(tmp_path: Path) -> None:
    def store(name: str) -> str:
        return store_of(parse(["--ratings", str(tmp_path / name)]))

    (tmp_path / "my ratings.csv").write_text("one")
    first = store("my ratings.csv")
    assert first.startswith(f"var/{tmp_path.name}-my-ratings-")
    assert store("my ratings.csv") == first
    (tmp_path / "my ratings.csv").write_text("two")
    assert store("my ratings.csv") != first
    assert store_of(parse([])) == "var/demo"
    assert store_of(parse(["--ratings", "nowhere.csv", "--store", "s3://bucket/p"])) == "s3://bucket/p"


def test_ratings_for_a_store_with_other_events_end_before_anything_is_written(place: Place, ratings: Path) -> None:
    other = place.folder / "other" / "events" / "day.parquet"
    other.parent.mkdir(parents=True)
    two_taste_events().write_parquet(other)
    ended = place.run("--ratings", str(ratings), "--store", "other")
    assert ended.code == 1
    assert "RunConfigError" in ended.text
    assert "holds 1 other Parquet file" in " ".join(ended.text.replace("│", " ").split())
    assert [path for path in (place.folder / "other").rglob("*") if path.is_file()] == [other]
    assert "starting Prefect" not in ended.text


def test_a_prefect_server_that_is_named_is_used_instead_of_one_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert start_server() is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://somebody:secret@127.0.0.1:9/api", "nonsense"])
def test_a_prefect_server_that_is_named_and_does_not_answer_has_a_name(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(PrefectUnreachable, match=r"nothing answers there.*Nothing was started.*unset it") as told:
        wait_for(start_server())
    assert "secret" not in str(told.value)


def test_a_server_that_refuses_us_is_there(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server + "/no/such/place")
    wait_for(start_server())


def test_make_down_says_where_the_recommendations_stay(tmp_path: Path) -> None:
    """`down` is not told the store; the last `up` left it."""
    stack = Stack(tmp_path / "up", port=4200, store="the demo's", work=tmp_path / "work")
    stack.state.mkdir()
    (stack.state / "store").write_text("s3://bucket/prefix")
    of_the_stack = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=stack.environment())
    with of_the_stack:
        eventually(lambda: members(stack), within_s=10)
        said = down(stack)
    assert said.startswith("down. events and published recommendations stay in s3://bucket/prefix, the runs' history")
    assert str(stack.state) in said


# ---- how the tests wait


def eventually(is_so: Callable[[], Any], *, within_s: float) -> None:
    give_up_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < give_up_at, f"still not so after {within_s:.0f} s"
        time.sleep(0.2)


def gone(processes: Callable[[], list[psutil.Process]]) -> bool:
    """Within a few seconds: whoever was ended needs a moment."""
    eventually(lambda: not processes(), within_s=10)
    return True
