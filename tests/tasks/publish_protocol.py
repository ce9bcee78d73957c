"""How nights are published, rolled back and removed, as a model in which every order of every request is tried.

This is the specification of tasks/publish. A store is four kinds of objects, each changed by one conditional request
at a time (`Store`); whoever works on it is a list of steps between two requests (`night`, `rollback`, `release`,
`collector`, `retention`, `reader`). `explore` visits the states that any interleaving of them reaches, with crashes
before any request, writes whose answer is lost (whether they happened or not), and days that pass while somebody is
paused. What must hold in every state stands in `violations`.

The rules, each of which has a mutant below that breaks it and is caught:

1. Files of an attempt are written under keys of its own, and named by nobody until its commit.
2. `attempts/A` is its life: open -> committing(v) -> committed, or -> revoked -> deleted. A commit needs `committing`,
   removing needs `revoked`, and each step is a compare-and-swap: of a slow night and its collector one goes on.
3. `commits/DATE/v` is written once: that write is the publication. Whoever does not know whether theirs happened reads
   the slot. An attempt whose slot went to another can never commit, so it may be revoked.
4. `holds/n` is written once: a rollback holds a commit, a release lets go. Live is what the last hold names, else the
   newest commit: the log alone says so. A rollback's record says which n it is about to write, as it said which slot:
   until that is decided nobody ends its record, and once somebody has, it writes no hold any more.
5. LATEST is a copy of what is live. It is read first, then the log, then swapped; it carries the number of holds it
   knows of, so that it is never twice the same.
6. A rollback pins the files that it is about to name. A pin counts until whoever set it is revoked.
7. What an earlier LATEST named is kept for the grace after its successor's record says `committed`, or its hold's
   successor `settled`: both are written only once LATEST has moved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

OPEN, COMMITTING, COMMITTED, REVOKED, DELETED = "open", "committing", "committed", "revoked", "deleted"
BOTH = 0b11  # an attempt has two files
PUBLISHED, NOT_PUBLISHED, DONE, DEAD = "published", "not published", "done", "dead"


class Record(NamedTuple):
    """attempts/A"""

    state: str
    date: int = 0  # of its slot
    slot: int = 0  # the version that it is about to commit
    hold: int = 0  # that a rollback is about to write, once it has committed
    pins: int = 0  # bit a: attempt a is about to name these files
    is_old: bool = False  # longer ago than the grace


class Commit(NamedTuple):
    """commits/DATE/v"""

    attempt: int
    files_of: int  # the attempt whose files it names: its own, or a rollback's aim
    run_key: int


class Hold(NamedTuple):
    """holds/n: of a commit, or of nothing, which is a release."""

    date: int
    version: int
    by: int
    is_settled: bool = False
    is_old: bool = False


class Latest(NamedTuple):
    holds: int  # how many it knows of
    date: int
    version: int


class Store(NamedTuple):
    records: tuple[Record | None, ...]  # by attempt
    files: tuple[int, ...]  # by attempt: a bit for each that is there
    commits: tuple[tuple[Commit, ...], ...]  # by date, then version - 1
    holds: tuple[Hold, ...]
    latest: Latest
    faults: int  # crashes and lost answers that may still happen
    days: int  # how often the grace may still pass


Me = tuple[Any, ...]  # where an actor is, and what it knows
Steps = Iterator[tuple[Store, Me]]
Actor = Callable[[Store, Me], Steps]


class Rules(NamedTuple):
    """Each can be broken, to see that it is needed."""

    a_collector_revokes_first: bool = True
    who_does_not_know_reads_the_slot: bool = True
    latest_is_swapped: bool = True
    latest_is_read_before_the_log: bool = True
    latest_counts_holds: bool = True
    a_rollback_pins: bool = True
    a_rollback_says_which_hold_comes: bool = True
    nights_respect_holds: bool = True
    a_successor_says_when_latest_has_moved: bool = True


AS_THEY_ARE = Rules()


# ---- what is live


def live(store: Store, rules: Rules) -> Latest:
    """Of the log alone."""
    return live_of(held(store, rules), store)


def held(store: Store, rules: Rules) -> Latest:
    """How many holds there are, and what the last one names: date and version 0, if nothing."""
    known = len(store.holds) if rules.latest_counts_holds else 0
    if store.holds and rules.nights_respect_holds:
        return Latest(known, store.holds[-1].date, store.holds[-1].version)
    return Latest(known, 0, 0)


def live_of(held: Latest, store: Store) -> Latest:
    """The holds are listed before the commits, so what a hold names is there."""
    if held.version:
        return held
    date = max(date for date, versions in enumerate(store.commits) if versions)
    return Latest(held.holds, date, len(store.commits[date]))


def commit_of(store: Store, date: int, version: int) -> Commit:
    return store.commits[date][version - 1]


# ---- requests


def answers(before: Store, after: Store) -> Iterator[tuple[Store, bool]]:
    """A write that is accepted: (the store, whether the answer came). It may have happened without one, or not."""
    yield after, True
    if before.faults:
        yield after._replace(faults=after.faults - 1), False
        yield before._replace(faults=before.faults - 1), False


def with_record(store: Store, attempt: int, record: Record) -> Store:
    return store._replace(records=(*store.records[:attempt], record, *store.records[attempt + 1 :]))


def with_files(store: Store, attempt: int, bits: int) -> Store:
    return store._replace(files=(*store.files[:attempt], bits, *store.files[attempt + 1 :]))


def with_commit(store: Store, date: int, commit: Commit) -> Store:
    commits = list(store.commits)
    commits[date] = (*commits[date], commit)
    return store._replace(commits=tuple(commits))


# ---- LATEST follows the log: steps that several actors share


def advance(store: Store, me: Me, rules: Rules, then: Me) -> Steps:
    """me = ("advance", for whom, step, ...): the caller says what `for whom` means."""
    _, whom, step, *known = me
    if not rules.latest_is_read_before_the_log:
        if step == "read":
            yield store, ("advance", whom, "listed", live(store, rules))
            return
        if step == "listed":
            yield store, ("advance", whom, "swap", store.latest, *known)
            return
    if step == "read":
        yield store, ("advance", whom, "list holds", store.latest)
    elif step == "list holds":
        yield store, ("advance", whom, "list commits", *known, held(store, rules))
    elif step == "list commits":
        read, found = known
        due = live_of(found, store)
        yield store, then if read == due else ("advance", whom, "swap", read, due)
    elif step == "swap":
        read, due = known
        if read == due:
            yield store, then
        elif store.latest != read and rules.latest_is_swapped:
            yield store, ("advance", whom, "read")
        else:
            for after, is_known in answers(store, store._replace(latest=due)):
                yield after, then if is_known else ("advance", whom, "read")


def record_committed(store: Store, attempt: int, said: Me) -> Steps:
    """Bookkeeping, once LATEST has moved. Whoever finds it done, or answers lost, goes on: the log has the truth."""
    record = store.records[attempt]
    if record is None or record.state != COMMITTING:
        yield store, said
        return
    committed = record._replace(state=COMMITTED, is_old=False)
    for after, is_known in answers(store, with_record(store, attempt, committed)):
        yield after, said if is_known else ("record", attempt, said)


# ---- an attempt's record, which nights and rollbacks have


def opening(store: Store, attempt: int, me: Me, then: Me) -> Steps:
    if store.records[attempt] is not None:  # only the answer was lost
        yield store, then
        return
    for after, is_known in answers(store, with_record(store, attempt, Record(OPEN))):
        yield after, then if is_known else me


# ---- actors


def night(attempt: int, date: int, run_key: int, rules: Rules) -> Actor:
    """Publishes two files for `date`."""

    def steps(store: Store, me: Me) -> Steps:
        step = me[0]
        if step == "start":
            versions = store.commits[date]
            if versions and versions[-1].run_key == run_key:
                yield store, ("stands", versions[-1].attempt)
            else:
                yield store, ("open", len(versions) + 1)
        elif step == "open":
            yield from opening(store, attempt, me, ("upload", me[1]))
        elif step == "upload":
            missing = BOTH & ~store.files[attempt]
            bit = missing & -missing
            for after, _ in answers(store, with_files(store, attempt, store.files[attempt] | bit)):
                # Each file is written once: the second one is not followed by another look at the first.
                yield after, ("upload", me[1]) if bit == 1 else ("read back", me[1])
        elif step == "read back":
            yield store, ("to committing", me[1]) if store.files[attempt] == BOTH else ("said", NOT_PUBLISHED)
        elif step == "to committing":
            yield from to_committing(store, attempt, date, me[1], ("commit", me[1]))
        elif step == "commit":
            own = Commit(attempt, attempt, run_key)
            yield from write_commit(store, date, me[1], own, rules)
        elif step == "resolve":
            yield from resolve(store, date, me[1], attempt, run_key)
        elif step == "stands":
            yield store, ("advance", me[1], "read")
        elif step == "advance":
            yield from advance(store, me, rules, ("record", me[1], said))
        elif step == "record":
            yield from record_committed(store, me[1], me[2])

    said = ("said", PUBLISHED, run_key)
    return steps


def to_committing(store: Store, attempt: int, date: int, slot: int, then: Me) -> Steps:
    record = store.records[attempt]
    assert record is not None
    if record.state == OPEN:
        wanted = record._replace(state=COMMITTING, date=date, slot=slot, is_old=False)
        for after, is_known in answers(store, with_record(store, attempt, wanted)):
            yield after, then if is_known else ("to committing", *then[1:])
    elif record.state == COMMITTING:  # only the answer was lost
        yield store, then
    else:
        yield store, ("said", NOT_PUBLISHED)  # a collector was quicker


def write_commit(store: Store, date: int, slot: int, own: Commit, rules: Rules) -> Steps:
    if len(store.commits[date]) >= slot:
        if rules.who_does_not_know_reads_the_slot:
            yield store, ("resolve", slot)
        else:  # "412: I lost, so I tidy up"
            yield with_files(store, own.attempt, 0), ("said", NOT_PUBLISHED)
        return
    for after, is_known in answers(store, with_commit(store, date, own)):
        unknown = ("resolve", slot) if rules.who_does_not_know_reads_the_slot else ("commit", slot)
        yield after, ("stands", own.attempt) if is_known else unknown


def resolve(store: Store, date: int, slot: int, attempt: int, run_key: int) -> Steps:
    if len(store.commits[date]) < slot:
        yield store, ("commit", slot)
        return
    standing = commit_of(store, date, slot)
    equal = standing.attempt == attempt or standing.run_key == run_key
    yield store, ("stands", standing.attempt) if equal else ("said", NOT_PUBLISHED)


def rollback(attempt: int, aim: tuple[int, int], rules: Rules) -> Actor:
    """The commit `aim` (date, version) again, under LATEST's date, and held."""

    def steps(store: Store, me: Me) -> Steps:
        step = me[0]
        files_of = commit_of(store, *aim).files_of
        if step == "start":
            date = store.latest.date
            yield store, ("open", len(store.commits[date]) + 1, date)
        elif step == "open":
            yield from opening(store, attempt, me, ("pin", *me[1:]))
        elif step == "pin":
            record = store.records[files_of]
            assert record is not None
            if not rules.a_rollback_pins or record.pins >> attempt & 1:
                yield store, ("to committing", *me[1:])
            elif record.state != COMMITTED:
                yield store, ("said", NOT_PUBLISHED)  # the night is gone, or about to go
            else:
                pinned = record._replace(pins=record.pins | 1 << attempt)
                for after, is_known in answers(store, with_record(store, files_of, pinned)):
                    yield after, ("to committing", *me[1:]) if is_known else me
        elif step == "to committing":
            yield from to_committing(store, attempt, me[2], me[1], ("commit", *me[1:]))
        elif step == "commit":
            for after, then in write_commit(store, me[2], me[1], Commit(attempt, files_of, -1 - attempt), rules):
                yield after, (then[0], *me[1:]) if then[0] in ("commit", "resolve") else held_next(then, me)
        elif step == "resolve":
            for after, then in resolve(store, me[2], me[1], attempt, -1 - attempt):
                yield after, ("commit", *me[1:]) if then[0] == "commit" else held_next(then, me)
        elif step == "to holding":
            yield from to_holding(store, attempt, me)
        elif step == "list holds":
            yield store, ("hold", *me[1:], len(store.holds) + 1)
        elif step == "hold":
            _, slot, date, number = me
            if len(store.holds) >= number:
                mine = store.holds[number - 1].by == attempt
                yield store, ("advance", number - 1, "read") if mine else held_next(("stands",), me)
            else:
                held_ = store._replace(holds=(*store.holds, Hold(date, slot, attempt)))
                for after, is_known in answers(store, held_):
                    yield after, ("advance", number - 1, "read") if is_known else me
        else:
            yield from settle_steps(store, me, attempt, rules)

    def held_next(then: Me, me: Me) -> Me:
        next_step = "to holding" if rules.a_rollback_says_which_hold_comes else "list holds"
        return (next_step, *me[1:3]) if then[0] == "stands" else then

    return steps


