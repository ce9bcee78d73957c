"""A store in a bucket: every request and its condition by name, and every answer by one of our names."""

import builtins
import io
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import botocore.exceptions
import s3fs
from fsspec.asyn import sync

from tasks.errors import (
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
from tasks.store.contract import Listing, StoredObject, ask_for_both_promises, checked_folder, checked_key, removable

SDK_TRIES = 4  # of 3 s to connect and a few seconds between: an unreachable store is known in under 20 s
ATTEMPTS = 5  # where the SDK does not repeat by itself
RESULT = TypeVar("RESULT")

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
        folder = checked_folder(prefix)
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

    def remove(self, key: str, *, etag: str | None) -> None:
        """Version by version: a plain DELETE would only cover the bytes up in a bucket that keeps versions."""
        name = self._key(removable(key))
        versions = self._versions(key, name)
        if etag is not None and any(one["IsLatest"] and one.get("ETag", etag) != etag for one in versions):
            raise ObjectChanged(f"{self.uri}/{key} is another version than the one that was meant. It was not touched.")
        for one in versions:
            with suppress(ObjectNotFound):
                self._ask("delete_object", key, Key=name, VersionId=one["VersionId"])

    def _versions(self, key: str, name: str) -> builtins.list[dict[str, Any]]:
        """Of exactly this key, delete markers too; one called "null" in a bucket without versions."""
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_object_versions", key, Prefix=name, **more)
            listed = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            found.extend(one for one in listed if one["Key"] == name)
            if not page["IsTruncated"] or page["NextKeyMarker"] > name:
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    def probe(self) -> None:
        ask_for_both_promises(self)

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

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
