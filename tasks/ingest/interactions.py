"""From pinned files to pairs: list, inspect, scan, rules, compact.

What was digested by an earlier night is not read again (days.py); the rest is read, its new ids are numbered, its runs
are kept for the nights to come (digest.py); all runs together become the night's pairs (merge.py).

Nothing is dropped: each row that comes in is a like, a seen pair that was not liked, set aside for a reason that is
counted, or quarantined under the name of the first rule it breaks. The counts add up to the footers' rows.
"""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from models.pairs import DAY_US, MICRO, Folding, strengths
from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import CountsDisagree, GraphTooSmall, InputMissing, NothingLiked, RegistryCompacted
from tasks.ingest.checksums import verify
from tasks.ingest.days import (
    DigestedUnit,
    Footer,
    StoredFile,
    fetch_runs,
    put_files,
    read_markers,
    summed,
    write_marker,
)
from tasks.ingest.digest import KINDS, ROWS_PER_GROUP, FileCounts, ids_in, read_unit, write_runs
from tasks.ingest.events import instant, naming_read_errors
from tasks.ingest.inspection import EventSchema, id_type_of_all
from tasks.ingest.merge import Merged, merge_runs
from tasks.ingest.rules import ensure_contract, midnight_us
from tasks.ingest.scan import scan_file
from tasks.ingest.sources import ensure_unchanged
from tasks.ingest.units import Unit, unit_folder, units_of
from tasks.ingest.volume import check_moments
from tasks.registry import Registry, extend, open_registry
from tasks.run import file_sha256, fingerprint_of
from tasks.store import Store, StoredObject
from tasks.without import theirs_of, write_without

FETCHED_AT_ONCE = 4


@dataclass(frozen=True)
class _Digested:
    """All units of a night, with their runs on this machine, by unit."""

    registry: Registry
    markers: list[DigestedUnit]
    runs: list[Path]
    reused: int  # units that an earlier night digested

    def total(self, counted: str) -> dict[str, int]:
        return summed(marker.total(counted) for marker in self.markers)

    @property
    def last_us(self) -> dict[str, int | None]:
        """Of each file, its latest valid event."""
        return {key: counts.last_us for marker in self.markers for key, counts in marker.files.items()}

    @property
    def rows_in(self) -> int:
        return sum(counts.rows for marker in self.markers for counts in marker.files.values())


def digest(
    store: Store,
    events: Sequence[StoredObject],
    schema: EventSchema,
    folder: Path,
    *,
    as_of: date,
    settings: IngestConfig,
    epoch: int | None = None,
) -> Interactions:
    """Write the night's pairs under `folder`, and what later nights can use into the store.

    The pairs depend on the set of valid rows and on nothing else: not on the order of files and rows, on quarantined
    rows, on threads, on memory or on what earlier nights left. Of a pair's events the latest counts, of simultaneous
    ones the best rated; with event weights, all of them.

    `epoch` is the registry's, when the night was opened; None: whatever it is now.

    Raises InputMissing, InputCorrupt, InputUnstable, ContractViolation, VolumeAnomaly, NothingLiked, GraphTooSmall,
    CountsDisagree, RegistryCompacted.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    registry = open_registry(store)
    _expect_epoch(registry, registry.version.epoch if epoch is None else epoch)
    digested = _digest_units(store, registry, events, schema, scratch, settings)
    odd_days = check_moments(digested.last_us, as_of, settings)
    version = digested.registry.version
    merged = merge_runs(
        digested.runs,
        folder,
        folding_of(as_of, settings),
        num_items=version.items,
        memory_mib=settings.memory_mib,
        forgotten=digested.registry.forgotten_rows("users"),
    )
    shutil.rmtree(scratch)
    quarantined = digested.total("quarantined")
    older = merged.events - merged.later - merged.before - merged.repeats - merged.pairs
    on_the_way = {"older": older, "duplicate": merged.repeats, "later": merged.later, "before_window": merged.before}
    forgotten = {"forgotten": merged.forgotten + sum(marker.forgotten for marker in digested.markers)}
    set_aside = summed([digested.total("set_aside"), forgotten, on_the_way])
    set_aside = {reason: count for reason, count in set_aside.items() if count}
    _expect_pairs(merged, set_aside, quarantined, digested.rows_in, schema, as_of)
    _expect_a_graph(merged, schema, settings)
    _write_ids(digested.registry, merged, schema, folder)
    interactions = Interactions(
        folder=str(folder),
        fingerprint=_fingerprint(folder),
        rows_in=digested.rows_in,
        kept=merged.likes,
        below_threshold=merged.pairs - merged.likes,
        set_aside=set_aside,
        quarantined=quarantined,
        quarantine_files=tuple(part.key for marker in digested.markers for part in marker.quarantine),
        num_users=merged.users,
        num_items=int(np.count_nonzero(merged.items)),
        first_event_at=instant(merged.first_us),
        last_event_at=instant(merged.last_us),
        units=len(digested.markers),
        units_reused=digested.reused,
        odd_days=odd_days,
    )
    ensure_counts_add_up(interactions)
    return interactions


def folding_of(as_of: date, settings: IngestConfig) -> Folding:
    """The night's times, and what an event adds to its pair."""
    until_us = midnight_us(as_of)
    days = settings.window_days
    from_us = 0 if days is None else until_us - days * DAY_US
    if not settings.event_weights:
        return Folding(from_us, until_us)
    weight_K = np.rint([settings.event_weights[name] * MICRO for name in settings.event_types]).astype(np.int64)
    threshold = 1 if settings.like_threshold is None else max(1, round(settings.like_threshold * MICRO))
    return Folding(from_us, until_us, strengths(weight_K, half_life_days=settings.weight_half_life_days), threshold)


