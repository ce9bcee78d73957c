"""Where a fit stood, so that a killed one goes on and ends in the same bytes. Safetensors and JSON, never a pickle.

`<fit>-<epoch>.safetensors` holds the tensors; `<fit>-<epoch>.json` is written after it, holds their hash, the identity
of the training (graph, settings, code, number of ranks) and a hash of itself. What does not fit exactly is not loaded.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from models.identity import file_sha256

KEPT = 2  # of each fit: the newest, and one before it in case the newest cannot be read


@dataclass(frozen=True)
class Checkpoint:
    epoch: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, fit: str, identity: str, checkpoint: Checkpoint) -> None:
    """Tensors first, then the JSON that makes them valid, each written aside, flushed to disk and renamed."""
    folder.mkdir(exist_ok=True)
    tensors_path = folder / f"{fit}-{checkpoint.epoch:06d}.safetensors"
    aside = tensors_path.with_suffix(".tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}, aside)
    body = {"identity": identity, "epoch": checkpoint.epoch, "tensors": file_sha256(aside), "state": checkpoint.state}
    flush_and_rename(aside, tensors_path)
    aside.write_text(json.dumps({"body": body, "seal": _seal(body)}, indent=1))
    flush_and_rename(aside, tensors_path.with_suffix(".json"))
    _drop_outdated(folder, fit, identity)


def _drop_outdated(folder: Path, fit: str, identity: str) -> None:
    """Older ones, and all of other trainings: theirs may have higher epochs, and nobody goes on from them here."""
    ours = []
    for path in sorted(folder.glob(f"{fit}-*.json")):
        try:
            is_ours = json.loads(path.read_text())["body"]["identity"] == identity
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if is_ours:
            ours.append(path)
        else:
            _drop(path)
    for path in ours[:-KEPT]:
        _drop(path)


def _drop(path: Path) -> None:
    path.unlink()
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def newest_checkpoint(folder: Path, fit: str, identity: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest that is whole and of this very training, and why newer ones were passed over."""
    passed_over: list[str] = []
    for path in sorted(folder.glob(f"{fit}-*.json"), reverse=True):
        try:
            return _read(path, identity), passed_over
        except (OSError, ValueError, KeyError, TypeError) as error:
            passed_over.append(f"{path.name}: {error}")
    return None, passed_over


def _read(path: Path, identity: str) -> Checkpoint:
    written = json.loads(path.read_text())
    body = written["body"]
    if written["seal"] != _seal(body):
        raise ValueError("its JSON is not what was written")
    if body["identity"] != identity:
        raise ValueError("it is of another training (graph, settings, code or number of ranks)")
    tensors_path = path.with_suffix(".safetensors")
    if file_sha256(tensors_path) != body["tensors"]:  # before a single byte is parsed
        raise ValueError("its tensors are not what was written")
    return Checkpoint(body["epoch"], load_file(tensors_path), body["state"])


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def is_as_written(path: Path) -> bool:
    """Whether a file that `write_sealed` wrote still has its bytes."""
    seal = path.with_suffix(".sha256")
    return path.exists() and seal.exists() and seal.read_text() == file_sha256(path)


def write_sealed(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors at `path`, whole or not at all, and then their hash beside them."""
    aside = path.with_suffix(".tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)
    seal = file_sha256(aside)
    path.with_suffix(".sha256").unlink(missing_ok=True)
    flush_and_rename(aside, path)
    aside.write_text(seal)
    flush_and_rename(aside, path.with_suffix(".sha256"))


def flush_and_rename(aside: Path, path: Path) -> None:
    """On disk for good before it stands under its name, and the name too."""
    with open(aside, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
