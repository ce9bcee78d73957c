"""Races, lost answers, kills and removals around publishing, on an S3 server behind the tests' fault proxy.

    make test-faults-publish [ONLY="races lost kills retention model simulation rollback"] [SMALL=1]

A watcher process reads LATEST.json and every file that it names during all of it. `results/faults-publish-*.json` has
one file a part, with what each try came to; `results/faults.json` all of them.
"""

import argparse
import json
import logging
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import PROJECT_ROOT
from benchmarks.faults.acts import Child, back, let_go, new_attempt, publish, remove, start
from benchmarks.faults.results import write_part
from tasks.contracts import LATEST_KEY
from tasks.errors import NightError, ObjectNotFound
from tasks.publish.commit_log import what_is_live
from tasks.publish.manifest import Manifest, parse_manifest
from tasks.publish.reader import open_latest
from tasks.store import Store, open_store
from tests.faults import FaultProxy, Request, running
from tests.servers import s3_server

DATES = [date(2026, 11, day) for day in range(18, 24)]
SMALL = ("night", "rollback")  # of ACTS


@dataclass
class Place:
    """An S3 server, the proxy before it, and the watcher."""

    server: str
    proxy: FaultProxy
    watched: Path
    bucket: str
    made: int = 0
    templates: dict[bool, tuple[str, dict[str, bytes]]] = field(default_factory=dict)

    def new_store(self) -> str:
        """Watched from now on, past the proxy."""
        self.made += 1
        uri = f"s3://{self.bucket}/store-{self.made}"
        self.watched.write_text(uri)
        return uri

    def on_disk(self, folder: Path) -> str:
        self.watched.write_text(str(folder))
        return str(folder)

    def quiet(self) -> None:
        self.proxy.fault = lambda request: None
        self.proxy.done = lambda request: None
        self.proxy.requests.clear()


