"""What became of a create-only write whose answer may be lost: it is read, never concluded from an error."""

import logging
import time
from collections.abc import Callable

from tasks.errors import ObjectChanged, ObjectExists, ObjectNotFound, StoreUnavailable
from tasks.store.contract import Store

log = logging.getLogger("nightgraph.store")


def settle(
    store: Store,
    key: str,
    content: bytes,
    *,
    deadline_s: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bytes | None:
    """Write `content` under `key` unless something is there, and return what stands there: ours, or somebody's.

    None: the store did not say before the deadline, so either may be true; nothing was deleted.
    """
    give_up_at = clock() + deadline_s
    pause_s = 0.2
    while True:
        try:
            store.put_once(key, content)
            return content
        except ObjectExists:
            pass  # perhaps by our own first try, whose answer got lost
        except StoreUnavailable as error:
            log.warning("the outcome of writing %s is unknown, reading it back: %s", key, error)
        try:
            return store.read(key)[0]
        except (ObjectNotFound, StoreUnavailable):
            if clock() + pause_s > give_up_at:
                return None
            sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)


def change(
    store: Store,
    key: str,
    wanted: Callable[[bytes], bytes],
    *,
    deadline_s: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """Read `key`, and swap it for what `wanted` makes of it, until that is what stands there. Returns it.

    `wanted` is asked again where somebody was quicker or an answer got lost; what is as it should be it returns as it
    is. Raises what it raises, ObjectNotFound, and StoreUnavailable after the deadline.
    """
    give_up_at = clock() + deadline_s
    while True:
        try:
            found, etag = store.read(key)
            due = wanted(found)
            if due != found:
                store.compare_and_swap(key, due, etag=etag)
            return due
        except ObjectChanged:
            pass
        except StoreUnavailable:
            if clock() > give_up_at:
                raise
        sleep(0.2)
