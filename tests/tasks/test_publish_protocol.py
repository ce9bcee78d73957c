"""The model of publishing: no order of requests breaks it, and each of its rules is needed."""

import pytest

from tests.tasks.publish_protocol import NEEDED, SCENARIOS, Rules, explore

FEW = 20_000  # states of each scenario here


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_order_of_requests_crashes_and_lost_answers_breaks_a_promise(scenario):
    found = explore(scenario, at_most=FEW)
    assert (found.violation, found.way) == ("", ())
    assert found.states >= FEW


def test_every_rule_is_broken_by_a_mutant():
    assert set(NEEDED) == set(Rules._fields)


@pytest.mark.parametrize("rule", NEEDED)
def test_without_this_rule_a_promise_is_broken(rule):
    found = explore(SCENARIOS[NEEDED[rule]], Rules(**{rule: False}), at_most=200_000)
    assert found.violation
    assert found.way, "and it says how"
