"""The real code that publishes, rolls back and removes, on a store in memory, in orders that a seed chooses.

Each actor is a thread that stops before every request; one of them is let go on at a time, drawn by the seed. On the
way it may be killed, or the answer to its write may get lost, whether the write happened or not; days pass while
nobody reads. What must hold is looked at after every request, so a broken promise names the seed and the step.
"""

import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from tasks.contracts import LATEST_KEY
from tasks.errors import (
    NightError,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StoreUnavailable,
    UploadCorrupt,
)
from tasks.publish import commit_log, retention
from tasks.publish.commit_log import advance_latest, place_of, what_is_live
from tasks.publish.manifest import Manifest, parse_manifest
from tasks.publish.reader import verify_part
from tasks.publish.retention import apply_retention, plan_retention
from tasks.publish.rollback import release, roll_back
from tasks.store import outcome
from tasks.store.contract import Listing, StoredObject, removable
from tests.nights import Night, finished_night

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
DATES = [date(2026, 11, 22), date(2026, 11, 23), date(2026, 11, 24)]
KILL, LOSE = 0.004, 0.01  # of a request: its actor dies before it, its answer gets lost
A_DAY = 0.05  # of a step: time passes
BURST = 15  # requests that somebody makes in a row, in the mean


class Killed(BaseException):
    pass


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclass
class Actor:
    name: str
    work: Callable[["MemoryStore"], str]
    may_be_killed: bool = True
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: str = ""  # with what, once it has
    is_reading: bool = False


class MemoryStore:
    """A tasks.store.Store. Whoever asks waits for their turn first."""

    uri = "memory://store"

    def __init__(self, turn: Callable[[bool], str]) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.now = NOW
        self._turn = turn

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str) -> Listing:
        self._turn(False)
        folder = f"{prefix}/" if prefix else ""
        return [
            StoredObject(key, len(content), etag_of(content), at)
            for key, (content, at) in sorted(self.objects.items())
            if key.startswith(folder)
        ]

    def read(self, key: str) -> tuple[bytes, str]:
        self._turn(False)
        content = self._found(key)
        return content, etag_of(content)

    def open(self, key: str) -> BinaryIO:
        self._turn(False)
        return io.BytesIO(self._found(key))

    def put_once(self, key: str, source: bytes | Path) -> str:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with self._writing():
            if key in self.objects:
                raise ObjectExists(key)
            self.objects[key] = content, self.now
        return etag_of(content)

    def compare_and_swap(self, key: str, data: bytes, *, etag: str) -> str:
        with self._writing():
            if etag_of(self._found(key)) != etag:
                raise ObjectChanged(key)
            self.objects[key] = data, self.now
        return etag_of(data)

    def remove(self, key: str, *, etag: str | None) -> None:
        removable(key)
        self._turn(False)
        if etag is not None and key in self.objects and etag_of(self.objects[key][0]) != etag:
            raise ObjectChanged(key)
        self.objects.pop(key, None)

    def probe(self) -> None:
        pass

    def _found(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key][0]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        fault = self._turn(True)
        if fault == "lost before":
            raise StoreUnavailable("the answer was lost")
        yield
        if fault == "lost after":
            raise StoreUnavailable("the answer was lost")


