"""The one door to object storage and local folders: list, read, write once, compare and swap. Nothing overwrites.

What a night publishes rests on two promises, and `probe` asks the store for both before a night starts: a create-only
write refuses when something is there, and a compare-and-swap refuses when another version is there.

A write whose answer got lost is an unknown outcome. It ends as StoreUnavailable, or, because the client repeats a
request by itself, as ObjectExists or ObjectChanged over our own bytes: read the object before you conclude anything.

The endpoint and the credentials come from the AWS_* environment only. No message holds either of them.
"""

import re
from pathlib import Path

from tasks.errors import RunConfigError
from tasks.store.contract import Listing, Store, StoredObject
from tasks.store.local import LocalStore
from tasks.store.outcome import change, settle

__all__ = ["Listing", "LocalStore", "Store", "StoredObject", "change", "open_store", "settle"]


def open_store(uri: str) -> Store:
    """A store for s3://bucket/prefix, file:///folder, or a folder's path. Asks the store nothing yet."""
    if re.search(r"[\x00-\x1f\x7f]", uri):
        raise RunConfigError("the store's place holds control characters. Nothing was started. Give a plain place.")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", uri):
            raise RunConfigError(f"{uri[:40]!r} is half a place. Nothing was started. Write s3://bucket/prefix.")
        if not uri:
            raise RunConfigError("the store's place is empty. Give s3://bucket/prefix or a folder.")
        return LocalStore(Path(uri))
    if scheme == "file":
        if not rest.startswith("/"):
            raise RunConfigError(f"{uri!r} names a host or a relative folder. Write file:///folder, three slashes.")
        return LocalStore(Path(rest))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        from tasks.store.s3 import S3Store  # its client takes half a second to load, in each process of a night

        return S3Store(bucket, prefix)
    raise RunConfigError(
        f"a store cannot be reached by {scheme[:20]!r}. Nothing was started. "
        "Give s3://bucket/prefix (an endpoint of your own goes into AWS_ENDPOINT_URL), file:///folder, or a folder."
    )
