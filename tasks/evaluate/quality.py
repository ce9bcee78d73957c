"""Whether the judged fit is good enough, beyond what chance can do: one check for each question.

A difference counts where its whole 95 % interval (paired bootstrap over users, tasks/evaluate/measuring.py) lies on one
side of what is allowed. Where the interval is too wide to tell a difference of DETECTABLE from none, the answer is `not
enough evidence`: neither a pass nor a refusal by luck, and the checks of lists and of the served model decide alone.
An effect is found in 80 of 100 nights where it is 2.8 standard errors large (1.96 + 0.84; Cohen 1988).
"""

from tasks.config import GateConfig
from tasks.contracts import FEWEST_USERS, Check, Evaluation, Measured, NightDiff, SliceScore
from tasks.evaluate.judging import MODEL

OVERRIDABLE = ("popularity", "floor", "slices", "rivals", "change")
DETECTABLE = 0.1  # of the value that is compared with
POWER_FACTOR = 2.8 / (2 * 1.96)  # from the width of a 95 % interval to the effect that is found in 80 of 100 nights
# Popularity lists the head and nothing else, so on the head alone it is no measure.
SLICES_NOT_JUDGED = ("items: head",)


def check_quality(settings: GateConfig, evaluation: Evaluation) -> list[Check]:
    return [
        check_popularity(settings.metric, evaluation),
        _check_floor(settings, evaluation),
        _check_slices(settings, evaluation),
        _check_rivals(settings, evaluation),
    ]


def check_change(settings: GateConfig, diff: NightDiff) -> Check:
    """Too much has changed since the live night, or nothing at all although the events are others.

    Both are what a broken input looks like from behind: half the people gone, ids mixed up, or yesterday's lists again.
    """
    if diff.as_of is None:
        return Check("change", True, "this is the first night: there is none to compare with", enough_evidence=False)
    against = f"against the night of {diff.as_of}, version {diff.version}"
    if diff.why_not:
        return Check("change", True, f"{against}: {diff.why_not}", enough_evidence=False)
    faults = []
    if diff.users_now < (1.0 - settings.users_drop_at_most) * diff.users_before:
        faults.append(f"people with a list fell by more than {settings.users_drop_at_most:.0%}")
    enough = diff.users_in_both >= FEWEST_USERS
    if enough and not diff.overlap >= settings.overlap_at_least:
        faults.append(f"lists share less than {settings.overlap_at_least:.0%} with those before, on average")
    if enough and not diff.same_input and diff.identical == diff.users_in_both:
        faults.append("not one list changed, although the events are others: these may be the lists of before")
    found = (
        f"{against}: {diff.users_now:,} people with a list, {diff.users_before:,} before; of {diff.users_in_both:,} in "
        f"both the lists share {diff.overlap:.1%}, {diff.identical:,} are the same"
    )
    return Check("change", not faults, "; ".join([found, *faults]), enough)


def has_evidence(difference: Measured, reference: float, num_users: int) -> bool:
    """Whether so many users could have told a difference of DETECTABLE x reference from none, or did tell one."""
    if num_users < FEWEST_USERS:
        return False
    if difference.low > 0.0 or difference.high < 0.0:
        return True
    return (difference.high - difference.low) * POWER_FACTOR <= DETECTABLE * reference


def check_popularity(metric: str, evaluation: Evaluation) -> Check:
    """Refuses where the whole 95 % interval of the paired difference to popularity on test lies below zero."""
    difference = evaluation.over_popularity[metric]
    scores = {s.model: getattr(s, metric).mean for s in evaluation.scores if s.part == "test"}
    users = next(s.num_users for s in evaluation.scores if s.part == "test")
    enough = has_evidence(difference, scores["popularity"], users)
    return Check(
        gate="popularity",
        # What is no number is in no order, and not good enough.
        passed=difference.high >= 0.0 or (difference.high < 0.0 and not enough),
        detail=(
            f"{metric}@{evaluation.k} on test is {scores['lightgcn']:.4f}, popularity's {scores['popularity']:.4f}: "
            f"difference {difference.mean:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f} "
            f"over {users:,} users"
        ),
        enough_evidence=enough,
    )


def _check_floor(settings: GateConfig, evaluation: Evaluation) -> Check:
    found = next(getattr(s, settings.metric) for s in evaluation.scores if (s.model, s.part) == (MODEL, "test"))
    interval = f"{settings.metric}@{evaluation.k} on test is {found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"
    if settings.at_least is None:
        return Check("floor", True, f"{interval}; gate.at_least is not set")
    return Check("floor", found.high >= settings.at_least, f"{interval}; gate.at_least is {settings.at_least:g}")


def _check_slices(settings: GateConfig, evaluation: Evaluation) -> Check:
    """Of users of one kind, or items of the tail, no more may be lost to popularity than settings allow."""
    judged = [one for one in evaluation.slices if one.name not in SLICES_NOT_JUDGED and one.num_users >= FEWEST_USERS]
    lost = [one for one in judged if one.over_popularity.high < -settings.slice_loss_at_most * _of_popularity(one)]
    few = len(evaluation.slices) - len(SLICES_NOT_JUDGED) - len(judged)
    told = f"{len(judged)} slices of {FEWEST_USERS} users or more" + (f", {few} of fewer" if few > 0 else "")
    found = "; ".join(
        f"{one.name} ({one.num_users:,} users): {one.over_popularity.mean:+.4f} beside popularity, 95 % interval "
        f"{one.over_popularity.low:+.4f} to {one.over_popularity.high:+.4f}"
        for one in lost
    )
    allowed = f"allowed: to lose {settings.slice_loss_at_most:.0%} of popularity's recall"
    return Check("slices", not lost, f"{told}; {found or 'none'} beyond that ({allowed})", bool(judged))


def _of_popularity(one: SliceScore) -> float:
    return one.recall.mean - one.over_popularity.mean


def _check_rivals(settings: GateConfig, evaluation: Evaluation) -> Check:
    """Never refuses unless gate.rivals says so: a night says it first thing, all the same."""
    ahead = evaluation.rivals_ahead(settings.metric)
    if not ahead:
        return Check("rivals", True, "no rival is ahead beyond noise", evaluation.num_test_users >= FEWEST_USERS)
    found = "; ".join(
        f"{model} is ahead by {value.mean:.4f} ({value.low:.4f} to {value.high:.4f})" for model, value in ahead.items()
    )
    return Check(
        "rivals",
        settings.rivals == "warn",
        f"{found} in {settings.metric}@{evaluation.k}, over {evaluation.num_test_users:,} test users",
    )
