"""Opening a night: its inputs pinned, its date decided, its key known, before anything is computed."""

import errno
import json
import logging
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter

from tasks.config import IngestConfig, NightlyConfig
from tasks.contracts import Run, Traces
from tasks.errors import DiskFull, InputUnstable, RunConfigError
from tasks.ingest.child import last_event_apart
from tasks.ingest.earlier import read_earlier
from tasks.ingest.events import naming_read_errors, scan_events
from tasks.ingest.footer_child import inspect_apart
from tasks.ingest.inspection import EventSchema, inspect_files
from tasks.ingest.planner import Machine, Sizes, ensure_it_fits, plan_night, sizes_of
from tasks.ingest.readiness import Clock, ensure_any, list_when_ready
from tasks.ingest.rules import midnight_us
from tasks.ingest.sources import (
    input_fingerprint,
    night_after,
    pin_events,
    pin_inputs,
    pin_tables,
    pinned_while_reading,
    table_of,
    within_window,
)
from tasks.ingest.tables import inspect_tables, is_listed
from tasks.ingest.volume import check_volume
from tasks.places import ensure_trainable
from tasks.registry import FORGOTTEN, open_registry, read_version
from tasks.run import WORK_VARIABLE, decide_date, fingerprint_of, pin_path, work_folder
from tasks.store import Store, StoredObject
from tasks.warm import find_source

log = logging.getLogger("nightgraph.ingest")


@dataclass(frozen=True)
class Opened:
    """What stands in the listing and the footers."""

    night: date | None  # None where only the events themselves tell
    events: list[StoredObject]
    tables: list[StoredObject]
    schema: EventSchema
    sizes: Sizes


def look(store: Store, config: NightlyConfig, *, night: date | None, clock: Clock) -> Opened:
    """List once, wait if a day is late, and read the footers of what no earlier night digested. No row is read.

    Raises InputMissing, InputIncomplete, InputCorrupt, InputTooLarge, InputUnstable, SchemaDrift.
    """
    settings = config.ingest
    listed = list_when_ready(store, settings, night, clock)
    events, tables = pin_events(listed, store, settings), pin_tables(store)
    night = night or night_after(events)
    if night is not None:
        events = within_window(events, night, settings)
        ensure_any(events, store, settings, night)
    with pinned_while_reading(store, [*events, *tables]):
        known = read_earlier(store, events, settings).files
        unknown = [pinned for pinned in (*events, *tables) if pinned.key not in known]
        found = {**known, **inspect_apart(store.uri, unknown, settings)}
        schema = inspect_files(store, events, settings, known=found)
        inspect_tables(store, tables, schema, settings=settings, known=found)
    registry = read_version(store)
    sizes = sizes_of(schema.files, known_users=registry.users, known_items=registry.items)
    return Opened(night, events, tables, schema, sizes)


def plan_run(
    store: Store,
    config: NightlyConfig,
    *,
    as_of: date | None,
    scheduled_on: date | None,
    work_root: str,
    code_version: str,
    force: bool,
    clock: Clock,
    machine: Machine,
) -> Run:
    """Events are read only where neither a date, nor a schedule, nor the days in the keys say which night this is, and
    of those only what no earlier night digested.

    Raises DeviceUnavailable, RunConfigError, InputMissing, InputIncomplete, InputCorrupt, InputUnstable, InputTooLarge,
    SchemaDrift, VolumeAnomaly, and what the store's probe raises.
    """
    ensure_trainable(config.train, machine.gpus)
    store.probe()
    opened = look(store, config, night=as_of or scheduled_on, clock=clock)
    events, tables, schema = opened.events, opened.tables, opened.schema
    pinned = [*events, *tables]
    plan = plan_night(opened.sizes, config, machine)
    for line in plan.in_words(machine):
        log.info("%s", line)
    ensure_it_fits(plan, schema.files, opened.night, config, machine)
    night = opened.night
    if night is None:
        with pinned_while_reading(store, pinned):
            latest = last_event_apart(store.uri, events, config.ingest)
        night = decide_date(as_of=None, scheduled_on=None, last_event_at=latest)
    odd_volume = check_volume(schema, night, config.ingest)
    inputs = input_fingerprint(pinned)
    warm, cold_because = None, ""
    if config.train.warm_start and config.graph.split == "global_time":  # the only one with a moment for everybody
        warm, cold_because = find_source(store, before=night)
    registry = read_version(store)  # appending changes nothing that a night has used, so it is not in the key
    of_registry = (registry.epoch, registry.forgotten)
    run_key = fingerprint_of(night, inputs, config, code_version, of_registry, warm.sha256 if warm else "")
    folder = work_folder(work_root, store.uri, night)
    num_input_bytes = sum(found.num_bytes for found in pinned)
    log.info(
        "the night of %s: %s rows in %d files%s, %.1f MB",
        night,
        f"{schema.num_rows:,}",
        len(events),
        "".join(f", {name}" for name in dict.fromkeys(table_of(found.key) for found in tables)),
        num_input_bytes / 1e6,
    )
    return Run(
        store_uri=store.uri,
        as_of=night,
        run_key=run_key,
        input_fingerprint=inputs,
        code_version=code_version,
        config=config,
        force=force,
        work_folder=str(folder),
        inputs_path=str(write_pinned(pinned, pin_path(folder, run_key))),
        num_files=len(pinned),
        num_input_bytes=num_input_bytes,
        warm=warm,
        cold_because=cold_because,
        registry_epoch=registry.epoch,
        registry_forgotten=registry.forgotten,
        odd_volume=odd_volume,
    )


