"""The one door to object storage and local folders: list, read, write once, compare and swap. Nothing overwrites.

What a night publishes rests on two promises, and `probe` asks the store for both before a night starts: a create-only
write refuses when something is there, and a compare-and-swap refuses when another version is there.

A write whose answer got lost is an unknown outcome. It ends as StoreUnavailable, or, because the client repeats a
request by itself, as ObjectExists or ObjectChanged over our own bytes: read the object before you conclude anything.

The endpoint and the credentials come from the AWS_* environment only. No message holds either of them.
"""

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar, cast

import aiohttp
import botocore.exceptions
import s3fs
from fsspec.asyn import sync

from tasks.errors import (
    DiskFull,
    NightError,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    RunConfigError,
    StoreDenied,
    StoreNotFound,
    StoreUnavailable,
    StoreUnsafe,
    UploadCorrupt,
)

# Not one random key a probe: a fixed one is never deleted, so the job's role needs no right to delete.
PROBE_KEY = "_meta/probe"
NO_SUCH_ETAG = '"00000000000000000000000000000000"'
SDK_TRIES = 4  # of 3 s to connect and a few seconds between: an unreachable store is known in under 20 s
ATTEMPTS = 5  # where the SDK does not repeat by itself
RESULT = TypeVar("RESULT")


@dataclass(frozen=True)
class StoredObject:
    key: str  # relative to the store's root
    num_bytes: int
    etag: str  # names the content's version; S3's own, and the SHA-256 in a local folder
    modified_at: datetime


Listing: TypeAlias = list[StoredObject]


class Store(Protocol):
    """Keys are relative to `uri`, with `/` between names. Every method raises the Store* errors of tasks/errors.py."""

    @property
    def uri(self) -> str:
        """Normalised and complete: s3://bucket/prefix or file:///folder, without a slash at the end."""

    def uri_of(self, key: str) -> str:
        """What a reader opens. Never percent-encoded: DuckDB would look for the percent signs."""

    def list(self, prefix: str) -> Listing:
        """Everything below the folder `prefix` ("" is all), at any depth, asked afresh, sorted by key."""

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes and the ETag that names exactly them. Raises ObjectNotFound."""

    def open(self, key: str) -> BinaryIO:
        """Random access for Parquet footers; close it. Raises ObjectNotFound, and ObjectChanged while reading."""

    def put_once(self, key: str, source: bytes | Path) -> str:
        """Write all or nothing, and only where nothing is. Returns the ETag. Raises ObjectExists."""

    def compare_and_swap(self, key: str, data: bytes, *, etag: str) -> str:
        """Replace exactly the version `etag`. Returns the new ETag. Raises ObjectChanged, ObjectNotFound."""

    def probe(self) -> None:
        """Raises StoreNotFound, StoreDenied, StoreUnavailable, or StoreUnsafe if a condition is ignored."""


def open_store(uri: str) -> Store:
    """A store for s3://bucket/prefix, file:///folder, or a folder's path. Asks the store nothing yet."""
    if re.search(r"[\x00-\x1f\x7f]", uri):
        raise RunConfigError("the store's place holds control characters. Nothing was started. Give a plain place.")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise RunConfigError("the store's place is empty. Give s3://bucket/prefix or a folder.")
        return LocalStore(Path(uri))
    if scheme == "file":
        if not rest.startswith("/"):
            raise RunConfigError(f"{uri!r} names a host or a relative folder. Write file:///folder, three slashes.")
        return LocalStore(Path(rest))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix)
    raise RunConfigError(
        f"a store cannot be reached by {scheme[:20]!r}. Nothing was started. "
        "Give s3://bucket/prefix (an endpoint of your own goes into AWS_ENDPOINT_URL), file:///folder, or a folder."
    )


def _checked_key(key: str) -> str:
    names = key.split("/")
    if not key or any(name in ("", ".", "..") for name in names) or re.search(r"[\x00-\x1f\x7f]", key):
        raise RunConfigError(
            f"{key!r} is no key of a store: it must be relative, without empty names, '.', '..' or control characters."
        )
    return key


def _checked_folder(prefix: str) -> str:
    return _checked_key(prefix.rstrip("/")) if prefix.rstrip("/") else ""


def _probe(store: "Store") -> None:
    """Three small writes. The first may find the object of an earlier probe; the other two must be refused."""
    with suppress(ObjectExists):
        store.put_once(PROBE_KEY, b"nightgraph asks here whether this store honours conditional writes\n")
    promises: dict[str, Callable[[], object]] = {
        "a create-only write replaced an existing object": lambda: store.put_once(PROBE_KEY, b"must be refused\n"),
        "a compare-and-swap replaced a version that it did not name": lambda: store.compare_and_swap(
            PROBE_KEY, b"must be refused\n", etag=NO_SUCH_ETAG
        ),
    }
    for broken, ask in promises.items():
        try:
            ask()
        except (ObjectExists, ObjectChanged):
            continue
        raise StoreUnsafe(
            f"{store.uri} accepts conditional writes and ignores the condition: {broken}. Two nights could overwrite "
            "each other without noticing, so nothing was started and nothing published. Use a store that honours "
            "If-None-Match and If-Match (AWS S3, MinIO and others do; rclone's server does not)."
        )


