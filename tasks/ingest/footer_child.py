"""Reads footers in a process of its own, all of a night in one: `python -m tasks.ingest.footer_child`.

It loads little, because every night waits for it. What it says of a file is told to the process of the night as text.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from tasks.config import IngestConfig
from tasks.errors import NightError
from tasks.ingest.inspection import EventFile, Inspected, inspect_each
from tasks.ingest.limits import FOOTERS_BYTES, limit_address_space, limit_cpu
from tasks.ingest.process import Killed, answer_of, ask, error_as_text, error_from, name_the_killer, serve
from tasks.store import StoredObject, open_store

__all__ = ["answer_of", "inspect_apart"]


@dataclass(frozen=True)
class Job:
    store_uri: str
    files: list[StoredObject]
    settings: IngestConfig


def inspect_apart(store_uri: str, files: list[StoredObject], settings: IngestConfig) -> dict[str, Inspected]:
    """inspection.inspect_each in a child with limits; a file that ends it is InputCorrupt, and the others are read on.

    Raises what inspect_each does, and that InputCorrupt where there are more than ingest.max_bad_files of the kind.
    """
    found: dict[str, Inspected] = {}
    while unread := [pinned for pinned in files if pinned.key not in found]:
        try:
            found |= _ask(Job(store_uri, unread, settings))
        except Killed as killed:
            error = name_the_killer(store_uri, unread, lambda some: _ask(Job(store_uri, some, settings)), killed)
            if error.file_key is None or len(found) >= settings.max_bad_files:
                raise error from None
            found[error.file_key] = error
    return found


def _ask(job: Job) -> dict[str, Inspected]:
    text = TypeAdapter(Job).dump_json(job).decode()
    answer = ask("tasks.ingest.footer_child", text, num_files=len(job.files))
    of_file = TypeAdapter(EventFile)
    return {key: error_from(said) if "error" in said else of_file.validate_python(said) for key, said in answer.items()}


def work(text: str) -> Any:
    job = TypeAdapter(Job).validate_json(text)
    limit_cpu(num_files=len(job.files), num_bytes=0)
    limit_address_space(FOOTERS_BYTES)
    found = inspect_each(open_store(job.store_uri), job.files, job.settings)
    of_file = TypeAdapter(EventFile)
    return {
        key: error_as_text(said) if isinstance(said, NightError) else of_file.dump_python(said, mode="json")
        for key, said in found.items()
    }


if __name__ == "__main__":
    serve(work)
