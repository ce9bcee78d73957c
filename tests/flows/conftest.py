"""Whole nights on a real Prefect server, small enough to run a few dozen of them."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.contracts import Published
from tests.small_night import QUICK as QUICK
from tests.small_night import two_taste_events as two_taste_events

PROJECT_ROOT = Path(__file__).resolve().parents[2]
AS_OF = date(2026, 11, 23)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a Prefect server of the tests' own."""
    with start_prefect_server(tmp_path_factory.mktemp("prefect")) as (url, _):
        yield url


@contextmanager
def start_prefect_server(home: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A Prefect server in a process of its own, which ends with the block: its API address, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(home / "server.log", "wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=home)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/api/health", server, home / "server.log")
        yield f"http://127.0.0.1:{port}/api", server
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]", output: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, output.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the Prefect server did not answer within 60 s")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Commands by hand settle the environment of their process; run inside the tests', they would settle the next's."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() | before.keys():
        if not name.startswith(("NIGHTGRAPH_", "PREFECT_", "DO_NOT_TRACK")):
            continue  # such as the S3 server's, which last for the session
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture
def night_place(prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty local store and work folder that nights of this test use, and the server they report to."""
    monkeypatch.setenv("NIGHTGRAPH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NIGHTGRAPH_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield tmp_path


def write_events(folder: Path, events: pl.DataFrame, name: str = "day") -> Path:
    path = folder / "events" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    events.write_parquet(path)
    return path


def rows_of(published: Published) -> pl.DataFrame:
    return pl.read_parquet(list(published.files), hive_partitioning=False)


def bytes_of(published: Published) -> list[bytes]:
    return [Path(uri.removeprefix("file://")).read_bytes() for uri in published.files]
