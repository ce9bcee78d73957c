"""What several rooms' tests need: real data, small finished nights to publish."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nights import Night, finished_night


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project, not part of it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; everything else is tested without it")
    return folder


@pytest.fixture
def nobody_is_named(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that this test or its processes print or log, traces of errors included, holds an id of hostile_files."""
    with caplog.at_level("DEBUG"):
        yield
    printed = capfd.readouterr()
    for said in (printed.out, printed.err, caplog.text):
        assert "user-0" not in said
        assert "item-0" not in said


@pytest.fixture
def make_night(tmp_path: Path) -> Callable[..., Night]:
    def make(store_uri: str, **settings: Any) -> Night:
        return finished_night(tmp_path / f"finished-{secrets.token_hex(4)}", store_uri, **settings)

    return make
