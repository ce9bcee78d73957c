"""What all benchmarks need: where they ran, where figures go, and public splits as the graph arrays that ranks read.

Polars and the settings are imported where they are used: benchmarks/gpu.py also runs where only models/ can.
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.graph import Csr, interactions_by_user, load_csr, normalised_adjacency, save_arrays
from models.losses import temperature_of
from models.train import Spec

if TYPE_CHECKING:
    import polars as pl

PROJECT_ROOT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT_ROOT / "benchmarks" / "results"


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.device_count()} {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB{gpu}, Python {platform.python_version()}"


def commit() -> str:
    """What is checked out; -dirty where code differs from it. Results are written by the runs themselves.

    NIGHTGRAPH_COMMIT says it where the files are a copy without git.
    """
    if told := os.environ.get("NIGHTGRAPH_COMMIT"):
        return told

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!*.md")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def merge_results(name: str, part: str, figures: dict[str, Any], details: object) -> None:
    """Put one part's figures into `results/<name>.json`, flat, beside the others'; each part says where it ran."""
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"figures": {}, "parts": {}}
    report.setdefault("parts", {})
    report["figures"] = dict(sorted((report["figures"] | figures).items()))
    report["parts"][part] = {"machine": machine(), "commit": commit(), "details": details}
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{machine()}, commit {commit()}")
    for figure, value in figures.items():
        print(f"  {figure:<44}{value:.6g}" if isinstance(value, float) else f"  {figure:<44}{value}")
    print(f"merged into {path.relative_to(PROJECT_ROOT)}")


def spec_of(folder: Path, num_users: int, num_items: int, *, threads: int = 2, **changes: Any) -> Spec:
    """The defaults of a night on these arrays, with some settings changed."""
    from tasks.config import TrainConfig
    from tasks.train.fitting import SUPERVISION, WHERE

    settings: dict[str, Any] = {
        "graph_folder": str(folder),
        "output_folder": str(folder),
        "num_users": num_users,
        "num_items": num_items,
        "device": "cpu",
        "threads": threads,
        "split": "data",
        "k": 20,
        "timeout_s": 60,
        "checkpoint_s": 1e9,
        **TrainConfig().model_dump(exclude=SUPERVISION | WHERE | {"warm_start"}),
    }
    likes = int(load_csr(folder, "liked_train").indptr[-1])
    settings["temperature"] = temperature_of(users=num_users, items=num_items, likes=likes)
    return Spec(**(settings | changes))


# ---- public splits (train.parquet and test.parquet with columns user, item)


def read_split(folder: Path) -> tuple[Csr, Csr, int]:
    """The likes of both parts, and the number of items."""
    import polars as pl

    train, test = (pl.read_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    num_users = 1 + max(int(part["user"].to_numpy().max()) for part in (train, test))
    num_items = 1 + max(int(part["item"].to_numpy().max()) for part in (train, test))
    likes = (
        interactions_by_user(part["user"].to_numpy(), part["item"].to_numpy(), num_users) for part in (train, test)
    )
    return *likes, num_items  # type: ignore[return-value]


def carve_validation(liked: Csr, *, share: float = 0.1, seed: int = 5) -> tuple[Csr, Csr]:
    """Train and validation: a tenth of each user's likes, drawn; these sets have no times. Test is not touched."""
    user_E = np.repeat(np.arange(liked.num_rows), liked.counts())
    draw_E = np.random.default_rng(seed).random(len(user_E))
    order = np.lexsort((draw_E, user_E))
    place = np.arange(len(order)) - np.repeat(liked.indptr[:-1], liked.counts())
    out = np.zeros(len(order), dtype=bool)
    out[order] = place < np.floor(share * liked.counts())[user_E]
    return tuple(  # type: ignore[return-value]
        interactions_by_user(user_E[part], liked.indices[part], liked.num_rows) for part in (~out, out)
    )


def write_arrays(folder: Path, train: Csr, target: Csr, num_items: int, *, users_at_most: int | None = None) -> Path:
    """What the ranks read: `train` for either fit, `target` as the validation."""
    folder.mkdir(parents=True, exist_ok=True)
    adjacency = normalised_adjacency(train, num_items)
    if users_at_most is not None:
        users = np.flatnonzero(target.counts() > 0)
        kept = np.random.default_rng(1).choice(users, min(users_at_most, len(users)), replace=False)
        user_E = np.repeat(np.arange(target.num_rows), target.counts())
        inside = np.isin(user_E, kept)
        target = interactions_by_user(user_E[inside], target.indices[inside], target.num_rows)
    for part in ("train", "all"):
        save_arrays(folder, f"liked_{part}", train)
        save_arrays(folder, f"adjacency_{part}", adjacency)
    save_arrays(folder, "seen_before_validation", train)
    save_arrays(folder, "liked_validation", target)
    np.save(folder / "item_rank.npy", np.arange(num_items))
    return folder


# ---- MovieLens as it comes (ratings with times)


def write_movielens(ratings: "Path | pl.DataFrame", split: str, folder: Path) -> tuple[Path, int, int]:
    """The graph room's own path from ratings to arrays. Also: how many users, how many items.

    Beside them what a warm start asks for: rows of a registry, for which these sets' own numbers do, and the cut.
    """
    import polars as pl

    from tasks.config import GraphConfig
    from tasks.graph.pairs import write_pairs
    from tasks.graph.task import graph_of
    from tasks.run import read_ids

    folder.mkdir(parents=True)
    events = ratings if isinstance(ratings, pl.DataFrame) else pl.read_parquet(ratings)
    latest = events.sort("timestamp").unique(["user_id", "item_id"], keep="last")
    seen = latest.select(
        "user_id", "item_id", timestamp_us=pl.col("timestamp") * 1_000_000, liked=pl.col("rating") >= 4
    ).sort("user_id", "item_id")
    time = pl.col("timestamp_us")  # these sets have one rating a pair
    seen = seen.with_columns(first_seen_us=time, first_liked_us=pl.when("liked").then(time))
    pairs_folder = write_pairs(seen, folder.with_name(f"{folder.name}-pairs"))
    graph = graph_of(pairs_folder, folder, GraphConfig(split=split, validation_share=0.1, test_share=0.1))
    shutil.rmtree(pairs_folder)
    for kind, ids in zip(("user", "item"), read_ids(folder), strict=True):
        np.save(folder / f"{kind}_registry_rows.npy", ids.to_numpy())
    if graph.validation_from_us is not None:
        np.save(folder / "cut.npy", np.array([graph.validation_from_us, graph.test_from_us], dtype=np.int64))
    return folder, graph.num_users, graph.num_items
