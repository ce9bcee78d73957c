"""A night's reading that kills itself, as SIGKILL from outside would, at the moment its fourth argument names.

    piece-N     after piece N was read and written down on this machine
    registry    after the new ids were committed
    run-N       after N objects of days/ were put into the store
    marker-N    after N days were marked as digested
    unmarked-N  before that
    merged      after all runs became pairs
    never       lives

The others are the store, the folder to write in and the settings as JSON. A piece has 100 rows here.
"""

import os
import signal
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from tasks.config import IngestConfig
from tasks.ingest import digest, interactions
from tasks.ingest.earlier import read_earlier
from tasks.ingest.inspection import inspect_files
from tasks.ingest.sources import pin_inputs
from tasks.store import LocalStore, open_store

ROWS_A_PIECE = 100
AS_OF = date(2026, 11, 23)


def main(store_uri: str, folder: str, settings: str, moment: str) -> None:
    config = IngestConfig.model_validate_json(settings)
    digest.BYTES_A_ROW = (config.memory_mib << 20) // ROWS_A_PIECE
    counts: dict[str, int] = {}

    def count(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1
        if moment in (what, f"{what}-{counts[what]}"):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(module: Any, name: str, what: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            answer = original(*arguments, **named)
            count(what)
            return answer

        setattr(module, name, counting)

    put_once = LocalStore.put_once

    def put_and_count(store: LocalStore, key: str, source: bytes | Path) -> str:
        is_marker = key.startswith("_meta/days/")
        if is_marker:
            count("unmarked")
        etag = put_once(store, key, source)
        if is_marker or key.startswith("days/"):
            count("marker" if is_marker else "run")
        return etag

    LocalStore.put_once = put_and_count  # type: ignore[method-assign]
    counted(digest, "_read_piece", "piece")
    counted(interactions, "extend", "registry")
    counted(interactions, "merge_runs", "merged")

    store = open_store(store_uri)
    events = pin_inputs(store, config)
    schema = inspect_files(store, events, config, known=read_earlier(store, events, config).files)
    Path(folder).mkdir()
    interactions.digest(store, events, schema, Path(folder), as_of=AS_OF, settings=config)
    print(f"{counts.get('piece', 0)} pieces, {counts.get('run', 0)} runs, {counts.get('marker', 0)} markers")


if __name__ == "__main__":
    main(*sys.argv[1:])
