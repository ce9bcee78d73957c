"""Corrupt files and files that chance has changed: what a night says of each.

    make test-faults-input [MUTATIONS=2000]

The thirty-six inputs of tests/tasks/hostile_files.py, each through a night's own processes, and so many drawn mutations
of good files (tests/tasks/mutations.py). Survived: the same rows, an error with a name that names the file, or rows
that no reader can tell from the right ones and a producer's checksum does; the main process lives on.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from benchmarks.common import PROJECT_ROOT, merge_results
from tests.tasks.hostile_files import HOSTILE
from tests.tasks.mutations import MUTATIONS, Edit, Reader, outcome_of

VERDICTS = "tests/tasks/test_hostile.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2_000)
    options = parser.parse_args()
    right = verdicts_right()
    seen, ended = mutate(options.mutations)
    for outcome, count in seen.most_common():
        print(f"{outcome:<32}{count:>8,}")
    figures = {"corrupt_verdicts_right": right, "mutations_survived": sum(seen.values())}
    details = {"mutations": options.mutations, "outcomes": dict(seen.most_common()), "readers_ended": ended}
    merge_results("ingest", "hostile", figures, details)


def verdicts_right() -> int:
    """Of each file alone, and of one among thirty-five good ones: the tests that passed."""
    words = ["-m", "pytest", "-q", "-rA", VERDICTS, "-k", "verdict or among"]
    done = subprocess.run([sys.executable, *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    right = sum(line.startswith("PASSED") for line in done.stdout.splitlines())
    print(f"{right} of {len(HOSTILE) + 1} corrupt inputs end in their verdict")
    if done.returncode:
        print(done.stdout[-3000:])
    return right


def mutate(count: int) -> tuple[Counter[str], int]:
    seen: Counter[str] = Counter()
    reader = Reader()
    with tempfile.TemporaryDirectory() as scratch:

        @seed(6)
        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(MUTATIONS)
        def survive(mutation: tuple[int, list[Edit]]) -> None:
            outcome_of(mutation, Path(scratch), reader, seen)

        try:
            survive()
        finally:
            reader.close()
    return seen, reader.ended


if __name__ == "__main__":
    main()
