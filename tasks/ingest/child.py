"""Decodes input files in a process of its own: `python -m tasks.ingest.child`. See process.py for why, and for how."""

import shutil
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from tasks.config import IngestConfig
from tasks.contracts import Interactions, Remains, Tables
from tasks.errors import InputCorrupt, InputTooLarge
from tasks.ingest.earlier import read_earlier
from tasks.ingest.events import last_event_at, read_through
from tasks.ingest.inspection import EventFile, inspect_each, inspect_files, what_was_found
from tasks.ingest.interactions import digest
from tasks.ingest.limits import limit_cpu, limit_memory, reader_bytes
from tasks.ingest.process import Killed, ask, name_the_killer, serve
from tasks.ingest.remains import count_remains
from tasks.ingest.sources import events_of
from tasks.ingest.tables import digest_tables, inspect_tables
from tasks.ingest.volume import check_volume
from tasks.registry import open_registry
from tasks.store import StoredObject, open_store


@dataclass(frozen=True)
class Job:
    what: Literal["digest", "tables", "last event", "read through", "count remains"]
    store_uri: str
    files: list[StoredObject]
    settings: IngestConfig
    as_of: date | None = None
    folder: str = ""
    events_folder: str = ""
    people: list[int] | list[str] = field(default_factory=list, repr=False)
    set_aside: dict[str, str] = field(default_factory=dict)  # key -> why: these are not opened
    epoch: int | None = None

    @property
    def events(self) -> list[StoredObject]:
        return [found for found in events_of(self.files) if found.key not in self.set_aside]


def digest_apart(
    store_uri: str,
    files: list[StoredObject],
    folder: Path,
    *,
    as_of: date,
    settings: IngestConfig,
    epoch: int | None = None,
) -> Interactions:
    """interactions.digest in a child. Raises what it raises, and InputCorrupt for a file that kills its reader."""
    job = Job("digest", store_uri, files, settings, as_of, str(folder), epoch=epoch)
    return TypeAdapter(Interactions).validate_python(_answer(job))


def tables_apart(
    store_uri: str,
    files: list[StoredObject],
    folder: Path,
    *,
    events_folder: str,
    settings: IngestConfig,
    set_aside: dict[str, str],
) -> Tables:
    """tables.digest_tables in a child. `files` are the events', too, for their ids are the measure; `set_aside` are
    those that could not be read."""
    job = Job("tables", store_uri, files, settings, folder=str(folder), events_folder=events_folder)
    job = replace(job, set_aside=set_aside)
    return TypeAdapter(Tables).validate_python(_answer(job))


def last_event_apart(store_uri: str, files: list[StoredObject], settings: IngestConfig) -> datetime:
    """events.last_event_at in a child. Raises what it raises, and InputCorrupt as digest_apart does."""
    return datetime.fromisoformat(_answer(Job("last event", store_uri, files, settings)))


def count_remains_apart(
    store_uri: str, files: list[StoredObject], people: list[int] | list[str], settings: IngestConfig
) -> Remains:
    """remains.count_remains in a child. Raises InputCorrupt for a file that kills its reader."""
    answer = _answer(Job("count remains", store_uri, files, settings, people=people))
    return TypeAdapter(Remains).validate_python(answer)


def _answer(job: Job) -> Any:
    """Event files that cannot be read are set aside one by one, as many as the settings allow."""
    while True:
        try:
            return _answer_at_once(job)
        except (InputCorrupt, InputTooLarge) as error:
            may_go = {found.key for found in job.events}
            if error.file_key not in may_go or len(job.set_aside) >= job.settings.max_bad_files or len(may_go) == 1:
                raise
            job = replace(job, set_aside=job.set_aside | {error.file_key: what_was_found(error)})
            if job.folder:
                shutil.rmtree(job.folder)  # what was written of them all
                Path(job.folder).mkdir()


def _answer_at_once(job: Job) -> Any:
    try:
        return _ask(job)
    except Killed as killed:
        suspects = [found for found in job.files if found.key not in job.set_aside]
        alone = Job("read through", job.store_uri, [], job.settings)
        raise name_the_killer(job.store_uri, suspects, lambda some: _ask(replace(alone, files=some)), killed) from None


def _ask(job: Job) -> Any:
    return ask("tasks.ingest.child", TypeAdapter(Job).dump_json(job).decode(), num_files=len(job.files))


def work(text: str) -> Any:
    """What the child does with a job."""
    job = TypeAdapter(Job).validate_json(text)
    limit_cpu(num_files=len(job.files), num_bytes=sum(found.num_bytes for found in job.files))
    limit_memory(reader_bytes(job.settings.memory_mib))
    return _work(job)


def _work(job: Job) -> Any:
    store = open_store(job.store_uri)
    if job.what == "read through":
        for file in inspect_each(store, job.files, job.settings).values():
            if isinstance(file, EventFile):  # else its reader does not get as far
                read_through(file)
        return None
    if job.what == "count remains":
        return TypeAdapter(Remains).dump_python(count_remains(store, job.files, job.people, job.settings), mode="json")
    earlier = read_earlier(store, job.events, job.settings)
    schema = inspect_files(store, job.events, job.settings, known=earlier.files, set_aside=job.set_aside)
    if job.what == "last event":
        return last_event_at(schema, job.settings, known=earlier.last_us).isoformat()
    if job.what == "tables":
        files = inspect_tables(store, job.files, schema, settings=job.settings)
        tables = digest_tables(files, Path(job.events_folder), Path(job.folder), open_registry(store))
        return TypeAdapter(Tables).dump_python(tables, mode="json")
    assert job.as_of is not None
    # Files were set aside since the footers were counted.
    odd_volume = check_volume(schema, job.as_of, job.settings) if job.set_aside else ""
    events = [found for found in job.events if found.key not in schema.set_aside]
    into = Path(job.folder)
    interactions = digest(store, events, schema, into, as_of=job.as_of, settings=job.settings, epoch=job.epoch)
    odd_days = "; ".join(filter(None, (odd_volume, interactions.odd_days)))
    found = replace(interactions, inspection=schema.inspection, odd_days=odd_days)
    return TypeAdapter(Interactions).dump_python(found, mode="json")


if __name__ == "__main__":
    serve(work)
