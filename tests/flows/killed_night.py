"""A night that kills itself, as SIGKILL from outside would, at the moment its first argument names.

    <stage>          just after the stage was marked finished
    <stage>-undone   just before
    upload           after the parts were uploaded, before the commit
    commit           after the commit, before LATEST
    latest           after LATEST, before the report
    never            lives

The remaining arguments are the settings as JSON.
"""

import os
import signal
import sys
from pathlib import Path

import tasks.run
from tasks.config import NightlyConfig
from tasks.store import LocalStore


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(moment: str, settings: str) -> None:
    finish, put_once = tasks.run._mark_finished, LocalStore.put_once

    def finish_or_die(folder: Path, *rest: object) -> None:
        stage = folder.name.rpartition("-")[0]
        if moment == f"{stage}-undone":
            die()
        finish(folder, *rest)
        if moment == stage:
            die()

    def put_or_die(store: LocalStore, key: str, source: bytes | Path) -> str:
        if moment == "upload" and key.startswith("_meta/commits/"):
            die()
        if moment == "latest" and key.startswith("_meta/audits/"):
            die()
        etag = put_once(store, key, source)
        if moment == "commit" and key.startswith("_meta/commits/"):
            die()
        return etag

    tasks.run._mark_finished = finish_or_die  # type: ignore[assignment]
    LocalStore.put_once = put_or_die  # type: ignore[method-assign]

    from flows.nightly import nightly

    published = nightly(NightlyConfig.model_validate_json(settings))
    print(f"version {published.version} already {published.already}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