def to_holding(store: Store, attempt: int, me: Me) -> Steps:
    """me = ("to holding", version, date): which hold comes next, and that it is this attempt's to write."""
    record, number = store.records[attempt], len(store.holds) + 1
    assert record is not None
    if record.state != COMMITTING:
        yield store, ("said", "given up")  # it took a day, and somebody has ended it
    elif record.hold == number:  # only the answer was lost
        yield store, ("hold", *me[1:], number)
    else:
        for after, is_known in answers(store, with_record(store, attempt, record._replace(hold=number, is_old=False))):
            yield after, ("hold", *me[1:], number) if is_known else me


def release(attempt: int, rules: Rules) -> Actor:
    """Lets go what is held. `attempt` only tells its hold from others'."""

    def steps(store: Store, me: Me) -> Steps:
        if me[0] == "start":
            mine = [number for number, hold in enumerate(store.holds) if hold.by == attempt]
            if mine:
                yield store, ("advance", mine[0], "read")
            elif store.holds and store.holds[-1].version:
                let_go = Hold(0, 0, attempt)
                for after, is_known in answers(store, store._replace(holds=(*store.holds, let_go))):
                    yield after, ("advance", len(store.holds), "read") if is_known else me
            # else nothing is held yet: it waits
        else:
            yield from settle_steps(store, me, attempt, rules)

    return steps


