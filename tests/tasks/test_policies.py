"""Who may do what to the store, by the policies that deploy/ hands out."""

from typing import Any

import pytest

from tasks.store.contract import REMOVABLE
from tests.policies import allows, policy

OURS = [folder.rstrip("/") for folder in REMOVABLE]
THEIRS = ["events", "users", "items", "blocked", "segments", "anything"]
MARKER = "_meta/days/0123456789abcdef.json"
LOGS = ["_meta/LATEST.json", "_meta/commits/2026-11-23/v00000001.json", "_meta/registry/v00000001.json", MARKER]
EVERYTHING = [f"{folder}/a" for folder in OURS + THEIRS] + LOGS
ROLES = ["job", "reader", "forget"]


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


@pytest.mark.parametrize("role", ["job", "reader"])
def test_nights_and_readers_may_remove_nothing(role: str) -> None:
    assert not [key for key in EVERYTHING for act in ("DeleteObject", "DeleteObjectVersion") if may(role, act, key)]


@pytest.mark.parametrize("role", ROLES)
def test_nobody_may_overwrite_or_write_what_is_the_teams(role: str) -> None:
    assert not [key for key in EVERYTHING if may(role, "PutObject", key)], "without a condition"
    for folder in THEIRS:
        for condition in ("if_none_match", "if_match", "ObjectCreationOperation"):
            assert not may(role, "PutObject", f"{folder}/a", **{condition: "false"})


@pytest.mark.parametrize("role", ["job", "forget"])
def test_what_is_written_once_is_created_and_what_moves_on_is_swapped(role: str) -> None:
    ours = [key for key in EVERYTHING if not key.startswith(tuple(THEIRS))]
    assert not [key for key in ours if not may(role, "PutObject", key, if_none_match="*")]
    swapped = {key for key in EVERYTHING if may(role, "PutObject", key, if_match="x")}
    assert swapped == {"_meta/LATEST.json", MARKER}
    assert may("forget", "PutObject", "_meta/forgotten/00000001.json", if_match="x")
    assert not may("job", "PutObject", "_meta/forgotten/00000001.json", if_match="x")


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
    assert {name: _actions(policy(name)) for name in wanted} == wanted


def _actions(statements: list[dict[str, Any]]) -> set[str]:
    allowed = [one["Action"] for one in statements if one["Effect"] == "Allow"]
    return {action for listed in allowed for action in ([listed] if isinstance(listed, str) else listed)}
