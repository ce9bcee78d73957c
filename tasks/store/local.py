"""A store in a local folder: exclusive creates, and atomic replaces under a lock."""

import errno
import fcntl
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from tasks.errors import (
    DiskFull,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    RunConfigError,
    StoreDenied,
    StoreUnavailable,
    StoreUnsafe,
)
from tasks.store.contract import Listing, StoredObject, ask_for_both_promises, checked_folder, checked_key, removable

OURS = ".nightgraph-"  # unfinished writes and the lock; list() does not show them
# Readers take these for wildcards, escapes or the end of the path, each reader others.
UNREADABLE_IN_PATHS = "%#?*[]"


class LocalStore:
    """Files in a folder, as plain as they look. One machine, several processes."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        bad = sorted(set(UNREADABLE_IN_PATHS) & set(str(self._root)))
        if bad:
            raise RunConfigError(
                f"the folder {self._root} has {' '.join(bad)} in its name, which some Parquet readers take for a "
                "wildcard or an escape: they would not find what is published. Use a folder with a plainer name."
            )
        if self._root.exists() and not self._root.is_dir():
            raise RunConfigError(f"the store {self._root} is a file. Nothing was started. Give a folder.")

    @property
    def uri(self) -> str:
        return f"file://{self._root}"

    def uri_of(self, key: str) -> str:
        return f"file://{self._path(key)}"

    def list(self, prefix: str) -> Listing:
        """Follows a link to a file, not one to a folder."""
        found = []
        with self._named_errors(prefix):
            for folder, _, names in os.walk(self._root / checked_folder(prefix), onerror=_raise_unless_missing):
                for name in names:
                    path = Path(folder, name)
                    if name.startswith(OURS):
                        continue
                    try:
                        with open(path, "rb", opener=_open_regular) as stream:
                            status = os.fstat(stream.fileno())
                            etag = hashlib.file_digest(stream, "sha256").hexdigest()
                    except (FileNotFoundError, IsADirectoryError):
                        continue  # gone since the walk, a dangling link, a pipe
                    key = path.relative_to(self._root).as_posix()
                    found.append(StoredObject(key, status.st_size, etag, datetime.fromtimestamp(status.st_mtime, UTC)))
        return sorted(found, key=lambda stored: stored.key)

    def read(self, key: str) -> tuple[bytes, str]:
        with self.open(key) as stream:
            content = stream.read()
        return content, hashlib.sha256(content).hexdigest()

    def open(self, key: str) -> BinaryIO:
        with self._named_errors(key):
            return open(self._path(key), "rb", opener=_open_regular)

    def put_once(self, key: str, source: bytes | Path) -> str:
        path = self._path(key)
        with _reading(source) as content, self._named_errors(key):
            self._make_folder(path.parent)
            unfinished, etag = _write_beside(path, content)
            try:
                os.link(unfinished, path)  # unlike a rename, it fails where something is
            except FileExistsError:
                raise ObjectExists(f"{self.uri_of(key)} exists, and was not touched.") from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                raise StoreUnsafe(
                    f"the file system of {self._root} has no hard links, so a write cannot be made create-only and two "
                    "nights could overwrite each other. Nothing was published. Use a folder on another file system."
                ) from error
            finally:
                os.unlink(unfinished)
            _sync_folder(path.parent)
        return etag

    def compare_and_swap(self, key: str, data: bytes, *, etag: str) -> str:
        path = self._path(key)
        with self._named_errors(key), self._lock():
            with open(path, "rb", opener=_open_regular) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != etag:
                raise ObjectChanged(f"{self.uri_of(key)} is another version than the one that was read. Read it again.")
            unfinished, new = _write_beside(path, io.BytesIO(data))
            os.replace(unfinished, path)
            _sync_folder(path.parent)
        return new

    def remove(self, key: str, *, etag: str | None) -> None:
        """A reader that has the file open keeps what it reads."""
        path = self._path(removable(key))
        with self._named_errors(key), self._lock(), suppress(FileNotFoundError):
            if etag is not None:
                with open(path, "rb", opener=_open_regular) as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
                if found != etag:
                    raise ObjectChanged(f"{self.uri_of(key)} is another version than the one that was meant.")
            path.unlink()
            _sync_folder(path.parent)

    def probe(self) -> None:
        ask_for_both_promises(self)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # as /proc and some network drives answer
            raise PermissionError(errno.EPERM, "no folder can be made there", str(folder)) from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Between processes and between threads; it ends with its holder, however that ends."""
        folder = self._root / "_meta"
        self._make_folder(folder)
        with open(folder / f"{OURS}lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        place = f"{self.uri}/{key}"
        try:
            yield
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ObjectNotFound(f"{place} does not exist, or is no file.") from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise StoreDenied(
                f"{place} cannot be used ({error.strerror}: {error.filename}). The live recommendations are untouched. "
                "Give this user the right to read and write the folder, or choose another one."
            ) from error
        except OSError as error:
            if error.errno == errno.EROFS:
                raise StoreDenied(
                    f"{place} cannot be written: a read-only file system. The live recommendations are untouched. "
                    "Choose another place."
                ) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"the disk of {self._root} is full. Nothing half-written was left and the live recommendations are "
                    "untouched. Free space there and run again."
                ) from error
            raise StoreUnavailable(
                f"{place} cannot be read or written ({error.strerror}). The live recommendations are untouched. "
                "Look at the disk, then run again."
            ) from error


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _open_regular(path: str, flags: int) -> int:
    """A pipe or a device in the folder must neither hang a night nor feed it."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)
    return descriptor


def _write_beside(path: Path, content: BinaryIO) -> tuple[Path, str]:
    """The bytes on disk under a name of ours in the same folder, and their SHA-256. Leaves nothing when it fails."""
    unfinished = path.parent / f"{OURS}{secrets.token_hex(8)}.tmp"
    digest = hashlib.sha256()
    try:
        with open(unfinished, "xb") as target:
            while block := content.read(2**20):
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return unfinished, digest.hexdigest()


def _reading(source: bytes | Path) -> BinaryIO:
    return open(source, "rb") if isinstance(source, Path) else io.BytesIO(source)


def _sync_folder(folder: Path) -> None:
    """A new name survives a power cut only once its folder is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
