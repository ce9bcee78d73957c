"""A checkpoint is read back whole, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint

STATE = {"step": 40.0, "progress": {"curve": [], "best_recall": 0.25}}


def checkpoint(epoch: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(epoch)
    return Checkpoint(epoch, {"table": torch.randn(5, 3, generator=generator)}, STATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for epoch in (3, 7):
        save_checkpoint(tmp_path / "checkpoints", "judged", "this training", checkpoint(epoch))
    return tmp_path / "checkpoints"


def epoch_of(folder: Path, identity: str = "this training", fit: str = "judged") -> tuple[int | None, list[str]]:
    found, passed_over = newest_checkpoint(folder, fit, identity)
    if found is not None:
        assert torch.equal(found.tensors["table"], checkpoint(found.epoch).tensors["table"])
        assert found.state == STATE
    return (found.epoch if found else None), passed_over


def test_the_newest_is_read_back_as_it_was(folder: Path) -> None:
    assert epoch_of(folder) == (7, [])


def test_where_there_is_none_there_is_none(folder: Path, tmp_path: Path) -> None:
    assert epoch_of(tmp_path / "nowhere") == (None, [])
    assert epoch_of(folder, fit="served") == (None, [])


def test_only_the_two_newest_are_kept_and_nothing_unfinished(folder: Path) -> None:
    save_checkpoint(folder, "judged", "this training", checkpoint(12))
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"judged-{epoch:06d}.{kind}" for epoch in (7, 12) for kind in ("json", "safetensors")]


def test_those_of_another_training_make_room_even_if_they_went_further(folder: Path) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(folder, "judged", "at half the rate", checkpoint(epoch))
        assert epoch_of(folder, identity="at half the rate") == (epoch, [])
    assert sorted(path.stem for path in folder.glob("*.json")) == ["judged-000002", "judged-000003"]
    assert epoch_of(folder, identity="this training")[0] is None


def test_one_of_another_training_is_passed_over_and_named(folder: Path) -> None:
    epoch, passed_over = epoch_of(folder, identity="another date, recipe, code or number of ranks")
    assert epoch is None
    assert ["it is of another training" in why for why in passed_over] == [True, True]


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_truncated_one_is_passed_over_for_the_one_before(folder: Path, kind: str, length: int) -> None:
    path = folder / f"judged-000007.{kind}"
    path.write_bytes(path.read_bytes()[:length])
    epoch, passed_over = epoch_of(folder)
    assert epoch == 3
    assert len(passed_over) == 1


def test_one_whose_tensors_never_arrived_is_passed_over(folder: Path) -> None:
    (folder / "judged-000007.safetensors").unlink()
    assert epoch_of(folder)[0] == 3


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_flipped_bit_is_never_trained_on(folder: Path, kind: str) -> None:
    """Every one of 200: read as what was written (a bit of white space in the JSON), or not at all."""
    path = folder / f"judged-000007.{kind}"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        refused += epoch_of(folder)[0] == 3  # epoch_of itself holds what is read to what was written
    assert refused == 200 if kind == "safetensors" else refused > 150


def test_tensors_that_were_swapped_for_others_are_not_loaded(folder: Path) -> None:
    (folder / "judged-000007.safetensors").write_bytes((folder / "judged-000003.safetensors").read_bytes())
    assert epoch_of(folder)[0] == 3


def test_a_state_that_was_edited_is_not_believed(folder: Path) -> None:
    path = folder / "judged-000007.json"
    written = json.loads(path.read_text())
    written["body"]["state"]["step"] = 1.0
    path.write_text(json.dumps(written))
    assert epoch_of(folder)[0] == 3
