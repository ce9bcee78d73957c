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

from tasks.config import NightlyConfig
from tasks.contracts import Published

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


# 24 users and 20 items; the even ones like the even ones.
def two_taste_events(*, days: int = 5, first_user: int = 0) -> pl.DataFrame:
    """Rows of an event log in which every user rates 10 items of their taste 5 and two of the other one 2."""
    rows = []
    for user in range(24):
        liked = [(user % 2) + 2 * ((user // 2 + step) % 10) for step in range(8)]
        disliked = [1 - (user % 2) + 2 * ((user // 2 + step) % 10) for step in range(2)]
        for position, (item, rating) in enumerate([(i, 5.0) for i in liked] + [(i, 2.0) for i in disliked]):
            second = (position * days * 86_400) // 10 + user
            rows.append((f"user-{first_user + user:03d}", f"item-{item:02d}", rating, 1_763_000_000 + second))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")


QUICK = NightlyConfig.model_validate(
    {
        "graph": {"split": "per_user_time"},
        "train": {"max_epochs": 3, "width": 8, "negatives": 16, "batches_per_epoch": 2, "relaunches": 0},
        "evaluate": {"k": 5, "resamples": 100},
        "recommend": {"k": 5},
    }
)


def write_events(folder: Path, events: pl.DataFrame, name: str = "day") -> Path:
    path = folder / "events" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    events.write_parquet(path)
    return path


def rows_of(published: Published) -> pl.DataFrame:
    return pl.read_parquet(list(published.files), hive_partitioning=False)


def bytes_of(published: Published) -> list[bytes]:
    return [Path(uri.removeprefix("file://")).read_bytes() for uri in published.files]
