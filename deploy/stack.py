"""`make up` and `make down`: Nightgraph with its dashboard on this machine, reachable from this machine only.

    state/prefect/       Prefect's database; stays when everything is down
    state/<name>.log     what the server and the worker said
    state/<name>.json    which process it is
    state/store          where nights read and publish: `down` is not told, and says that it stays

Every process of a stack, and whatever it starts, carries NIGHTGRAPH_STACK=<state folder> in its environment. That is
how `down` finds them all: a run that outlived its worker too, and never a stranger that got an old process id.

One file, though a long one: `make up` runs it by its path, and deploy/ is no package that could hold a second.
"""

import argparse
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
DEMO_STORE = ROOT / "var" / "demo"
POOL = "nightgraph"
MARK = "NIGHTGRAPH_STACK"
START_S = 180.0  # the first start writes the database; a busy machine takes its time
GRACE_S = 20.0  # between asking processes to end and killing them


class StackError(Exception):
    """What went wrong, and what to do."""


@dataclass(frozen=True)
class Stack:
    state: Path
    port: int
    store: str  # a folder or s3://bucket/prefix
    work: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        # A profile or a server of somebody else's must not leak in; AWS_* are the worker's credentials.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return inherited | {
            MARK: str(self.state),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PWD": str(ROOT),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "NIGHTGRAPH_STORE": self.store,
            "NIGHTGRAPH_WORK": str(self.work),
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            # Or the dashboard of another port asks port 4200.
            "PREFECT_SERVER_UI_API_URL": f"{self.url}/api",
            # The newer dashboard (/v2) makes the browser ask an analytics host on the internet; this one asks nobody.
            "PREFECT_SERVER_UI_V2_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.state / "prefect" / "ui"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }


def up(stack: Stack) -> str:
    """Start what is not running; safe to repeat. Returns what to say. Raises StackError."""
    stack.state.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(stack):
        server = recorded(stack, "server")
        if server and server["port"] != stack.port:
            raise StackError(
                f"it is up already, on port {server['port']}: http://127.0.0.1:{server['port']}. "
                "Nothing was changed. `make down` first, to move it."
            )
        was_up = bool(server and recorded(stack, "worker"))
        if not server:
            _refuse_taken_port(stack.port)
        if not was_up:
            print("starting server, worker and deployment (half a minute the first time)", flush=True)
        if not server:
            command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(stack.port)]
            _start(stack, "server", command)
            _wait(stack, "server", lambda: _answers(stack, "/api/health"))
        if not recorded(stack, "worker"):
            _start(stack, "worker", ["prefect", "worker", "start", "--pool", POOL, "--type", "process"])
        # The worker makes the pool if it is missing.
        _wait(stack, "worker", lambda: _answers(stack, f"/api/work_pools/{POOL}"))
        _apply(stack)
        (stack.state / "store").write_text(stack.store)
        _wait(stack, "worker", lambda: _worker_is_online(stack))
    return _welcome(stack, was_up=was_up)


def down(stack: Stack) -> str:
    """End every process of this stack. Data stays. Returns what to say."""
    if not members(stack):
        _forget(stack)
        return "nothing is up."
    server = recorded(stack, "server")
    worker = recorded(stack, "worker")
    if worker:
        # It passes the signal on: a run ends its training ranks itself.
        with suppress(psutil.NoSuchProcess):
            psutil.Process(worker["pid"]).terminate()
    servers = {server["pid"]} if server else set()
    _gone([process for process in members(stack) if process.pid not in servers])
    told = _close_runs(Stack(stack.state, server["port"], stack.store, stack.work)) if server else 0
    _gone(members(stack))
    if left := members(stack):
        raise StackError(f"these processes do not end: {', '.join(str(process.pid) for process in left)}")
    _forget(stack)
    stopped = f" {told} running night{'s' * (told != 1)} marked Cancelled;" if told else ""
    return (
        f"down.{stopped} events and published recommendations stay in {_place(_served(stack))}, the runs' history in "
        f"{_short(stack.state)}."
    )


def status(stack: Stack) -> str:
    lines = []
    for name in ("server", "worker"):
        entry = recorded(stack, name)
        what = f"running, process {entry['pid']}" if entry else "not running"
        lines.append(f"{name:8} {what}; log {_short(stack.state / f'{name}.log')}")
    server = recorded(stack, "server")
    if server:
        answers = _answers(Stack(stack.state, server["port"], stack.store, stack.work), "/api/health")
        lines.append(f"dashboard http://127.0.0.1:{server['port']} {'answers' if answers else 'does not answer'}")
    lines.append(f"processes {len(members(stack))} in all")
    return "\n".join(lines)


# ---- processes


