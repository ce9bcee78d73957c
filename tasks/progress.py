"""A progress bar on the dashboard that never holds up the work. Prefect is passed in: only task files know it."""

import logging
import time
from collections.abc import Callable
from typing import Any

REST_S = 300.0
log = logging.getLogger("nightgraph.progress")


class ProgressBar:
    """Passes progress on to the log and the dashboard, at most every so many seconds: each is a request to the server.

    A server that does not answer costs its progress bar, never the work: each question takes the client a minute of
    trying then, so the next is asked much later.
    """

    def __init__(
        self, create: Callable[..., Any], update: Callable[..., Any], *, key: str, starting: str, every_s: float = 1.0
    ) -> None:
        """`create` and `update` are Prefect's create_progress_artifact and update_progress_artifact."""
        self._create, self._update, self._key, self._every_s = create, update, key, every_s
        self._artifact_id: Any = None
        self._told_at = 0.0
        self._rests_until = 0.0
        self._show(0.0, starting)

    def tell(self, percent: float, words: Callable[[], str], *, is_last: bool) -> None:
        if not is_last and time.monotonic() - self._told_at < self._every_s:
            return
        self._told_at = time.monotonic()
        told = words()
        log.info(told)
        self._show(percent, told)

    def _show(self, percent: float, words: str) -> None:
        if time.monotonic() < self._rests_until:
            return
        try:
            if self._artifact_id is None:
                self._artifact_id = self._create(percent, key=self._key, description=words)
            else:
                self._update(self._artifact_id, progress=percent, description=words)
        except Exception as error:
            self._rests_until = time.monotonic() + REST_S
            log.warning("the dashboard's progress bar could not be moved (%s)", type(error).__name__)
