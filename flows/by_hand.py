"""A night started by hand: bring the events in, run the night, show what came of it. `make nightly` calls this."""

import argparse
import logging
import os
import re
import shlex
import signal
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import psutil
from rich.console import Console

from flows.prefect_server import start_server, wait_for

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from tasks.config import IngestConfig, NightlyConfig
    from tasks.contracts import Published
    from tasks.report.people import Person
    from tasks.store import Store

# Whatever takes long to import is imported where it is needed: Prefect's server is starting meanwhile.
PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEMO_STORE = "var/demo"
LONGEST_SHOWN = 60  # characters of a setting's value in a message

log = logging.getLogger("nightgraph.events")


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, _leave_at_once)
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    try:
        _run(parse(arguments), console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def _run(options: argparse.Namespace, console: Console) -> None:
    from tasks.ingest.movielens import ensure_alone
    from tasks.report.screen import already_screen, show
    from tasks.store import open_store

    config, as_of = night_settings(options)
    store_uri = store_of(options)
    if options.store and not options.ratings:
        ensure_there(options.store)
    store = open_store(store_uri)
    if options.ratings:
        ensure_alone(Path(options.ratings), store, config.ingest)
    settle_environment(store_uri)
    server = start_server()  # it takes seconds, and the events come in meanwhile
    bring_events(options, store, config.ingest)
    log.info("starting Prefect, which takes some seconds, the first time more")
    wait_for(server)
    # Imported here: Prefect reads its settings once, when it is imported.
    from flows.nightly import nightly

    published = nightly(config, as_of=as_of, force=options.force)
    if published.already:
        show(console, already_screen(published, _next_steps(options)))
    else:
        show_night(published, store, config.ingest, console, _next_steps(options))


def show_night(
    published: "Published",
    store: "Store",
    settings: "IngestConfig",
    console: Console,
    next_steps: list[tuple[str, str]],
) -> None:
    """It is published: from here on, what cannot be read is missing on the screen and no fault of the night."""
    import polars as pl

    from tasks.ingest.movielens import read_titles
    from tasks.ingest.opening import scan_likes
    from tasks.report.audit import read_night
    from tasks.report.people import three_people
    from tasks.report.screen import night_screen, published_screen, show

    part = "the audit"
    try:
        night = read_night(store, published)
        part = "the people"
        lists = pl.scan_parquet(list(published.files), hive_partitioning=False)
        people = three_people(scan_likes(store, settings), lists, read_titles(store))
        screen = night_screen(night, people, [*_look_at(people, store), *next_steps])
    except Exception as error:
        screen = published_screen(published, f"{part} cannot be read. {error}", next_steps)
    show(console, screen)


def bring_events(options: argparse.Namespace, store: "Store", settings: "IngestConfig") -> None:
    """The file of ratings and its titles, or the town; with STORE alone the events are there already."""
    from tasks.ingest.movielens import import_ratings, import_titles, titles_beside
    from tasks.ingest.town import write_town

    titles = Path(options.items) if options.items else None
    if options.ratings:
        source = Path(options.ratings)
        imported = import_ratings(source, store, settings)
        log.info("%s: %s rows, %s", source, f"{imported.num_rows:,}", _news(imported.is_new))
        titles = titles or titles_beside(source)
    elif not options.store:
        town = write_town(store)
        log.info(
            "a town of %s residents, %s things and %s events, %s",
            f"{town.num_residents:,}",
            f"{town.num_things:,}",
            f"{town.num_events:,}",
            _news(town.num_written > 0),
        )
    if titles:
        import_titles(titles, store)


def _news(is_new: bool) -> str:
    return "written into the store" if is_new else "in the store already"


def _next_steps(options: argparse.Namespace) -> list[tuple[str, str]]:
    asked = vars(options)
    names = ("ratings", "items", "store", "as_of", "ranks", "k")
    again = "".join(f' {name.upper()}="{asked[name]}"' for name in names if asked[name])
    if options.set:
        # The shell reads it twice, once for make and once for this program.
        again += " SET=" + shlex.quote(" ".join(map(_quoted, options.set)))
    return [
        (f"make nightly{again} FORCE=1", "the whole night again, published as a new version"),
        ("make nightly RATINGS=path/to/ratings.csv", "your own ratings: MovieLens as it comes, or Parquet"),
        ("make up", "the dashboard: schedule, form, every run's report"),
    ]


def _look_at(people: "list[Person]", store: "Store") -> list[tuple[str, str]]:
    from tasks.store import open_store

    where = "" if store.uri == open_store(DEMO_STORE).uri else f" STORE={_for_make(store.uri)}"
    whom = [person.user_id for person in people if person.user_id.isprintable()][:1]
    return [
        (f"make show USER={_for_make(user_id)}{where}", "all of one person's list, with every reason")
        for user_id in whom
    ]


def _for_make(text: str) -> str:
    return shlex.quote(text.replace("$", "$$"))


def _quoted(setting: str) -> str:
    """GROUP.FIELD="some words", and without the marks where one word needs none."""
    name, _, value = setting.partition("=")
    return setting if shlex.quote(setting) == setting else f'{name}="{value}"'


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """Nothing is worth waiting for: all that counts is on disk already. Prefect's server ends with this process."""
    print("\ninterrupted; nothing is half published. Run again to go on where it stopped.", flush=True)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    os._exit(130)


# ---- what was asked for


def parse(arguments: list[str]) -> argparse.Namespace:
    """Text only: what is wrong with it is said by `night_settings`, in make's words."""
    parser = argparse.ArgumentParser(prog="make nightly", description=__doc__)
    parser.add_argument("--ratings", default="", help="a file of ratings: Parquet, or GroupLens's csv, u.data, dat")
    parser.add_argument("--items", default="", help="a file of titles; found beside the ratings where it is there")
    parser.add_argument("--store", default="", help="s3://bucket/prefix or a folder; alone, it holds the events")
    parser.add_argument("--as-of", default="", help="first day whose events are not used, as in 2026-11-23")
    parser.add_argument("--ranks", default="", help="training processes")
    parser.add_argument("--k", default="", help="items for every user")
    parser.add_argument("--set", nargs="*", default=[], metavar="GROUP.FIELD=VALUE", help="any setting")
    parser.add_argument("--force", action="store_true", help="publish a new version even if nothing changed")
    return parser.parse_args(arguments)


def night_settings(options: argparse.Namespace) -> "tuple[NightlyConfig, date | None]":
    """The settings of the command line over the defaults, and the date. Raises RunConfigError naming the field."""
    from pydantic import ValidationError

    from tasks.config import NightlyConfig
    from tasks.errors import RunConfigError

    given: dict[str, dict[str, object]] = {}
    if options.ranks:
        given["train"] = {"ranks": _whole_number("RANKS", options.ranks, example=2)}
    if options.k:
        given["recommend"] = {"k": _whole_number("K", options.k, example=20)}
    for group, field, value in map(_setting, options.set):
        given.setdefault(group, {})[field] = value
    try:
        return NightlyConfig.model_validate(given), _date(options.as_of)
    except ValidationError as error:
        found = "; ".join(_what_is_wrong(one) for one in error.errors())
        raise RunConfigError(
            f"{found}. Nothing was started. The README lists every setting; bounds stand in tasks/config.py."
        ) from None


def _what_is_wrong(found: "ErrorDetails") -> str:
    """With the setting as it is typed, and what was given."""
    place = ".".join(map(str, found["loc"]))
    if found["type"] == "value_error":  # a rule of ours, which names its settings itself
        return str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        of, _, name = place.rpartition(".")
        return f"{of} has no {name!r}; it has {', '.join(_fields_at(found['loc'][:-1]))}"
    given = repr(found["input"])
    shown = given if len(given) <= LONGEST_SHOWN else given[:LONGEST_SHOWN] + "..."
    return f"{place} is {shown}: {found['msg'][0].lower()}{found['msg'][1:]}"


def _fields_at(place: "tuple[int | str, ...]") -> list[str]:
    from tasks.config import NightlyConfig

    model: Any = NightlyConfig
    for name in place:
        model = type(model.model_fields[name].default)
    return list(model.model_fields)


def _setting(text: str) -> tuple[str, str, str | None]:
    """(group, field, value) of `train.width=128`; the value is read by the field itself. Raises RunConfigError."""
    from tasks.config import NightlyConfig
    from tasks.errors import RunConfigError

    name, equals, value = text.partition("=")
    group, _, field = name.partition(".")
    groups = {key: type(found.default).model_fields for key, found in NightlyConfig.model_fields.items()}
    if field not in groups.get(group, {}):
        nearest = {group: groups[group]} if group in groups else groups
        raise RunConfigError(
            f"there is no setting {name}. Nothing was started. Write GROUP.FIELD=VALUE; the groups and fields are "
            + "; ".join(f"{key}: {', '.join(fields)}" for key, fields in nearest.items())
            + "."
        )
    if not equals:
        raise RunConfigError(f"the setting {name} has no value. Nothing was started. Write {name}=VALUE.")
    may_be_none = type(None) in get_args(groups[group][field].annotation)
    return group, field, None if may_be_none and value.lower() in ("none", "null") else value


def _whole_number(name: str, text: str, *, example: int) -> int:
    from tasks.errors import RunConfigError

    try:
        return int(text)
    except ValueError:
        raise RunConfigError(
            f"{name}={text} is no whole number. Nothing was started. Write it as in {name}={example}."
        ) from None


def _date(text: str) -> date | None:
    from tasks.errors import RunConfigError

    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise RunConfigError(
            f"AS_OF={text} is no date. Nothing was started. Write year, month and day, as in AS_OF=2026-11-23."
        ) from None


def store_of(options: argparse.Namespace) -> str:
    """STORE; else a folder for this very content of RATINGS, so that two data sets never mix; else the demo's."""
    from tasks.ingest.movielens import content_hash

    if options.store or not options.ratings:
        return options.store or DEMO_STORE
    path = Path(options.ratings)
    return "var/" + re.sub(r"[^\w.-]+", "-", f"{path.resolve().parent.name}-{path.stem}-{content_hash(path)[:8]}")


def ensure_there(store: str) -> None:
    """A folder that was mistyped must not come into being. Raises RunConfigError."""
    from tasks.errors import RunConfigError

    if "://" not in store and not Path(store).is_dir():
        raise RunConfigError(
            f"STORE={store} is no folder. Nothing was started or written. Without RATINGS it must be there and hold "
            "Parquet files under events/."
        )


def settle_environment(store_uri: str) -> None:
    """Prefect's files under var/, nothing sent to anybody."""
    os.environ["NIGHTGRAPH_STORE"] = store_uri
    os.environ.setdefault("NIGHTGRAPH_WORK", str(PROJECT_ROOT / "var" / "work"))
    os.environ.setdefault("PREFECT_HOME", str(PROJECT_ROOT / "var" / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The rooms' own lines are on the screen already; Prefect's copies of them are not needed twice.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
