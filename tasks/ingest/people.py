"""Who is to be forgotten: ids as they were typed, found or not, and taken out of the registry."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from tasks import due
from tasks.contracts import ForgottenIds, LiveLists, Remains
from tasks.errors import RunConfigError, UserNotFound
from tasks.ingest.child import count_remains_apart
from tasks.ingest.inspection import inspect_files
from tasks.ingest.sources import is_data_file, list_events, pin_inputs, pin_tables
from tasks.registry import FORGOTTEN, UNKNOWN, Registry, forget, open_registry
from tasks.store import Store

NAMED_AT_MOST = 20


def ids_of(store: Store, people: Sequence[str], kind: str, *, lines: Sequence[int] = ()) -> pl.Series:
    """What was typed as ids of a kind: String, Int64 or UInt64. Raises RunConfigError, without an id in it.

    `lines`: where each of them stands in a file, to call them by.
    """
    typed = pl.Series("id", list(people), dtype=pl.String)
    if kind == "String":
        return typed
    numbers = typed.cast(pl.UInt64 if kind == "UInt64" else pl.Int64, strict=False)
    if wrong := list((numbers.cast(pl.String).ne_missing(typed)).arg_true()):  # 042 is not 42
        raise RunConfigError(
            f"the user ids of {store.uri} are numbers, and {_which(wrong, len(people), lines)} no number as they are "
            "written there. Nothing was changed."
        )
    return numbers


def id_kind(store: Store, live: LiveLists) -> str:
    """The registry's, else that of the live night (as its manifest says it), else that of the events."""
    if known := open_registry(store).commit.users.id_type:
        return known
    found = live.id_type
    if not found:
        found = str(inspect_files(store, pin_inputs(store, live.settings), live.settings).user_id).lower()
    return {"string": "String", "uint64": "UInt64"}.get(found, "Int64")


def look_for(store: Store, ids: pl.Series, live: LiveLists, *, always: bool, lines: Sequence[int] = ()) -> Remains:
    """What the team's own files have of them.

    Raises UserNotFound where somebody is found nowhere, unless `always`: a mistyped id would leave the person in.
    """
    events = [found for found in list_events(store, live.settings) if is_data_file(found.key)]
    files = [*events, *pin_tables(store)]
    remains = count_remains_apart(store.uri, files, ids.to_list(), live.settings)
    rows = _rows_of(open_registry(store), ids)
    met = set(remains.met)
    nowhere = [
        place for place, row in enumerate(rows) if row == UNKNOWN and place not in met and not live.have_one[place]
    ]
    if nowhere and not always:
        uncounted = f" {len(remains.unread)} files could not be read." if remains.unread else ""
        raise UserNotFound(
            f"{_which(nowhere, len(ids), lines)} nobody whom {store.uri} knows: no event, no row of a table, no list "
            f"in the live night, and not forgotten before.{uncounted} Nothing was changed. Ids are taken as they "
            "stand: 042 and 42 are two people. To keep an id out should it ever come, forget it with ALWAYS=1."
        )
    return remains


def forget_ids(store: Store, ids: pl.Series) -> ForgottenIds:
    """The registry without them. Doing it again changes nothing."""
    before = int((_rows_of(open_registry(store), ids) == FORGOTTEN).sum())
    act = forget(store, "users", ids)
    return ForgottenIds(int((act.rows >= 0).sum()), before, act.registry.version.forgotten)


def replaced_registry_files(store: Store) -> frozenset[str]:
    """Notes as due what no version of the registry needs any more, and returns what the newest one is made of."""
    registry = open_registry(store)
    left = set(forget(store, "users", registry.ids["users"].clear()).to_remove)
    due.write_down(store, [stored for stored in store.list("registry") if stored.key in left])
    return frozenset(registry.commit.files())


def _rows_of(registry: Registry, ids: pl.Series) -> np.ndarray:
    distinct = ids.unique(maintain_order=True)
    row_of = dict(zip(distinct, registry.rows_of("users", distinct), strict=True))
    return np.array([row_of[one] for one in ids], np.int32)


def _which(places: list[int], num_people: int, lines: Sequence[int]) -> str:
    """Whose id never stands in a message: by its line, or its place."""
    if num_people == 1:
        return "the given one is"
    called, what = ([lines[place] for place in places], "lines") if lines else ([p + 1 for p in places], "places")
    named = ", ".join(map(str, called[:NAMED_AT_MOST]))
    more = f" and {len(places) - NAMED_AT_MOST} more" if len(places) > NAMED_AT_MOST else ""
    return f"of the {num_people} given ones those in the {what} {named}{more} are"
