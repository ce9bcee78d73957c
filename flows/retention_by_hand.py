"""`make retention`: the files of nights that nobody can need any more. A dry run unless APPLY=1.

Without Prefect, so that cron can run it with a role of its own; the dashboard has it, too (flows/retention.py).
"""

import argparse
import logging
import os
import sys

from rich.console import Console

from flows.by_hand import ensure_there, store_of

KEEP_DATES = 30


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel, show

    parser = argparse.ArgumentParser(prog="make retention", description=__doc__)
    parser.add_argument(
        "--store", default=os.environ.get("NIGHTGRAPH_STORE", ""), help="s3://bucket/prefix or a folder"
    )
    parser.add_argument("--ratings", default="", help="the file that `make nightly RATINGS=` was given")
    parser.add_argument("--keep-days", default=str(KEEP_DATES), help="the newest so many dates that have a night stay")
    parser.add_argument("--apply", action="store_true", help="do it; else only what would go is said")
    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    try:
        options = parser.parse_args(arguments)
        from tasks.publish.retention import retain
        from tasks.report.operated import retained_screen
        from tasks.store import open_store

        store_uri, keep_dates = store_of(options), keep_dates_of(options.keep_days)
        ensure_there(store_uri)
        store = open_store(store_uri)
        store.probe()
        show(console, retained_screen(retain(store, keep_dates=keep_dates, apply=options.apply)))
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def keep_dates_of(text: str) -> int:
    """Raises RunConfigError."""
    from tasks.errors import RunConfigError

    if not text.isascii() or not text.isdigit() or not int(text):
        raise RunConfigError(
            f"KEEP_DAYS={text} is no number of nights. Nothing was removed. Write 1 or more, as in "
            f"KEEP_DAYS={KEEP_DATES}."
        )
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
