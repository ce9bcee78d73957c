"""Giving up the rows of the id registry that nobody needs."""

import os

from prefect import flow

from tasks.contracts import Compacted
from tasks.ingest.task import give_up_rows
from tasks.run import DEFAULT_STORE, STORE_VARIABLE
from tasks.store import open_store


@flow(name="compact-registry", persist_result=False, result_serializer="json")
def compact_registry(apply: bool = False) -> Compacted:
    """Number the ids that digested days hold anew, and let go of the others. Rarely worth it: see the README.

    Args:
        apply: Do it. Else only say what would be given up.
    """
    return give_up_rows(open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).uri, apply)
