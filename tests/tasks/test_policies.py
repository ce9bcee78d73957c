"""Who may do what to the store, by the policies that deploy/ hands out."""

import urllib.error
import urllib.request
from typing import Any

import pytest

from tasks.publish.night import find_published
from tasks.publish.reader import open_latest
from tasks.store import open_store
from tasks.store.contract import REMOVABLE
from tests.faults import FaultProxy
from tests.policies import allows, enforced, policy

OURS = [folder.rstrip("/") for folder in REMOVABLE]
THEIRS = ["events", "users", "items", "blocked", "segments", "anything"]
MARKER = "_meta/days/0123456789abcdef.json"
ATTEMPT = "_meta/attempts/2026-11-23/a.json"
HOLD = "_meta/holds/00000001.json"
LOGS = [
    "_meta/LATEST.json",
    "_meta/commits/2026-11-23/v00000001.json",
    "_meta/registry/v00000001.json",
    MARKER,
    ATTEMPT,
    HOLD,
]
EVERYTHING = [f"{folder}/a" for folder in OURS + THEIRS] + LOGS
ROLES = ["job", "reader", "forget", "operator", "retention"]


def may(role: str, action: str, key: str, **conditions: str) -> bool:
    return allows(policy(role), action, f"BUCKET/PREFIX/{key}", **conditions)


@pytest.mark.parametrize("folder", OURS)
def test_who_forgets_may_remove_what_nights_made(folder: str) -> None:
    for action in ("DeleteObject", "DeleteObjectVersion"):
        assert may("forget", action, f"{folder}/dt=2026-11-23/run=a/part-00000.parquet")
        assert not allows(policy("forget"), action, f"BUCKET/OTHER/{folder}/a")


@pytest.mark.parametrize("folder", [*THEIRS, "_meta", "_meta/commits", "_meta/forgotten"])
def test_nobody_may_remove_events_tables_and_logs(folder: str) -> None:
    for role in ROLES:
        for action in ("DeleteObject", "DeleteObjectVersion"):
            assert not may(role, action, f"{folder}/a")


def test_retention_may_remove_what_nights_published_and_nothing_that_other_nights_need() -> None:
    for action in ("DeleteObject", "DeleteObjectVersion"):
        assert {key for key in EVERYTHING if may("retention", action, key)} == {"recs/a", "outputs/a", "models/a"}


@pytest.mark.parametrize("role", ["job", "reader", "operator"])
def test_nights_readers_and_who_rolls_back_may_remove_nothing(role: str) -> None:
    assert not [key for key in EVERYTHING for act in ("DeleteObject", "DeleteObjectVersion") if may(role, act, key)]


@pytest.mark.parametrize("role", ROLES)
def test_nobody_may_overwrite_or_write_what_is_the_teams(role: str) -> None:
    assert not [key for key in EVERYTHING if may(role, "PutObject", key)], "without a condition"
    for folder in THEIRS:
        for condition in ("if_none_match", "if_match", "ObjectCreationOperation"):
            assert not may(role, "PutObject", f"{folder}/a", **{condition: "false"})


@pytest.mark.parametrize("role", ["job", "forget"])
def test_what_is_written_once_is_created_and_what_moves_on_is_swapped(role: str) -> None:
    ours = {key for key in EVERYTHING if not key.startswith(tuple(THEIRS))}
    theirs = set() if role == "forget" else {HOLD}
    assert {key for key in ours if may(role, "PutObject", key, if_none_match="*")} == ours - theirs
    swapped = {key for key in EVERYTHING if may(role, "PutObject", key, if_match="x")}
    assert swapped == {"_meta/LATEST.json", MARKER, ATTEMPT, HOLD} - theirs
    assert may("forget", "PutObject", "_meta/forgotten/00000001.json", if_match="x")
    assert not may("job", "PutObject", "_meta/forgotten/00000001.json", if_match="x")


def test_who_rolls_back_writes_logs_and_no_list_and_who_retains_neither_commits_nor_holds() -> None:
    def written(role: str, **condition: str) -> set[str]:
        return {key for key in EVERYTHING if may(role, "PutObject", key, **condition)}

    commit = "_meta/commits/2026-11-23/v00000001.json"
    assert written("operator", if_none_match="*") == {"_meta/LATEST.json", commit, ATTEMPT, HOLD}
    assert written("operator", if_match="x") == {"_meta/LATEST.json", ATTEMPT, HOLD}
    assert written("retention", if_none_match="*") == {"_meta/LATEST.json", ATTEMPT}
    assert written("retention", if_match="x") == {"_meta/LATEST.json", ATTEMPT}
    for role in ("operator", "retention"):
        assert {key for key in EVERYTHING if may(role, "GetObject", key)} == set(LOGS), "no list of anybody"


def test_readers_see_what_was_published_and_nothing_of_what_nights_keep_for_themselves() -> None:
    seen = {key for key in EVERYTHING if may("reader", "GetObject", key)}
    assert seen == {"recs/a", "outputs/a", "_meta/LATEST.json", "_meta/commits/2026-11-23/v00000001.json"}
    assert not [key for key in EVERYTHING if may("reader", "PutObject", key, if_none_match="*")]


