"""Publish one night: upload, read back, commit, move LATEST.json. Readers see all of it or nothing."""

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tasks.contracts import LATEST_KEY, Evaluation, Fitted, Output, Published, Recommendations, Run, Verdict
from tasks.errors import CountsDisagree, GateRefused, ObjectExists
from tasks.publish.attempts import open_attempt, to_committed, to_committing
from tasks.publish.columns import LISTS, columns_of
from tasks.publish.commit_log import advance_latest, commit, find_commit
from tasks.publish.manifest import (
    FORMAT,
    OUTPUT_FORMAT,
    CheckResult,
    Column,
    InputSummary,
    Manifest,
    PublishedFile,
    PublishedOutput,
    PublishedPart,
    VerdictSummary,
    commit_key,
    output_key,
    part_key,
)
from tasks.publish.reader import verify_part
from tasks.store import Store
from tasks.warm import warm_key

log = logging.getLogger("nightgraph.publish")
FileT = TypeVar("FileT", bound=PublishedFile)


def find_published(store: Store, run: Run) -> Published | None:
    """This very night, if it is the newest of its date; also ends what a night that died after its commit began."""
    standing = find_commit(store, run.as_of)
    return as_published(store, standing, already=True) if standing and _is_this_night(standing, run, store) else None


def publish_night(
    store: Store,
    run: Run,
    fitted: Fitted,
    evaluation: Evaluation,
    recommendations: Recommendations,
    verdict: Verdict,
    *,
    now: datetime,
    attempt: str,
) -> Published:
    """Raises GateRefused, CountsDisagree, UploadCorrupt, AttemptRevoked, PublishConflict, PublishUnresolved and the
    Store* errors.

    `attempt` is this night's own, and the same when it tries again. A refused or failed one leaves files that no
    manifest names.
    """
    if not verdict.passed:
        failed = "; ".join(f"{check.gate}: {check.detail}" for check in verdict.checks if not check.passed)
        raise GateRefused(f"a refused night cannot be published ({failed}). The live recommendations stay.")
    base = find_commit(store, run.as_of)
    if base and base.attempt == attempt:  # a retry of ours: the commit had been made
        return as_published(store, base, already=False)
    if base and _is_this_night(base, run, store):  # a retry after an unknown outcome, or a quicker twin
        return as_published(store, base, already=True)
    base_version = base.version if base else 0
    schema = _columns_of_lists(recommendations)
    schemas = {o.name: columns_of(o.name, [(f.path, f.rows) for f in o.files]) for o in recommendations.outputs}
    open_attempt(store, run.as_of, attempt)
    parts = _upload_lists(store, run, recommendations, attempt)
    outputs = {
        output.name: PublishedOutput(
            files=tuple(store.uri_of(file.key) for file in files),
            parts=files,
            output_schema=schemas[output.name],
            rows=sum(file.rows for file in files),
        )
        for output, files in _upload_outputs(store, run, recommendations, attempt)
    }
    warm = _upload_warm(store, run, fitted, attempt)
    manifest = Manifest(
        format=FORMAT,
        output_format=OUTPUT_FORMAT,
        as_of=run.as_of,
        version=base_version + 1,
        base_version=base_version,
        attempt=attempt,
        run_key=run.run_key,
        reason="forced" if run.force else "rerun" if base else "nightly",
        created_at=now,
        store=store.uri,
        input=InputSummary(
            fingerprint=run.input_fingerprint,
            files=run.num_files,
            bytes=run.num_input_bytes,
            odd_volume=run.odd_volume,
            override_reason=run.config.ingest.volume_override_reason if run.odd_volume else "",
        ),
        code_version=run.code_version,
        config=run.config.model_dump(mode="json"),
        metrics=metrics_of(evaluation),
        verdict=VerdictSummary(
            checks=tuple(CheckResult(gate=c.gate, passed=c.passed, detail=c.detail) for c in verdict.checks),
            overridden=verdict.overridden,
            reason=verdict.override_reason,
        ),
        model_fingerprint=fitted.fingerprint,
        output_schema=schema,
        rows=recommendations.rows,
        users=recommendations.users,
        k=recommendations.k,
        rows_by_tier=recommendations.rows_by_tier,
        files=tuple(store.uri_of(part.key) for part in parts),
        parts=parts,
        outputs=outputs,
        warm=warm,
        started=fitted.started,
    )
    to_committing(store, run.as_of, attempt, manifest.version)
    standing = commit(store, manifest, force=run.force)
    return as_published(store, standing, already=standing.attempt != attempt)


