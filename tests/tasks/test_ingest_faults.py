"""An object store that misbehaves while a night reads, and a disk that fills up: the same bytes, or one named error."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
import s3fs

from tasks.config import IngestConfig
from tasks.contracts import Interactions
from tasks.errors import InputUnstable, StoreDenied
from tasks.ingest.child import digest_apart
from tasks.ingest.sources import list_events, pin_events, pin_inputs, pinned_while_reading
from tasks.run import is_disk_full
from tasks.store import Store, open_store
from tests.faults import FaultProxy, Request
from tests.tasks.hostile_files import columns, parquet
from tests.worlds import read_night

pytestmark = pytest.mark.usefixtures("nobody_is_named")

AS_OF = date(2026, 11, 23)
DAYS = 3
SETTINGS = IngestConfig()


def put_days(store: Store) -> None:
    """Three days of the same people, each moved by a day."""
    for day in range(DAYS):
        table = pl.DataFrame(columns()).with_columns(pl.col("timestamp") - day * 86_400)
        on = AS_OF - timedelta(days=1 + day)
        store.put_once(f"events/dt={on}/a.parquet", parquet(table.to_arrow(), row_group_size=50))


def bytes_of(night: Interactions) -> dict[str, str]:
    files = sorted(path for path in Path(night.folder).iterdir() if path.suffix in (".npy", ".parquet"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def calm(tmp_path: Path) -> dict[str, str]:
    store = open_store(str(tmp_path / "calm-store"))
    put_days(store)
    return bytes_of(read_night(store, tmp_path / "calm", as_of=AS_OF))


def every(n: int, fault: str, *, method: str = "") -> Callable[[Request], str | None]:
    """Every n-th request, counted from the first."""
    count = 0

    def decide(request: Request) -> str | None:
        nonlocal count
        if method and request.method != method:
            return None
        count += 1
        return fault if count % n == 0 else None

    return decide


@pytest.mark.parametrize(
    ("fault", "method", "each"),
    [
        ("503 SlowDown", "", 3),
        ("500 InternalError", "GET", 3),
        ("429 SlowDown", "GET", 4),
        ("lose answer", "GET", 5),
        ("cut answer", "GET", 5),
        ("stall", "GET", 9),
        ("lose answer", "PUT", 3),
    ],
)
def test_what_passes_is_tried_again_and_the_bytes_are_those_of_a_calm_night(
    fault: str, method: str, each: int, calm: dict[str, str], fault_proxy: FaultProxy, s3_store: str, tmp_path: Path
) -> None:
    store = open_store(s3_store)
    put_days(store)
    fault_proxy.fault = every(each, fault, method=method)
    asked = len(fault_proxy.requests)
    night = read_night(store, tmp_path / "night", as_of=AS_OF)
    assert bytes_of(night) == calm
    assert len(fault_proxy.requests) > asked + each
    fault_proxy.fault = lambda request: None
    again = read_night(open_store(s3_store), tmp_path / "again", as_of=AS_OF)
    assert bytes_of(again) == calm, "and what it left in the store is whole"


def of_event(request: Request) -> bool:
    return request.method == "GET" and "events/" in request.path and ".parquet" in request.path


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_object_that_is_swapped_between_two_ranged_reads_is_noticed(
    at: int, fault_proxy: FaultProxy, s3_store: str, tmp_path: Path
) -> None:
    """Its footer is read in two requests, and its pages in a third."""
    store = open_store(s3_store)
    put_days(store)
    key = "events/dt=2026-11-21/a.parquet"
    other = parquet(pl.DataFrame(columns()).with_columns(rating=pl.lit(1.0)).to_arrow(), row_group_size=50)
    past_the_proxy = s3fs.S3FileSystem(endpoint_url=fault_proxy.server_url, skip_instance_cache=True)
    read = 0

    def swap(request: Request) -> str | None:
        nonlocal read
        if of_event(request) and "2026-11-21" in request.path:
            read += 1
            if read == at:
                past_the_proxy.pipe_file(f"{s3_store.removeprefix('s3://')}/{key}", other)
        return None

    pinned = pin_events(list_events(store, SETTINGS), store, SETTINGS)
    fault_proxy.fault = swap
    with pytest.raises(InputUnstable, match=r"dt=2026-11-21/a\.parquet"), pinned_while_reading(store, pinned):
        read_night(store, tmp_path / "night", as_of=AS_OF)
    assert read >= at
    assert not store.list("_meta/days/"), "nothing stands there under the name of what was listed"


def test_an_object_that_is_gone_after_the_listing_is_unstable(
    fault_proxy: FaultProxy, s3_store: str, tmp_path: Path
) -> None:
    store = open_store(s3_store)
    put_days(store)
    fault_proxy.fault = lambda request: "404 NoSuchKey" if of_event(request) and "11-20" in request.path else None
    with pytest.raises(InputUnstable, match=r"dt=2026-11-20/a\.parquet"):
        read_night(store, tmp_path / "night", as_of=AS_OF)


@pytest.mark.parametrize("first", [1, 4, 9, 14])
def test_credentials_that_expire_end_the_night_by_name_and_a_rerun_has_the_same_bytes(
    first: int, calm: dict[str, str], fault_proxy: FaultProxy, s3_store: str, tmp_path: Path
) -> None:
    store = open_store(s3_store)
    put_days(store)
    asked = len(fault_proxy.requests)
    fault_proxy.fault = lambda request: "403 ExpiredToken" if len(fault_proxy.requests) - asked >= first else None
    with pytest.raises(StoreDenied) as ended:
        read_night(store, tmp_path / "night", as_of=AS_OF)
    assert "user-0" not in str(ended.value)
    fault_proxy.fault = lambda request: None
    assert bytes_of(read_night(open_store(s3_store), tmp_path / "again", as_of=AS_OF)) == calm


# ---- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB, in memory."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{kib}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_at_any_spill_says_so_and_a_rerun_has_the_same_bytes(
    calm: dict[str, str], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """From a disk that holds nothing to one that holds all, in steps of one block."""
    store = open_store(str(tmp_path / "store"))
    put_days(store)
    full = 0
    for kib in [*range(4, 260, 8), 4_096]:
        try:
            night = read_night(store, small_disk(kib) / "night", as_of=AS_OF)
        except Exception as error:
            if not is_disk_full(error):
                raise AssertionError(f"{kib} KiB: {error!r}") from error
            full += 1
        else:
            assert bytes_of(night) == calm, f"{kib} KiB"
    assert full >= 5


def test_the_process_that_reads_says_that_its_disk_is_full(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    put_days(store)
    settings = IngestConfig(quarantine_share_at_most=1.0)
    with pytest.raises(OSError) as full:
        digest_apart(store.uri, pin_inputs(store, settings), small_disk(8), as_of=AS_OF, settings=settings)
    assert full.value.errno == errno.ENOSPC