@pytest.mark.parametrize("role", ROLES)
def test_nobody_administers_and_nothing_goes_in_clear(role: str) -> None:
    for action in ("DeleteBucket", "PutBucketPolicy", "PutBucketVersioning", "PutLifecycleConfiguration"):
        assert not allows(policy(role), action, "BUCKET")
    in_clear = [one for one in policy(role) if one["Sid"] == "NeverInClear"]
    assert in_clear[0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_composes_own_keys_differ_by_what_may_be_removed() -> None:
    def compose(role: str, action: str, key: str) -> bool:
        return allows(policy(f"compose-{role}"), action, f"nightgraph/live/{key}")

    removable = {key for key in EVERYTHING if compose("forget", "DeleteObject", key)}
    assert removable == {f"{folder}/a" for folder in OURS}
    assert not [key for key in EVERYTHING if compose("job", "DeleteObject", key)]
    assert all(compose(role, "PutObject", "recs/a") for role in ("job", "forget"))


def test_no_policy_allows_more_than_these_actions() -> None:
    wanted = {
        "reader": {"s3:GetObject", "s3:ListBucket"},
        "job": {"s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:AbortMultipartUpload"},
    }
    wanted["compose-job"] = wanted["job"]
    wanted["forget"] = wanted["job"] | {"s3:ListBucketVersions", "s3:DeleteObject", "s3:DeleteObjectVersion"}
    wanted["compose-forget"] = wanted["forget"]
    wanted["operator"] = wanted["reader"] | {"s3:PutObject"}
    wanted["retention"] = wanted["forget"] - {"s3:AbortMultipartUpload"}
    assert {name: _actions(policy(name)) for name in wanted} == wanted


def _actions(statements: list[dict[str, Any]]) -> set[str]:
    allowed = [one["Action"] for one in statements if one["Effect"] == "Allow"]
    return {action for listed in allowed for action in ([listed] if isinstance(listed, str) else listed)}


# ---- through the proxy, as S3 would answer


PART = "recs/dt=2026-11-23/run=a/part-00000.parquet"
COMMIT = "_meta/commits/2026-11-23/v00000001.json"
ONCE, SWAP = {"If-None-Match": "*"}, {"If-Match": "x"}
FORBIDDEN = [
    ("reader", "PUT", PART, ONCE),
    ("reader", "PUT", "_meta/LATEST.json", SWAP),
    ("reader", "DELETE", PART, {}),
    ("reader", "GET", "registry/users.parquet", {}),
    ("reader", "GET", "quarantine/dt=2026-11-23/a.parquet", {}),
    ("reader", "GET", "models/dt=2026-11-23/run=a/warm.safetensors", {}),
    ("reader", "GET", ATTEMPT, {}),
    ("job", "PUT", PART, {}),
    ("job", "PUT", PART, SWAP),
    ("job", "PUT", COMMIT, {}),
    ("job", "PUT", COMMIT, SWAP),
    ("job", "PUT", "_meta/LATEST.json", {}),
    ("job", "PUT", HOLD, ONCE),
    ("job", "PUT", "events/a.parquet", ONCE),
    ("job", "DELETE", PART, {}),
    ("job", "DELETE", COMMIT, {}),
    ("operator", "PUT", PART, ONCE),
    ("operator", "PUT", COMMIT, SWAP),
    ("operator", "DELETE", PART, {}),
    ("operator", "GET", PART, {}),
    ("retention", "PUT", COMMIT, ONCE),
    ("retention", "PUT", HOLD, ONCE),
    ("retention", "PUT", PART, ONCE),
    ("retention", "DELETE", COMMIT, {}),
    ("retention", "DELETE", "registry/users.parquet", {}),
    ("forget", "DELETE", "events/a.parquet", {}),
    ("forget", "PUT", COMMIT, SWAP),
]


@pytest.mark.parametrize("role", ROLES)
def test_what_is_forbidden_is_refused(role: str, s3_store: str, fault_proxy: FaultProxy) -> None:
    assert len(FORBIDDEN) >= 25
    fault_proxy.fault = enforced(role, s3_store, set())
    bucket_and_prefix = s3_store.removeprefix("s3://")
    for whose, method, key, headers in FORBIDDEN:
        if whose == role:
            asked = urllib.request.Request(f"{fault_proxy.url}/{bucket_and_prefix}/{key}", method=method)
            for name, value in headers.items():
                asked.add_header(name, value)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asked, data=b"" if method == "PUT" else None, timeout=30)
            assert refused.value.code == 403, (role, method, key)
            refused.value.close()


def test_the_roles_of_nights_and_readers_are_enough(make_night: Any, s3_store: str, fault_proxy: FaultProxy) -> None:
    refused: set[str] = set()
    fault_proxy.fault = enforced("job", s3_store, refused)
    store = open_store(s3_store)
    store.probe()
    night = make_night(s3_store, outputs=True)
    night.publish()
    assert find_published(store, night.run) is not None
    make_night(s3_store, mark=2.0).publish()
    fault_proxy.fault = enforced("reader", s3_store, refused)
    live = open_latest(s3_store, verify=True)
    assert live.for_user(1).height == live.manifest.k
    assert refused == set()
