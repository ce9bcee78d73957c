"""One thread: the worlds are tiny, and two threads on a busy machine wait for each other longer than they compute.

And products that are added up as a night's are (models.train sets the same): a fit in this process is compared with
fits in processes of their own.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # read once, at the first product

import pytest
import torch

from tests.models.paths import PATHS, take


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One behaviour suite over every way to select."""
    return take(request.param, monkeypatch)
