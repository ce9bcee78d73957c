"""Fixtures that more than one room needs."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import FaultProxy, running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real S3 server over HTTP, with AWS_* set to it until the session ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # A process of its own: its threads, warnings and speed are not the tests'.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = pytest.MonkeyPatch()
    try:
        for variable in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(variable)
        environment.setenv("AWS_ENDPOINT_URL", url)
        environment.setenv("AWS_ACCESS_KEY_ID", "test-key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        _wait_for_port(port, server)
        yield url
    finally:
        environment.undo()
        server.terminate()
        server.wait(timeout=10)


def _wait_for_port(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 server ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the S3 server did not answer within 30 s")


@pytest.fixture
def s3_store(s3_server: str) -> str:
    """A store's URI in a bucket of its own."""
    bucket = f"night-{secrets.token_hex(6)}"
    request = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT", data=b"")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["folder", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same behaviour is asked of a local folder and of S3."""
    return request.getfixturevalue("s3_store") if request.param == "s3" else str(tmp_path / "store")


@pytest.fixture
def fault_proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of the S3 server; stores opened in the test talk through it."""
    proxy = FaultProxy(s3_server)
    with running(proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