def settle_steps(store: Store, me: Me, attempt: int, rules: Rules) -> Steps:
    """LATEST follows, then the hold is settled, then the attempt's record."""
    if me[0] == "advance":
        yield from advance(store, me, rules, ("settle", me[1]))
    elif me[0] == "settle":
        hold = store.holds[me[1]]
        if hold.is_settled:
            yield store, ("record", attempt, ("said", DONE))
        else:
            settled = hold._replace(is_settled=True, is_old=False)
            holds = (*store.holds[: me[1]], settled, *store.holds[me[1] + 1 :])
            for after, is_known in answers(store, store._replace(holds=holds)):
                yield after, ("record", attempt, ("said", DONE)) if is_known else me
    elif me[0] == "record":
        yield from record_committed(store, me[1], me[2])


def collector(rules: Rules) -> Actor:
    """Removes what attempts left that can never commit, and ends the bookkeeping of those that did."""

    def steps(store: Store, me: Me) -> Steps:
        step = me[0]
        if step == "start":
            for attempt, record in enumerate(store.records):
                if record is None or not record.is_old:
                    continue
                if record.state == OPEN:
                    yield store, ("revoke", attempt, record)
                elif record.state == COMMITTING:
                    yield store, ("look", attempt, record)
                elif record.state == REVOKED:
                    yield store, ("remove", attempt)
        elif step == "look":
            _, attempt, record = me
            versions = store.commits[record.date]
            if len(versions) < record.slot:
                yield store, ("said", DONE)  # nobody knows: for a person to look at
            elif versions[record.slot - 1].attempt != attempt:
                yield store, ("revoke", attempt, record)
            elif len(store.holds) < record.hold and rules.a_rollback_says_which_hold_comes:
                yield store, ("said", DONE)  # the same
            else:
                yield store, ("advance", (attempt, record), "read")
        elif step == "advance":
            yield from advance(store, me, rules, ("end", *me[1]))
        elif step == "end":
            _, attempt, record = me
            if store.records[attempt] != record:
                yield store, ("said", DONE)  # it went on
            else:
                committed = record._replace(state=COMMITTED, is_old=False)
                for after, _ in answers(store, with_record(store, attempt, committed)):
                    yield after, ("said", DONE)
        elif step in ("revoke", "remove", "to deleted"):
            yield from removing(store, me, rules.a_collector_revokes_first)

    return steps