# ---- a local folder


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
            for folder, _, names in os.walk(self._root / _checked_folder(prefix), onerror=_raise_unless_missing):
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

    def probe(self) -> None:
        _probe(self)

    def _path(self, key: str) -> Path:
        return self._root / _checked_key(key)

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
                raise StoreDenied(f"{place} cannot be written: a read-only file system. Choose another.") from error
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


# ---- S3


ONE_PUT_BYTES = 64 * 2**20  # larger files go up in parts, which keep the create-only condition on the last request
UNAVAILABLE_CODES = {
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    # The answer to a repeated last request of a multipart upload that had already succeeded.
    "NoSuchUpload",
}


class S3Store:
    """A prefix of a bucket, of AWS or of anything that speaks S3 and honours conditional writes."""

    def __init__(self, bucket: str, prefix: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket):
            raise RunConfigError("the store's s3:// place has no proper bucket name. Write s3://bucket/prefix.")
        prefix = prefix.strip("/")
        odd_name = prefix != "" and any(name in ("", ".", "..") for name in prefix.split("/"))
        if odd_name or not re.fullmatch(r"[A-Za-z0-9._=+@/-]*", prefix):
            raise RunConfigError(
                f"the prefix {prefix!r} holds '.', '..', '//' or a character which some Parquet readers take for a "
                "wildcard or an escape. Use letters, digits and . _ - = + @ with single slashes between."
            )
        for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            if "@" in os.environ.get(variable, ""):
                raise RunConfigError(f"{variable} holds credentials. Set AWS_ACCESS_KEY_ID and its fellows instead.")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        # Only the SDK repeats; s3fs would again, on top.
        self._s3 = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": 3,
                "read_timeout": 30,
                "retries": {"mode": "standard", "total_max_attempts": SDK_TRIES},
            },
        )
        self._s3.retries = 1

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def uri_of(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"

    def list(self, prefix: str) -> Listing:
        """Leaves out the empty objects with a slash at the end that some tools make to show a folder."""
        folder = _checked_folder(prefix)
        start = f"{self._prefix}{folder}/" if folder else self._prefix
        found: Listing = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", prefix, Prefix=start, **more)
            found.extend(
                StoredObject(one["Key"][len(self._prefix) :], one["Size"], one["ETag"], one["LastModified"])
                for one in page.get("Contents", [])
                if not one["Key"].endswith("/")
            )
            if not page["IsTruncated"]:
                return sorted(found, key=lambda stored: stored.key)
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, key: str) -> tuple[bytes, str]:
        return self._get(key)

    def open(self, key: str) -> BinaryIO:
        head = self._ask("head_object", key, Key=self._key(key))
        raw = _RangeReader(self, key, num_bytes=head["ContentLength"], etag=head["ETag"])
        return cast(BinaryIO, io.BufferedReader(raw, buffer_size=64 * 2**10))

    def put_once(self, key: str, source: bytes | Path) -> str:
        name = self._key(key)
        if isinstance(source, Path) and source.stat().st_size > ONE_PUT_BYTES:
            large = str(source)
            self._repeating(
                key, lambda: self._s3._put_file(large, f"{self._bucket}/{name}", mode="create", chunksize=ONE_PUT_BYTES)
            )
            return str(self._ask("head_object", key, Key=name)["ETag"])
        content = source.read_bytes() if isinstance(source, Path) else source
        return str(self._ask("put_object", key, Key=name, Body=content, IfNoneMatch="*")["ETag"])

    def compare_and_swap(self, key: str, data: bytes, *, etag: str) -> str:
        return str(self._ask("put_object", key, Key=self._key(key), Body=data, IfMatch=etag)["ETag"])

    def probe(self) -> None:
        _probe(self)

    def _key(self, key: str) -> str:
        return self._prefix + _checked_key(key)

    def _ask(self, operation: str, key: str, **parameters: Any) -> dict[str, Any]:
        return self._repeating(
            key, lambda: self._s3._call_s3(operation, Bucket=self._bucket, **parameters), **parameters
        )

    def _get(self, key: str, **parameters: str) -> tuple[bytes, str]:
        """The whole object or a range. The body's bytes are counted by the client: a cut answer is an error."""

        async def get() -> tuple[bytes, str]:
            answer = await self._s3._call_s3("get_object", Bucket=self._bucket, Key=self._key(key), **parameters)
            async with answer["Body"] as body:
                return await body.read(), answer["ETag"]

        return self._repeating(key, get, **parameters)

    def _repeating(self, key: str, ask: Callable[[], Awaitable[RESULT]], **parameters: Any) -> RESULT:
        """A 409 says that two conditional writes met and neither was judged. A body can be cut or change on its way."""
        for attempt in range(ATTEMPTS):
            try:
                return sync(self._s3.loop, ask)
            except Exception as error:
                status, code = _status_and_code(error)
                if attempt < ATTEMPTS - 1 and (status == 409 or isinstance(error, BODY_ERRORS)):
                    time.sleep(0.1 * 2**attempt)
                    continue
                if (named := self._named(error, status, code, key, parameters)) is None:
                    raise
                raise named from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _named(
        self, error: Exception, status: int, code: str, key: str, parameters: dict[str, Any]
    ) -> NightError | None:
        """What went wrong, in our words. None: nothing that a store does, so a bug here."""
        place = f"{self.uri}/{key}"
        what = f"{code or type(error).__name__}{f', HTTP {status}' if status else ''}"
        # A create-only write and a listing have no other 404; a HEAD answers 404 without a code.
        if code == "NoSuchBucket" or (status == 404 and {"IfNoneMatch", "Prefix"} & set(parameters)):
            return StoreNotFound(
                f"the bucket {self._bucket} does not exist ({what}). Nothing was read or published. "
                "Create it, or correct the store's place."
            )
        if code in UNAVAILABLE_CODES or (status >= 500 and status != 501) or status in (409, 429):
            return self._unavailable(place, what)
        if status == 412 or code == "PreconditionFailed":
            if "IfMatch" in parameters:
                return ObjectChanged(f"{place} is another version than the one that was read. Read it again.")
            return ObjectExists(f"{place} exists, and was not touched.")
        if status == 404:
            return ObjectNotFound(f"{place} does not exist.")
        if status == 501:
            return StoreUnsafe(
                f"{self.uri} does not know conditional writes ({what}): two nights could overwrite each other. "
                "Nothing was published. Use a store that honours If-None-Match and If-Match."
            )
        if status in (301, 307):
            return RunConfigError(f"the bucket {self._bucket} lives in another region ({what}). Set AWS_REGION to it.")
        if status:
            return StoreDenied(
                f"{self.uri} answers and refuses the request ({what}). The live recommendations are untouched. "
                "Check the AWS_* credentials of this process and their rights on the prefix: list, read and write."
            )
        if isinstance(error, CREDENTIAL_ERRORS):
            return StoreDenied(
                f"no usable credentials for {self.uri} ({what}). Nothing was read or published. "
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role."
            )
        if isinstance(error, botocore.exceptions.FlexibleChecksumError):
            return UploadCorrupt(
                f"{place} is not what was written: its bytes do not have the checksum that the store keeps, in "
                f"{ATTEMPTS} readings. Nothing was published from it. Write the object again."
            )
        if isinstance(error, CONNECTION_ERRORS):
            return self._unavailable(place, what)
        if isinstance(error, ValueError) and "endpoint" in str(error).lower():
            return RunConfigError("AWS_ENDPOINT_URL is no URL. Write it as https://host:port.")
        return None

    def _unavailable(self, place: str, what: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{place} could not be reached, or did not answer well, in several tries ({what}). The live "
            "recommendations are untouched; a write under way may or may not have arrived, and the next run finds out. "
            "Check AWS_ENDPOINT_URL and the network, then run again."
        )


