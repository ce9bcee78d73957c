"""`make forget` and `make forget-sweep`: who is to be forgotten, the flow, and what was done and what remains where."""

import argparse
import logging
import os
import sys
from pathlib import Path

from rich.console import Console

from flows.by_hand import ensure_there, settle_environment, store_of
from flows.prefect_server import start_server, wait_for

ONE_PERSON = "NIGHTGRAPH_FORGET"  # an id in the environment, not on the command line, which every process may read


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    given = os.environ.pop(ONE_PERSON, None)  # no process that is started from here on inherits it
    try:
        _run(parse(arguments), given, console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make forget", description=__doc__)
    parser.add_argument("--users", default="", help="a file with an id a line; - is standard input")
    parser.add_argument("--store", default="", help="s3://bucket/prefix or a folder; empty: the demo's")
    parser.add_argument("--ratings", default="", help="the file that `make nightly RATINGS=` was given")
    parser.add_argument("--always", action="store_true", help="also keep ids out that nobody knows here")
    parser.add_argument("--sweep", action="store_true", help="nobody new: only what is left to do and due by now")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, given: str | None, console: Console) -> None:
    from tasks.errors import ForgettingIncomplete
    from tasks.report.forgotten import forgotten_screen
    from tasks.report.screen import show

    people = people_of(options, given)
    options.store = options.store or os.environ.get("NIGHTGRAPH_STORE", "")
    store_uri = store_of(options)
    ensure_there(store_uri)
    settle_environment(store_uri)
    wait_for(start_server())
    # Imported here: Prefect reads its settings once, when it is imported.
    from pydantic import SecretStr

    from flows.forget import forget

    lines = tuple(people.values()) if options.users else ()
    done = forget(tuple(map(SecretStr, people)), always=options.always, lines=lines)
    show(console, forgotten_screen(done))
    if done.failed:
        raise ForgettingIncomplete(
            f"{len(done.failed)} things could not be rewritten or looked into; they are named above, and everything "
            "else is done. Mend or move them away, then run make forget-sweep: it goes on where this stopped."
        )


def people_of(options: argparse.Namespace, given: str | None) -> dict[str, int]:
    """Each once, as typed, nothing is trimmed: with the line that it stands in first. Raises RunConfigError."""
    from tasks.errors import RunConfigError

    if options.sweep:
        return {}
    if options.users and given:
        raise RunConfigError("USER and USERS were both given. Nothing was changed. Give one person, or a file of them.")
    people = [given] if given else []
    if options.users == "-":
        people = sys.stdin.read().splitlines()
    elif options.users:
        try:
            people = Path(options.users).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RunConfigError(
                f"USERS={options.users} cannot be read as text ({type(error).__name__}). Nothing was changed. Give a "
                "file in UTF-8 with an id a line."
            ) from None
    found: dict[str, int] = {}
    for line, one in enumerate(people, start=1):
        if one:
            found.setdefault(one, line)
    if not found:
        raise RunConfigError(
            "nobody is to be forgotten. Nothing was changed. Say who, as in make forget USER=42, or USERS=file with an "
            "id a line. To remove what is due by now: make forget-sweep."
        )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
