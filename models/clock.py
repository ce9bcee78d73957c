"""Where a fit's seconds go: exclusive time by part, so that the parts add up to the whole."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Parts may nest; the inner one's time is not the outer one's."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.since = 0.0
        self.on_gpu = device is not None and device.type == "cuda"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._stop()
        self.running.append(name)
        try:
            yield
        finally:
            self._stop()
            self.running.pop()

    def each(self, name: str, things: Iterable[T]) -> Iterator[T]:
        """The things, and the time it takes to make each."""
        iterator = iter(things)
        while True:
            with self.part(name):
                try:
                    thing = next(iterator)
                except StopIteration:
                    return
            yield thing

    def _stop(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()  # work is queued: without waiting, the time would land on whoever waits first
        now = time.perf_counter()
        if self.running:
            part = self.running[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now
