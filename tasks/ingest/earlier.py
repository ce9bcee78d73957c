"""What earlier nights found out about files that are still what they were: told by their days' markers, so that no
file of a digested day is opened again, its footer included."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.config import IngestConfig
from tasks.ingest.days import DigestedUnit, read_markers
from tasks.ingest.inspection import EventFile
from tasks.ingest.units import Unit, units_of
from tasks.registry import read_version
from tasks.store import Store, StoredObject


@dataclass(frozen=True)
class Earlier:
    """Of the files of digested days, by key."""

    files: dict[str, EventFile]
    last_us: dict[str, int | None]  # the latest valid event, None where there is none


def read_earlier(store: Store, events: Sequence[StoredObject], settings: IngestConfig) -> Earlier:
    """A day counts where all of its files are still the same (key, size, ETag), and are read by the same rules."""
    units = units_of(events, settings, epoch=read_version(store).epoch)
    markers = read_markers(store, units)
    digested = [(unit, markers[unit.name]) for unit in units if unit.name in markers]
    return Earlier(
        files={file.key: file for unit, marker in digested for file in _files_of(store, unit, marker)},
        last_us={key: counts.last_us for _, marker in digested for key, counts in marker.files.items()},
    )


def _files_of(store: Store, unit: Unit, marker: DigestedUnit) -> list[EventFile]:
    return [
        EventFile(
            key=found.key,
            uri=store.uri_of(found.key),
            num_rows=marker.files[found.key].rows,
            modified_at=found.modified_at,
            columns=marker.footers[found.key].columns,
            names=marker.footers[found.key].names,
            hints=marker.footers[found.key].hints,
        )
        for found in unit.files
    ]