def members(stack: Stack) -> list[psutil.Process]:
    """Every living process of this stack, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # other people's processes, and those that end while we look
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == str(stack.state):
                found.append(process)
    return found


def recorded(stack: Stack, name: str) -> dict[str, Any] | None:
    """What was written when `name` was started, if that very process is still alive."""
    try:
        entry: dict[str, Any] = json.loads((stack.state / f"{name}.json").read_text())
        process = psutil.Process(entry["pid"])
        # Not its environment: that is empty for a moment after the start. Not equal: a clock that is set moves both.
        same = abs(process.create_time() - entry["created"]) < 2.0
        return entry if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _start(stack: Stack, name: str, command: list[str]) -> None:
    """In a session of its own: it outlives the shell it was started from."""
    with open(stack.state / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=stack.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    entry = {"pid": process.pid, "created": psutil.Process(process.pid).create_time(), "port": stack.port}
    (stack.state / f"{name}.json").write_text(json.dumps(entry))
    process.returncode = 0  # it is meant to run on: no warning that nobody waits for it


def _wait(stack: Stack, name: str, is_ready: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        if not recorded(stack, name):
            raise StackError(f"the {name} ended while starting. {_last_words(stack, name)}")
        if is_ready():
            return
        time.sleep(0.25)
    raise StackError(f"the {name} is not ready after {START_S:.0f} s. {_last_words(stack, name)}")


def _gone(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _forget(stack: Stack) -> None:
    for name in ("server", "worker"):
        (stack.state / f"{name}.json").unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(stack: Stack) -> Iterator[None]:
    with open(stack.state / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("another `make up` is at work; wait for it.") from None
        yield


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackError(
                f"port {port} is in use by another program. Nothing was started. "
                f"Choose another: make up PORT={port + 1}"
            ) from None


# ---- what the server is told


def ask(stack: Stack, method: str, path: str, body: object = None) -> Any:
    """One call to the server's API, answered by JSON. Raises urllib.error.HTTPError."""
    request = urllib.request.Request(
        f"{stack.url}/api{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    for tries_left in (2, 1, 0):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code != 503 or not tries_left:
                raise
            error.close()
            time.sleep(1.0)  # SQLite was busy with another writer: nothing was done
    return None


def _apply(stack: Stack) -> None:
    with open(stack.state / "apply.log", "wb") as log:
        code = subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "apply.py")],
            cwd=ROOT,
            env=stack.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        raise StackError(f"the deployment was refused. {_last_words(stack, 'apply')}")


def _close_runs(stack: Stack) -> int:
    """Runs whose process was ended must not stand as Running: they would keep the next night from starting."""
    try:
        unfinished = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
        runs = ask(stack, "POST", "/flow_runs/filter", {"flow_runs": unfinished})
        for run in runs:
            state = {
                "type": "CANCELLED",
                "name": "Cancelled",
                "message": "Ended by `make down`. Nothing was published.",
            }
            ask(stack, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
        return len(runs)
    except (OSError, ValueError) as error:
        print(f"the server did not take down which runs were ended: {type(error).__name__}", file=sys.stderr)
        return 0


def _answers(stack: Stack, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"{stack.url}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _worker_is_online(stack: Stack) -> bool:
    try:
        workers = ask(stack, "POST", f"/work_pools/{POOL}/workers/filter", {})
    except (OSError, ValueError):
        return False
    return any(worker["status"] == "ONLINE" for worker in workers)


# ---- words


def _welcome(stack: Stack, *, was_up: bool) -> str:
    return f"""
  Nightgraph is {"up already" if was_up else "up"}.   {stack.url}

  Deployments > nightly > Run > Custom run   every setting with its bounds; Submit starts a night
  Runs > the newest                          its stages live; Artifacts: the night's report
  Schedule                                   every night at 02:15 UTC, as long as this is up

  events and recommendations   {_place(stack.store)}
  logs                         {_short(stack.state)}/server.log, worker.log
  make down                    stops all of it; data stays
"""


def _last_words(stack: Stack, name: str, count: int = 15) -> str:
    path = stack.state / f"{name}.log"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return f"The end of {_short(path)}:\n" + "\n".join("  " + line[:200] for line in lines[-count:])


def _short(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _served(stack: Stack) -> str:
    try:
        return (stack.state / "store").read_text()
    except FileNotFoundError:  # the first `up` did not get that far
        return stack.store


def _place(store: str) -> str:
    return store if "://" in store else _short(Path(store))


def write_demo_if_empty(store: Path) -> None:
    """The town of the demo, so that a night started in the dashboard has something to read."""
    if (store / "events").is_dir():
        return
    sys.path.insert(0, str(ROOT))
    from tasks.ingest.town import write_town
    from tasks.store import open_store

    print("writing a town of 1,000 residents as events")
    write_town(open_store(str(store)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="deploy/stack.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--port", type=int, default=4200, help="of the dashboard, on 127.0.0.1")
    parser.add_argument("--store", default="", help="s3://bucket/prefix or a folder; without it the demo's town")
    parser.add_argument("--work", default=str(ROOT / "var" / "work"), help="where nights work, and resume")
    parser.add_argument("--state", default=str(ROOT / "var" / "up"), help="database, logs, process ids")
    options = parser.parse_args(arguments)
    store = options.store or str(DEMO_STORE)
    if "://" not in store:
        store = str(Path(store).resolve())
    stack = Stack(Path(options.state).resolve(), options.port, store, Path(options.work).resolve())
    try:
        if options.command == "up":
            if not options.store:
                write_demo_if_empty(DEMO_STORE)
            print(up(stack))
        else:
            print(down(stack) if options.command == "down" else status(stack))
    except StackError as error:
        print(f"make {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