def ensure_counts_add_up(interactions: Interactions) -> None:
    """Raises CountsDisagree unless every row that came in is counted exactly once."""
    aside, quarantined = sum(interactions.set_aside.values()), sum(interactions.quarantined.values())
    out = interactions.kept + interactions.below_threshold + aside + quarantined
    if out != interactions.rows_in or min(interactions.set_aside.values(), default=0) < 0:
        raise CountsDisagree(
            f"{interactions.rows_in:,} rows came in by the files' footers and {out:,} are accounted for "
            f"({interactions.kept:,} likes, {interactions.below_threshold:,} below the threshold, {aside:,} set aside, "
            f"{quarantined:,} quarantined). Nothing was published. This is a bug: please report it with these counts."
        )


# ---- units


def _digest_units(
    store: Store,
    registry: Registry,
    events: Sequence[StoredObject],
    schema: EventSchema,
    scratch: Path,
    settings: IngestConfig,
) -> _Digested:
    epoch = registry.version.epoch
    units = units_of(events, settings, epoch=epoch)
    markers = read_markers(store, units)
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as threads:
        fetched = threads.map(lambda marker: fetch_runs(store, marker, scratch), markers.values())
        runs = {name: paths for name, paths in zip(markers, fetched, strict=True) if paths is not None}
    new = [unit for unit in units if unit.name not in runs]
    verify(store, [found for unit in new for found in unit.files])
    counts = {
        unit.name: read_unit(schema_of(unit, schema), unit_folder(scratch, unit), settings=settings) for unit in new
    }
    # A file that was swapped while it was read must leave nothing behind under the name of what was listed.
    ensure_unchanged(store, [found for unit in new for found in unit.files])
    quarantine = {unit.name: _keep_refused(store, unit, scratch, registry) for unit in new}
    earlier = {key: counted for name in runs for key, counted in markers[name].files.items()}
    tonight = {f.key: counted for unit in new for f, counted in zip(unit.files, counts[unit.name], strict=True)}
    _ensure_contract(store, earlier | tonight, settings)
    registry = _number(store, registry, [unit_folder(scratch, unit) for unit in new])
    _expect_epoch(registry, epoch)
    for unit in new:
        work = unit_folder(scratch, unit)
        runs[unit.name] = write_runs(work, counts[unit.name], registry, settings=settings)
        marker = DigestedUnit(
            unit=unit.name,
            place=unit.place,
            files={found.key: counted for found, counted in zip(unit.files, counts[unit.name], strict=True)},
            runs=put_files(store, f"days/{unit.folder}", "run", runs[unit.name]),
            quarantine=quarantine[unit.name],
            footers={file.key: Footer(file.columns, file.names, file.hints) for file in schema_of(unit, schema).files},
            epoch=epoch,
        )
        write_marker(store, unit, marker)
        markers[unit.name] = marker
    return _Digested(
        registry,
        [markers[unit.name] for unit in units],
        [path for unit in units for path in runs[unit.name]],
        len(units) - len(new),
    )


def schema_of(unit: Unit, schema: EventSchema) -> EventSchema:
    """What the unit's own files agree on."""
    keys = {found.key for found in unit.files}
    files = tuple(file for file in schema.files if file.key in keys)
    return replace(
        schema, user_id=id_type_of_all(files, "user_id"), item_id=id_type_of_all(files, "item_id"), files=files
    )


def _keep_refused(store: Store, unit: Unit, scratch: Path, registry: Registry) -> tuple[StoredFile, ...]:
    """As they came, but for those of people who were forgotten: they are counted, and kept nowhere."""
    refused = sorted(unit_folder(scratch, unit).glob("piece-*/refused.parquet"))
    if registry.version.forgotten:
        for path in refused:
            write_without(path, path.with_name("kept.parquet"), theirs_of(registry))
        refused = [path.with_name("kept.parquet") for path in refused]
    return put_files(store, f"quarantine/{unit.folder}", "part", refused)


