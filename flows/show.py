"""One person of the live night: what they liked, what they get, from which tier, and why. `make show` calls this."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from flows.by_hand import store_of

if TYPE_CHECKING:
    import polars as pl

    from tasks.publish.reader import LatestNight
    from tasks.store import Store

LIKES_SHOWN = 20


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    try:
        _show(parse(arguments), console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make show", description=__doc__)
    parser.add_argument("--user", default="", help="the id as it stands in the events")
    parser.add_argument("--store", default="", help="s3://bucket/prefix or a folder; empty: the demo's")
    parser.add_argument("--ratings", default="", help="the file that `make nightly RATINGS=` was given")
    return parser.parse_args(arguments)


def _show(options: argparse.Namespace, console: Console) -> None:
    from tasks.publish.reader import open_latest
    from tasks.report.people import person_of
    from tasks.report.screen import person_screen, show
    from tasks.store import open_store

    store = open_store(store_of(options))
    night = open_latest(store.uri)
    user_id = _id_of(options.user, night)
    own = night.for_user(user_id)
    if own.is_empty():
        raise _nobody(store, night, user_id)
    likes, titles, missing = _likes_and_titles(store, night, own)
    person = person_of(user_id, likes, own, titles, liked_shown=LIKES_SHOWN, gets_shown=len(own))
    manifest = night.manifest
    show(console, person_screen(person, f"night of {manifest.as_of}, version {manifest.version}"))
    for words in missing:
        console.print(Text(words, "yellow"))


def _id_of(text: str, night: "LatestNight") -> int | str:
    """What was typed, as the kind of id that this night has. Raises RunConfigError."""
    from tasks.errors import RunConfigError

    if not text:
        example = night.scan().select("user_id").head(1).collect()["user_id"][0]
        raise RunConfigError(f"nobody was asked for. Say who, as in make show USER={example}.")
    if night.user_id_type == "string":
        return text
    try:
        return int(text)
    except ValueError:
        raise RunConfigError(f"USER={text} is no number, and the user ids of {night.store.uri} are.") from None


def _likes_and_titles(
    store: "Store", night: "LatestNight", own: "pl.DataFrame"
) -> tuple["pl.LazyFrame", "pl.DataFrame | None", list[str]]:
    """What the store has beside the night, and what is missing of it: the list can be shown without."""
    import polars as pl

    from tasks.errors import NightError
    from tasks.ingest.movielens import read_titles
    from tasks.ingest.opening import scan_likes
    from tasks.publish.manifest import ingest_settings

    missing = []
    likes, titles = own.lazy().select("user_id", "item_id", timestamp_us=pl.lit(0)).clear(), None
    try:
        likes = scan_likes(store, ingest_settings(night.manifest))
    except NightError as error:
        missing.append(f"What people liked cannot be read: {error}")
    try:
        titles = read_titles(store)
    except NightError as error:
        missing.append(f"Titles cannot be read: {error}")
    return likes, titles, missing


def _nobody(store: "Store", night: "LatestNight", user_id: int | str) -> Exception:
    from tasks.errors import UserNotFound
    from tasks.ingest.opening import traces_of
    from tasks.publish.manifest import ingest_settings
    from tasks.report.people import why_no_list

    manifest = night.manifest
    why = why_no_list(traces_of(store, user_id, manifest.as_of, ingest_settings(manifest)))
    return UserNotFound(
        f"the night of {manifest.as_of}, version {manifest.version}, of {store.uri} has lists for {manifest.users:,} "
        f"people, and no list for user {user_id}: {why}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