def etag_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Simulation:
    """One order of everything, by its seed."""

    def __init__(self, seed: int, prepared: dict[str, Night]) -> None:
        self._random = random.Random(seed)
        self._prepared = prepared
        self._back = threading.Semaphore(0)
        self._mine = threading.local()
        self._is_quiet = True  # what is there in the beginning, and at the end, costs no turn
        self.store = MemoryStore(self._turn)
        self.requests = 0
        self.released = False

    def run(self) -> None:
        """Raises Broken."""
        self.store.now = NOW - timedelta(days=3)
        for as_of in DATES[:2]:
            self._prepared[f"{as_of}"].publish(store=self.store)
            self.store.now += timedelta(days=1)
        self.store.now = NOW
        self._is_quiet = False
        actors = self._actors()
        threads = [threading.Thread(target=self._act, args=(actor,), daemon=True) for actor in actors]
        for thread in threads:
            thread.start()
        self._latest = self._look(None)
        chosen, burst = actors[0], 0
        while waiting := [actor for actor in actors if not actor.ended]:
            burst -= 1
            if burst < 0 or chosen.ended:  # the others are paused for as long as it goes on
                chosen, burst = self._random.choice(waiting), int(self._random.expovariate(1 / BURST))
            chosen.go_on.release()
            self._back.acquire()
            self._latest = self._look(self._latest)
            if self._random.random() < A_DAY and not any(actor.is_reading and not actor.ended for actor in actors):
                self.store.now += timedelta(hours=self._random.choice((1, 25, 49)))
        for thread in threads:
            thread.join()
        self._is_quiet = True
        self._at_the_end(actors)

    # ---- who is at work

    def _actors(self) -> list[Actor]:
        nights = [Actor(f"night {name}", self._night(name)) for name in self._random.sample(["a", "b", "a again"], 2)]
        others = [
            Actor("rollback", self._rollback),
            Actor("release", self._release),
            Actor("retention", self._retention),
            Actor("retention 2", self._retention),
        ]
        readers = [Actor(f"reader {number}", self._reader, may_be_killed=False) for number in (1, 2)]
        return [*nights, *self._random.sample(others, 3), *readers]

    def _night(self, name: str) -> Callable[[MemoryStore], str]:
        night, attempt = self._prepared[name.split()[0]], f"attempt-{name.replace(' ', '-')}"

        def publish(store: MemoryStore) -> str:
            try:
                return "already" if night.publish(store=store, attempt=attempt).already else f"published {attempt}"
            except NightError as error:
                return f"{type(error).__name__} {attempt}"

        return publish

    def _rollback(self, store: MemoryStore) -> str:
        rolled = roll_back(store, DATES[0], who="Anna", reason="odd", now=NOW)
        return f"rolled back {rolled.attempt}"

    def _release(self, store: MemoryStore) -> str:
        release(store, who="Ben", reason="mended", now=NOW)
        self.released = True
        return "released"

    def _retention(self, store: MemoryStore) -> str:
        gone = [len(apply_retention(store, plan_retention(store, keep_dates=1))) for _ in range(2)]
        return f"removed {sum(gone)}"

    def _reader(self, store: MemoryStore) -> str:
        for _ in range(4):
            manifest = parse_manifest(store.read(LATEST_KEY)[0], LATEST_KEY)
            self._mine.actor.is_reading = True
            for part in manifest.parts:
                verify_part(store, part)
            self._mine.actor.is_reading = False
        return "read"

    # ---- turns

    def _act(self, actor: Actor) -> None:
        self._mine.actor = actor
        actor.go_on.acquire()
        ended = "?"
        try:
            ended = actor.work(self.store)
        except Killed:
            ended = "killed"
        except NightError as error:
            ended = type(error).__name__
        except BaseException as error:
            ended = f"broken: {error!r}"
        finally:
            actor.ended = ended
            self._back.release()

    def _turn(self, is_write: bool) -> str:
        if self._is_quiet:
            return ""
        actor: Actor = self._mine.actor
        self._back.release()
        actor.go_on.acquire()
        self.requests += 1
        drawn = self._random.random()
        if actor.may_be_killed and drawn < KILL:
            raise Killed
        if is_write and drawn > 1 - LOSE:
            return self._random.choice(("lost before", "lost after"))
        return ""

    def pause(self, seconds: float) -> None:
        """Instead of time.sleep: another turn."""
        self._turn(False)

    # ---- what must hold

    def _look(self, before: Manifest | None) -> Manifest:
        content = self.store.objects[LATEST_KEY][0]
        latest = before if before is not None and before.to_json() == content else parse_manifest(content, LATEST_KEY)
        if before is not None and place_of(latest) < place_of(before):
            raise Broken("LATEST went back")
        for file in latest.all_files():
            stored = self.store.objects.get(file.key)
            if stored is None or len(stored[0]) != file.bytes:
                raise Broken(f"LATEST names {file.key}, which is gone")
        return latest

    def _at_the_end(self, actors: list[Actor]) -> None:
        attempts = {
            parse_manifest(content, key).attempt
            for key, (content, _) in self.store.objects.items()
            if key.startswith("_meta/commits/")
        }
        for actor in actors:
            outcome_, _, attempt = actor.ended.partition(" ")
            if actor.ended.startswith("broken"):
                raise Broken(f"{actor.name}: {actor.ended}")
            if actor.name.startswith("reader") and actor.ended != "read":
                raise Broken(f"{actor.name} ended in {actor.ended}")
            if outcome_ == "published" and attempt not in attempts:
                raise Broken(f"{actor.name} says that it is published")
            if outcome_ in ("PublishConflict", "AttemptRevoked") and attempt in attempts:
                raise Broken(f"{actor.name} says that it is not published")
        live = what_is_live(self.store)
        assert live is not None
        died = any(actor.ended in ("killed", "StoreUnavailable", "PublishUnresolved") for actor in actors)
        if not died and place_of(self._latest) != place_of(live):
            raise Broken("everybody is done, and LATEST is not what is live")
        advance_latest(self.store, live)
        for part in live.all_files():
            try:
                verify_part(self.store, part)
            except UploadCorrupt as error:
                raise Broken(f"of what is live: {error}") from None


def prepare(folder: Path) -> dict[str, Night]:
    """Nights to publish again and again."""
    uri = MemoryStore.uri
    named = {f"{as_of}": (as_of, 1.0) for as_of in DATES[:2]} | {"a": (DATES[2], 2.0), "b": (DATES[2], 3.0)}
    return {
        name: finished_night(folder / f"night-{number}", uri, as_of=as_of, mark=mark)
        for number, (name, (as_of, mark)) in enumerate(named.items())
    }


def simulate(seeds: range, folder: Path) -> tuple[int, list[str]]:
    """How many requests there were, and each broken promise with its seed."""
    prepared = prepare(folder)
    requests, broken = 0, []
    for seed in seeds:
        simulation = Simulation(seed, prepared)
        with waiting_by(simulation.pause):
            try:
                simulation.run()
            except Broken as error:
                broken.append(f"seed {seed}: {error}")
        requests += simulation.requests
    return requests, broken


class InTurn:
    """A ThreadPoolExecutor of one thread, the caller's."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


@contextmanager
def waiting_by(pause: Callable[[float], None]) -> Iterator[None]:
    """The same tries, and no time between them."""
    with ExitStack() as patched:
        for function in (commit_log.commit, commit_log.advance_latest, outcome.settle, outcome.change):
            patient = {**(function.__kwdefaults__ or {}), "sleep": pause}
            patched.enter_context(mock.patch.object(function, "__kwdefaults__", patient))
        patched.enter_context(mock.patch.object(retention, "ThreadPoolExecutor", InTurn))
        yield
