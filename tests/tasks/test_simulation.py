"""The real code that publishes, rolls back and removes keeps its promises in any order, and not by luck."""

from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest

from tasks.publish import night, retention, rollback
from tests.tasks.simulation import simulate

SCHEDULES = 150  # make test-faults-publish runs ten thousand


def test_no_order_of_requests_kills_and_lost_answers_breaks_a_promise(tmp_path: Path) -> None:
    requests, broken = simulate(range(SCHEDULES), tmp_path)
    assert broken == []
    assert requests > 50 * SCHEDULES


def _remove_at_once(store, removal) -> bool:
    for file in removal.files:
        store.remove(file.key, etag=None)
    return True


NOTHING = mock.Mock(return_value=None)
# What is left out, and schedules of which some show it.
MUTANTS = {
    "a rollback does not pin": ([(rollback, "pin", NOTHING)], range(10)),
    "removing does not begin with a swap": ([(retention, "_remove", _remove_at_once)], range(10)),
    "whatever is not the newest was left long ago": (
        [(retention, "_left_behind", lambda commits, records, before: max(commits))],
        range(20, 40),
    ),
    "an attempt that never commits says so only when it is looked for": (
        [(night, "to_committing", NOTHING), (rollback, "to_committing", NOTHING)],
        range(10),
    ),
    "a rollback does not say which hold comes": (
        [(rollback, "to_holding", NOTHING), (retention, "OPEN_AT_MOST", timedelta(0))],
        range(180, 190),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_a_rule_some_order_breaks_a_promise(name: str, tmp_path: Path) -> None:
    left_out, schedules = MUTANTS[name]
    with ExitStack() as patched:
        for module, what, instead in left_out:
            patched.enter_context(mock.patch.object(module, what, instead))
        _, broken = simulate(schedules, tmp_path)
    assert broken
