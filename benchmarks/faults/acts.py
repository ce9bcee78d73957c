"""What publishing consists of, each in a process of its own that can be killed: what came of it, in one line.

The processes are forked from a server that has everything imported and nothing open, so one costs little.
"""

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from tasks.errors import NightError
from tasks.publish import retention
from tasks.publish.retention import retain
from tasks.publish.rollback import release, repair, roll_back
from tasks.store import open_store
from tests.nights import finished_night

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
SAID: dict[str, Any] = {"who": "Anna", "reason": "odd", "now": NOW}
PAST_THE_GRACE = timedelta(hours=49)
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    ["benchmarks.faults.acts", "benchmarks.faults.results", "tasks.store.s3", "tests.servers"]
)


def publish(uri: str, *, as_of: date, mark: float, attempt: str = "", run_key: str = "") -> str:
    """A small finished night: two files of lists, three beside them."""
    with TemporaryDirectory() as scratch:
        changes = {"run_key": run_key} if run_key else {}
        night = finished_night(Path(scratch) / "night", uri, as_of=as_of, mark=mark, outputs=True, **changes)
        published = night.publish(attempt=attempt)
    return f"{'already' if published.already else 'published'} {published.attempt} v{published.version}"


def back(uri: str, *, to: date) -> str:
    manifest = roll_back(open_store(uri), to, **SAID)
    return f"rolled back {manifest.attempt} v{manifest.version}"


def let_go(uri: str) -> str:
    release(open_store(uri), **SAID)
    return "released"


def mend(uri: str) -> str:
    repair(open_store(uri))
    return "repaired"


def remove(uri: str, *, keep: int, past_the_grace: bool = True) -> str:
    """Where the store's objects cannot be made old, its clock is read as if they were."""
    real = retention.now_of
    late = PAST_THE_GRACE if past_the_grace else timedelta(0)
    with mock.patch.object(retention, "now_of", lambda store: real(store) + late):
        done = retain(open_store(uri), keep_dates=keep, apply=True)
    return f"removed {len(done.gone)}"


@dataclass
class Child:
    process: Any
    answer: Connection

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    def outcome(self, timeout_s: float = 120.0) -> str:
        """Its line, the name of its error, or "killed"."""
        told = ""
        if self.answer.poll(timeout_s):
            with suppress(EOFError):
                told = self.answer.recv()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.kill()
            return "hung"
        return told or "killed"


def start(
    act: Callable[..., str],
    uri: str,
    *,
    endpoint: str = "",
    at: float = 0.0,
    clock_wrong_by_s: float = 0.0,
    **named: Any,
) -> Child:
    """At the moment `at` of time.time(), so that several begin together."""
    here, there = CHILDREN.Pipe(duplex=False)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    if endpoint:
        environment["AWS_ENDPOINT_URL"] = endpoint
    arguments = (there, environment, at, clock_wrong_by_s, act.__name__, uri, named)
    process = CHILDREN.Process(target=_run, args=arguments, daemon=True)
    process.start()
    there.close()
    return Child(process, here)


def _run(
    answer: Connection,
    environment: dict[str, str],
    at: float,
    clock_wrong_by_s: float,
    name: str,
    uri: str,
    named: dict[str, Any],
) -> None:
    os.environ.update(environment)
    act = {one.__name__: one for one in (publish, back, let_go, mend, remove)}[name]
    open_store(uri).list("_meta/probe")  # connected before the start
    time.sleep(max(0.0, at - time.time()))
    with _a_clock_that_is_wrong_by(clock_wrong_by_s):
        try:
            told = act(uri, **named)
        except NightError as error:
            told = f"{type(error).__name__} {named.get('attempt', '')}"
        except Exception as error:
            told = f"broken: {error!r}"
    answer.send(told)


@contextmanager
def _a_clock_that_is_wrong_by(seconds: float) -> Iterator[None]:
    real = time.time
    with mock.patch.object(time, "time", side_effect=lambda: real() + seconds):
        yield


def new_attempt() -> str:
    return f"20261124T031205Z-{secrets.token_hex(4)}"
