"""Finished nights, small enough to publish thousands of them."""

import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from tasks.config import NightlyConfig
from tasks.contracts import (
    Check,
    Evaluation,
    Fitted,
    Measured,
    ModelScore,
    Output,
    OutputFile,
    Part,
    Published,
    Recommendations,
    Run,
    Verdict,
)
from tasks.publish.night import publish_night
from tasks.run import file_sha256
from tasks.store import Store, open_store

NUM_USERS = 6  # in two files of three
K = 4
REASONS = [{"kind": "liked", "item_id": "item 1/0", "share": 0.5}]
REASONS_TYPE = pl.List(pl.Struct({"kind": pl.String, "item_id": pl.String, "share": pl.Float32}))


@dataclass(frozen=True)
class Night:
    """A finished night of 6 users and 4 items for each. `mark` is every row's score: it tells nights apart."""

    run: Run
    fitted: Fitted
    evaluation: Evaluation
    recommendations: Recommendations
    verdict: Verdict

    def publish(self, *, attempt: str = "", store: Store | None = None) -> Published:
        now = datetime(2026, 11, 24, 3, 12, 5, tzinfo=UTC)
        attempt = attempt or f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        parts = (self.run, self.fitted, self.evaluation, self.recommendations, self.verdict)
        return publish_night(store or open_store(self.run.store_uri), *parts, now=now, attempt=attempt)


def finished_night(
    folder: Path, store_uri: str, *, as_of: date = date(2026, 11, 23), mark: float = 1.0, **changes: object
) -> Night:
    """`folder` is new. `changes`: run_key, force, passed, outputs."""
    folder.mkdir()
    parts = tuple(_write_part(folder, number, mark) for number in (0, 1))
    run_key = str(changes.get("run_key", f"key of {as_of} and {mark}"))
    run = Run(
        store_uri=store_uri,
        as_of=as_of,
        run_key=run_key,
        input_fingerprint="fingerprint",
        code_version="code",
        config=NightlyConfig(),
        force=bool(changes.get("force", False)),
        work_folder=str(folder),
        inputs_path="",
        num_files=3,
        num_input_bytes=12345,
    )
    fitted = Fitted("", "", "", "f" * 64, 3, 0.2, 1.0, 1.0, 1, 1, "cpu", "data", 0.01, 0, "", 640)
    passed = bool(changes.get("passed", True))
    verdict = Verdict(passed, (Check("popularity", passed, "recall 0.30 against 0.20"),))
    recommendations = Recommendations(
        folder=str(folder),
        parts=parts,
        fingerprint="r",
        k=K,
        users=NUM_USERS,
        rows=NUM_USERS * K,
        rows_by_tier={"graph": NUM_USERS * K},
        users_without_a_trained_row=0,
        short_lists=0,
        catalogue=9,
        outputs=_outputs(folder, mark) if changes.get("outputs") else (),
    )
    return Night(run, fitted, _evaluation(), recommendations, verdict)


def _write_part(folder: Path, number: int, mark: float) -> Part:
    users = [user for user in range(1 + 3 * number, 4 + 3 * number) for _ in range(K)]
    rows = pl.DataFrame(
        {
            "user_id": pl.Series(users, dtype=pl.Int64),
            "rank": pl.Series(list(range(1, K + 1)) * 3, dtype=pl.Int32),
            "item_id": [f"item {user}/{row}" for row, user in enumerate(users)],
            "score": pl.Series([mark] * len(users), dtype=pl.Float32),
            "tier": "graph",
            "reasons": pl.Series([REASONS] * len(users), dtype=REASONS_TYPE),
        }
    )
    path = folder / f"part-{number:05d}.parquet"
    rows.write_parquet(path)
    return Part(str(path), rows.height, 3, path.stat().st_size, file_sha256(path))


def _outputs(folder: Path, mark: float) -> tuple[Output, ...]:
    """Similar items in two files, and one with the items' embeddings."""
    items = ["a", "b", "c", "d"]
    similar = pl.DataFrame(
        {
            "item_id": [item for item in items for _ in range(3)],
            "rank": pl.Series([1, 2, 3] * 4, dtype=pl.Int32),
            "similar_item_id": [other for item in items for other in items if other != item],
            "score": pl.Series([mark] * 12, dtype=pl.Float32),
        }
    )
    embeddings = pl.DataFrame(
        {"item_id": items, "embedding": pl.Series([[mark, 1.0]] * 4, dtype=pl.Array(pl.Float32, 2))}
    )
    return (
        Output("similar_items", (_write_output(folder, similar[:6], 0), _write_output(folder, similar[6:], 1))),
        Output("item_embeddings", (_write_output(folder, embeddings, 2),)),
    )


def _write_output(folder: Path, rows: pl.DataFrame, number: int) -> OutputFile:
    path = folder / f"output-{number}.parquet"
    rows.write_parquet(path)
    return OutputFile(str(path), len(rows), path.stat().st_size, file_sha256(path))


def _evaluation() -> Evaluation:
    measured = Measured(0.3, 0.25, 0.35)
    scores = tuple(
        ModelScore(model, part, NUM_USERS, measured, Measured(float("nan"), 0.0, 0.0), 0.5)
        for model in ("lightgcn", "popularity")
        for part in ("validation", "test")
    )
    return Evaluation("e", 20, scores, {"recall": Measured(0.1, 0.05, 0.15)}, {}, {})
