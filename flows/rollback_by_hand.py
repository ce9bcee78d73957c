"""`make rollback`, `make release` and `make repair`: what readers get, moved by a person.

Without Prefect, whose server may be part of the trouble; the dashboard has the same three (flows/rollback.py).
"""

import argparse
import getpass
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, date, datetime

from rich.console import Console
from rich.table import Table

from flows.by_hand import ensure_there, store_of

KEPT_SHOWN = 30


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    try:
        _act(parse(arguments), console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make rollback", description=__doc__)
    parser.add_argument("what", choices=("rollback", "release", "repair"))
    parser.add_argument("--date", default="", help="the night to go back to; empty: the kept ones are listed")
    parser.add_argument("--version", default="", help="one of its versions; empty: the newest")
    parser.add_argument("--who", default="", help="who asks; empty: the account's name")
    parser.add_argument("--reason", default="", help="why; it stands in LATEST.json")
    parser.add_argument(
        "--store", default=os.environ.get("NIGHTGRAPH_STORE", ""), help="s3://bucket/prefix or a folder"
    )
    parser.add_argument("--ratings", default="", help="the file that `make nightly RATINGS=` was given")
    return parser.parse_args(arguments)


def _act(options: argparse.Namespace, console: Console) -> None:
    from tasks.publish.rollback import live_night, release, repair, roll_back
    from tasks.report.operated import live_panel
    from tasks.store import open_store

    store_uri = store_of(options)
    ensure_there(store_uri)
    store = open_store(store_uri)
    now = datetime.now(UTC)
    if options.what == "rollback":
        to, version = night_of(options)
        if to is None:
            console.print(_kept(store_uri))
            return
        store.probe()
        roll_back(store, to, version=version, who=who_of(options), reason=options.reason, now=now)
    elif options.what == "release":
        store.probe()
        release(store, who=who_of(options), reason=options.reason or "released", now=now)
    else:
        store.probe()
        repair(store)
    console.print(live_panel(live_night(store)))


def night_of(options: argparse.Namespace) -> tuple[date | None, int | None]:
    """Raises RunConfigError."""
    from tasks.errors import RunConfigError

    try:
        to = date.fromisoformat(options.date) if options.date else None
    except ValueError:
        raise RunConfigError(
            f"DATE={options.date} is no date. Nothing was changed. Write year, month and day, as in DATE=2026-11-22."
        ) from None
    try:
        version = int(options.version) if options.version else None
    except ValueError:
        raise RunConfigError(
            f"VERSION={options.version} is no whole number. Nothing was changed. Write it as in VERSION=1, or leave it "
            "out for the newest."
        ) from None
    return to, version


def who_of(options: argparse.Namespace) -> str:
    if not options.who:
        with suppress(KeyError, OSError):  # an account without a name, as in some containers
            return getpass.getuser()
    return str(options.who)


def _kept(store_uri: str) -> Table:
    """What DATE= may be."""
    from tasks.publish.rollback import kept_nights
    from tasks.store import open_store

    table = Table("DATE=", "VERSION=", "made (UTC)", "rows", "users", "", title=store_uri, title_justify="left")
    for night in kept_nights(open_store(store_uri), at_most=KEPT_SHOWN):
        told = ["live"] if night.is_live else []
        told += [f"{night.rolled_back_to} again"] if night.rolled_back_to else []
        made = f"{night.created_at:%Y-%m-%d %H:%M}"
        table.add_row(
            str(night.as_of), str(night.version), made, f"{night.rows:,}", f"{night.users:,}", ", ".join(told)
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
