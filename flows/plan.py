"""What a night would take, without running it: `make plan` takes what `make nightly` takes."""

import logging
import os
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from flows.by_hand import bring_events, ensure_there, night_settings, parse, store_of


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel

    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    try:
        _plan(arguments, console)
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


def _plan(arguments: list[str], console: Console) -> None:
    """RATINGS come into their store first, as they would for the night. Raises InputTooLarge below the table."""
    from tasks.ingest.machine import this_machine
    from tasks.ingest.movielens import ensure_alone
    from tasks.ingest.opening import look
    from tasks.ingest.planner import ensure_it_fits, plan_night
    from tasks.ingest.readiness import Clock
    from tasks.run import DEFAULT_WORK, WORK_VARIABLE
    from tasks.store import open_store

    options = parse(arguments)
    config, as_of = night_settings(options)
    if options.store and not options.ratings:
        ensure_there(options.store)
    store = open_store(store_of(options))
    if options.ratings:
        ensure_alone(Path(options.ratings), store, config.ingest)
    bring_events(options, store, config.ingest)
    opened = look(store, config, night=as_of, clock=Clock(read=partial(datetime.now, UTC), sleep=time.sleep))
    machine = this_machine(os.environ.get(WORK_VARIABLE, DEFAULT_WORK))
    plan = plan_night(opened.sizes, config, machine)
    for line in plan.in_words(machine):
        console.print(Text(line))
    ensure_it_fits(plan, opened.schema.files, opened.night, config, machine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
