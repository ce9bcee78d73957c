"""Files that chance has changed, and what a night makes of them: for a test of a few hundred and a loop of thousands.

A reader in a process of its own takes one store after another and says how each ended. It runs what a night's child
runs, under the same limits; where a file ends it, the night's own way (halving, naming) is asked once more.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from datetime import date
from itertools import count
from pathlib import Path

from hypothesis import strategies as st

from tasks.config import IngestConfig
from tasks.errors import InputCorrupt, NightError
from tasks.ingest.checksums import NAME as CHECKSUMS
from tasks.ingest.child import digest_apart
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.limits import limit_memory, reader_bytes
from tasks.ingest.sources import pin_inputs
from tasks.run import PROJECT_ROOT
from tasks.store import open_store
from tests.tasks.hostile_files import ROWS, columns, parquet, plain

AS_OF = date(2026, 11, 23)
KEY = "events/dt=2026-11-22/m.parquet"
SETTINGS = IngestConfig(quarantine_share_at_most=1.0)
EQUAL, REFUSED_ROWS, OTHER_ROWS, ENDED = "equal rows", "rows quarantined", "other rows", "ended its reader, was named"
GOOD = (plain(), parquet(columns(), compression="zstd"), parquet(columns(), compression="snappy", row_group_size=90))

# (what, where in 1/10,000 of the file, how much)
Edit = tuple[str, int, int]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip at the end", "zero", "cut", "insert", "repeat", "swap", "number"]),
        st.integers(0, 9_999),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)
_numbers = count()  # a mutation that fails is tried again, and needs another folder
MUTATIONS = st.tuples(st.integers(0, len(GOOD) - 1), EDITS)


def mutated(file: bytes, edits: list[Edit]) -> bytes:
    for what, where, much in edits:
        at = min(len(file) - 1, where * len(file) // 10_000) if file else 0
        if what == "flip at the end":  # where the footer is
            at = max(0, len(file) - 1 - where % 900)
        head, tail = file[:at], file[at:]
        if not tail:
            continue
        if what.startswith("flip"):
            file = head + bytes([tail[0] ^ (1 << much % 8)]) + tail[1:]
        elif what == "zero":
            file = head + bytes(len(tail[: much + 1])) + tail[much + 1 :]
        elif what == "cut":
            file = head + tail[much + 1 :]
        elif what == "insert":
            file = head + bytes([much]) * (1 + much % 9) + tail
        elif what == "repeat":
            file = head + tail[: much + 1] + tail
        elif what == "swap":
            file = head + tail[much + 1 : 2 * much + 2] + tail[: much + 1] + tail[2 * much + 2 :]
        else:  # four bytes become a number that is large, or negative
            file = head + (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80")[much % 3] + tail[4:]
    return file


class Reader:
    """One process for many stores, and another once a file ended it."""

    def __init__(self) -> None:
        self.ended = 0
        self._child: subprocess.Popen[str] | None = None

    def ask(self, store: Path) -> dict[str, object] | None:
        """How reading it ended; None where it ended the reader, too."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.tasks.mutations"],
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{store}\n")
        self._child.stdin.flush()
        if line := self._child.stdout.readline():
            return dict(json.loads(line))
        self.ended += 1
        self._let_go()
        return None

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._let_go()

    def _let_go(self) -> None:
        assert self._child is not None
        with self._child:  # closes its pipes, and waits
            self._child = None


def outcome_of(mutation: tuple[int, list[Edit]], folder: Path, reader: Reader, seen: Counter[str]) -> str:
    """Raises AssertionError for an error without a name, one that names no file or a user, and for other rows that no
    checksum was asked about."""
    which, edits = mutation
    content = mutated(GOOD[which], edits)
    number = next(_numbers)
    store = folder / f"s{number}"
    open_store(str(store)).put_once(KEY, content)
    found = reader.ask(store)
    if found is None:
        outcome = ENDED
        try:
            digest_in(store, folder / f"n{number}")
        except InputCorrupt as error:
            named = KEY in str(error)
        else:
            raise AssertionError("a file ended one reader and not the next")
        assert named
    else:
        outcome = str(found["outcome"])
        assert not outcome.startswith("unnamed"), (outcome, mutation)
        assert found["names_the_file"], outcome
        assert not found["names_a_user"], outcome
    if outcome == OTHER_ROWS:  # nobody can know, unless whoever wrote the file says what it was
        checked = folder / f"c{number}"
        open_store(str(checked)).put_once(KEY, content)
        sums = f"{hashlib.sha256(GOOD[which]).hexdigest()}  {KEY.rpartition('/')[2]}\n"
        open_store(str(checked)).put_once(KEY.replace("m.parquet", CHECKSUMS), sums.encode())
        again = reader.ask(checked)
        assert again is not None
        assert again["outcome"] == "InputCorrupt", again
    seen[outcome] += 1
    return outcome


def digest_in(store: Path, folder: Path) -> None:
    """As a night does it, in its own child."""
    opened = open_store(str(store))
    folder.mkdir()
    digest_apart(opened.uri, pin_inputs(opened, SETTINGS), folder, as_of=AS_OF, settings=SETTINGS)


def read(store: Path, expected: dict[str, str]) -> dict[str, object]:
    """In the reader's process."""
    said, folder = "", store / "night"
    try:
        opened = open_store(str(store))
        events = pin_inputs(opened, SETTINGS)
        folder.mkdir()
        schema = inspect_files(opened, events, SETTINGS)
        night = digest(opened, events, schema, folder, as_of=AS_OF, settings=SETTINGS)
    except NightError as error:
        outcome, said = type(error).__name__, str(error)
    except Exception as error:
        return {"outcome": f"unnamed {type(error).__name__}: {error}", "names_the_file": False, "names_a_user": False}
    else:
        if night.rows_in != ROWS or night.quarantined:
            outcome = REFUSED_ROWS if night.rows_in == ROWS else OTHER_ROWS
        else:
            outcome = EQUAL if bytes_of(folder) == expected else OTHER_ROWS
        if outcome == REFUSED_ROWS:
            outcome = OTHER_ROWS  # some rows were changed so that a rule refuses them; others may have been, unnoticed
        said = KEY
    names = KEY in said or outcome in ("InputMissing", "NothingLiked", "GraphTooSmall")  # said of all rows together
    return {"outcome": outcome, "names_the_file": names, "names_a_user": "user-0" in said}


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.suffix == ".npy"
    }


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch) / "good"
        open_store(str(good)).put_once(KEY, GOOD[0])
        read(good, {})
        expected = bytes_of(good / "night")
    limit_memory(reader_bytes(SETTINGS.memory_mib))
    for line in sys.stdin:
        print(json.dumps(read(Path(line.strip()), expected)), flush=True)


if __name__ == "__main__":
    main()
