"""A night's identity and its work folder: which date, which key, where each stage's result lives, what is reused.

    work folder/<store>/<date>/lock                  held for as long as a night works on this date
    work folder/<store>/<date>/inputs-<...>.json     the pinned listing of one opening, gone at its end
    work folder/<store>/<date>/<stage>-<key>/...     what the stage wrote
    work folder/<store>/<date>/<stage>-<key>/.stage.json   written last: the stage is finished

The key is a hash of the fingerprints that go into the stage, of its settings and of the code, so a bug fix is never
answered from yesterday's result. A finished stage whose files are gone or damaged is computed again.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import polars as pl
import psutil
from pydantic import BaseModel, TypeAdapter

from tasks.contracts import Run, StageCost
from tasks.errors import DiskFull, NightInProgress, RunConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
STORE_VARIABLE = "NIGHTGRAPH_STORE"
WORK_VARIABLE = "NIGHTGRAPH_WORK"
# Anchored at the project, because a worker may start a night from any folder.
DEFAULT_STORE = str(PROJECT_ROOT / "var" / "store")
DEFAULT_WORK = str(PROJECT_ROOT / "var" / "work")
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
UNFINISHED_NIGHTS_KEPT = 2
SCRATCH_KEPT_S = 86_400

log = logging.getLogger("nightgraph.run")
RefT = TypeVar("RefT")


# ---- identity


def decide_date(*, as_of: date | None, scheduled_on: date | None, last_event_at: datetime) -> date:
    """The parameter, else the day of the scheduled start (UTC), else the day after the last event. Never now()."""
    return as_of or scheduled_on or last_event_at.date() + timedelta(days=1)


def ensure_not_in_future(as_of: date | None, *, today: date) -> None:
    """LATEST only moves forward in time: a night of 2999 would stay live until then. Raises RunConfigError."""
    if as_of is not None and as_of > today + timedelta(days=1):
        raise RunConfigError(
            f"as_of is {as_of}, and today is {today} (UTC). A night of the future would keep every later night from "
            "going live. Nothing was started. Give a date up to tomorrow, or none."
        )


def code_version(root: Path = PROJECT_ROOT) -> str:
    """SHA-256 of every source file and the lock, so that an uncommitted change counts as another version too."""
    digest = hashlib.sha256()
    sources = sorted(path for room in ("flows", "models", "tasks") for path in (root / room).rglob("*.py"))
    for path in [*sources, root / "constraints.txt"]:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def fingerprint_of(*parts: object) -> str:
    """SHA-256 of the parts' JSON. Dates, settings and Refs are allowed; floats print as they are."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_ids(graph_folder: Path) -> tuple[pl.Series, pl.Series]:
    """(user ids, item ids) of a built graph, each by row."""
    users, items = (pl.read_parquet(graph_folder / f"{name}s.parquet")[name] for name in ("user_id", "item_id"))
    return users, items


# ---- the work folder


def work_folder(work_root: str, store_uri: str, as_of: date) -> Path:
    """One folder a store and date. The store's name is hashed: it may hold characters no file name can."""
    store = hashlib.sha256(store_uri.encode()).hexdigest()[:12]
    return Path(work_root).resolve() / store / as_of.isoformat()


