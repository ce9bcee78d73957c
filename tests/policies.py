"""What a policy of deploy/policies allows, decided as IAM decides: nothing, unless allowed and nowhere denied."""

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.faults import Request

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "policies"
CONDITIONS = ("if-match", "if-none-match")
TLS = {"aws:SecureTransport": "true"}


def policy(name: str, *, bucket: str = "BUCKET", prefix: str = "PREFIX") -> list[dict[str, Any]]:
    """Its statements, with names for the two words that stand for them."""
    text = (FOLDER / f"{name}.json").read_text().replace("BUCKET", bucket).replace("PREFIX", prefix)
    return json.loads(text)["Statement"]


def allows(statements: list[dict[str, Any]], action: str, place: str, **conditions: str) -> bool:
    """`place` is bucket or bucket/key. `conditions` are condition keys, as in if_match for s3:if-match."""
    known = TLS | {f"s3:{name.replace('_', '-')}": value for name, value in conditions.items()}
    effects = {one["Effect"] for one in statements if _applies(one, f"s3:{action}", f"arn:aws:s3:::{place}", known)}
    return effects == {"Allow"}


def _applies(statement: dict[str, Any], action: str, resource: str, known: dict[str, str]) -> bool:
    if not _any_matches(statement["Action"], action):
        return False
    if "Resource" in statement and not _any_matches(statement["Resource"], resource):
        return False
    if "NotResource" in statement and _any_matches(statement["NotResource"], resource):
        return False
    return all(
        _holds(test, known.get(key), wanted)
        for test, of_keys in statement.get("Condition", {}).items()
        for key, wanted in of_keys.items()
    )


def _holds(test: str, found: str | None, wanted: str | list[str]) -> bool:
    if test == "Null":
        return (found is None) == (wanted == "true")
    if test == "Bool":
        return found == wanted
    assert test == "StringLike", f"{test} is not known here"
    return found is not None and _any_matches(wanted, found)


def _any_matches(patterns: str | list[str], text: str) -> bool:
    assert not re.search(r"[\[\]]", str(patterns) if isinstance(patterns, str) else "".join(patterns))
    return any(fnmatchcase(text, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def of_request(method: str, url: str, headers: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """(action, bucket or bucket/key, conditions) of a request as S3 takes it."""
    parts = urlsplit(url)
    place = unquote(parts.path).strip("/")
    asked = parse_qs(parts.query, keep_blank_values=True)
    if "/" not in place:
        action = "ListBucketVersions" if "versions" in asked else "ListBucket"
        return action, place, {"prefix": asked.get("prefix", [""])[0]}
    if method in ("GET", "HEAD"):
        return "GetObject", place, {}
    if method == "DELETE":
        if "uploadId" in asked:
            return "AbortMultipartUpload", place, {}
        return "DeleteObjectVersion" if "versionId" in asked else "DeleteObject", place, {}
    conditions = {name.lower().replace("-", "_"): text for name, text in headers.items() if name.lower() in CONDITIONS}
    if "uploads" in asked or "partNumber" in asked:  # what makes an object is the request that completes it
        conditions["ObjectCreationOperation"] = "false"
    return "PutObject", place, conditions


def enforced(role: str, store_uri: str, refused: set[str]) -> Callable[[Request], str | None]:
    """A proxy's `fault`: S3 as its policies make it for `role`. What was refused is noted, as "PutObject key"."""
    bucket, _, prefix = store_uri.removeprefix("s3://").partition("/")
    statements = policy(role, bucket=bucket, prefix=prefix)

    def decide(request: Request) -> str | None:
        action, place, conditions = of_request(request.method, request.path, request.headers)
        if allows(statements, action, place, **conditions):
            return None
        refused.add(f"{action} {place.removeprefix(f'{bucket}/{prefix}/')}")
        return "403 AccessDenied"

    return decide
