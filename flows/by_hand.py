"""A night started by hand: bring the events in, run the night, show what came of it. `make nightly` calls this."""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import sys
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEMO_STORE = "var/demo"


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    store_uri = options.store or (_folder_for(options.ratings) if options.ratings else DEMO_STORE)
    _settle_environment(store_uri)
    # Imported here: Prefect reads its settings once, when it is imported.
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    narrator = Narrator(console)
    logging.getLogger("nightgraph").addHandler(narrator)
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, _leave_at_once)
    try:
        _run(options, store_uri, console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def _run(options: argparse.Namespace, store_uri: str, console: Console) -> None:
    from flows.nightly import nightly
    from tasks.ingest.movielens import import_ratings, import_titles, read_titles, titles_beside
    from tasks.ingest.opening import scan_likes
    from tasks.ingest.town import write_town
    from tasks.report.audit import read_night
    from tasks.report.people import three_people
    from tasks.report.screen import already_screen, night_screen, show
    from tasks.store import open_store

    log = logging.getLogger("nightgraph.events")
    config = _config(options)
    store = open_store(store_uri)
    if options.ratings:
        imported = import_ratings(Path(options.ratings), store)
        log.info("%s: %s rows, %s", options.ratings, f"{imported.num_rows:,}", _news(imported.is_new))
        titles_path = Path(options.items) if options.items else titles_beside(Path(options.ratings))
        if titles_path:
            import_titles(titles_path, store)
    elif not options.store:
        town = write_town(store)
        log.info(
            "a town of %s residents, %s things and %s events, %s",
            f"{town.num_residents:,}",
            f"{town.num_things:,}",
            f"{town.num_events:,}",
            _news(town.num_written > 0),
        )
    published = nightly(config, as_of=options.as_of, force=options.force)
    next_steps = _next_steps(options, store_uri)
    if published.already:
        show(console, already_screen(published, next_steps))
        return
    import polars as pl

    lists = pl.scan_parquet(list(published.files), hive_partitioning=False)
    people = three_people(scan_likes(store, config.ingest.like_threshold), lists, read_titles(store))
    show(console, night_screen(read_night(store, published), people, next_steps))


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C ends Prefect's own server too, and its client would wait for it. All that counts is on disk already."""
    print("\ninterrupted; the live recommendations are untouched. Run again to go on where it stopped.", flush=True)
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(130)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make nightly", description=__doc__)
    parser.add_argument("--ratings", default="", help="a file of ratings: Parquet, or GroupLens's csv, u.data, dat")
    parser.add_argument("--items", default="", help="a file of titles; found beside the ratings where it is there")
    parser.add_argument("--store", default="", help="s3://bucket/prefix or a folder")
    parser.add_argument("--as-of", type=date.fromisoformat, default=None, help="first day whose events are not used")
    parser.add_argument("--ranks", type=int, default=None, help="training processes")
    parser.add_argument("--k", type=int, default=None, help="items for every user")
    parser.add_argument("--set", nargs="*", default=[], metavar="GROUP.FIELD=VALUE", help="any setting")
    parser.add_argument("--force", action="store_true", help="publish a new version even if nothing changed")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace) -> Any:
    """The settings of the command line over the defaults. Raises RunConfigError naming the field."""
    from pydantic import ValidationError

    from tasks.config import NightlyConfig
    from tasks.errors import RunConfigError

    given: dict[str, dict[str, object]] = {}
    if options.ranks is not None:
        given.setdefault("train", {})["ranks"] = options.ranks
    if options.k is not None:
        given.setdefault("recommend", {})["k"] = options.k
        given.setdefault("evaluate", {})["k"] = options.k
    for setting in options.set:
        name, _, value = setting.partition("=")
        group, _, field = name.partition(".")
        try:
            given.setdefault(group, {})[field] = json.loads(value)
        except json.JSONDecodeError:
            given.setdefault(group, {})[field] = value
    try:
        return NightlyConfig.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RunConfigError(
            f"{found}. Nothing was started. The README lists every setting; bounds stand in tasks/config.py."
        ) from None


def _settle_environment(store_uri: str) -> None:
    """Prefect's own server inside this process, its files under var/, nothing sent to anybody."""
    os.environ["NIGHTGRAPH_STORE"] = store_uri
    os.environ.setdefault("NIGHTGRAPH_WORK", str(PROJECT_ROOT / "var" / "work"))
    os.environ.setdefault("PREFECT_HOME", str(PROJECT_ROOT / "var" / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # The rooms' own lines are on the screen already; Prefect's copies of them are not needed twice.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _folder_for(ratings: str) -> str:
    """Each file of ratings gets a store of its own, so that two data sets never mix."""
    path = Path(ratings).resolve()
    place = hashlib.sha256(str(path).encode()).hexdigest()[:6]  # two files may have equal names in equal folders
    return "var/" + re.sub(r"[^\w.-]+", "-", f"{path.parent.name}-{path.stem}-{place}")


def _news(is_new: bool) -> str:
    return "written into the store" if is_new else "in the store already"


def _next_steps(options: argparse.Namespace, store_uri: str) -> list[tuple[str, str]]:
    again = f'make nightly RATINGS="{options.ratings}" FORCE=1' if options.ratings else "make nightly FORCE=1"
    return [
        (again, "the whole night again, published as a new version"),
        ("make nightly RATINGS=path/to/ratings.csv", "your own ratings: MovieLens as it comes, or Parquet"),
        ("make up", "the dashboard: schedule, form, every run's report"),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
