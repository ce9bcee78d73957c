"""The thirty-six corrupt inputs, each through the processes of a night that inspect and that read, and mutated ones."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import InputCorrupt, NightError
from tasks.ingest.checksums import NAME as CHECKSUMS
from tasks.ingest.child import digest_apart
from tasks.ingest.footer_child import inspect_apart
from tasks.ingest.inspection import Inspected, inspect_files
from tasks.ingest.interactions import ensure_counts_add_up
from tasks.ingest.sources import pin_inputs
from tasks.store import Store, open_store
from tests.tasks.hostile_files import HARMLESS, HOSTILE, ROWS, ROWS_REFUSED, UNNOTICED, plain, verdict_is_right
from tests.tasks.mutations import MUTATIONS, Edit, Reader, outcome_of

pytestmark = pytest.mark.usefixtures("nobody_is_named")

AS_OF = date(2026, 11, 23)
GOOD = "events/dt=2026-11-22/a.parquet"
BAD = "events/dt=2026-11-22/m.parquet"
MUTATIONS_IN_A_TEST = 250


def night_of(store: Store, folder: Path, **changes: int) -> Interactions:
    """The inspection of footers in one process and reading in another, as a night does it."""
    source = IngestConfig(quarantine_share_at_most=1.0, **changes)  # type: ignore[arg-type]
    pinned = pin_inputs(store, source)
    inspect_files(store, pinned, source, known=inspect_apart(store.uri, pinned, source))
    folder.mkdir(parents=True, exist_ok=True)
    night = digest_apart(store.uri, pinned, folder, as_of=AS_OF, settings=source)
    ensure_counts_add_up(night)
    return night


@pytest.fixture(scope="module")
def footers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspected]:
    """What one process says of all the hostile files' footers together, by name."""
    store = open_store(str(tmp_path_factory.mktemp("hostile")))
    key = {name: f"events/dt=2026-11-22/{number:02d}.parquet" for number, name in enumerate(HOSTILE)}
    for name, (make, _) in HOSTILE.items():
        store.put_once(key[name], make())
    source = IngestConfig(max_bad_files=len(HOSTILE))
    found = inspect_apart(store.uri, pin_inputs(store, source), source)
    for name, said in found.items():
        if isinstance(said, NightError):
            assert name in str(said), "the file is named"
    return {name: found[key[name]] for name in HOSTILE}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_its_verdict_by_name(name: str, footers: dict[str, Inspected], tmp_path: Path) -> None:
    make, verdict = HOSTILE[name]
    if isinstance(said := footers[name], NightError):
        assert verdict_is_right(verdict, type(said).__name__), said
        return
    store = open_store(str(tmp_path / "store"))
    store.put_once(GOOD, plain())
    store.put_once(BAD, make())
    if verdict == UNNOTICED:
        assert night_of(store, tmp_path / "night").rows_in == 2 * ROWS
        return
    try:
        night = night_of(store, tmp_path / "night")
    except NightError as error:
        found, words = type(error).__name__, str(error)
    else:
        refused = {"malformed_user_id": 1} if verdict == ROWS_REFUSED else {}
        assert (night.rows_in, night.quarantined) == (2 * ROWS, refused)
        # The same rows as in the good file: each is there twice, but for the refused one.
        assert night.set_aside["duplicate"] == ROWS - len(refused)
        found, words = ROWS_REFUSED if refused else HARMLESS, BAD
    assert verdict_is_right(verdict, found), words
    assert BAD in words
    assert "user-0" not in words


@pytest.mark.parametrize("name", [name for name, (_, verdict) in HOSTILE.items() if verdict == UNNOTICED])
def test_what_no_reader_notices_a_producers_checksum_does(name: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_once(BAD, HOSTILE[name][0]())
    sums = f"{hashlib.sha256(plain()).hexdigest()}  {BAD.rpartition('/')[2]}\n"
    store.put_once(f"{BAD.rpartition('/')[0]}/{CHECKSUMS}", sums.encode())
    with pytest.raises(InputCorrupt, match=rf"{BAD}.*{CHECKSUMS}"):
        night_of(store, tmp_path / "night")


def test_right_checksums_let_a_night_pass_and_the_nearest_manifest_decides(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_once(BAD, plain())
    folder, _, name = BAD.rpartition("/")
    right, wrong = hashlib.sha256(plain()).hexdigest(), "0" * 64
    store.put_once(f"{folder}/{CHECKSUMS}", f"{right.upper()} *./{name}\n".encode())
    store.put_once(f"events/{CHECKSUMS}", f"{wrong}  {BAD.removeprefix('events/')}\n".encode())
    assert night_of(store, tmp_path / "night").rows_in == ROWS
    (tmp_path / "store" / folder / CHECKSUMS).unlink()
    store.put_once(GOOD, plain())  # the day is another one, and digested anew
    with pytest.raises(InputCorrupt, match=rf"{BAD}.*{CHECKSUMS}"):
        night_of(store, tmp_path / "again")


def test_one_bad_file_among_many_is_named_and_where_a_night_may_do_without_it_the_others_count(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for number in range(35):
        store.put_once(f"events/dt=2026-11-22/{number:02d}.parquet", plain())
    store.put_once(BAD, plain()[:-4])
    with pytest.raises(InputCorrupt, match=BAD):
        night_of(store, tmp_path / "refused")
    night = night_of(store, tmp_path / "night", max_bad_files=1)
    assert night.rows_in == 35 * ROWS
    assert list(night.inspection.set_aside) == [BAD]  # type: ignore[union-attr]


# ---- by chance


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def test_a_file_that_chance_has_changed_ends_in_the_same_rows_or_in_an_error_with_a_name(
    reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen: Counter[str] = Counter()
    folder = tmp_path_factory.mktemp("mutated")

    @settings(max_examples=MUTATIONS_IN_A_TEST, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def survive(mutation: tuple[int, list[Edit]]) -> None:
        outcome_of(mutation, folder, reader, seen)

    survive()
    assert sum(seen.values()) >= MUTATIONS_IN_A_TEST
    assert seen["InputCorrupt"] > MUTATIONS_IN_A_TEST // 10, seen
