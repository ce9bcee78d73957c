"""How far a fit has come: its curve and its best look, what a checkpoint keeps of it, and what the outside is told."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DIVERGED_ABOVE = 1.5  # times the first epoch's loss


@dataclass(frozen=True)
class Epoch:
    epoch: int
    loss: float
    validation_recall: float | None
    seconds: float


class Failure(Exception):
    """A training that must end, and the name that the night gives it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Progress:
    """One fit's, from its first epoch or from where a checkpoint left it."""

    def __init__(self, which: str, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.which = which
        self.curve = [Epoch(**epoch) for epoch in state.get("curve", [])]
        self.best_recall: float = state.get("best_recall", -1.0)
        self.best_epoch: int = state.get("best_epoch", 0)
        self.collisions: int = state.get("collisions", 0)
        self.pairs: int = state.get("pairs", 0)
        self.resumed_at = self.epoch
        self.seconds_before = self.curve[-1].seconds if self.curve else 0.0
        self.started = time.perf_counter()

    @property
    def epoch(self) -> int:
        return len(self.curve)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def collision_rate(self) -> float:
        """Of the pairs of a user and a negative, how many were likes of the user (and left out)."""
        return self.collisions / max(1, self.pairs)

    def state(self) -> dict[str, Any]:
        return {
            "curve": [asdict(epoch) for epoch in self.curve],
            "best_recall": self.best_recall,
            "best_epoch": self.best_epoch,
            "collisions": self.collisions,
            "pairs": self.pairs,
        }

    def is_best(self, recall: float) -> bool:
        if recall <= self.best_recall:
            return False
        self.best_recall, self.best_epoch = recall, self.epoch + 1
        return True

    def add(self, loss: float, recall: float | None, *, collisions: int = 0, pairs: int = 0) -> None:
        """Close an epoch. Raises Failure where the loss has grown instead of fallen."""
        self.collisions += collisions
        self.pairs += pairs
        self.curve.append(Epoch(self.epoch + 1, loss, recall, self.seconds))
        first = self.curve[0].loss
        if loss > DIVERGED_ABOVE * abs(first):
            raise Failure(
                "TrainingDiverged",
                f"the loss of the {self.which} fit rose from {first:.4g} in epoch 1 to {loss:.4g} in epoch "
                f"{self.epoch}",
            )

    def has_stopped_rising(self, epochs_of_patience: int) -> bool:
        return self.best_epoch > 0 and self.epoch - self.best_epoch >= epochs_of_patience

    def tell(self, folder: Path, epochs: int) -> None:
        """For the dashboard and the terminal. Seconds left: as if no patience ended it sooner."""
        here = self.epoch - self.resumed_at
        left = (self.seconds - self.seconds_before) / max(1, here) * (epochs - self.epoch)
        told = {
            "fit": self.which,
            "epochs": epochs,
            "seconds_left": left,
            "resumed_at": self.resumed_at,
            **asdict(self.curve[-1]),
        }
        write_json(folder / "progress.json", told)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all: a reader never sees half a file."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)
