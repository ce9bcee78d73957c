"""One of two processes that race for the same keys: `python racer.py STORE NAME ROUNDS START_AT`, prints JSON."""

import json
import sys
import time

from tasks.errors import ObjectChanged, ObjectExists
from tasks.store import open_store

uri, name, rounds, start_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
store = open_store(uri)
store.list("")  # connected before the start

won = []
for number in range(rounds):
    time.sleep(max(0.0, start_at + 0.02 * number - time.time()))
    try:
        store.put_once(f"race/{number}", name.encode())
        won.append(number)
    except ObjectExists:
        pass

for _ in range(rounds):
    while True:
        content, etag = store.read("counter")
        try:
            store.compare_and_swap("counter", str(int(content) + 1).encode(), etag=etag)
            break
        except ObjectChanged:
            continue

print(json.dumps({"won": won, "late": time.time() - start_at}))
