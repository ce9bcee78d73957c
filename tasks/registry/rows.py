"""Opened: from ids to rows and back.

Memory: the ids themselves (16 bytes each and the text of those longer than 12 bytes; integers 8 bytes), and during
rows_of a hash table of the ids that are asked for.
"""

import hashlib
import io

import numpy as np
import numpy.typing as npt
import polars as pl

from tasks.errors import SchemaDrift
from tasks.registry.commits import KINDS, Commit, Kind, RegistryVersion, invalid, read_checked, read_commit
from tasks.store import Store

UNKNOWN, FORGOTTEN = -1, -2
HASH_BYTES = 16


class Registry:
    """One version, read and checked. Never changes: `extend` returns another."""

    def __init__(self, commit: Commit, ids: dict[Kind, pl.Series], forgotten: dict[bytes, int]) -> None:
        self.commit = commit
        self.ids = ids  # by row; null where forgotten
        self.forgotten = forgotten  # hash -> the row it had, UNKNOWN if none

    @property
    def version(self) -> RegistryVersion:
        return self.commit.version

    def rows_of(self, kind: Kind, ids: pl.Series) -> npt.NDArray[np.int32]:
        """The row of each id, in their order; UNKNOWN, or FORGOTTEN for one that must not come back.

        `ids` are distinct and not null. Raises SchemaDrift where they are of another type than the registry's.
        """
        asked = self.as_registered(kind, ids)
        rows = np.full(len(asked), UNKNOWN, dtype=np.int32)
        if len(asked) and len(known := self.ids[kind]):
            # An inner join builds its table of the smaller side, which is what is asked for.
            found = (
                pl.LazyFrame({"id": asked, "place": np.arange(len(asked), dtype=np.int32)})
                .join(pl.LazyFrame({"id": known, "row": np.arange(len(known), dtype=np.int32)}), on="id")
                .select("place", "row")
                .collect()
            )
            rows[found["place"].to_numpy()] = found["row"].to_numpy()
        if self.forgotten:
            for place in np.flatnonzero(rows == UNKNOWN):
                if hash_of(self.commit, kind, asked[int(place)]) in self.forgotten:
                    rows[place] = FORGOTTEN
        return rows

    def forgotten_rows(self, kind: Kind) -> npt.NDArray[np.int64]:
        """Rows that are nobody's any more, ascending."""
        return self.ids[kind].is_null().arg_true().cast(pl.Int64).to_numpy()

    def is_forgotten(self, kind: Kind, ids: pl.Series) -> pl.Series:
        """Of ids of any type, repeats and nulls included, which must not come back: as many booleans.

        Asks the hashes alone, so it costs what the distinct ids cost and not what the registry holds.
        """
        id_type = self.commit.column(kind).id_type
        nobody = pl.Series([False]).new_from_index(0, len(ids))
        if not self.forgotten or not (ids.dtype.is_integer() or ids.dtype == pl.String):
            return nobody
        if (ids.dtype == pl.String) != (id_type == "String"):
            return nobody
        asked = ids.unique().drop_nulls()
        theirs = asked.filter([hash_of(self.commit, kind, one) in self.forgotten for one in asked])
        return ids.is_in(theirs.implode()).fill_null(False) if len(theirs) else nobody

    def ids_of(self, kind: Kind, rows: npt.NDArray[np.int32]) -> pl.Series:
        """The id of each row, null where it was forgotten."""
        return self.ids[kind].gather(rows)

    def as_registered(self, kind: Kind, ids: pl.Series) -> pl.Series:
        """Integers of every width are one type here; UInt64 reaches further and is another, and text is text."""
        column = self.commit.column(kind)
        ids = ids if ids.dtype in (pl.String, pl.UInt64) else ids.cast(pl.Int64)
        if column.id_type not in ("", str(ids.dtype)):
            raise SchemaDrift(
                f"the {kind}' ids are {ids.dtype} tonight and were {column.id_type} in all nights before, so nobody "
                "would be recognised. Nothing was published. Mend what writes the events; if the ids really have a new "
                "type, use a new store, or remove registry/, _meta/registry/ and _meta/days/ together."
            )
        return ids


def open_registry(store: Store) -> Registry:
    """The newest version, or one without any id. Raises RegistryInvalid."""
    commit = read_commit(store)
    return Registry(commit, {kind: _read_ids(store, commit, kind) for kind in KINDS}, _read_forgotten(store, commit))


def _read_ids(store: Store, commit: Commit, kind: Kind) -> pl.Series:
    column = commit.column(kind)
    parts = []
    for number, segment in enumerate(column.segments):
        if segment.first_row != sum(earlier.rows for earlier in column.segments[:number]):
            raise invalid(store, segment.key, "its rows do not follow those of the file before")
        try:
            part = pl.read_parquet(io.BytesIO(read_checked(store, segment)))["id"]
        except pl.exceptions.PolarsError:
            raise invalid(store, segment.key, "it is no Parquet file") from None
        if len(part) != segment.rows or str(part.dtype) != column.id_type:
            raise invalid(store, segment.key, f"it holds {len(part):,} ids of {part.dtype}")
        parts.append(part)
    return pl.concat(parts) if parts else pl.Series("id", [], dtype=pl.String)


def _read_forgotten(store: Store, commit: Commit) -> dict[bytes, int]:
    if commit.hashes is None:
        return {}
    return dict(pl.read_parquet(io.BytesIO(read_checked(store, commit.hashes))).select("hash", "row").iter_rows())


def hash_of(commit: Commit, kind: Kind, registered_id: object) -> bytes:
    """Keyed by the registry's salt. Who may read the registry has the salt, too, and can try ids one by one: the hash
    keeps an id out of sight, it does not keep it from somebody who knows what to look for."""
    text = f"{kind}:{registered_id}".encode()
    return hashlib.blake2b(text, key=bytes.fromhex(commit.salt), digest_size=HASH_BYTES).digest()
