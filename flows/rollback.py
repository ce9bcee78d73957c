"""What an operator does about what readers get: back to a kept night, on again, and LATEST.json from the log."""

import os
from datetime import date
from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.contracts import LiveNight
from tasks.publish.rollback import SAID_AT_MOST
from tasks.publish.task import bring_back, let_go, rebuild_latest
from tasks.run import DEFAULT_STORE, STORE_VARIABLE
from tasks.store import open_store

Said = Annotated[str, Field(min_length=1, max_length=SAID_AT_MOST)]


@flow(name="rollback", persist_result=False, result_serializer="json")
def rollback(
    to: date, who: Said, reason: Said, version: Annotated[int, Field(ge=1, le=99_999_999)] | None = None
) -> LiveNight | None:
    """Bring readers back to a kept night, its very files, and hold it there. Nights go on meanwhile.

    Args:
        to: The night, as in 2026-11-22.
        who: Who asks. Stands in LATEST.json while the night is held.
        reason: Why. Stands there, too.
        version: One of its versions; empty: the newest.
    """
    return bring_back(_store_uri(), to, version, who, reason)


@flow(name="release", persist_result=False, result_serializer="json")
def release(who: Said, reason: Said = "released") -> LiveNight | None:
    """Let readers go on to the newest night, after a rollback.

    Args:
        who: Who asks.
        reason: Why.
    """
    return let_go(_store_uri(), who, reason)


@flow(name="repair", persist_result=False, result_serializer="json")
def repair() -> LiveNight | None:
    """Let LATEST.json say again what the log says, where it is damaged, gone or behind. Safe at any time."""
    return rebuild_latest(_store_uri())


def _store_uri() -> str:
    return open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).uri