def write_pinned(objects: list[StoredObject], path: Path) -> Path:
    """Raises RunConfigError where the work folder cannot be written, DiskFull where it has no room."""
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps([asdict(found) for found in objects], default=str, indent=1))
        return unfinished.replace(path)
    except OSError as error:
        kind = DiskFull if error.errno == errno.ENOSPC else RunConfigError
        raise kind(
            f"the work folder {path.parent} cannot be written ({error.strerror}). Nothing was started. Set "
            f"{WORK_VARIABLE} to a folder with room that this user may write."
        ) from error


def read_pinned(path: str) -> list[StoredObject]:
    """Raises InputUnstable if somebody emptied the work folder under a night that was at work."""
    try:
        return TypeAdapter(list[StoredObject]).validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputUnstable(
            f"{path}, the list of the files that this night reads, is gone: somebody emptied the work folder meanwhile."
            " Nothing was published. Run again: the inputs are listed anew."
        ) from None


def scan_likes(store: Store, settings: IngestConfig) -> pl.LazyFrame:
    """user_id, item_id, timestamp_us of every like now in the store, repeats included: to show what people liked.

    With event weights, of every event whose type weighs anything.
    """
    schema = inspect_files(store, pin_inputs(store, settings), settings)
    liked = scan_events(schema, settings).filter(pl.col("rule").is_null() & _liked(settings))
    return liked.select("user_id", "item_id", "timestamp_us")


def _liked(settings: IngestConfig) -> pl.Expr:
    weighed = [kind for kind, name in enumerate(settings.event_types) if settings.event_weights[name] > 0.0]
    return pl.col("kind").is_in(weighed) if settings.event_weights else pl.col("kind") == 1


def traces_of(store: Store, user_id: int | str, as_of: date, settings: IngestConfig) -> Traces:
    """What the store has of one person now: their events, by the night's rules and date, and the users table.

    An id of another kind than the events' is nobody's. Raises what the files of events and users do in a night.
    """
    schema = inspect_files(store, pin_inputs(store, settings), settings)
    users = [pinned for pinned in pin_tables(store) if table_of(pinned.key) == "users"]
    tables = inspect_tables(store, users, schema, settings=settings)
    if isinstance(user_id, str) != (schema.user_id == pl.String):
        return Traces(before=0, likes=0, later=0, quarantined=0, in_users=False, forgotten=False)
    asked = pl.Series("id", [user_id], dtype=schema.user_id)
    valid = pl.col("rule").is_null()
    before = valid & (pl.col("timestamp_us") < midnight_us(as_of))
    with naming_read_errors(schema.files):
        counts = (
            scan_events(schema, settings)
            .filter(pl.col("user_id") == user_id)
            .select(
                before=before.sum(),
                likes=(before & _liked(settings)).sum(),
                later=(valid & ~before).sum(),
                quarantined=(~valid).sum(),
            )
            .collect(engine="streaming")
        )
    forgotten = int(open_registry(store).rows_of("users", asked)[0]) == FORGOTTEN
    return Traces(**counts.row(0, named=True), in_users=is_listed(tables, user_id), forgotten=forgotten)
