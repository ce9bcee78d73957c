"""What a training is: by this, ranks know that they do the same thing, and a checkpoint knows whose it is."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Identity:
    """SHA-256 of each thing that decides a fit's numbers."""

    graph: str
    settings: str
    code: str
    world: int

    def __str__(self) -> str:
        return _sha256(f"{self.graph} {self.settings} {self.code} {self.world}".encode())

    def differences(self, other: "Identity") -> list[str]:
        return [name for name in ("graph", "settings", "code", "world") if getattr(self, name) != getattr(other, name)]


def identity_of(graph_folder: str, settings: dict[str, Any], world: int) -> Identity:
    """Reads every array of the graph once: a bit that flipped on one machine would give its ranks another graph."""
    arrays = sorted(Path(graph_folder).glob("*.npy"))
    code = sorted(Path(__file__).parent.glob("*.py"))
    return Identity(
        graph=_sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in arrays).encode()),
        settings=_sha256(json.dumps(settings, sort_keys=True).encode()),
        code=_sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in code).encode()),
        world=world,
    )


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