@contextmanager
def hold_work_folder(run: Run) -> Iterator[None]:
    """Keep other nights of this date off this machine's work folder; the lock ends with the process, however it ends.

    Raises NightInProgress. On another machine a second night may run: the commit log decides between the two.
    """
    folder = Path(run.work_folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NightInProgress(
                    f"another process on this machine is working on {run.as_of} of this store (lock {folder / 'lock'})."
                    " Nothing was started. Wait for it, or cancel it, then run again."
                ) from None
            _drop_old_nights(folder)
            _drop_old_pins(folder)
            yield
    finally:
        with _scratch_may_stay("the list of inputs"):  # a rerun pins its inputs anew
            Path(run.inputs_path).unlink()


def clear_work_folder(run: Run) -> None:
    """Once a night is published the store holds what counts, so all stages' scratch goes.

    The lock stays: it is held, and empty. Other processes' pins stay: whoever wrote one waits for the lock.
    """
    with _scratch_may_stay("scratch of this night"):
        for path in Path(run.work_folder).iterdir():
            if path.is_dir():
                shutil.rmtree(path)


@contextmanager
def _scratch_may_stay(what: str) -> Iterator[None]:
    """Others tidy up here too, and disks have moods: housekeeping fails no night, least of all a published one."""
    try:
        yield
    except FileNotFoundError:
        pass  # somebody was quicker
    except OSError as error:
        log.warning("%s could not be removed: %s", what, error)


def pin_path(work_folder: Path, run_key: str) -> Path:
    """A name of this opening's own: another night of the same key must neither find nor remove it."""
    return work_folder / f"inputs-{run_key[:16]}-{secrets.token_hex(4)}.json"


def _drop_old_pins(folder: Path) -> None:
    """Those of nights that were killed before they got the lock."""
    for path in folder.glob("inputs-*"):
        with _scratch_may_stay(path.name):
            if time.time() - path.stat().st_mtime > SCRATCH_KEPT_S:
                path.unlink()


def _drop_old_nights(current: Path) -> None:
    """Keep the newest few other nights for their rerun, and whatever was touched within a day; drop older scratch."""
    others = sorted((path for path in current.parent.iterdir() if path.is_dir() and path != current), reverse=True)
    for folder in others[UNFINISHED_NIGHTS_KEPT:]:
        with _scratch_may_stay(f"the scratch of the night of {folder.name}"):
            if time.time() - folder.stat().st_mtime > SCRATCH_KEPT_S:  # one that is just being opened holds no lock yet
                _drop_unless_held(folder)


def _drop_unless_held(folder: Path) -> bool:
    """False where that night is running."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        log.info("dropping the scratch of the night of %s", folder.name)
        shutil.rmtree(folder)
        return True


def drop_scratch_of_nights(work_root: str, store_uri: str) -> list[str]:
    """Everything that unfinished nights of this store left on this machine. Returns the dates that are being worked on.

    Somebody who was forgotten stands in there. A night that goes on from nothing computes again, without them.
    """
    of_store = work_folder(work_root, store_uri, date.min).parent
    folders = sorted(path for path in of_store.glob("*") if path.is_dir())
    return [folder.name for folder in folders if not _drop_unless_held(folder)]


@contextmanager
def hold_scratch_to_forget(work_root: str, store_uri: str) -> Iterator[Path]:
    """An empty folder for this process alone, gone at the end; a killed one's is emptied by the next.

    Raises NightInProgress where another process on this machine forgets for the same store.
    """
    of_store = work_folder(work_root, store_uri, date.min).parent
    folder = of_store.with_name(f"{of_store.name}-forget")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NightInProgress(
                f"another process on this machine is forgetting people of this store (lock {folder / 'lock'}). Nothing "
                "was started. Wait for it, then run again."
            ) from None
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


# ---- stages


def finish_stage(
    run: Run,
    stage: str,
    ref_type: type[RefT],
    compute: Callable[[Path], RefT],
    *,
    inputs: tuple[object, ...],
    resumes: bool = False,
) -> RefT:
    """The stage's Ref: read if the stage had finished with these inputs and this code, computed otherwise.

    `compute` gets an empty folder to write in and returns the Ref; a stage that `resumes` gets what an unfinished try
    with the same inputs left there. Raises DiskFull when the disk is; whatever else
    it raises passes through, and the stage stays unfinished.
    """
    key = fingerprint_of(stage, run.as_of, run.code_version, *inputs)[:16]
    folder = Path(run.work_folder) / f"{stage}-{key}"
    started = time.perf_counter()
    if (ref := _read_finished(folder, ref_type)) is not None:
        log.info("%s: finished earlier, reused", stage)
        _write_cost(run, StageCost(stage, time.perf_counter() - started, 0, reused=True))
        return ref
    for outdated in Path(run.work_folder).glob(f"{stage}-*"):  # by other settings, or unfinished
        if not (resumes and outdated == folder):
            shutil.rmtree(outdated, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=resumes)
    with measured(run, stage):
        ref = compute(folder)
        _mark_finished(folder, ref_type, ref)
    return ref


@contextmanager
def measured(run: Run, stage: str) -> Iterator[None]:
    """Note what the stage takes, and give a full disk its name."""
    try:
        with PeakMemory() as memory:
            started = time.perf_counter()
            yield
            seconds = time.perf_counter() - started
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"the disk of {run.work_folder} filled up during {stage}. The live recommendations are untouched. "
            f"Free space there, or set {WORK_VARIABLE} to a larger disk, and run again: finished stages are kept."
        ) from error
    _write_cost(run, StageCost(stage, seconds, memory.peak_bytes, reused=False))


def is_disk_full(error: BaseException) -> bool:
    """Python's libraries have several ways to say it; Polars wraps the number in words, numpy leaves it out."""
    text = str(error)
    return getattr(error, "errno", None) in NO_ROOM or "(os error 28)" in text or "requested and" in text


def stage_costs(run: Run) -> list[StageCost]:
    """What each stage of this night took so far, in the order they ran."""
    path = Path(run.work_folder) / "costs" / f"{run.run_key[:16]}.jsonl"
    return [StageCost(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _write_cost(run: Run, cost: StageCost) -> None:
    """What cannot be noted is missing in the report, and no more than that: a stage's result is worth more."""
    path = Path(run.work_folder) / "costs" / f"{run.run_key[:16]}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for outdated in path.parent.iterdir():
            if outdated != path:
                outdated.unlink()
        others = [c for c in stage_costs(run) if c.stage != cost.stage]
        path.write_text("".join(json.dumps(asdict(c)) + "\n" for c in [*others, cost]))
    except OSError as error:
        log.warning("what %s took could not be noted: %s", cost.stage, error)


def _mark_finished(folder: Path, ref_type: type[RefT], ref: RefT) -> None:
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, file_sha256(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    marker = {"ref": TypeAdapter(ref_type).dump_python(ref, mode="json"), "files": files}
    unfinished = folder / ".stage.json.tmp"
    with open(unfinished, "w") as stream:
        json.dump(marker, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, folder / ".stage.json")


def _read_finished(folder: Path, ref_type: type[RefT]) -> RefT | None:
    """None where the stage did not finish, or where a file it wrote is gone or has other bytes."""
    try:
        marker = json.loads((folder / ".stage.json").read_text())
        for name, (size, sha256) in marker["files"].items():
            if (folder / name).stat().st_size != size or file_sha256(folder / name) != sha256:
                log.warning("%s: %s has other bytes than it was written with, computing again", folder.name, name)
                return None
        return TypeAdapter(ref_type).validate_python(marker["ref"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s: what it finished with cannot be read, computing again", folder.name)
        return None


class PeakMemory:
    """Peak resident bytes of this process and its children, sampled: a child's short spike can be missed."""

    def __init__(self, every_s: float = 0.1) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(self._every_s):
                return
