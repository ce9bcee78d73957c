"""What nobody can need any more goes, and nothing else, whoever is at work meanwhile."""

import dataclasses
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tasks.contracts import LATEST_KEY
from tasks.errors import AttemptRevoked, ManifestInvalid, NightGone, StoreDenied
from tasks.publish import night, retention, rollback
from tasks.publish.attempts import attempt_key, open_attempt, parse_attempt, pin, to_committing
from tasks.publish.commit_log import find_commit
from tasks.publish.manifest import commit_key
from tasks.publish.reader import open_latest
from tasks.publish.retention import apply_retention, plan_retention, retain
from tasks.publish.rollback import release, roll_back
from tasks.store import open_store
from tests.policies import enforced

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ASKED = {"who": "Anna", "reason": "odd", "now": NOW}
DATES = [date(2026, 11, day) for day in range(19, 24)]


@pytest.fixture
def store_uri(request, tmp_path) -> str:
    """A folder, and where it is asked for S3, too, which takes ten times as long."""
    return request.getfixturevalue("s3_store") if getattr(request, "param", "") == "s3" else str(tmp_path / "store")


ON_BOTH = pytest.mark.parametrize("store_uri", ["folder", "s3"], indirect=True)


@pytest.fixture
def nights(make_night, store_uri):
    """Five of them, one a date."""
    for mark, as_of in enumerate(DATES):
        make_night(store_uri, as_of=as_of, mark=float(mark), outputs=True).publish()
    return open_store(store_uri)


@pytest.fixture
def pass_the_grace(monkeypatch):
    """So many hours later, by the store's clock."""

    def later(hours: float) -> None:
        real = retention.now_of
        monkeypatch.setattr(retention, "now_of", lambda store: real(store) + timedelta(hours=hours))

    return later


def dates_with_files(store) -> list[date]:
    return sorted({date.fromisoformat(one.key.split("dt=")[1][:10]) for one in store.list("recs")})


def removed(store, *, keep: int = 2) -> list[date]:
    return [one.id[0] for one in apply_retention(store, plan_retention(store, keep_dates=keep))]


def state_of(store, as_of, attempt: str) -> str:
    key = attempt_key(as_of, attempt)
    return parse_attempt(store.read(key)[0], key).state


@ON_BOTH
def test_the_newest_dates_are_kept_and_the_others_files_go_once_the_grace_is_over(nights, store_uri, pass_the_grace):
    assert removed(nights) == [], "who opened them may still be reading"
    pass_the_grace(49)
    attempt = find_commit(nights, DATES[0]).attempt
    assert removed(nights) == DATES[:3]
    assert dates_with_files(nights) == DATES[3:]
    assert not [one.key for one in nights.list("outputs") if "dt=2026-11-19" in one.key]
    assert state_of(nights, DATES[0], attempt) == "deleted"
    assert open_latest(store_uri, verify=True).manifest.as_of == DATES[-1]
    assert find_commit(nights, DATES[0]).version == 1, "the log stays"
    assert removed(nights) == []


def test_looking_removes_nothing_and_says_what_would_go(nights, pass_the_grace):
    pass_the_grace(49)
    plan = plan_retention(nights, keep_dates=2)
    assert [(one.id[0], one.why, len(one.files)) for one in plan.remove] == [
        (as_of, "beyond the nights to keep", 5) for as_of in DATES[:3]
    ]
    assert all(one.num_bytes > 1000 for one in plan.remove)
    assert [as_of for as_of, _ in plan.kept] == DATES[3:]
    assert dates_with_files(nights) == DATES


@ON_BOTH
def test_what_is_held_and_what_it_repeats_stay_however_old(nights, store_uri, pass_the_grace, make_night):
    roll_back(nights, DATES[0], **ASKED)
    make_night(store_uri, as_of=date(2026, 11, 24), mark=9.0).publish()
    make_night(store_uri, as_of=date(2026, 11, 25), mark=9.0).publish()
    pass_the_grace(1000)
    assert removed(nights) == DATES[1:]
    assert open_latest(store_uri, verify=True).manifest.rolled_back_to == "2026-11-19 v1"


