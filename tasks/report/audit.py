"""The audit of a night in the store: every figure of it as JSON, and its training curve; of refused nights, too."""

import json
from datetime import date
from pathlib import Path

from pydantic import TypeAdapter

from tasks.contracts import Night, Published
from tasks.store import Store


def audit_key(as_of: date, attempt: str) -> str:
    return f"_meta/audits/{as_of.isoformat()}/{attempt}.json"


def write_audit(store: Store, night: Night, attempt: str) -> None:
    """Write-once, as everything in the store."""
    text = json.dumps(TypeAdapter(Night).dump_python(night, mode="json"), indent=1, sort_keys=True)
    key = audit_key(night.as_of, attempt)
    store.put_once(key, text.encode() + b"\n")
    curve = Path(night.fitted.curve_path)
    if curve.is_file():
        store.put_once(key.removesuffix(".json") + ".svg", curve.read_bytes())


def read_night(store: Store, published: Published) -> Night:
    """The night that published this. Raises ObjectNotFound where its audit could not be written."""
    content, _ = store.read(audit_key(published.as_of, published.attempt))
    return TypeAdapter(Night).validate_json(content)
