"""What is digested once and for all: the files of one day under one prefix, or, where keys carry no day, each file.

A unit's name says which bytes went in and how they were read, so the same name always means the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tasks.config import IngestConfig
from tasks.ingest.rules import settings_of_rules
from tasks.ingest.sources import day_of
from tasks.run import PROJECT_ROOT, file_sha256, fingerprint_of
from tasks.store import StoredObject

# What decides the bytes of a digested unit and of its marker, and which of its rows are refused. A change there means
# that every unit is read again, and so does another version of what reads Parquet and text.
SOURCES = (
    "models/compiled.py",
    "models/pairs.py",
    "tasks/ingest/bounds.py",
    "tasks/ingest/digest.py",
    "tasks/ingest/events.py",
    "tasks/ingest/footers.py",
    "tasks/ingest/inspection.py",
    "tasks/ingest/rules.py",
    "tasks/ingest/scan.py",
    "tasks/ingest/units.py",
    "tasks/ingest/wanted.py",
)


@dataclass(frozen=True)
class Unit:
    name: str  # 16 hexadecimal digits
    place: str  # dt=2026-11-21, or files
    files: tuple[StoredObject, ...]  # sorted by key

    @property
    def marker_key(self) -> str:
        return f"_meta/days/{self.name}.json"

    @property
    def folder(self) -> str:
        """Below days/ and quarantine/."""
        return f"{self.place}/{self.name}"


def units_of(objects: Sequence[StoredObject], settings: IngestConfig, *, epoch: int) -> list[Unit]:
    """Every event file in exactly one unit, sorted by place and key. `epoch` is the registry's."""
    groups: dict[tuple[str, str], list[StoredObject]] = {}
    for found in sorted(objects, key=lambda stored: stored.key):
        on = day_of(found.key)
        prefix = next((prefix for prefix in settings.prefixes if found.key.startswith(prefix)), "")
        place, one_of = ("files", found.key) if on is None else (f"dt={on}", prefix)
        groups.setdefault((place, one_of), []).append(found)
    sources = [file_sha256(PROJECT_ROOT / name) for name in SOURCES]
    how = fingerprint_of(settings_of_rules(settings), epoch, sources, pl.__version__)
    return [
        Unit(fingerprint_of(how, [[f.key, f.num_bytes, f.etag] for f in files])[:16], place, tuple(files))
        for (place, _), files in sorted(groups.items())
    ]


def unit_folder(scratch: Path, unit: Unit) -> Path:
    """Where a unit is worked on: a name of ours, never one from a key."""
    return scratch / unit.name
