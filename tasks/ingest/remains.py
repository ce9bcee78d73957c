"""What the team's own files still have of people: events and tables, which are nobody else's to change."""

from collections.abc import Sequence

import polars as pl

from tasks.config import IngestConfig
from tasks.contracts import Remains
from tasks.errors import NightError
from tasks.ingest.events import naming_read_errors
from tasks.ingest.inspection import inspect_each, readable
from tasks.ingest.scan import scan_columns
from tasks.store import Store, StoredObject


def count_remains(
    store: Store, files: Sequence[StoredObject], people: Sequence[int | str], settings: IngestConfig
) -> Remains:
    """Rows of `people` by file. A file that cannot be read says nothing about the others."""
    wanted = pl.Series("user_id", people).unique(maintain_order=True)
    rows: dict[str, int] = {}
    unread: dict[str, str] = {}
    met: set[int | str] = set()
    for pinned in files:
        try:
            found = _rows_by_person(store, pinned, wanted, settings)
        except NightError as error:
            unread[pinned.key] = f"{type(error).__name__}: {error}"
            continue
        if len(found):
            rows[pinned.key] = int(found["rows"].sum())
            met |= set(found["user_id"])
    return Remains(rows, unread, tuple(place for place, person in enumerate(people) if person in met))


def _rows_by_person(store: Store, pinned: StoredObject, wanted: pl.Series, settings: IngestConfig) -> pl.DataFrame:
    [found] = inspect_each(store, [pinned], settings).values()
    file = readable(found)
    nobody = pl.DataFrame(schema={"user_id": wanted.dtype, "rows": pl.UInt32})
    if "user_id" not in file.columns or (file.columns["user_id"] == pl.String) != (wanted.dtype == pl.String):
        return nobody
    own = pl.col(file.names["user_id"]).cast(wanted.dtype, strict=False).alias("user_id")
    with naming_read_errors([file]):
        return (
            scan_columns([file])
            .select(own)
            .filter(pl.col("user_id").is_in(wanted.implode()))
            .group_by("user_id")
            .agg(rows=pl.len())
            .collect(engine="streaming")
        )
