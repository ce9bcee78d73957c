"""Every way on which top-K selects. They must give the same bits."""

import pytest

from models import compiled, selection, topk

PATHS = [
    "compiled, 16 bits",
    "compiled, 32 bits",
    "compiled, 16 bits, little room",
    "compiled, 32 bits, little room",
    "torch",  # GPUs run this one, too
]


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if path != "torch" and not compiled.AVAILABLE:
        pytest.skip("numba cannot be imported here, or is switched off: nothing is compiled")
    monkeypatch.setattr(topk, "AVAILABLE", path != "torch")
    monkeypatch.setattr(selection, "half_is_faster", lambda _: "16 bits" in path)
    monkeypatch.setattr(selection, "NOTED", 0 if "little room" in path else 256)
    return path
