"""One list for everybody: cuts people into shards, has them written here or by ranks, and counts what came out."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tasks import errors
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Recommendations, Tables
from tasks.errors import DiskFull, NightError, RanksLost
from tasks.ranks import Launch, Work, read_json, run_ranks
from tasks.recommend.lists import Sources
from tasks.recommend.memory import plan_memory
from tasks.recommend.outputs import write_outputs
from tasks.recommend.rules import left_to_anybody
from tasks.recommend.shards import Counts, add_counts, drop_strangers, finished_shard
from tasks.recommend.worker import Progress, Spec, write_shards
from tasks.run import PROJECT_ROOT, WORK_VARIABLE, code_version, fingerprint_of

SILENCE_S = 300.0  # of all ranks; one is heard at each block
DEADLINE_S = 86_400.0
RELAUNCHES = 3
# What changes no byte of the lists stays out of the shards' key, and out of the stage's (task.py).
WHERE = {"ranks"}
log = logging.getLogger("nightgraph.recommend")


def plan_lists(
    graph: Graph,
    fitted: Fitted,
    settings: RecommendConfig,
    folder: Path,
    *,
    tables: Tables | None = None,
    as_of: date | None = None,
) -> Spec:
    """What each process is told: how people are cut into shards, and within which memory. Raises RunConfigError."""
    sources = Sources.of(graph, fitted, settings, tables, as_of)
    cores = os.cpu_count() or 1
    threads = max(1, cores // (settings.ranks or 1))
    memory = plan_memory(sources, settings, threads=threads)
    spec = Spec(
        folder=str(folder),
        key=fingerprint_of(
            code_version(),
            graph.fingerprint,
            fitted.fingerprint,
            tables.fingerprint if tables else "",
            sources.as_of,
            settings.model_dump(exclude=WHERE),
        ),
        users_per_shard=memory.users_per_shard,
        list_length=memory.list_length,
        block_bytes=memory.block_bytes,
        threads=threads,
        sources=sources,
    )
    log.info("%d shards of at most %s users; %s", len(spec.shards), f"{spec.users_per_shard:,}", memory.in_words())
    return spec


def recommend_everyone(
    graph: Graph,
    fitted: Fitted,
    settings: RecommendConfig,
    folder: Path,
    *,
    tables: Tables | None = None,
    as_of: date | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Recommendations:
    """Parts in order of user id, written by `settings.ranks` processes; shards that an earlier try finished are kept.

    The bytes do not depend on ranks, threads, or on how often the night was killed. Raises RunConfigError,
    ModelNotFinite, NothingAllowed, DiskFull, RanksLost. No tables: the store has none. No date: the day after the last
    event.
    """
    spec = plan_lists(graph, fitted, settings, folder, tables=tables, as_of=as_of)
    ranks = settings.ranks or 1
    drop_strangers(folder, spec.shards)
    if ranks == 1:
        write_shards(spec, beat=on_progress)
    else:
        spec.write(folder / "spec.json")
        _on_ranks(spec, ranks, on_progress)
    recommendations = _counted(spec, settings)
    known = Tables(spec.sources.tables_folder, "", spec.sources.table_rows, {})
    outputs = write_outputs(
        graph,
        fitted.served_path,
        settings,
        folder,
        allowed_I=left_to_anybody(graph.folder, known, settings, date.fromisoformat(spec.sources.as_of)),
        block_bytes=spec.block_bytes,
        threads=spec.threads,
    )
    hashes = [recommendations.fingerprint, *(file.sha256 for output in outputs for file in output.files)]
    return replace(recommendations, outputs=outputs, fingerprint=fingerprint_of(hashes))


def _counted(spec: Spec, settings: RecommendConfig) -> Recommendations:
    folder = Path(spec.folder)
    counts: Counts = {name: {} for name in ("rows_by_tier", "users_by_tier", "removed_by_rule", "short_by_reason")}
    parts = []
    for shard in spec.shards:
        sealed = finished_shard(folder, shard, spec.key)
        if sealed is None:
            raise RanksLost(
                f"{shard.name} of the recommendations was written and is not there, or not as it was written. Nothing "
                "was published. Somebody else works in the work folder, or its disk fails. Look there, then run again."
            )
        parts.append(sealed.part(folder, shard))
        add_counts(counts, sealed.counts)
    return Recommendations(
        folder=spec.folder,
        parts=tuple(parts),
        fingerprint=fingerprint_of([part.sha256 for part in parts]),
        k=settings.k,
        users=sum(part.users for part in parts),
        rows=sum(part.rows for part in parts),
        rows_by_tier=counts["rows_by_tier"],
        users_without_a_trained_row=counts["users"]["without_a_trained_row"],
        short_lists=sum(counts["short_by_reason"].values()),
        catalogue=spec.sources.num_items,
        people=spec.sources.num_people,
        users_by_tier=counts["users_by_tier"],
        removed_by_rule=counts["removed_by_rule"],
        short_by_reason=counts["short_by_reason"],
    )


# ---- on ranks


def _on_ranks(spec: Spec, ranks: int, on_progress: Callable[[Progress], None]) -> None:
    folder = Path(spec.folder)
    work = Work(
        module="tasks.recommend.worker",
        name="recommending",
        silence_limit=f"at most {SILENCE_S:.0f}",
        deadline_limit="the limit",
        goes_on="from the first shard that is missing",
        lost=RanksLost,
        if_lost="Run the night again to go on at the first missing shard; with fewer recommend.ranks, or a lower "
        "recommend.memory_mib, if memory is short.",
        named=lambda name, message: _named(folder, name, message),
        progress=lambda folder: _progress_of(folder, ranks),
        result=lambda folder: _result_of(folder, ranks),
    )
    launch = Launch(
        work,
        folder / "spec.json",
        ranks=ranks,
        threads=spec.threads,
        project_root=PROJECT_ROOT,
        silence_s=SILENCE_S,
        deadline_s=DEADLINE_S,
        relaunches=RELAUNCHES,
    )
    run_ranks(launch, lambda told: on_progress(Progress(**told)))


def _named(folder: Path, name: str, message: str) -> NightError:
    if name == "DiskFull":
        return DiskFull(
            f"the disk of {folder} filled up while shards were written. Nothing was published, and finished shards are "
            f"kept. Free space there, or set {WORK_VARIABLE} to a larger disk, and run again."
        )
    kind: type[NightError] = getattr(errors, name)
    return kind(message)


def _progress_of(folder: Path, ranks: int) -> dict[str, Any] | None:
    """All ranks' together; nothing until every rank has said how many people it has."""
    told = [read_json(folder / f"progress-{rank}.json") for rank in range(ranks)]
    known = [Progress(**progress) for progress in told if progress is not None]
    if len(known) < ranks:
        return None
    return {
        "done": sum(progress.done for progress in known),
        "reused": sum(progress.reused for progress in known),
        "people": sum(progress.people for progress in known),
        "seconds": max(progress.seconds for progress in known),
    }


def _result_of(folder: Path, ranks: int) -> dict[str, Any] | None:
    told = [read_json(folder / f"result-{rank}.json") for rank in range(ranks)]
    return None if None in told else {"ranks": ranks}