def _is_this_night(standing: Manifest, run: Run, store: Store) -> bool:
    """In a store that was moved or copied the manifest's complete URIs lead elsewhere: publish it here."""
    return standing.run_key == run.run_key and standing.store == store.uri and not run.force


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """Flat names, as in lightgcn_test_recall_at_20. A mean over nobody has no value and is left out."""
    k = evaluation.k
    metrics = {}
    for score in evaluation.scores:
        name = f"{score.model}_{score.part}"
        metrics[f"{name}_recall_at_{k}"] = score.recall.mean
        metrics[f"{name}_ndcg_at_{k}"] = score.ndcg.mean
        metrics[f"{name}_coverage_at_{k}"] = score.coverage
    for metric, difference in evaluation.over_popularity.items():
        name = f"lightgcn_minus_popularity_test_{metric}_at_{k}"
        metrics |= {name: difference.mean, f"{name}_low": difference.low, f"{name}_high": difference.high}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _columns_of_lists(recommendations: Recommendations) -> tuple[Column, ...]:
    """The lists' columns. A cheap look at the footers before anything leaves the machine."""
    columns = columns_of(LISTS, [(part.path, part.rows) for part in recommendations.parts])
    if sum(part.rows for part in recommendations.parts) != recommendations.rows:
        raise CountsDisagree(f"the parts' rows do not add up to {recommendations.rows}. Nothing was published.")
    if sum(part.users for part in recommendations.parts) != recommendations.users:
        raise CountsDisagree(f"the parts' users do not add up to {recommendations.users}. Nothing was published.")
    return columns


def _upload_lists(store: Store, run: Run, recommendations: Recommendations, attempt: str) -> tuple[PublishedPart, ...]:
    """Every part under a key of this attempt alone, then read back in full."""
    parts = tuple(
        upload(
            store,
            Path(part.path),
            PublishedPart(
                key=part_key(run.as_of, attempt, number),
                bytes=part.num_bytes,
                sha256=part.sha256,
                rows=part.rows,
                users=part.users,
            ),
        )
        for number, part in enumerate(recommendations.parts)
    )
    _tell(run, "lists", parts)
    return parts


def _upload_outputs(
    store: Store, run: Run, recommendations: Recommendations, attempt: str
) -> Iterator[tuple[Output, tuple[PublishedFile, ...]]]:
    for output in recommendations.outputs:
        files = tuple(
            upload(
                store,
                Path(file.path),
                PublishedFile(
                    key=output_key(output.name, run.as_of, attempt, number),
                    bytes=file.num_bytes,
                    sha256=file.sha256,
                    rows=file.rows,
                ),
            )
            for number, file in enumerate(output.files)
        )
        _tell(run, output.name, files)
        yield output, files


def _upload_warm(store: Store, run: Run, fitted: Fitted, attempt: str) -> PublishedFile | None:
    left = fitted.warm
    if left is None:
        return None
    key = warm_key(run.as_of, attempt)
    file = upload(
        store, Path(left.path), PublishedFile(key=key, bytes=left.num_bytes, sha256=left.sha256, rows=left.rows)
    )
    _tell(run, "the tables that the next night may start from", [file])
    return file


def upload(store: Store, source: Path, target: FileT) -> FileT:
    """Raises UploadCorrupt where what the store returns is not what was to be written."""
    try:
        store.put_once(target.key, source)
    except ObjectExists:
        log.info("%s is there already: an answer got lost, reading it back", target.key)
    verify_part(store, target)
    return target


def _tell(run: Run, what: str, files: Sequence[PublishedFile]) -> None:
    num_bytes = sum(file.bytes for file in files)
    log.info("%s: uploaded and read back %s in %d files, %.1f MB", run.as_of, what, len(files), num_bytes / 1e6)


def as_published(store: Store, manifest: Manifest, *, already: bool) -> Published:
    is_latest = advance_latest(store, manifest)
    to_committed(store, manifest)
    what = "published before, nothing to do" if already else "published"
    fate = "live" if is_latest else "not live, a newer night is, or one that is held"
    log.info("%s: version %d, %s; it is %s", manifest.as_of, manifest.version, what, fate)
    return Published(
        as_of=manifest.as_of,
        version=manifest.version,
        attempt=manifest.attempt,
        run_key=manifest.run_key,
        already=already,
        commit_uri=store.uri_of(commit_key(manifest.as_of, manifest.version)),
        latest_uri=store.uri_of(LATEST_KEY),
        files=manifest.files,
        rows=manifest.rows,
        users=manifest.users,
        is_latest=is_latest,
        metrics=manifest.metrics,
        outputs={name: output.files for name, output in manifest.outputs.items()},
    )
