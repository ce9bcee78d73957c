"""The append-only register of ids: which row number a user or an item has, for ever.

    registry/users/v00000006-<attempt>.parquet   the ids of consecutive rows; write-once. registry/items/ likewise
    registry/forgotten/v...parquet               keyed hashes of the ids that must not come back
    _meta/registry/v00000006.json                the version: which files, which rows; write-once, THE commit

A night asks for the rows of its ids and appends those that have none, in the order of the ids. A version is one
create-only write: of two nights at once one wins, and the other numbers what is still unknown on top of it.

What is there changes by two deliberate acts only. Forgetting takes an id out of its row and leaves a hash, so that the
person is recognised if their events come again, and the row is nobody's for ever. Compaction drops rows that nobody
needs and numbers the others anew: a new epoch, in which no earlier row number means anything.
"""

from tasks.registry.acts import Act, compact, extend, forget
from tasks.registry.commits import KINDS, Kind, RegistryVersion, read_version
from tasks.registry.rows import FORGOTTEN, UNKNOWN, Registry, open_registry

__all__ = [
    "FORGOTTEN",
    "KINDS",
    "UNKNOWN",
    "Act",
    "Kind",
    "Registry",
    "RegistryVersion",
    "compact",
    "extend",
    "forget",
    "open_registry",
    "read_version",
]