def test_what_was_released_stays_for_the_grace(nights, store_uri, pass_the_grace, make_night, monkeypatch):
    roll_back(nights, DATES[0], **ASKED)
    for day in (24, 25):
        make_night(store_uri, as_of=date(2026, 11, day), mark=9.0).publish()
    pass_the_grace(1000)
    release(nights, who="Ben", reason="mended", now=NOW)
    young = {one.key: one for one in nights.list("_meta/holds")}
    real = retention.stored_holds

    def as_young(store):  # by the clock of the store, which is a thousand hours on
        shift = timedelta(hours=1000)
        return [
            type(one)(
                one.key,
                one.num_bytes,
                one.etag,
                one.modified_at + shift if one.key.endswith("2.json") else one.modified_at,
            )
            for one in real(store)
        ]

    assert len(young) == 2
    with monkeypatch.context() as clock:
        clock.setattr(retention, "stored_holds", as_young)
        assert DATES[0] not in removed(nights)
    assert removed(nights) == [DATES[0]]


def test_an_attempt_that_never_committed_goes_after_a_day_and_its_night_is_told(
    make_night, store_uri, pass_the_grace, monkeypatch
):
    make_night(store_uri, as_of=DATES[0]).publish()
    store = open_store(store_uri)
    real = night.to_committing

    def meanwhile(*args):
        pass_the_grace(25)
        (gone,) = apply_retention(store, plan_retention(store, keep_dates=9))
        assert gone.why == "never committed, and older than a day"
        return real(*args)

    monkeypatch.setattr(night, "to_committing", meanwhile)
    with pytest.raises(AttemptRevoked, match=r"given up before it could commit.*Run again"):
        make_night(store_uri, as_of=DATES[1], mark=2.0).publish()
    assert dates_with_files(store) == [DATES[0]]
    monkeypatch.setattr(night, "to_committing", real)
    assert make_night(store_uri, as_of=DATES[1], mark=2.0).publish().is_latest


