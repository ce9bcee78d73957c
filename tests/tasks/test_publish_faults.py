"""A few of each of the faults that `make test-faults-publish` tries by the hundred, on the same S3 server and proxy."""

import pytest

from benchmarks.faults.publish import PARTS


@pytest.mark.parametrize(
    ("part", "well", "tried"),
    [
        ("races", "races_one_commit", "races_tried"),
        ("lost", "lost_responses_truthful", "lost_responses_tried"),
        ("kills", "request_kills_identical", "request_kills_tried"),
        ("retention", "retention_ok", "retention_tried"),
        ("rollback", "rollbacks_identical", "rollbacks_tried"),
    ],
)
def test_whatever_breaks_publishing_stays_true_and_readers_see_one_night(part: str, well: str, tried: str) -> None:
    figures, details = PARTS[part](small=True)
    assert figures[well] == figures[tried] > 0, details["tries"]
    assert details["watcher"] == []
    assert figures["watcher_reads"] > 0