def removing(store: Store, me: Me, revokes_first: bool = True) -> Steps:
    """revoke -> remove, file by file -> deleted"""
    step, attempt = me[0], me[1]
    record = store.records[attempt]
    assert record is not None
    if step == "revoke":
        if not revokes_first:
            yield store, ("remove", attempt)
        elif record != me[2]:
            yield store, ("said", DONE)  # it goes on, or somebody else removes it
        else:
            revoked = record._replace(state=REVOKED, is_old=False)
            for after, is_known in answers(store, with_record(store, attempt, revoked)):
                yield after, ("remove", attempt) if is_known else ("said", DONE)
    elif step == "remove":
        bits = store.files[attempt]
        if bits:
            yield with_files(store, attempt, bits & (bits - 1)), me
        else:
            yield store, ("to deleted", attempt)
    elif record.state == REVOKED:
        for after, _ in answers(store, with_record(store, attempt, record._replace(state=DELETED))):
            yield after, ("said", DONE)
    else:
        yield store, ("said", DONE)


def retention(rules: Rules) -> Actor:
    """Keeps the newest version of the newest date, and removes what nobody may be reading any more."""

    def steps(store: Store, me: Me) -> Steps:
        step = me[0]
        if step == "start":  # LATEST, then the records, then the log: what is decided by an earlier answer only grows
            yield store, ("records", store.latest)
        elif step == "records":
            yield store, ("log", me[1], store.records)
        elif step == "log":
            _, latest, records = me
            kept = kept_files(store, latest, records, rules)
            for attempt, record in enumerate(records):
                if record is not None and record.state == COMMITTED and store.files[attempt] and attempt not in kept:
                    yield store, ("revoke", attempt, record)
        elif step in ("revoke", "remove", "to deleted"):
            yield from removing(store, me)

    return steps


