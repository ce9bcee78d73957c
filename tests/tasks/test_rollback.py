"""Back to a kept night: its very files, held until somebody lets go, whatever nights come after it."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tasks import due
from tasks.contracts import LATEST_KEY
from tasks.errors import ManifestInvalid, NightGone, NothingHeld, RunConfigError, StoreDenied
from tasks.publish import rollback
from tasks.publish.attempts import attempt_key, parse_attempt
from tasks.publish.commit_log import advance_latest, find_commit, what_is_live
from tasks.publish.holds import last_hold, stored_holds
from tasks.publish.night import find_published
from tasks.publish.reader import open_latest
from tasks.publish.rollback import kept_nights, live_night, release, repair, roll_back
from tasks.store import open_store
from tests.policies import enforced

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
GOOD, BAD = date(2026, 11, 22), date(2026, 11, 23)
ASKED = {"who": "Anna", "reason": "the lists of the 23rd are odd", "now": NOW}


@pytest.fixture
def store_uri(request, tmp_path) -> str:
    """A folder, and where it is asked for S3, too, which takes ten times as long."""
    return request.getfixturevalue("s3_store") if getattr(request, "param", "") == "s3" else str(tmp_path / "store")


ON_BOTH = pytest.mark.parametrize("store_uri", ["folder", "s3"], indirect=True)


@pytest.fixture
def two_nights(make_night, store_uri):
    make_night(store_uri, as_of=GOOD, mark=1.0, outputs=True).publish()
    make_night(store_uri, as_of=BAD, mark=2.0).publish()
    return open_store(store_uri)


def marks(store_uri: str) -> list[float]:
    """What readers get, every byte checked."""
    return open_latest(store_uri, verify=True).scan().collect()["score"].unique().sort().to_list()


def state_of(store, as_of, attempt: str) -> str:
    key = attempt_key(as_of, attempt)
    return parse_attempt(store.read(key)[0], key).state


@ON_BOTH
def test_readers_get_the_very_files_of_the_night_that_was_chosen(two_nights, store_uri):
    before = open_store(store_uri).list("recs")
    rolled = roll_back(two_nights, GOOD, **ASKED)
    live = open_latest(store_uri, verify=True)
    assert live.files == tuple(find_commit(two_nights, GOOD).files)
    assert marks(store_uri) == [1.0]
    assert live.output("similar_items").collect().height == 12
    assert (live.manifest.as_of, live.manifest.version, live.manifest.reason) == (BAD, 2, "rollback")
    assert (rolled.rolled_back_to, live.manifest.rolled_back_at) == ("2026-11-22 v1", NOW)
    assert "Anna: the lists of the 23rd are odd" in live.manifest.held
    assert live.manifest.created_at == find_commit(two_nights, GOOD).created_at, "as old as it is"
    assert open_store(store_uri).list("recs") == before
    assert state_of(two_nights, BAD, rolled.attempt) == "committed"


@ON_BOTH
def test_it_holds_while_nights_go_on_and_their_reruns_are_known(two_nights, store_uri, make_night):
    roll_back(two_nights, GOOD, **ASKED)
    later = make_night(store_uri, as_of=date(2026, 11, 24), mark=3.0)
    published = later.publish()
    assert (published.version, published.is_latest) == (1, False)
    assert marks(store_uri) == [1.0]
    again = find_published(two_nights, later.run)
    assert (again.already, again.is_latest) == (True, False)
    forced = make_night(store_uri, as_of=BAD, mark=4.0, force=True).publish()
    assert (forced.version, forced.is_latest) == (3, False)
    assert marks(store_uri) == [1.0]


@ON_BOTH
def test_a_release_brings_readers_to_the_newest_night(two_nights, store_uri, make_night):
    roll_back(two_nights, GOOD, **ASKED)
    make_night(store_uri, as_of=date(2026, 11, 24), mark=3.0).publish()
    assert release(two_nights, who="Ben", reason="mended", now=NOW).as_of == date(2026, 11, 24)
    assert marks(store_uri) == [3.0]
    assert open_latest(store_uri).manifest.held == ""
    assert make_night(store_uri, as_of=date(2026, 11, 25), mark=5.0).publish().is_latest
    assert marks(store_uri) == [5.0]
    with pytest.raises(NothingHeld, match="follows the newest"):
        release(two_nights, who="Ben", reason="again", now=NOW)


def test_released_without_a_night_in_between_the_bad_one_stays_left(two_nights, store_uri):
    """Of its date the rollback is the newest version: who lets go does not bring back what was rolled back."""
    roll_back(two_nights, GOOD, **ASKED)
    release(two_nights, who="Ben", reason="nights go on", now=NOW)
    assert marks(store_uri) == [1.0]


def test_a_version_of_its_own_date_can_be_chosen_by_its_number(two_nights, store_uri):
    roll_back(two_nights, GOOD, **ASKED)
    assert roll_back(two_nights, BAD, version=1, **ASKED).version == 3
    assert marks(store_uri) == [2.0]
    assert last_hold(two_nights).commit.endswith("2026-11-23/v00000003.json")
    assert all(json.loads(two_nights.read(one.key)[0])["settled"] for one in stored_holds(two_nights))


def test_the_same_rollback_again_changes_nothing(two_nights, store_uri):
    rolled = roll_back(two_nights, GOOD, **ASKED)
    before = two_nights.list("")
    assert roll_back(two_nights, GOOD, **ASKED).attempt == rolled.attempt
    assert two_nights.list("") == before


@ON_BOTH
def test_a_night_that_was_never_published_or_has_lost_a_file_is_none_to_go_back_to(two_nights, store_uri):
    with pytest.raises(
        NightGone, match=r"no night of 2026-11-20 was ever published.*Kept are: 2026-11-23 v1, 2026-11-22"
    ):
        roll_back(two_nights, date(2026, 11, 20), **ASKED)
    with pytest.raises(NightGone, match="version 7"):
        roll_back(two_nights, GOOD, version=7, **ASKED)
    two_nights.remove(find_commit(two_nights, GOOD).parts[1].key, etag=None)
    with pytest.raises(NightGone, match=r"1 of 5 files were removed.*Kept are: 2026-11-23 v1\."):
        roll_back(two_nights, GOOD, **ASKED)
    assert marks(store_uri) == [2.0]
    assert stored_holds(two_nights) == []
    assert [(night.as_of, night.is_live) for night in kept_nights(two_nights, at_most=9)] == [(BAD, True)]


def test_files_that_are_due_for_removal_are_none_to_go_back_to(two_nights):
    part = find_commit(two_nights, GOOD).parts[0].key
    due.write_down(two_nights, [one for one in two_nights.list("recs") if one.key == part])
    with pytest.raises(NightGone, match="are about to be"):
        roll_back(two_nights, GOOD, **ASKED)


def test_a_night_that_is_being_removed_is_none_to_go_back_to(two_nights, store_uri, monkeypatch):
    good = find_commit(two_nights, GOOD)
    key = attempt_key(GOOD, good.attempt)
    content, etag = two_nights.read(key)
    revoked = parse_attempt(content, key).model_copy(update={"state": "revoked"})
    two_nights.compare_and_swap(key, revoked.to_json(), etag=etag)
    with pytest.raises(NightGone, match="being removed now"):
        roll_back(two_nights, GOOD, **ASKED)
    assert marks(store_uri) == [2.0]


STEPS = [
    "open_attempt",
    "pin",
    "to_committing",
    "commit",
    "write_hold",
    "advance_latest",
    "note_settled",
    "to_committed",
]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_readers_see_one_night_and_the_rerun_ends_it(
    two_nights, store_uri, step, moment, monkeypatch
):
    real = getattr(rollback, step)

    def die(*args, **kwargs):
        if moment == "after":
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(rollback, step, die)
        with pytest.raises(Killed):
            roll_back(two_nights, GOOD, **ASKED)
    assert marks(store_uri) in ([1.0], [2.0])
    roll_back(two_nights, GOOD, **ASKED)
    assert marks(store_uri) == [1.0]
    assert open_latest(store_uri).manifest.held


def test_a_night_that_commits_in_between_costs_the_rollback_another_try(two_nights, store_uri, make_night, monkeypatch):
    real, tries = rollback.commit, []

    def late(*args, **kwargs):
        tries.append(1)
        if len(tries) == 1:
            make_night(store_uri, as_of=BAD, mark=7.0).publish()
        return real(*args, **kwargs)

    monkeypatch.setattr(rollback, "commit", late)
    assert roll_back(two_nights, GOOD, **ASKED).version == 3
    assert len(tries) == 2
    assert marks(store_uri) == [1.0]


def test_latest_that_is_damaged_or_gone_is_made_anew_from_the_log_hold_and_all(two_nights, store_uri, make_night):
    roll_back(two_nights, GOOD, **ASKED)
    make_night(store_uri, as_of=date(2026, 11, 24), mark=3.0).publish()
    whole, etag = two_nights.read(LATEST_KEY)
    etag = two_nights.compare_and_swap(LATEST_KEY, b"{}", etag=etag)
    with pytest.raises(ManifestInvalid):
        advance_latest(two_nights, what_is_live(two_nights))
    assert repair(two_nights).rolled_back_to
    assert two_nights.read(LATEST_KEY)[0] == whole
    assert repair(two_nights).rolled_back_to
    assert two_nights.read(LATEST_KEY)[0] == whole
    (Path(store_uri) / LATEST_KEY).unlink()
    repair(two_nights)
    assert two_nights.read(LATEST_KEY)[0] == whole


@ON_BOTH
def test_an_empty_store_has_nothing_to_repair_or_to_release(store_uri):
    store = open_store(store_uri)
    assert repair(store) is None
    with pytest.raises(NothingHeld):
        release(store, who="Ben", reason="mended", now=NOW)
    with pytest.raises(NightGone, match="No night is kept"):
        roll_back(store, GOOD, **ASKED)


def test_nights_from_before_attempts_were_written_down_can_be_chosen_too(two_nights, store_uri):
    for record in (Path(store_uri) / "_meta" / "attempts").rglob("*.json"):
        record.unlink()
    roll_back(two_nights, GOOD, **ASKED)
    assert marks(store_uri) == [1.0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"who": " "}, "WHO is empty"),
        ({"reason": ""}, "REASON is empty"),
        ({"reason": "a\nb"}, "REASON is too long, or holds control characters"),
        ({"reason": "a" * 301}, "up to 300 characters"),
    ],
)
def test_who_and_why_have_to_be_said_before_anything_is_changed(two_nights, said, words):
    before = two_nights.list("")
    with pytest.raises(RunConfigError, match=words):
        roll_back(two_nights, GOOD, **ASKED | said)
    with pytest.raises(RunConfigError, match=words):
        release(two_nights, **ASKED | said)
    assert two_nights.list("") == before


def test_the_role_of_an_operator_is_enough_and_a_nights_role_is_not(make_night, s3_store, fault_proxy):
    make_night(s3_store, as_of=GOOD, mark=1.0).publish()
    make_night(s3_store, as_of=BAD, mark=2.0).publish()
    store, refused = open_store(s3_store), set()
    fault_proxy.fault = enforced("job", s3_store, refused)
    with pytest.raises(StoreDenied):
        roll_back(store, GOOD, **ASKED)
    assert refused == {"PutObject _meta/holds/00000001.json"}
    assert stored_holds(store) == []
    refused.clear()
    fault_proxy.fault = enforced("operator", s3_store, refused)
    store.probe()
    roll_back(store, GOOD, **ASKED)
    assert live_night(store).rolled_back_to == "2026-11-22 v1"
    repair(store)
    release(store, **ASKED)
    assert len(kept_nights(store, at_most=9)) == 2
    assert refused == set()
