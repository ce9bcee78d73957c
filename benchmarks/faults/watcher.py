"""A reader that never stops: LATEST.json and every file that it names, each against its SHA-256.

    python -m benchmarks.faults.watcher FILE

FILE holds the URI of the store to look at, and may change; it ends once that is empty, and prints what it saw as JSON:
objects read, and how many were missing, mixed or unverified, or a LATEST that went back.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

from tasks.contracts import LATEST_KEY
from tasks.errors import NightError, ObjectNotFound
from tasks.publish.commit_log import place_of
from tasks.publish.manifest import parse_manifest
from tasks.store import open_store

PAUSE_S = 0.02  # between two looks: the server has others to answer, too


def main(told_in: Path) -> dict[str, object]:
    reads, anomalies = 0, []
    uri, store, newest = "", None, None
    while wanted := told_in.read_text().strip():
        time.sleep(PAUSE_S)
        if wanted != uri:
            uri, store, newest = wanted, open_store(wanted), None
        assert store is not None
        try:
            content, _ = store.read(LATEST_KEY)
        except ObjectNotFound:
            if newest is not None:
                anomalies.append(f"{uri}: LATEST.json is gone")
            continue
        except NightError as error:
            anomalies.append(f"{uri}: {type(error).__name__}")
            continue
        reads += 1
        try:
            manifest = parse_manifest(content, LATEST_KEY)
        except NightError as error:
            anomalies.append(f"{uri}: {type(error).__name__}")
            continue
        if newest is not None and place_of(manifest) < newest:
            anomalies.append(f"{uri}: LATEST went back to {place_of(manifest)}")
        newest = place_of(manifest)
        for file in manifest.all_files():
            try:
                found = hashlib.sha256(store.read(file.key)[0]).hexdigest()
                reads += 1
            except NightError as error:
                anomalies.append(f"{uri}: {file.key}: {type(error).__name__}")
                continue
            if found != file.sha256:
                anomalies.append(f"{uri}: {file.key} is not what LATEST.json says")
    return {"reads": reads, "anomalies": anomalies}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
