"""What one publication says about itself: the commit, and LATEST.json, which is a copy of one.

    recs/dt=DATE/run=ATTEMPT/part-00000.parquet    the lists; write-once, and nothing but .parquet below recs/
    outputs/NAME/dt=DATE/run=ATTEMPT/part-...      what else is published, each NAME with columns of its own
    models/dt=DATE/run=ATTEMPT/warm.safetensors    what the next night's training may start from (tasks/warm.py)
    _meta/commits/DATE/v00000001.json              the commit; write-once, never deleted
    _meta/attempts/DATE/ATTEMPT.json               who may still commit, whose files may go (attempts.py)
    _meta/holds/00000001.json                      what a person rolled back to, or let go (holds.py)
    _meta/LATEST.json                              a copy of the commit that is live, what readers open first

No user's or item's id stands in a key or in a manifest.
"""

import json
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.config import IngestConfig
from tasks.errors import ManifestInvalid

FORMAT = 1  # of the manifest; a field that old readers may overlook does not raise it
OUTPUT_FORMAT = 2  # of the lists' rows: 1 had no reasons


def commits_folder(as_of: date) -> str:
    return f"_meta/commits/{as_of.isoformat()}"


def commit_key(as_of: date, version: int) -> str:
    return f"{commits_folder(as_of)}/v{version:08d}.json"


def part_key(as_of: date, attempt: str, number: int) -> str:
    return f"recs/{_within(as_of, attempt, number)}"


def output_key(name: str, as_of: date, attempt: str, number: int) -> str:
    """Not below recs/: who reads a whole folder there must go on finding lists and nothing else."""
    return f"outputs/{name}/{_within(as_of, attempt, number)}"


def _within(as_of: date, attempt: str, number: int) -> str:
    return f"dt={as_of.isoformat()}/run={attempt}/part-{number:05d}.parquet"


class _Written(BaseModel):
    # Unknown fields are overlooked and kept: a copy made by older code loses nothing.
    model_config = ConfigDict(frozen=True, extra="allow")


class InputSummary(_Written):
    fingerprint: str
    files: int
    bytes: int
    odd_volume: str = ""  # what was found and overridden (tasks/ingest/volume.py)
    override_reason: str = ""


class CheckResult(_Written):
    gate: str
    passed: bool
    detail: str


class VerdictSummary(_Written):
    checks: tuple[CheckResult, ...]
    overridden: str
    reason: str


class Column(_Written):
    name: str
    type: str


class PublishedFile(_Written):
    key: str
    bytes: int
    sha256: str
    rows: int


class PublishedPart(PublishedFile):
    users: int


class PublishedOutput(_Written):
    files: tuple[str, ...]  # complete URIs, for readers
    parts: tuple[PublishedFile, ...]
    output_schema: tuple[Column, ...]
    rows: int


class Manifest(_Written):
    format: int
    output_format: int
    as_of: date
    version: int
    base_version: int  # the version of this date that stood when the night looked; 0: none
    attempt: str
    run_key: str  # equal keys: the same date, inputs, settings and code
    reason: str
    created_at: datetime  # of the night, also where somebody has been left out since
    store: str
    input: InputSummary
    code_version: str
    config: dict[str, object]
    metrics: dict[str, float]  # a measure over nobody is left out
    verdict: VerdictSummary
    model_fingerprint: str = ""  # of the judged and the served fit together
    output_schema: tuple[Column, ...]
    rows: int
    users: int
    k: int
    rows_by_tier: dict[str, int]
    files: tuple[str, ...]  # complete URIs of the lists, for readers
    parts: tuple[PublishedPart, ...]
    rewritten_at: datetime | None = None  # where reason is "forgotten": the same night without people who asked for it
    warm: PublishedFile | None = None  # what the next night may start from; not for readers
    started: str = ""  # where training started: cold, or from which night
    outputs: dict[str, PublishedOutput] = {}  # beside the lists, by name; nights before output format 2 have none
    rolled_back_to: str = ""  # where reason is "rollback": the commit whose files these are, as in 2026-11-22 v1
    rolled_back_at: datetime | None = None
    holds: int = 0  # in LATEST.json: how many of _meta/holds it knows of
    held: str = ""  # in LATEST.json: since when, by whom and why readers stay with this night; empty: they do not

    def all_files(self) -> list[PublishedFile]:
        of_outputs = [file for output in self.outputs.values() for file in output.parts]
        return [*self.parts, *of_outputs, *([self.warm] if self.warm else [])]

    def to_json(self) -> bytes:
        content = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
        )
        return content.encode() + b"\n"


def ingest_settings(manifest: Manifest) -> IngestConfig:
    """What the night knew of its events; the defaults for whatever its manifest, of an older version, does not say."""
    said = manifest.config.get("ingest")
    said = said if isinstance(said, dict) else {}
    known = {name: value for name, value in said.items() if name in IngestConfig.model_fields}
    return IngestConfig.model_validate(known)


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Raises ManifestInvalid naming `place`: damaged, or of a format that this code does not know."""
    try:
        fields = json.loads(content)
    except ValueError as error:  # not JSON, not even UTF-8
        raise damaged(place, "it is no JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise damaged(place, "it has no format number")
    if fields["format"] != FORMAT:
        raise ManifestInvalid(
            f"{place} has manifest format {fields['format']}, and this code knows format {FORMAT} only. Nothing was "
            "changed. A newer version of Nightgraph has published here: use that version."
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        where = sorted({".".join(str(step) for step in one["loc"][:2]) for one in error.errors()})
        raise damaged(place, f"{len(where)} fields are missing or wrong, the first is {where[0]}") from error


def damaged(place: str, what: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{place} is damaged: {what}. Nothing was changed, and nothing will be written over it. "
        "Look who wrote there. LATEST.json follows from the log: make repair rebuilds it. A commit has to come back "
        "from the bucket's versions or a backup."
    )