BODY_ERRORS = (
    aiohttp.ClientPayloadError,
    botocore.exceptions.FlexibleChecksumError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
)
CREDENTIAL_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.TokenRetrievalError,
)
# BotoCoreError: endpoint, DNS, TLS, timeouts, cut or unreadable answers. OSError: what the socket says by itself.
CONNECTION_ERRORS = (botocore.exceptions.BotoCoreError, aiohttp.ClientError, OSError)


def _status_and_code(error: Exception) -> tuple[int, str]:
    """S3's own words: s3fs turns them into Python's errors and keeps them as the cause. (0, "") if S3 said nothing."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(answer, dict):
        return 0, ""
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), "" if code.isdigit() else re.sub(r"[^A-Za-z]", "", code)[:60]


class _RangeReader(io.RawIOBase):
    """Ranged reads of exactly one version of an object: never old bytes beside new ones."""

    def __init__(self, store: S3Store, key: str, *, num_bytes: int, etag: str) -> None:
        self._store, self._key, self._num_bytes, self._etag = store, key, num_bytes, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        if start + offset < 0:
            raise ValueError("seek before the start of the object")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._num_bytes - self._position)
        if wanted <= 0:
            return 0
        last = self._position + wanted - 1
        content, _ = self._store._get(self._key, Range=f"bytes={self._position}-{last}", IfMatch=self._etag)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