def kept_files(store: Store, latest: Latest, records: tuple[Record | None, ...], rules: Rules) -> set[int]:
    """Attempts whose files must stay."""
    kept = set()
    newest = max(date for date, versions in enumerate(store.commits) if versions)
    for date, versions in enumerate(store.commits):
        for version, commit in enumerate(versions, start=1):
            is_newest = (date, version) == (newest, len(versions))
            is_live = (date, version) in (latest[1:], live(store, rules)[1:])
            if is_newest or is_live or not _has_been_left(store, date, version, records, rules):
                kept.add(commit.files_of)
    for number, hold in enumerate(store.holds, start=1):
        left = any(later.is_settled and later.is_old for later in store.holds[number:])
        if rules.a_successor_says_when_latest_has_moved and hold.version and not left:
            kept.add(commit_of(store, hold.date, hold.version).files_of)
    for attempt, record in enumerate(records):
        if record is not None and any(
            record.pins >> by & 1 and (one := records[by]) is not None and one.state in (OPEN, COMMITTING)
            for by in range(len(records))
        ):
            kept.add(attempt)
    return kept


def _has_been_left(store: Store, date: int, version: int, records: tuple[Record | None, ...], rules: Rules) -> bool:
    """Whether LATEST has named a later commit for as long as the grace."""
    for later_date, versions in enumerate(store.commits):
        for later, commit in enumerate(versions, start=1):
            if (later_date, later) <= (date, version):
                continue
            record = records[commit.attempt]
            if not rules.a_successor_says_when_latest_has_moved:
                return True
            if record is not None and record.state == COMMITTED and record.is_old:
                return True
    return False


