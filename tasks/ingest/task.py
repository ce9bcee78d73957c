"""Open a night, and read its events. What can go wrong stands in the modules beside this one."""

import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.context import FlowRunContext
from pydantic import SecretStr

from tasks.config import NightlyConfig
from tasks.contracts import Compacted, ForgottenIds, Interactions, LiveLists, Remains, RewrittenDays, Run, Tables
from tasks.errors import InputUnstable, error_of, is_worth_a_retry
from tasks.ingest.child import digest_apart, tables_apart
from tasks.ingest.compacting import compact_rows
from tasks.ingest.forgetting import objects_in_use, rewrite_days
from tasks.ingest.machine import this_machine
from tasks.ingest.opening import plan_run, read_pinned
from tasks.ingest.people import forget_ids, id_kind, ids_of, look_for, replaced_registry_files
from tasks.ingest.readiness import Clock
from tasks.ingest.sources import events_of, pinned_while_reading
from tasks.ingest.tables import no_tables
from tasks.registry import open_registry
from tasks.run import (
    DEFAULT_STORE,
    DEFAULT_WORK,
    STORE_VARIABLE,
    WORK_VARIABLE,
    code_version,
    ensure_not_in_future,
    finish_stage,
)
from tasks.store import open_store
from tasks.without import theirs_of

log = logging.getLogger("nightgraph.ingest")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def open_run(config: NightlyConfig, as_of: date | None, force: bool) -> Run:
    """Pin the inputs and decide the date: the parameter, else the scheduled day (UTC), else after the last event."""
    # Prefect passes our lines on to the dashboard, and a logger without a level would drop them first.
    logging.getLogger("nightgraph").setLevel(logging.INFO)
    ensure_not_in_future(as_of, today=datetime.now(UTC).date())
    return plan_run(
        open_store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)),
        config,
        as_of=as_of,
        scheduled_on=_scheduled_on(),
        work_root=os.environ.get(WORK_VARIABLE, DEFAULT_WORK),
        code_version=code_version(),
        force=force,
        machine=this_machine(os.environ.get(WORK_VARIABLE, DEFAULT_WORK)),
        clock=Clock(read=partial(datetime.now, UTC), sleep=time.sleep),
    )


def _scheduled_on() -> date | None:
    """The expected start outlives lateness and retries. Whoever presses a button has no schedule."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None or not flow_run.auto_scheduled or flow_run.expected_start_time is None:
        return None
    return flow_run.expected_start_time.astimezone(UTC).date()


def _is_worth_reading_again(task: Any, task_run: Any, state: Any) -> bool:
    """A pinned file that changed will not change back: only a night that is opened anew can read what is there now."""
    return is_worth_a_retry(task, task_run, state) and not isinstance(error_of(state), InputUnstable)


@task(persist_result=False, result_serializer="json", retry_condition_fn=_is_worth_reading_again)
def ingest(run: Run) -> Interactions:
    """The pinned files as one row for every valid (user, item) pair, with every quarantined row kept under its rule."""

    def compute(folder: Path) -> Interactions:
        store, pinned = open_store(run.store_uri), events_of(read_pinned(run.inputs_path))
        with pinned_while_reading(store, pinned):
            return digest_apart(
                run.store_uri,
                pinned,
                folder,
                as_of=run.as_of,
                settings=run.config.ingest,
                epoch=run.registry_epoch,
            )

    interactions = finish_stage(
        run,
        "ingest",
        Interactions,
        compute,
        inputs=(run.input_fingerprint, run.registry_epoch, run.registry_forgotten, run.config.ingest),
    )
    if interactions.units_reused:
        log.info(
            "%d of %d days or files were digested by an earlier night and not read again",
            interactions.units_reused,
            interactions.units,
        )
    log.info(
        "%s rows: %s likes, %s seen and not liked, %s set aside%s, %s quarantined",
        f"{interactions.rows_in:,}",
        f"{interactions.kept:,}",
        f"{interactions.below_threshold:,}",
        f"{sum(interactions.set_aside.values()):,}",
        "".join(f"; {reason} {count:,}" for reason, count in interactions.set_aside.items()),
        f"{sum(interactions.quarantined.values()):,}",
    )
    if interactions.odd_days:  # the process that reads has no log of ours
        log.warning("overridden, because %s: %s", run.config.ingest.volume_override_reason, interactions.odd_days)
    for key, why in interactions.inspection.set_aside.items():
        log.warning("set aside: %s: %s", key, why)
    return interactions


@task(persist_result=False, result_serializer="json", retry_condition_fn=_is_worth_reading_again)
def read_tables(run: Run, interactions: Interactions) -> Tables:
    """The optional tables that were pinned with the events, checked and brought to the events' ids."""

    def compute(folder: Path) -> Tables:
        store, pinned = open_store(run.store_uri), read_pinned(run.inputs_path)
        if pinned == events_of(pinned):
            return no_tables(folder)
        with pinned_while_reading(store, pinned):
            return tables_apart(
                run.store_uri,
                pinned,
                folder,
                events_folder=interactions.folder,
                settings=run.config.ingest,
                set_aside=interactions.inspection.set_aside,
            )

    tables = finish_stage(
        run,
        "tables",
        Tables,
        compute,
        inputs=(run.input_fingerprint, run.registry_forgotten, interactions.fingerprint, run.config.ingest),
    )
    if tables.rows:
        log.info("tables: %s", ", ".join(f"{name} {count:,}" for name, count in tables.rows.items()))
    for reason, count in tables.ignored.items():
        log.info("left out of %s: %s rows", reason, f"{count:,}")
    return tables


# ---- forgetting


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def look_for_people(
    store_uri: str, people: Sequence[SecretStr], live: LiveLists, always: bool, lines: Sequence[int]
) -> Remains:
    """What the team's own files have of them; UserNotFound where somebody is known nowhere."""
    store = open_store(store_uri)
    ids = ids_of(store, [one.get_secret_value() for one in people], id_kind(store, live), lines=lines)
    return look_for(store, ids, live, always=always, lines=lines)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def take_out_of_the_registry(store_uri: str, people: Sequence[SecretStr], live: LiveLists) -> ForgottenIds:
    """From here on they are forgotten, whatever happens: everything after this reads the registry, not the ids."""
    store = open_store(store_uri)
    ids = ids_of(store, [one.get_secret_value() for one in people], id_kind(store, live))
    return forget_ids(store, ids)


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def leave_out_of_days(store_uri: str, scratch: str) -> RewrittenDays:
    """Digested days and refused rows without whoever is forgotten; what that replaces is due."""
    store = open_store(store_uri)
    return rewrite_days(store, theirs_of(open_registry(store)), scratch=Path(scratch))


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def settle_what_is_in_use(store_uri: str) -> frozenset[str]:
    """What days and registry are made of now; files of earlier versions of the registry are due."""
    store = open_store(store_uri)
    return replaced_registry_files(store) | objects_in_use(store)


# ---- compaction


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def give_up_rows(store_uri: str, apply: bool) -> Compacted:
    """The registry without the rows that nobody needs, in a new epoch; unless `apply`, only what that would be."""
    return compact_rows(open_store(store_uri), apply=apply)
