"""SIGKILL before and after every S3 request of a whole night, and at drawn moments; then one rerun: the same bytes.

    make test-faults-night [EVERY=1] [DRAWN=100]

The stages run without a Prefect server (tests/bare_night.py), with real training ranks, on an S3 server behind the
tests' fault proxy; a watcher reads LATEST.json and every file that it names. At a request only the
night's own process is killed, and what it started has to end by itself; at a drawn moment the whole tree is.
`results/faults-night.json` and `results/faults-kills.json`.
"""

import argparse
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.publish import Place, uploads_left, watched, whole
from benchmarks.faults.results import write_part
from tasks.publish.reader import open_latest
from tasks.store import open_store
from tests.faults import Request
from tests.small_night import QUICK, two_taste_events

NIGHTS = multiprocessing.get_context("forkserver")
PRELOADED = ["tests.bare_night", "benchmarks.faults.acts", "benchmarks.faults.results"]
Due = tuple[int, str] | float  # a request's number, before or after it; or seconds
LEFT_BEHIND = {"lock", "inputs"}  # in the work folder of a night that ended well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th request; 0: none")
    parser.add_argument("--drawn", type=int, default=100, help="kills at drawn moments; 0: none")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.every:
        write_part("night", *watched(lambda place: tried(place, options.every)))
    if options.drawn:
        write_part("kills", *watched(lambda place: drawn(place, options.drawn)))


def tried(place: Place, every: int) -> tuple[dict[str, Any], Any]:
    NIGHTS.set_forkserver_preload(PRELOADED)
    undisturbed = disturbed(place, None)
    requests = undisturbed["requests"]
    print(f"a night has {requests} requests, {undisturbed['seconds']:.0f} s", flush=True)
    rows = []
    for number in range(1, requests + 1, every):
        for moment in ("before", "after"):
            row = disturbed(place, (number, moment))
            row["right"] = row.pop("published") == undisturbed["published"] and not row["left"] and row["was_killed"]
            rows.append(row | {"request": number, "moment": moment})
            if not row["right"]:
                print(f"not right: {rows[-1]}", flush=True)
        print(f"{number} of {requests}: {sum(row['right'] for row in rows)} of {len(rows)}", flush=True)
    right = sum(row["right"] for row in rows)
    figures = {"request_kills_tried": len(rows), "request_kills_identical": right}
    return figures, [{**row, "told": str(row["told"])} for row in rows]


def drawn(place: Place, count: int) -> tuple[dict[str, Any], Any]:
    NIGHTS.set_forkserver_preload(PRELOADED)
    disturbed(place, None)  # the first one starts the server of forks
    undisturbed = disturbed(place, None)
    random_ = random.Random(2026)
    rows = []
    for number in range(count):
        moment = random_.uniform(0.0, undisturbed["night_seconds"])
        row = disturbed(place, moment)
        row["right"] = row.pop("published") == undisturbed["published"] and not row["left"]
        rows.append(row | {"moment": moment})
        print(f"{number + 1} of {count}: {row}", flush=True)
    figures = {
        "kills_tried": len(rows),
        "kills_identical": sum(row["right"] for row in rows),
        "kills_too_late": sum(not row["was_killed"] for row in rows),  # that night had ended by then
    }
    return figures, rows


def disturbed(place: Place, due: Due | None) -> dict[str, Any]:
    """One night, killed when it is due, and then its rerun."""
    place.quiet()
    uri = place.new_store()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        events = Path(folder) / "day.parquet"
        two_taste_events().write_parquet(events)
        open_store(uri).put_once("events/day.parquet", events)
        told = [run(place, uri, work, due)] if due is not None else []
        family = [process for process in psutil.process_iter() if _works_in(process, folder)]
        _, orphans = psutil.wait_procs(family, timeout=5)
        whole(uri)
        place.quiet()
        rerun_at = time.monotonic()
        told.append(run(place, uri, work, None))
        night_seconds = time.monotonic() - rerun_at
        requests = len(place.proxy.requests)
        left = sorted({path.name.split("-")[0] for path in work.rglob("*") if path.is_file()} - LEFT_BEHIND)
    live = open_latest(uri, verify=True)
    contents = [live.store.read(file.key)[0] for file in live.manifest.all_files()]
    left += [f"process {process.pid}" for process in orphans] + ["upload"] * uploads_left(place)
    return {
        "published": (contents, live.manifest.version, live.manifest.metrics, live.manifest.run_key),
        "left": left,
        "told": told,
        "was_killed": told[0] == "killed",
        "requests": requests,
        "night_seconds": night_seconds,
        "seconds": time.monotonic() - started,
    }


def _works_in(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error, OSError):
        return any(folder in word for word in process.cmdline())
    return False


def run(place: Place, uri: str, work: Path, due: Due | None) -> str:
    here, there = NIGHTS.Pipe(duplex=False)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": place.proxy.url, "NIGHTGRAPH_STORE": uri, "NIGHTGRAPH_WORK": str(work)}
    night = NIGHTS.Process(target=_night, args=(there, environment))

    def kill_if_due(moment: str) -> bool:
        is_due = due == (len(place.proxy.requests), moment)
        if is_due:
            assert night.pid is not None
            os.kill(night.pid, signal.SIGKILL)
        return is_due

    def before(request: Request) -> str | None:
        return "503 SlowDown" if kill_if_due("before") else None

    def after(request: Request) -> None:
        kill_if_due("after")

    place.proxy.fault, place.proxy.done = before, after
    night.start()
    there.close()
    if isinstance(due, float) and not here.poll(due):
        _kill_tree(night.pid)
    told = "killed"
    with suppress(EOFError):
        told = here.recv()
    night.join(timeout=60)
    return told


def _kill_tree(pid: int | None) -> None:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _night(answer: Connection, environment: dict[str, str]) -> None:
    from tests.bare_night import nightly

    os.environ.update(environment)
    try:
        published = nightly(QUICK)
        answer.send(f"published v{published.version}, already {published.already}")
    except Exception as error:
        answer.send(f"broken: {error!r}")


if __name__ == "__main__":
    main()