def reader() -> Actor:
    """Opens LATEST and reads both files of what it names."""

    def steps(store: Store, me: Me) -> Steps:
        if me[0] == "start":
            commit = commit_of(store, store.latest.date, store.latest.version)
            yield store, ("read", commit.files_of, 1)
        else:
            _, files_of, bit = me
            if not store.files[files_of] & bit:
                yield store, ("said", "a file is missing")
            elif bit == 1:
                yield store, ("read", files_of, 2)
            else:
                yield store, ("said", DONE)

    return steps


# ---- scenarios


@dataclass(frozen=True)
class Scenario:
    name: str
    actors: Callable[[Rules], dict[str, Actor]]
    faults: int
    days: int


ATTEMPT_OF = {"night 1": 1, "night 2": 2, "rollback": 3, "night 4": 4}
SCENARIOS = (
    Scenario(
        "two nights of one date and a collector",
        lambda rules: {
            "night 1": night(1, 1, 10, rules),
            "night 2": night(2, 1, 20, rules),
            "collector": collector(rules),
            "reader": reader(),
        },
        faults=1,
        days=1,
    ),
    Scenario(
        "a night, its rerun and a collector",
        lambda rules: {
            "night 1": night(1, 1, 10, rules),
            "night 2": night(2, 1, 10, rules),
            "collector": collector(rules),
            "reader": reader(),
        },
        faults=1,
        days=1,
    ),
    Scenario(
        "a night, a rollback and retention",
        lambda rules: {
            "night 1": night(1, 1, 10, rules),
            "rollback": rollback(3, (0, 1), rules),
            "retention": retention(rules),
            "reader": reader(),
        },
        faults=1,
        days=2,
    ),
    Scenario(
        "a night, a rollback, a collector and retention",
        lambda rules: {
            "retention": retention(rules),
            "rollback": rollback(3, (0, 1), rules),
            "night 1": night(1, 1, 10, rules),
            "collector": collector(rules),
        },
        faults=0,
        days=2,
    ),
    Scenario(
        "two nights, a rollback and its release",
        lambda rules: {
            "night 1": night(1, 1, 10, rules),
            "night 4": night(4, 2, 40, rules),
            "rollback": rollback(3, (0, 1), rules),
            "release": release(5, rules),
        },
        faults=0,
        days=0,
    ),
    Scenario(
        "a rollback, its release and retention",
        lambda rules: {
            "night 1": night(1, 1, 10, rules),
            "rollback": rollback(3, (0, 1), rules),
            "release": release(5, rules),
            "retention": retention(rules),
            "reader": reader(),
        },
        faults=0,
        days=2,
    ),
)

# Of each rule, the scenario of which a few states show that it is needed.
NEEDED = {
    "a_collector_revokes_first": 0,
    "who_does_not_know_reads_the_slot": 0,
    "latest_is_swapped": 0,
    "latest_is_read_before_the_log": 0,
    "latest_counts_holds": 5,
    "a_rollback_pins": 2,
    "a_rollback_says_which_hold_comes": 3,
    "nights_respect_holds": 2,
    "a_successor_says_when_latest_has_moved": 2,
}


