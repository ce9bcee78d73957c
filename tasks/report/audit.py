"""The audit of a night in the store: every figure of it as JSON, for published and refused nights alike."""

import json
from datetime import date

from pydantic import TypeAdapter

from tasks.contracts import Night, Published
from tasks.store import Store


def audit_key(as_of: date, attempt: str) -> str:
    return f"_meta/audits/{as_of.isoformat()}/{attempt}.json"


def write_audit(store: Store, night: Night, attempt: str) -> None:
    """Write-once, as everything in the store."""
    text = json.dumps(TypeAdapter(Night).dump_python(night, mode="json"), indent=1, sort_keys=True)
    store.put_once(audit_key(night.as_of, attempt), text.encode() + b"\n")


def read_night(store: Store, published: Published) -> Night:
    """The night that published this. Raises ObjectNotFound where its audit could not be written."""
    content, _ = store.read(audit_key(published.as_of, published.attempt))
    return TypeAdapter(Night).validate_json(content)
