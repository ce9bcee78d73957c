"""Decodes input files in a process of its own: `python -m tasks.ingest.child`, a job as JSON in, an answer as JSON out.

A damaged page can ask for more memory than there is, and the Parquet reader then aborts its whole process without an
exception. Here that is a child, the night lives on, and the file is found and named.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from models.processes import PARENT_PID_VARIABLE, die_with_parent
from tasks import errors
from tasks.config import IngestConfig
from tasks.contracts import Interactions, Remains, Tables
from tasks.errors import InputCorrupt, InputTooLarge, NightError, ReaderFailed
from tasks.ingest.earlier import read_earlier
from tasks.ingest.events import last_event_at, read_through
from tasks.ingest.inspection import EventSchema, inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.limits import FOOTERS_BYTES, limit_address_space, limit_cpu, limit_memory, reader_bytes
from tasks.ingest.remains import count_remains
from tasks.ingest.sources import events_of
from tasks.ingest.tables import digest_tables, inspect_alone, inspect_tables
from tasks.registry import open_registry
from tasks.run import PROJECT_ROOT
from tasks.store import StoredObject, open_store


@dataclass(frozen=True)
class Job:
    what: Literal["inspect", "inspect alone", "digest", "tables", "last event", "read through", "count remains"]
    store_uri: str
    files: list[StoredObject]
    settings: IngestConfig
    as_of: date | None = None
    folder: str = ""
    events_folder: str = ""
    people: list[int] | list[str] = field(default_factory=list, repr=False)
    set_aside: dict[str, str] = field(default_factory=dict)  # key -> why: these are not opened

    @property
    def of_footers(self) -> bool:
        return self.what.startswith("inspect")

    @property
    def events(self) -> list[StoredObject]:
        return [found for found in events_of(self.files) if found.key not in self.set_aside]


def inspect_apart(store_uri: str, files: list[StoredObject], settings: IngestConfig) -> EventSchema:
    """inspect_files in a child, of events and tables. Raises what that does, and what inspect_tables does."""
    return TypeAdapter(EventSchema).validate_python(_answer(Job("inspect", store_uri, files, settings)))


def digest_apart(
    store_uri: str, files: list[StoredObject], folder: Path, *, as_of: date, settings: IngestConfig
) -> Interactions:
    """interactions.digest in a child. Raises what it raises, and InputCorrupt for a file that kills its reader."""
    job = Job("digest", store_uri, files, settings, as_of, str(folder))
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
            job = replace(job, set_aside=job.set_aside | {error.file_key: str(error)})
            if job.folder:
                shutil.rmtree(job.folder)  # what was written of them all
                Path(job.folder).mkdir()


def _answer_at_once(job: Job) -> Any:
    ended = _run(job)
    if ended.returncode < 0:
        raise _name_the_killer(job, -ended.returncode)
    if ended.returncode > 0:
        raise ReaderFailed(
            f"the process that reads the input files ended with exit code {ended.returncode} before it could answer. "
            "Nothing was published. Check that this installation is whole (make test), then run again."
        )
    answer = json.loads(ended.stdout)
    if "fault" in answer:
        raise ReaderFailed(
            f"reading {len(job.files)} input files ended in {answer['fault']}, an error that has no name here. Nothing "
            "was published. This is a fault of the job: please report it with this line."
        )
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "error" in answer:
        error = getattr(errors, answer["error"])(answer["message"])
        error.file_key = answer["file_key"]
        raise error
    return answer["answer"]


def _run(job: Job) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tasks.ingest.child"],
        input=json.dumps(TypeAdapter(Job).dump_python(job, mode="json")),
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), PARENT_PID_VARIABLE: str(os.getpid())},
        check=False,
    )


def _name_the_killer(job: Job, signal_number: int) -> NightError:
    """Halve the files until one is left that ends its reader; a child for each half."""
    how = signal.Signals(signal_number).name
    alone = Job("inspect alone" if job.of_footers else "read through", job.store_uri, [], job.settings)
    suspects = [found for found in job.files if found.key not in job.set_aside]
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        died = _run(replace(alone, files=half)).returncode < 0
        suspects = half if died else suspects[len(half) :]
    if _run(replace(alone, files=suspects)).returncode >= 0:
        return ReaderFailed(
            f"the process that read {len(job.files)} input files was ended ({how}), and no single file ends it. "
            "Nothing was published. Memory may have run out: free some, or read fewer days, and run again."
        )
    uri = open_store(job.store_uri).uri_of(suspects[0].key)
    error = InputCorrupt(
        f"{uri} ends every process that reads it ({how}): a damaged page that asks for more memory than there is, or a "
        "file that unpacks to more. Nothing was published. Write the file again, or move it out of the folder if the "
        "night can do without it."
    )
    error.file_key = suspects[0].key
    return error


def main() -> None:
    die_with_parent()
    job = TypeAdapter(Job).validate_json(sys.stdin.read())
    try:
        answer: dict[str, Any] = {"answer": _work(job)}
    except NightError as error:
        answer = {"error": type(error).__name__, "message": str(error), "file_key": error.file_key}
    except OSError as error:
        answer = {"errno": error.errno} if error.errno == errno.ENOSPC else {"fault": _fault(error)}
    except Exception as error:
        answer = {"fault": _fault(error)}
    print(json.dumps(answer))


def _fault(error: Exception) -> str:
    """What and where, without the message: it may quote a user's id."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno})"


def _work(job: Job) -> Any:
    store = open_store(job.store_uri)
    limit_cpu(num_files=len(job.files), num_bytes=sum(found.num_bytes for found in job.files))
    if job.of_footers:
        limit_address_space(FOOTERS_BYTES)
    else:
        limit_memory(reader_bytes(job.settings.memory_mib))
    if job.what == "inspect alone":
        inspect_alone(store, job.files, job.settings)
        return None
    if job.what == "read through":
        for file in inspect_alone(store, job.files, job.settings):
            read_through(file)
        return None
    if job.what == "count remains":
        return TypeAdapter(Remains).dump_python(count_remains(store, job.files, job.people, job.settings), mode="json")
    earlier = read_earlier(store, job.events, job.settings)
    schema = inspect_files(store, job.events, job.settings, known=earlier.files, set_aside=job.set_aside)
    if job.what == "inspect":
        inspect_tables(store, job.files, schema)
        return TypeAdapter(EventSchema).dump_python(schema, mode="json")
    if job.what == "last event":
        return last_event_at(schema, job.settings, known=earlier.last_us).isoformat()
    if job.what == "tables":
        tables = digest_tables(
            inspect_tables(store, job.files, schema), Path(job.events_folder), Path(job.folder), open_registry(store)
        )
        return TypeAdapter(Tables).dump_python(tables, mode="json")
    assert job.as_of is not None
    events = [found for found in job.events if found.key not in schema.set_aside]
    interactions = digest(store, events, schema, Path(job.folder), as_of=job.as_of, settings=job.settings)
    interactions = replace(interactions, inspection=schema.inspection)
    return TypeAdapter(Interactions).dump_python(interactions, mode="json")


if __name__ == "__main__":
    main()
