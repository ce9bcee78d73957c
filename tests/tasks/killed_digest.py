"""Readings of a night that kill themselves, as SIGKILL from outside would, each at a named moment.

    piece-N     after piece N was read and written down on this machine
    registry    after the new ids were committed
    run-N       after N objects of days/ were put into the store
    marker-N    after N days were marked as digested; marker: after the next one
    unmarked-N  before that
    merged      after all runs became pairs
    never       lives

Arguments: the settings as JSON, then for each reading the store, the folder to write in and the moment. Each is a
process of its own, forked before anything is read; for each a line says how it ended. A piece has 100 rows here.
"""

import os
import signal
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from models.pairs import Events, Folding, fold
from tasks.config import IngestConfig
from tasks.ingest import digest, interactions
from tasks.ingest.earlier import read_earlier
from tasks.ingest.inspection import inspect_files
from tasks.ingest.sources import pin_inputs
from tasks.store import LocalStore, open_store

ROWS_A_PIECE = 100
AS_OF = date(2026, 11, 23)


def main(settings: str, *words: str) -> None:
    one = np.zeros(1, np.int32)
    fold(Events(one, one, one.astype(np.int64)), Folding(0, 1))  # loads what is compiled, for all of them
    for store_uri, folder, moment in zip(words[::3], words[1::3], words[2::3], strict=True):
        child = os.fork()
        if not child:
            counts = read(store_uri, folder, settings, moment)
            print(f"{moment}: {counts.get('piece', 0)} pieces, {counts.get('run', 0)} runs, ", end="")
            print(f"{counts.get('marker', 0)} markers", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(f"{moment}: {signal.Signals(os.WTERMSIG(status)).name}", flush=True)


def read(store_uri: str, folder: str, settings: str, moment: str) -> dict[str, int]:
    config = IngestConfig.model_validate_json(settings)
    digest.BYTES_A_ROW = (config.memory_mib << 20) // ROWS_A_PIECE
    counts: dict[str, int] = {}
    one_at_a_time = Lock()

    def count(what: str) -> None:
        with one_at_a_time:
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
        try:
            return put_once(store, key, source)
        finally:  # what an earlier one put there counts too
            if is_marker or key.startswith("days/"):
                count("marker" if is_marker else "run")

    LocalStore.put_once = put_and_count  # type: ignore[method-assign]
    counted(digest, "_read_piece", "piece")
    counted(interactions, "extend", "registry")
    counted(interactions, "merge_runs", "merged")

    store = open_store(store_uri)
    events = pin_inputs(store, config)
    schema = inspect_files(store, events, config, known=read_earlier(store, events, config).files)
    Path(folder).mkdir()
    interactions.digest(store, events, schema, Path(folder), as_of=AS_OF, settings=config)
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