def beginning(scenario: Scenario) -> Store:
    """Yesterday's night is live."""
    return Store(
        records=(Record(COMMITTED), None, None, None, None, None),
        files=(BOTH, 0, 0, 0, 0, 0),
        commits=((Commit(0, 0, 0),), (), ()),
        holds=(),
        latest=Latest(0, 0, 1),
        faults=scenario.faults,
        days=scenario.days,
    )


# ---- what must hold


def violations(store: Store, actors: dict[str, Me]) -> Iterator[str]:
    commits = [commit for versions in store.commits for commit in versions]
    attempts, keys = {commit.attempt for commit in commits}, {commit.run_key for commit in commits}
    for name, me in actors.items():
        if me[:2] == ("said", PUBLISHED) and me[2] not in keys:
            yield f"{name} says that it is published, and it is not"
        if me == ("said", NOT_PUBLISHED) and ATTEMPT_OF[name] in attempts:
            yield f"{name} says that it is not published, and it is"
        if me == ("said", "a file is missing"):
            yield "a reader misses a file of the night that it opened"
    named = commit_of(store, store.latest.date, store.latest.version)
    if store.files[named.files_of] != BOTH:
        yield "a file is missing of what LATEST names"
    due = live(store, AS_THEY_ARE)
    if store.files[commit_of(store, due.date, due.version).files_of] != BOTH:
        yield "a file is missing of what is live"
    last = store.holds[-1] if store.holds else None
    if last and last.is_settled and last.version and store.latest[1:] != (last.date, last.version):
        yield "LATEST left what a rollback holds"
    moving = [me for name, me in actors.items() if name not in ("reader", "retention", "collector")]
    if all(me[0] == "said" for me in moving) and store.latest[1:] != due[1:]:
        yield "everybody is done, and LATEST is not what is live"


@dataclass(frozen=True)
class Found:
    states: int
    violation: str = ""
    way: tuple[str, ...] = ()  # who did what until then


def explore(scenario: Scenario, rules: Rules = AS_THEY_ARE, *, at_most: int = 10_000_000) -> Found:
    """Every state that can be reached; ends at the first violation, with the way there."""
    actors = scenario.actors(rules)
    names = list(actors)
    first = (beginning(scenario), tuple(("start",) for _ in names))
    came_from: dict[Any, tuple[Any, str] | None] = {first: None}
    open_ = [first]
    while open_ and len(came_from) < at_most:
        state = open_.pop()
        for after, who in _next(state, names, actors):
            if after in came_from:
                continue
            came_from[after] = (state, who)
            wrong = next(violations(after[0], dict(zip(names, after[1], strict=True))), "")
            if rules.latest_counts_holds and after[0].latest < state[0].latest:
                wrong = "LATEST went back"
            if wrong:
                return Found(len(came_from), wrong, tuple(_way(came_from, after)))
            open_.append(after)
    return Found(len(came_from))


def _next(state: Any, names: list[str], actors: dict[str, Actor]) -> Iterator[tuple[Any, str]]:
    store, places = state
    for number, name in enumerate(names):
        me = places[number]
        if me[0] in ("said", DEAD):
            continue
        for after, then in actors[name](store, me):
            yield (after, (*places[:number], then, *places[number + 1 :])), f"{name}: {me[0]}"
        if store.faults and me != ("start",) and name != "reader":
            died = (*places[:number], (DEAD,), *places[number + 1 :])
            yield (store._replace(faults=store.faults - 1), died), f"{name} dies before: {me[0]}"
    is_reading = "reader" in names and places[names.index("reader")][0] == "read"
    if store.days and not is_reading:  # a reader takes less than the grace
        yield (grown_old(store), places), "the grace passes"


def grown_old(store: Store) -> Store:
    return store._replace(
        records=tuple(record and record._replace(is_old=True) for record in store.records),
        holds=tuple(hold._replace(is_old=True) for hold in store.holds),
        days=store.days - 1,
    )


def _way(came_from: dict[Any, tuple[Any, str] | None], state: Any) -> Iterator[str]:
    steps = []
    while (before := came_from[state]) is not None:
        state, who = before
        steps.append(who)
    yield from reversed(steps)