def _ensure_contract(store: Store, counts: dict[str, FileCounts], settings: IngestConfig) -> None:
    rows = sum(counted.rows for counted in counts.values())
    refused = {store.uri_of(key): counted.quarantined for key, counted in counts.items() if counted.quarantined}
    if any(counted.valid for counted in counts.values()):  # else there is no event at all, which says more
        ensure_contract(refused, rows, settings)


def _number(store: Store, registry: Registry, folders: list[Path]) -> Registry:
    """One new version of the registry with all new ids of the night."""
    if not any(folder.exists() for folder in folders):
        return registry
    users, items = (ids_in(folders, kind) for kind in KINDS)
    return extend(store, registry, users, items) if len(users) else registry


# ---- what goes out


def _write_ids(registry: Registry, merged: Merged, schema: EventSchema, folder: Path) -> None:
    user_rows = np.load(folder / "user_rows.npy")
    item_rows = np.flatnonzero(merged.items).astype(np.int32)
    for kind, name, rows, kept in (
        ("users", "user", user_rows, schema.user_id),
        ("items", "item", item_rows, schema.item_id),
    ):
        ids = registry.ids_of(kind, rows).cast(kept)  # type: ignore[arg-type]
        pl.DataFrame({f"{name}_row": rows, f"{name}_id": ids}).write_parquet(
            folder / f"{kind}.parquet", compression="zstd", compression_level=1, row_group_size=ROWS_PER_GROUP
        )


def _fingerprint(folder: Path) -> str:
    with ThreadPoolExecutor() as threads:
        paths = sorted([*folder.glob("*.npy"), *folder.glob("*.parquet")])
        return fingerprint_of(list(zip((path.name for path in paths), threads.map(file_sha256, paths), strict=True)))


# ---- what no night can go on with


def _expect_epoch(registry: Registry, epoch: int) -> None:
    if registry.version.epoch != epoch:
        raise RegistryCompacted(
            f"the id registry was compacted while this night ran: it opened epoch {epoch}, and epoch "
            f"{registry.version.epoch} is there now, whose row numbers are others. Nothing was published. Run again: "
            "the night is then opened anew, reads every day and starts cold."
        )


def _expect_pairs(
    merged: Merged,
    set_aside: dict[str, int],
    quarantined: dict[str, int],
    rows_in: int,
    schema: EventSchema,
    as_of: date,
) -> None:
    if merged.pairs:
        return
    if not rows_in:
        raise InputMissing(
            f"the {len(schema.files)} event files hold no rows at all. Nothing was published. See what should have "
            "written them."
        )
    found = ", ".join(f"{rule} {count:,}" for rule, count in (quarantined | set_aside).items())
    hint = ""
    too_late = sum(quarantined.get(rule, 0) for rule in ("timestamp_in_future", "timestamp_after_9999"))
    too_late += set_aside.get("later", 0)
    if too_late * 2 > rows_in:
        hint = (
            f" Most events lie after the start of {as_of} (UTC): the date is before the first event, or integer "
            "timestamps are milliseconds where seconds are wanted."
        )
    raise InputMissing(
        f"none of the {rows_in:,} rows in {len(schema.files)} event files is a valid event before {as_of}: "
        f"{found}. Nothing was published.{hint}"
    )


def _expect_a_graph(merged: Merged, schema: EventSchema, settings: IngestConfig) -> None:
    if not merged.likes and settings.like_threshold is not None:
        raise NothingLiked(
            f"of {merged.pairs:,} pairs none has {_what_is_missing(merged, schema, settings)}. Nothing was published. "
            "Set ingest.like_threshold to what a like is in this source, or to none if it has no ratings."
        )
    liked_items = int(np.count_nonzero(merged.liked_items))
    if merged.liking_users < 2 or liked_items < 2:
        raise GraphTooSmall(
            f"the likes come from {merged.liking_users:,} users and go to {liked_items:,} items; a recommendation "
            "needs at least 2 of each. Nothing was published. Check that all event files are there, and "
            "ingest.like_threshold."
        )


def _what_is_missing(merged: Merged, schema: EventSchema, settings: IngestConfig) -> str:
    if settings.event_weights:
        return f"events whose weights add up to {settings.like_threshold:g}"
    return (
        f"a latest rating of at least {settings.like_threshold:g}; the highest in all {merged.events:,} valid events "
        f"is {_highest_rating(schema, settings):g}"
    )


def _highest_rating(schema: EventSchema, settings: IngestConfig) -> float:
    valid = [scan_file(file, schema, settings).filter(pl.col("rule").is_null()) for file in schema.files]
    highest = pl.concat([frame.select(pl.col("rating").cast(pl.Float64).max()) for frame in valid]).max()
    with naming_read_errors(schema.files):
        return float(highest.collect(engine="streaming").item())