def test_a_young_attempt_is_left_alone(make_night, store_uri, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(night, "commit", die)
        with pytest.raises(Killed):
            make_night(store_uri).publish()
    store = open_store(store_uri)
    plan = plan_retention(store, keep_dates=1)
    assert (plan.remove, len(plan.kept)) == ((), 1)


def test_whose_slot_went_to_another_goes_and_who_may_still_commit_is_a_persons_to_look_at(
    make_night, store_uri, pass_the_grace
):
    make_night(store_uri, as_of=DATES[0]).publish()
    store = open_store(store_uri)
    for attempt, slot in (("lost", 1), ("perhaps", 2)):
        open_attempt(store, DATES[0], attempt)
        store.put_once(f"recs/dt={DATES[0]}/run={attempt}/part-00000.parquet", b"rows")
        to_committing(store, DATES[0], attempt, slot)
    plan = plan_retention(store, keep_dates=9)
    assert [(one.id[1], one.why) for one in plan.remove] == [("lost", "another night took its place")]
    assert plan.unknown == ()
    pass_the_grace(31 * 24)
    plan = plan_retention(store, keep_dates=9)
    assert plan.unknown == ((DATES[0], "perhaps"),)
    assert [one.id[1] for one in apply_retention(store, plan)] == ["lost"]
    assert len(store.list(f"recs/dt={DATES[0]}")) == 3


@ON_BOTH
def test_a_night_that_died_after_its_commit_is_ended_and_kept(make_night, store_uri, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(night, "advance_latest", die)
        with pytest.raises(Killed):
            make_night(store_uri).publish(attempt="mine")
    store = open_store(store_uri)
    apply_retention(store, plan_retention(store, keep_dates=1))
    assert open_latest(store_uri, verify=True).manifest.attempt == "mine"
    assert state_of(store, date(2026, 11, 23), "mine") == "committed"


@ON_BOTH
def test_of_a_rollback_and_retention_one_goes_on(nights, store_uri, pass_the_grace, monkeypatch):
    """Planned before the pin, removed after it; and the other way round."""
    pass_the_grace(49)
    plan = plan_retention(nights, keep_dates=2)
    roll_back(nights, DATES[0], **ASKED)
    assert [one.id[0] for one in apply_retention(nights, plan)] == DATES[1:3]
    assert open_latest(store_uri, verify=True).manifest.rolled_back_to == "2026-11-19 v1"
    with pytest.raises(NightGone):
        roll_back(nights, DATES[1], **ASKED)


def test_a_pin_counts_until_whoever_set_it_has_committed_or_was_given_up(nights, pass_the_grace):
    pass_the_grace(49)
    open_attempt(nights, DATES[4], "a rollback")
    pin(nights, find_commit(nights, DATES[0]), by="a rollback")
    first = plan_retention(nights, keep_dates=2)
    assert [(one.id[0], one.why) for one in first.remove[2:]] == [(DATES[4], "never committed, and older than a day")]
    apply_retention(nights, first)
    assert dates_with_files(nights) == [DATES[0], *DATES[3:]], "the rollback might have gone on until just now"
    with pytest.raises(AttemptRevoked):
        to_committing(nights, DATES[4], "a rollback", 2)
    assert removed(nights) == [DATES[0]]


def test_a_rollback_that_began_while_records_were_read_has_its_pin_respected(
    nights, store_uri, make_night, pass_the_grace, monkeypatch
):
    """Its own record is not among those that were listed, and its commit comes after the log was read."""
    for day in (24, 25):
        make_night(store_uri, as_of=date(2026, 11, day), mark=9.0).publish()
    pass_the_grace(49)
    real, plans = rollback.to_committing, []
    listing = type(nights).list

    def listed_before(store, prefix):
        found = listing(store, prefix)
        return [one for one in found if "/20261124T09" not in one.key] if prefix == retention.ATTEMPTS else found

    def meanwhile(*args):
        with monkeypatch.context() as earlier:
            earlier.setattr(type(nights), "list", listed_before)
            plans.append(plan_retention(nights, keep_dates=2))
        return real(*args)

    monkeypatch.setattr(rollback, "to_committing", meanwhile)
    roll_back(nights, DATES[0], **ASKED)
    assert DATES[0] not in [one.id[0] for one in apply_retention(nights, plans[0])]
    assert open_latest(store_uri, verify=True).manifest.rolled_back_to == "2026-11-19 v1"


@pytest.mark.parametrize("moment", ["committed", "about to hold"])
def test_a_rollback_that_committed_and_does_not_hold_yet_is_left_alone_or_told(
    nights, store_uri, make_night, pass_the_grace, monkeypatch, moment
):
    """Retention must not end its record in between: its pins would not count any more."""
    real = rollback.write_hold

    def meanwhile(store, hold, *, announce):
        for day in (24, 25):
            make_night(store_uri, as_of=date(2026, 11, day), mark=9.0).publish()
        if moment == "about to hold":
            announce(hold.number)
        assert DATES[0] not in removed(nights), "it is young"
        pass_the_grace(49)
        assert DATES[0] not in removed(nights), "pinned"
        assert (DATES[0] in removed(nights)) == (moment == "committed")
        return real(store, hold, announce=announce)

    monkeypatch.setattr(rollback, "write_hold", meanwhile)
    if moment == "committed":
        with pytest.raises(AttemptRevoked, match=r"before it could hold.*Run again"):
            roll_back(nights, DATES[0], **ASKED)
        assert open_latest(store_uri, verify=True).manifest.held == ""
    else:
        roll_back(nights, DATES[0], **ASKED)
        assert open_latest(store_uri, verify=True).manifest.rolled_back_to == "2026-11-19 v1"


def test_a_removal_that_was_killed_is_ended_by_the_next(nights, store_uri, pass_the_grace, monkeypatch):
    pass_the_grace(49)

    class Killed(BaseException):
        pass

    real, count = type(nights).remove, []

    def die(*args, **kwargs):
        count.append(1)
        if len(count) == 3:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(type(nights), "remove", die)
        with pytest.raises(Killed):
            removed(nights)
    plan = plan_retention(nights, keep_dates=2)
    assert plan.remove[0].why == "removing it had begun"
    assert removed(nights) == DATES[:3]
    assert dates_with_files(nights) == DATES[3:]


def test_a_damaged_log_removes_nothing(nights, pass_the_grace):
    pass_the_grace(49)
    etag = nights.read(LATEST_KEY)[1]
    nights.compare_and_swap(LATEST_KEY, b"{}", etag=etag)
    with pytest.raises(ManifestInvalid):
        plan_retention(nights, keep_dates=2)
    assert dates_with_files(nights) == DATES


def test_nights_from_before_attempts_were_written_down_get_a_record_and_go_when_they_are_old(
    nights, store_uri, pass_the_grace
):
    for record in (Path(store_uri) / "_meta" / "attempts").rglob("*.json"):
        record.unlink()
    pass_the_grace(49)
    plan = plan_retention(nights, keep_dates=2)
    assert (plan.remove, plan.unknown, len(plan.to_end)) == ((), (), 5)
    assert apply_retention(nights, plan) == ()
    assert removed(nights) == DATES[:3]


def test_a_hold_of_a_commit_that_is_gone_removes_nothing(nights, store_uri, pass_the_grace):
    held = roll_back(nights, DATES[0], **ASKED)
    (Path(store_uri) / commit_key(held.as_of, held.version)).unlink()
    pass_the_grace(49)
    with pytest.raises(ManifestInvalid, match=r"no such commit is there\. Nothing was removed"):
        plan_retention(nights, keep_dates=2)
    assert dates_with_files(nights) == DATES


@ON_BOTH
def test_what_was_removed_or_would_be_is_told_with_its_size(nights, store_uri, pass_the_grace):
    pass_the_grace(49)
    told = retain(nights, keep_dates=3, apply=False)
    assert [(one.as_of, one.version, one.files) for one in told.gone] == [(as_of, 1, 5) for as_of in DATES[:2]]
    assert (told.applied, told.kept, told.left_alone, told.unknown) == (False, 3, 0, ())
    done = retain(nights, keep_dates=3, apply=True)
    assert done == dataclasses.replace(told, applied=True)
    assert retain(nights, keep_dates=3, apply=True).gone == ()
    assert sum(one.num_bytes for folder in retention.FOLDERS for one in nights.list(folder)) == done.kept_bytes


def test_the_role_of_retention_is_enough_and_a_nights_role_is_not(make_night, s3_store, fault_proxy, pass_the_grace):
    for mark, as_of in enumerate(DATES[:3]):
        make_night(s3_store, as_of=as_of, mark=float(mark)).publish()
    pass_the_grace(49)
    refused: set[str] = set()
    store = open_store(s3_store)
    fault_proxy.fault = enforced("job", s3_store, refused)
    with pytest.raises(StoreDenied):
        retain(store, keep_dates=1, apply=True)
    assert {one.split()[0] for one in refused} <= {"DeleteObject", "ListBucketVersions"}
    assert dates_with_files(store) == DATES[:3]
    refused.clear()
    fault_proxy.fault = enforced("retention", s3_store, refused)
    store.probe()
    assert len(retain(store, keep_dates=1, apply=True).gone) == 2
    assert refused == set()


def test_files_without_any_record_are_named_by_nobody_and_left_to_a_person(make_night, store_uri, pass_the_grace):
    make_night(store_uri).publish()
    store = open_store(store_uri)
    store.put_once("recs/dt=2026-11-20/run=from-elsewhere/part-00000.parquet", b"rows")
    pass_the_grace(10_000)
    assert plan_retention(store, keep_dates=1).unknown == ((date(2026, 11, 20), "from-elsewhere"),)
    assert removed(store, keep=1) == []
