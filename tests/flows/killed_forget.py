"""Forgetting that kills itself, as SIGKILL from outside would, just after the request that its argument names.

registry   the registry's commit          part     the first part of a rewritten night
commit     the night's commit             latest   LATEST has moved on        due      the first list of what is due
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tasks.store import LocalStore

AFTER = {
    "registry": ("put_once", "_meta/registry/"),
    "part": ("put_once", "recs/"),
    "commit": ("put_once", "_meta/commits/"),
    "latest": ("compare_and_swap", "_meta/LATEST.json"),
    "due": ("put_once", "_meta/forgotten/0"),
}


def main(moment: str) -> int:
    method, prefix = AFTER[moment]
    ask: Callable[..., Any] = getattr(LocalStore, method)

    def ask_and_die(store: LocalStore, key: str, *rest: Any, **named: Any) -> Any:
        answer = ask(store, key, *rest, **named)
        if key.startswith(prefix):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(LocalStore, method, ask_and_die)
    from flows.forget_by_hand import main as forget

    return forget(["--store", os.environ["NIGHTGRAPH_STORE"]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
