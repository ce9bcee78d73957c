"""Fixtures that more than one room needs."""

import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.faults import FaultProxy, running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real S3 server over HTTP, with AWS_* set to it until the session ends."""
    with servers.s3_server() as url:
        yield url


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
