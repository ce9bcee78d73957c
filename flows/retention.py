"""Removing the files of nights that nobody can need any more, and what dead attempts left."""

import logging
import os
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from tasks.contracts import Retained
from tasks.publish.task import remove_old_nights
from tasks.report.operated import retained_markdown
from tasks.run import DEFAULT_STORE, STORE_VARIABLE
from tasks.store import open_store

log = logging.getLogger("nightgraph.publish")


@flow(name="retention", persist_result=False, result_serializer="json")
def retention(apply: bool = False, keep_dates: Annotated[int, Field(ge=1, le=36_500)] = 30) -> Retained:
    """Say which nights' files nobody can need any more, or remove them. What is live or held stays, however old.

    Args:
        apply: Do it. Else only say what would go.
        keep_dates: The newest so many dates that have a night are kept; whatever was live within 48 hours stays, too.
    """
    done = remove_old_nights(open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).uri, keep_dates, apply)
    try:
        create_markdown_artifact(retained_markdown(done), key="retention", description="Which nights' files go")
    except Exception as error:  # by now it is done
        log.warning("the dashboard's report could not be written: %s", error)
    return done
