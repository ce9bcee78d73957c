"""A process of its own for what touches input files: a job as JSON in, an answer as JSON out.

A hostile file can ask for more memory than there is, and its reader then ends its whole process without an exception.
Here that is a child with limits (limits.py), the night lives on, and the file is found and named.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.processes import PARENT_PID_VARIABLE, die_with_parent
from tasks import errors
from tasks.errors import InputCorrupt, NightError, ReaderFailed
from tasks.run import PROJECT_ROOT, is_disk_full
from tasks.store import StoredObject, open_store


class Killed(Exception):
    """The child ended by a signal: its own abort, the kernel's, or a limit's."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)


def ask(module: str, job: str, *, num_files: int) -> Any:
    """`python -m module`'s answer to `job`. Raises Killed, ReaderFailed, OSError, and the errors of ours it ends in."""
    ended = subprocess.run(
        [sys.executable, "-m", module],
        input=job,
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), PARENT_PID_VARIABLE: str(os.getpid())},
        check=False,
    )
    if ended.returncode < 0:
        raise Killed(-ended.returncode)
    if ended.returncode > 0:
        raise ReaderFailed(
            f"the process that reads the input files ended with exit code {ended.returncode} before it could answer. "
            "Nothing was published. Check that this installation is whole (make test), then run again."
        )
    answer = json.loads(ended.stdout)
    if "fault" in answer:
        raise ReaderFailed(
            f"reading {num_files} input files ended in {answer['fault']}, an error that has no name here. Nothing "
            "was published. This is a fault of the job: please report it with this line."
        )
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "error" in answer:
        raise error_from(answer)
    return answer["answer"]


def serve(work: Callable[[str], Any]) -> None:
    """The child's side: what `work` makes of the job goes out, or what it ended in."""
    die_with_parent()
    print(json.dumps(answer_of(work, sys.stdin.read())))


def answer_of(work: Callable[[str], Any], job: str) -> dict[str, Any]:
    try:
        return {"answer": work(job)}
    except NightError as error:
        return error_as_text(error)
    except Exception as error:
        return {"errno": errno.ENOSPC} if is_disk_full(error) else {"fault": _fault(error)}


def error_as_text(error: NightError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "file_key": error.file_key}


def error_from(text: dict[str, Any]) -> NightError:
    error: NightError = getattr(errors, text["error"])(text["message"])
    error.file_key = text["file_key"]
    return error


def _fault(error: Exception) -> str:
    """What and where, without the message: it may quote a user's id."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno})"


def name_the_killer(
    store_uri: str, files: list[StoredObject], read: Callable[[list[StoredObject]], object], killed: Killed
) -> NightError:
    """Halve the files until one is left that ends its reader. `read` reads some of them in a child of their own."""

    def dies(some: list[StoredObject]) -> bool:
        try:
            read(some)
        except Killed:
            return True
        except (NightError, OSError):
            return False
        return False

    suspects = files
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if dies(half) else suspects[len(half) :]
    if not dies(suspects):
        return ReaderFailed(
            f"the process that read {len(files)} input files was ended ({killed}), and no single file ends it. "
            "Nothing was published. Memory may have run out: free some, or read fewer days, and run again."
        )
    uri = open_store(store_uri).uri_of(suspects[0].key)
    error = InputCorrupt(
        f"{uri} ends every process that reads it ({killed}): a damaged page that asks for more memory than there is, "
        "or a file that unpacks to more. Nothing was published. Write the file again, or move it out of the folder if "
        "the night can do without it."
    )
    error.file_key = suspects[0].key
    return error