@contextmanager
def standing() -> Iterator[tuple[Place, dict[str, Any]]]:
    """The place, and what the watcher saw, which is there once the block has ended."""
    seen: dict[str, Any] = {}
    with s3_server() as url, tempfile.TemporaryDirectory() as scratch:
        bucket = f"night-{secrets.token_hex(6)}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT", data=b""), timeout=30).close()
        proxy = FaultProxy(url)
        watched = Path(scratch) / "watched"
        watched.write_text(f"s3://{bucket}/nothing-yet")
        words = [sys.executable, "-m", "benchmarks.faults.watcher", str(watched)]
        watcher = subprocess.Popen(words, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
        try:
            with running(proxy):
                yield Place(url, proxy, watched, bucket), seen
        finally:
            watched.write_text("")
            told, _ = watcher.communicate(timeout=60)
        seen |= json.loads(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="a few of each, and nothing is written")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what is lost and killed here is meant to be
    for part in options.only:
        started = time.monotonic()
        figures, details = PARTS[part](small=options.small)
        print(f"{part}: {json.dumps(figures)} in {time.monotonic() - started:.0f} s", flush=True)
        if not options.small:
            write_part(f"publish-{part}", figures, details)


def watched(tried: Callable[[Place], tuple[dict[str, Any], Any]]) -> tuple[dict[str, Any], Any]:
    with standing() as (place, seen):
        figures, details = tried(place)
    saw = {"watcher_reads": seen["reads"], "watcher_anomalies": len(seen["anomalies"])}
    return figures | saw, {"tries": details, "watcher": seen["anomalies"]}


# ---- two nights of one date


def races(*, small: bool) -> tuple[dict[str, Any], Any]:
    """Half of them twins of one run key, half two nights of different settings."""
    count = 2 if small else 200

    def tried(place: Place) -> tuple[dict[str, Any], Any]:
        rows = [race(place, twins=number % 2 == 1) for number in range(count)]
        return {"races_tried": count, "races_one_commit": sum(row["right"] for row in rows)}, rows

    return watched(tried)


def race(place: Place, *, twins: bool) -> dict[str, Any]:
    uri, on = place.new_store(), DATES[-1]
    publish(uri, as_of=DATES[-2], mark=1.0)
    at = time.time() + 1.5
    attempts = [new_attempt(), new_attempt()]
    children = [
        start(
            publish, uri, endpoint=place.proxy.url, at=at, as_of=on, mark=2.0 if twins else 2.0 + number,
            attempt=attempt, run_key="the same" if twins else f"key {number}",
        )
        for number, attempt in enumerate(attempts)
    ]  # fmt: skip
    outcomes = [child.outcome() for child in children]
    store = open_store(uri)
    commits = [commit for commit in commits_of(store) if commit.as_of == on]
    winners = [a for a, told in zip(attempts, outcomes, strict=True) if told == f"published {a} v1"]
    losers = [told for told in outcomes if not told.startswith("published")]
    truthful = len(losers) == 1 and losers[0].startswith("already" if twins else "PublishConflict")
    one = [commit.attempt for commit in commits] == winners and len(winners) == 1
    right = one and truthful and whole(uri) == commits[0].attempt
    return {"twins": twins, "outcomes": outcomes, "right": right}


# ---- lost answers


def lost(*, small: bool) -> tuple[dict[str, Any], Any]:
    """Of each conditional PUT of each act: the answer alone, the request with it (503), and both twice in a row."""

    def tried(place: Place) -> tuple[dict[str, Any], Any]:
        rows: list[dict[str, Any]] = []
        for act in SMALL if small else ACTS:
            with through(place.proxy):
                place.quiet()
                uri = prepared(place, act)
                place.proxy.requests.clear()
                ACTS[act](uri)
            puts = len(place.proxy.conditional_puts())
            for number in range(2, puts + 1, 6) if small else range(1, puts + 1):
                for fault in FAULTS[:1] if small else FAULTS:
                    rows.append(lose(place, act, number, fault))
        truthful = sum(row["right"] for row in rows)
        return {"lost_responses_tried": len(rows), "lost_responses_truthful": truthful}, rows

    return watched(tried)


FAULTS = ("lose answer", "503 SlowDown", "lose answer, twice", "503 SlowDown, twice")


def lose(place: Place, act: str, number: int, fault: str) -> dict[str, Any]:
    place.quiet()
    uri = prepared(place, act)
    before = {commit.attempt for commit in commits_of(open_store(uri))}
    place.proxy.requests.clear()
    numbers = (number, number + 1) if fault.endswith("twice") else (number,)
    named = fault.removesuffix(", twice")
    place.proxy.fault = lambda request: named if request.number in numbers else None
    with through(place.proxy):
        try:
            told = ACTS[act](uri)
        except NightError as error:
            told = type(error).__name__
    place.quiet()
    new = [commit for commit in commits_of(open_store(uri)) if commit.attempt not in before]
    right = whole(uri) != "" and is_right(act, told, [commit.attempt for commit in new])
    return {"act": act, "put": number, "fault": fault, "told": told, "right": right}


def is_right(act: str, told: str, committed: list[str]) -> bool:
    """What it says is what the log says, and nothing was done twice."""
    if act in ("release", "retention"):
        return told.split()[0] in ("released", "removed") and committed == []
    said, _, rest = told.partition(" ")
    done = "published" if act in ("night", "rerun") else "rolled"
    return said == done and len(committed) == 1 and committed[0] in rest


ACTS: dict[str, Callable[[str], str]] = {
    "night": lambda uri: publish(uri, as_of=DATES[-1], mark=9.0, attempt=new_attempt()),
    "rerun": lambda uri: publish(uri, as_of=DATES[-3], mark=9.0, attempt=new_attempt(), run_key="another"),
    "rollback": lambda uri: back(uri, to=DATES[-4]),
    "release": let_go,
    "retention": lambda uri: remove(uri, keep=2),
}


def prepared(place: Place, act: str) -> str:
    """A store in which this act has something to do: a copy of one that was made once, as if it had been made here."""
    uri = place.new_store()
    held = act == "release"
    if held not in place.templates:
        with tempfile.TemporaryDirectory() as folder:
            template = f"{folder}/store"
            for mark, as_of in enumerate(DATES[-4:-1]):
                publish(template, as_of=as_of, mark=float(mark))
            if held:
                back(template, to=DATES[-4])
            store = open_store(template)
            place.templates[held] = store.uri, {one.key: store.read(one.key)[0] for one in store.list("")}
    made_at, objects = place.templates[held]
    store = open_store(uri)
    for key, content in sorted(objects.items(), key=lambda one: (one[0] == LATEST_KEY, one[0])):
        store.put_once(key, content.replace(made_at.encode(), uri.encode()) if key.endswith(".json") else content)
    return uri


@contextmanager
def through(proxy: FaultProxy) -> Iterator[None]:
    direct = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = proxy.url
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = direct


# ---- kills at every request


def kills(*, small: bool) -> tuple[dict[str, Any], Any]:
    """SIGKILL before and after every S3 request of each act, then the act once more: the files, logs and LATEST.json of
    an undisturbed one, but for attempts that were given up.
    """

    def tried(place: Place) -> tuple[dict[str, Any], Any]:
        rows: list[dict[str, Any]] = []
        for act in SMALL[1:] if small else ACTS:
            undisturbed = state_after(place, act, None)[0]
            requests = len(place.proxy.requests)
            for number in range(5, requests + 1, 20) if small else range(1, requests + 1):
                for moment in ("before", "after"):
                    found, told = state_after(place, act, (number, moment))
                    rows.append({"act": act, "request": number, "moment": moment, "told": told,
                                 "right": found == undisturbed})  # fmt: skip
        identical = sum(row["right"] for row in rows)
        return {"request_kills_tried": len(rows), "request_kills_identical": identical}, rows

    return watched(tried)


def state_after(place: Place, act: str, due: tuple[int, str] | None) -> tuple[object, list[str]]:
    """What is published after it: rows of what is live, who holds it, which dates have files that a commit names."""
    place.quiet()
    uri = prepared(place, act)
    place.proxy.requests.clear()
    told = []
    if due is not None:
        told.append(killed(place, act, uri, due).outcome())
        whole(uri)
    place.quiet()
    child = start_act(act, uri, endpoint=place.proxy.url)
    told.append(child.outcome())
    requests = list(place.proxy.requests)
    live = open_latest(uri, verify=True)
    store = live.store
    contents = tuple(store.read(part.key)[0] for part in live.manifest.parts)
    named = {file.key for commit in commits_of(store) for file in commit.all_files()}
    kept = sorted({one.key.split("dt=")[1][:10] for one in store.list("recs") if one.key in named})
    place.proxy.requests[:] = requests
    assert uploads_left(place) == 0
    return (contents, live.manifest.rolled_back_to, bool(live.manifest.held), kept), told


def start_act(act: str, uri: str, *, endpoint: str) -> Child:
    named: dict[str, tuple[Callable[..., str], dict[str, Any]]] = {
        "night": (publish, {"as_of": DATES[-1], "mark": 9.0, "attempt": new_attempt()}),
        "rerun": (publish, {"as_of": DATES[-3], "mark": 9.0, "attempt": new_attempt(), "run_key": "another"}),
        "rollback": (back, {"to": DATES[-4]}),
        "release": (let_go, {}),
        "retention": (remove, {"keep": 2}),
    }
    function, arguments = named[act]
    return start(function, uri, endpoint=endpoint, **arguments)


def killed(place: Place, act: str, uri: str, due: tuple[int, str]) -> Child:
    number, moment = due
    victims: list[Child] = []

    def kill_at(request: Request) -> bool:
        if len(place.proxy.requests) != number:
            return False
        while not victims:
            time.sleep(0.001)  # its first request may be quicker than the parent's next line
        victims[0].kill()
        return True

    def before(request: Request) -> str | None:
        return "503 SlowDown" if moment == "before" and kill_at(request) else None

    def after(request: Request) -> None:
        if moment == "after":
            kill_at(request)

    place.proxy.fault, place.proxy.done = before, after
    victims.append(start_act(act, uri, endpoint=place.proxy.url))
    return victims[0]


def uploads_left(place: Place) -> int:
    with urllib.request.urlopen(f"{place.server}/{place.bucket}?uploads", timeout=30) as answer:
        return answer.read().count(b"<Upload>")


# ---- retention against everybody


def retained(*, small: bool) -> tuple[dict[str, Any], Any]:
    """Retention, a rollback and a night at once, one of them killed at a drawn moment, their clocks wrong by years.

    On a folder whose objects are days old; then retention once more. Right: what is live or to be kept is whole.
    """
    count = 2 if small else 100

    def tried(place: Place) -> tuple[dict[str, Any], Any]:
        rows = []
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(disturbed_retention(place.on_disk(Path(folder) / "store"), random.Random(number)))
                place.watched.write_text(str(Path(folder) / "nothing"))
                time.sleep(0.1)
        return {"retention_tried": count, "retention_ok": sum(row["right"] for row in rows)}, rows

    return watched(tried)


def disturbed_retention(uri: str, drawn: random.Random) -> dict[str, Any]:
    for mark, as_of in enumerate(DATES[:-1]):
        publish(uri, as_of=as_of, mark=float(mark))
    make_old(Path(uri))
    at = time.time() + 0.4
    wrong = [drawn.choice((0.0, 3e8, -3e8)) for _ in range(4)]
    to = drawn.choice(DATES[:-1])
    children = {
        "retention": start(remove, uri, at=at, clock_wrong_by_s=wrong[0], keep=2, past_the_grace=False),
        "rollback": start(back, uri, at=at + drawn.uniform(-0.02, 0.05), clock_wrong_by_s=wrong[1], to=to),
        "night": start(publish, uri, at=at, clock_wrong_by_s=wrong[2], as_of=DATES[-1], mark=9.0),
        "another retention": start(
            remove, uri, at=at + drawn.uniform(0, 0.05), clock_wrong_by_s=wrong[3], keep=2, past_the_grace=False
        ),
    }
    victim = drawn.choice([*children, ""])
    if victim:
        time.sleep(max(0.0, at - time.time()) + drawn.uniform(0.0, 0.12))
        children[victim].kill()
    outcomes = {name: child.outcome() for name, child in children.items()}
    faults = [f"{name}: {told}" for name, told in outcomes.items() if not is_named(name, told)]
    faults += what_is_missing(uri)
    if outcomes["rollback"].startswith("rolled"):
        live = what_is_live(open_store(uri))
        faults += [] if live and live.held and live.rolled_back_to == f"{to} v1" else ["it is not held"]
    make_old(Path(uri))
    faults += [] if remove(uri, keep=2, past_the_grace=False).startswith("removed") else ["retention does not end"]
    faults += what_is_missing(uri)
    temporary = [path.name for path in Path(uri).rglob("*") if path.is_file() and path.name.startswith(".tmp")]
    return {"victim": victim, "outcomes": outcomes, "faults": faults + temporary, "right": not faults + temporary}


def is_named(name: str, told: str) -> bool:
    """How each of them may end."""
    first = told.split()[0]
    ends = {"rollback": ("rolled", "NightGone"), "night": ("published",)}
    return first in ("killed", *ends.get(name, ("removed",)))


def what_is_missing(uri: str) -> list[str]:
    """Of what LATEST names, of what is live by the log, and of the newest two dates."""
    store = open_store(uri)
    newest = {commit.as_of: commit for commit in commits_of(store)}
    needed = [newest[as_of] for as_of in sorted(newest)[-2:]]
    needed += [parse_manifest(store.read(LATEST_KEY)[0], LATEST_KEY), what_is_live(store)]  # type: ignore[list-item]
    there = {one.key: one.num_bytes for folder in ("recs", "outputs", "models") for one in store.list(folder)}
    return [file.key for one in needed for file in one.all_files() if there.get(file.key) != file.bytes]


def make_old(folder: Path) -> None:
    """By the store's own clock, everything is three days old."""
    then = time.time() - timedelta(days=3).total_seconds()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "clock":
            os.utime(path, (then, then))


# ---- what all of them look at


def commits_of(store: Store) -> list[Manifest]:
    """In their order."""
    return [parse_manifest(store.read(one.key)[0], one.key) for one in store.list("_meta/commits")]


def whole(uri: str) -> str:
    """The attempt that readers get, every byte of it checked; raises where something is missing."""
    try:
        return open_latest(uri, verify=True).manifest.attempt
    except ObjectNotFound:
        return ""


# ---- the model, the simulation, and a rollback's seconds


def model(*, small: bool) -> tuple[dict[str, Any], Any]:
    from tests.tasks.publish_protocol import NEEDED, SCENARIOS, Rules, explore

    rows: dict[str, Any] = {}
    for scenario in SCENARIOS:
        found = explore(scenario, at_most=2_000 if small else 1_000_000)
        rows[scenario.name] = {"states": found.states, "violation": found.violation}
        print(f"  {scenario.name}: {found.states:,} states {found.violation}", flush=True)
    needed = list(NEEDED)[:1] if small else list(NEEDED)
    caught = {
        rule: explore(SCENARIOS[NEEDED[rule]], Rules(**{rule: False}), at_most=500_000).violation for rule in needed
    }
    figures = {
        "model_states": sum(row["states"] for row in rows.values()),
        "model_violations": sum(bool(row["violation"]) for row in rows.values()),
        "mutants_tried": len(caught),
        "mutants_caught": sum(map(bool, caught.values())),
    }
    return figures, {"scenarios": rows, "mutants": caught}


def simulation(*, small: bool) -> tuple[dict[str, Any], Any]:
    from tests.tasks.simulation import simulate

    count = 20 if small else 10_000
    with tempfile.TemporaryDirectory() as folder:
        requests, broken = simulate(range(count), Path(folder))
    figures = {"simulated_schedules": count, "simulated_violations": len(broken)}
    return figures, {"requests": requests, "broken": broken}


def rollback(*, small: bool) -> tuple[dict[str, Any], Any]:
    """`make rollback` from its start to its end, on S3, among thirty nights: the slowest of five."""
    nights, rounds = (3, 1) if small else (30, 5)

    def tried(place: Place) -> tuple[dict[str, Any], Any]:
        uri = place.new_store()
        dates = [date(2026, 10, 1) + timedelta(days=day) for day in range(nights)]
        for mark, as_of in enumerate(dates):
            publish(uri, as_of=as_of, mark=float(mark))
        store, seconds, same = open_store(uri), [], 0
        for as_of in dates[:rounds]:
            started = time.perf_counter()
            words = ["rollback", "--store", uri, "--date", str(as_of), "--who", "Anna", "--reason", "odd"]
            command = [sys.executable, "-m", "flows.rollback_by_hand", *words]
            subprocess.run(command, cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
            live = open_latest(uri, verify=True).manifest
            aim = next(commit for commit in commits_of(store) if commit.as_of == as_of)
            same += [part.sha256 for part in live.parts] == [part.sha256 for part in aim.parts]
        return {"rollback_seconds": max(seconds), "rollbacks_identical": same, "rollbacks_tried": rounds}, seconds

    return watched(tried)


PARTS: dict[str, Callable[..., tuple[dict[str, Any], Any]]] = {
    "races": races,
    "lost": lost,
    "kills": kills,
    "retention": retained,
    "rollback": rollback,
    "model": model,
    "simulation": simulation,
}


if __name__ == "__main__":
    main()
