"""`make compact-registry`: give up the rows of the id registry that nobody needs. A dry run unless APPLY=1."""

import argparse
import logging
import os
import sys

from rich.console import Console

from flows.by_hand import ensure_there, settle_environment, store_of
from flows.prefect_server import start_server, wait_for


def main(arguments: list[str]) -> int:
    from tasks.report.screen import Narrator, error_panel

    parser = argparse.ArgumentParser(prog="make compact-registry", description=__doc__)
    parser.add_argument(
        "--store", default=os.environ.get("NIGHTGRAPH_STORE", ""), help="s3://bucket/prefix or a folder"
    )
    parser.add_argument("--ratings", default="", help="the file that `make nightly RATINGS=` was given")
    parser.add_argument("--apply", action="store_true", help="do it; else only what would be given up is said")
    console = Console()
    logging.getLogger("nightgraph").addHandler(Narrator(console))
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    try:
        options = parser.parse_args(arguments)
        store_uri = store_of(options)
        ensure_there(store_uri)
        settle_environment(store_uri)
        wait_for(start_server())
        # Imported here: Prefect reads its settings once, when it is imported.
        from flows.compact import compact_registry
        from tasks.report.compacted import compacted_panel

        console.print(compacted_panel(compact_registry(apply=options.apply)))
    except Exception as error:
        console.print(error_panel(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
