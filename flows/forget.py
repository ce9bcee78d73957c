"""Forgetting people: out of the registry, of digested days, of every kept night, of this machine's scratch."""

import os

from prefect import flow
from pydantic import SecretStr

from tasks.contracts import Forgotten
from tasks.ingest.task import (
    leave_out_of_days,
    look_for_people,
    settle_what_is_in_use,
    take_out_of_the_registry,
)
from tasks.publish.task import leave_out_of_nights, read_live_lists, remove_what_is_due
from tasks.run import (
    DEFAULT_STORE,
    DEFAULT_WORK,
    STORE_VARIABLE,
    WORK_VARIABLE,
    drop_scratch_of_nights,
    hold_scratch_to_forget,
)
from tasks.store import open_store


@flow(name="forget", persist_result=False, result_serializer="json")
def forget(people: tuple[SecretStr, ...] = (), always: bool = False, lines: tuple[int, ...] = ()) -> Forgotten:
    """Look for them -> out of the registry -> out of digested days -> out of kept nights -> remove what is due.

    Once they are out of the registry they are forgotten: every step after that reads the registry and not the ids, so
    whoever runs this again, for others or for nobody, ends what a killed run began. Started by hand only: an id that
    came through a form would stay in the server's database.

    Args:
        people: Ids as they stand in the events. A secret's value is not sent to the server. Nobody: only what earlier
            acts left to do, and what is due by now.
        always: Also keep out ids that nobody knows here.
        lines: What to call each of them by in a message, which never holds an id: the line of their file. Empty: their
            place.
    """
    store_uri = open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).uri
    work_root = os.environ.get(WORK_VARIABLE, DEFAULT_WORK)
    with hold_scratch_to_forget(work_root, store_uri) as scratch:
        ids = remains = None
        if people:
            live = read_live_lists(store_uri, people)
            remains = look_for_people(store_uri, people, live, always, lines)
            ids = take_out_of_the_registry(store_uri, people, live)
        days = leave_out_of_days(store_uri, str(scratch))
        nights = leave_out_of_nights(store_uri, str(scratch))
        busy = drop_scratch_of_nights(work_root, store_uri)
        swept = remove_what_is_due(store_uri, settle_what_is_in_use(store_uri))
    return Forgotten(store_uri, len(people), ids, remains, days, nights, swept, tuple(busy))
