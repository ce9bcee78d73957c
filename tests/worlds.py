"""Worlds whose answer is known, for every room: who likes what is decided here, so a test knows what must come out."""

import zlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.distributed import Ranks
from models.train import Spec, fit
from models.validation import Validation
from tasks.config import GraphConfig, IngestConfig
from tasks.contracts import Fitted, Graph, Interactions
from tasks.graph.pairs import write_pairs
from tasks.graph.split import Parts, part_pairs, plan_split
from tasks.graph.task import graph_of
from tasks.ingest.inspection import inspect_files
from tasks.ingest.interactions import digest
from tasks.ingest.sources import pin_inputs
from tasks.run import file_sha256, fingerprint_of, read_ids
from tasks.store import Store

NUM_USERS, NUM_ITEMS, LIKES = 40, 60, 12


@dataclass(frozen=True)
class World:
    """Events as ingest leaves them (one row a pair, sorted by ids), and each user's and item's hidden taste, by id."""

    seen: pl.DataFrame
    taste_of_user: dict[object, int]
    taste_of_item: dict[object, int]


def two_taste_world(*, seed: int = 0, integer_ids: bool = False) -> World:
    """Two groups of users, two groups of items: everybody likes 12 of their taste's 30 items and nothing else.

    Likes come in random order over a year. Three items of the other taste are met and not liked.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(NUM_USERS):
        own = rng.permutation(np.arange(user % 2, NUM_ITEMS, 2))[:LIKES]
        other = rng.permutation(np.arange(1 - user % 2, NUM_ITEMS, 2))[:3]
        rows += [(user, item, True) for item in own] + [(user, item, False) for item in other]
    users, items, liked = zip(*rows, strict=True)
    when = rng.permutation(len(rows)) * 1_000_000 * 3600
    seen = pl.DataFrame(
        {
            "user_id": pl.Series([name("u", user, integer_ids) for user in users]),
            "item_id": pl.Series([name("i", int(item), integer_ids) for item in items]),
            "timestamp_us": pl.Series(when, dtype=pl.Int64),
            "liked": pl.Series(liked),
        }
    ).sort("user_id", "item_id")
    return World(
        met_once(seen),
        {name("u", user, integer_ids): user % 2 for user in range(NUM_USERS)},
        {name("i", item, integer_ids): item % 2 for item in range(NUM_ITEMS)},
    )


def met_once(seen: pl.DataFrame) -> pl.DataFrame:
    """Pairs with one event each: the first one is the latest."""
    time = pl.col("timestamp_us")
    return seen.with_columns(first_seen_us=time, first_liked_us=pl.when("liked").then(time))


def read_night(
    store: Store, folder: Path, *, as_of: date, quarantine_share_at_most: float = 1.0, **settings: object
) -> Interactions:
    """The ingest room's own path from event files to pairs, without Prefect and a child around it."""
    folder.mkdir(parents=True, exist_ok=True)
    source = IngestConfig(quarantine_share_at_most=quarantine_share_at_most, **settings)  # type: ignore[arg-type]
    events = pin_inputs(store, source)
    return digest(store, events, inspect_files(store, events, source), folder, as_of=as_of, settings=source)


def pairs_of(interactions: Interactions) -> pl.DataFrame:
    """What ingest left, as one frame sorted by ids: user_id, item_id, timestamp_us, liked, first_seen_us, ...

    first_liked_us is null where nothing was liked.
    """
    folder = Path(interactions.folder)
    columns = ("item_row", "timestamp_us", "liked", "first_seen_us", "first_liked_us")
    arrays = {column: np.load(folder / f"{column}.npy") for column in columns}
    counts = np.diff(np.load(folder / "indptr.npy"))
    pairs = pl.DataFrame({"user_row": np.repeat(np.load(folder / "user_rows.npy"), counts), **arrays})
    for column in ("user", "item"):
        pairs = pairs.join(pl.read_parquet(folder / f"{column}s.parquet"), on=f"{column}_row", how="left")
    liked = pl.when(pl.col("first_liked_us") >= 0).then("first_liked_us")
    return pairs.select("user_id", "item_id", *columns[1:4], liked).sort("user_id", "item_id")


def name(letter: str, number: int, integer_ids: bool) -> object:
    return number if integer_ids else f"{letter}{number:03d}"


def build_graph_of(
    seen: pl.DataFrame,
    folder: Path,
    *,
    split: str = "global_time",
    validation_share: float = 0.1,
    test_share: float = 0.1,
    **limits: int,
) -> Graph:
    """The graph room's own path from pairs to arrays, without Prefect around it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = GraphConfig(split=split, validation_share=validation_share, test_share=test_share, **limits)  # type: ignore[arg-type]
    graph = graph_of(write_pairs(seen, folder.with_name(f"{folder.name}-pairs")), folder, settings)
    for kind, ids in zip(("user", "item"), read_ids(folder), strict=True):
        np.save(folder / f"{kind}_registry_rows.npy", [row_in_a_registry(one) for one in ids])
    return graph


def split_by_time(pairs: pl.DataFrame, *, split: str, validation_share: float, test_share: float) -> pl.DataFrame:
    """The graph room's own way to part pairs, with all of them in one block."""
    times = pairs.filter("liked")["first_liked_us"].to_numpy()
    plan = plan_split(
        lambda: iter([times]), len(times), kind=split, validation_share=validation_share, test_share=test_share
    )
    parts = Parts(plan)
    parted = parts.add(part_pairs(pairs, plan))
    parts.finish()
    return parted


def numbered(seen: pl.DataFrame) -> pl.DataFrame:
    """The pairs with rows in the order of ids in place of the ids."""
    rows = {f"{name}_index": pl.col(f"{name}_id").rank("dense").cast(pl.Int32) - 1 for name in ("user", "item")}
    return seen.with_columns(**rows).drop("user_id", "item_id")


def row_in_a_registry(one: object) -> int:
    """Of an id, the same in every graph, and in another order than the ids."""
    return zlib.crc32(str(one).encode()) >> 1


def spec_for(graph: Graph, output_folder: Path, **changes: object) -> Spec:
    """A short training on one thread: enough to learn two tastes, over in a second."""
    output_folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {
        "graph_folder": graph.folder,
        "output_folder": str(output_folder),
        "num_users": graph.num_users,
        "num_items": graph.num_items,
        "device": "cpu",
        "threads": 1,
        "split": "data",
        "precision": "float32",
        "k": 10,
        "loss": "softmax",
        "width": 8,
        "layers": 2,
        "temperature": 0.3,
        "popularity_bias": 0.5,
        "negatives": 40,
        "batches_per_epoch": 4,
        "max_epochs": 6,
        "patience": 3,
        "validate_every": 2,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "seed": 2020,
        "timeout_s": 60,
        "checkpoint_s": 1e9,
    }
    return Spec(**(settings | changes))  # type: ignore[arg-type]


def validation_of(spec: Spec) -> Validation:
    return Validation(spec.graph_folder, num_items=spec.num_items, k=spec.k, seed=spec.seed)


def graph_of_random_likes(folder: Path, *, users: int, items: int, share: float) -> Graph:
    """Likes without a pattern, each at a time of its own."""
    rng = np.random.default_rng(5)
    user, item = np.nonzero(random_likes(rng, users, items, share))
    seen = pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "timestamp_us": rng.permutation(len(user)) * 1_000_000,
            "liked": np.ones(len(user), dtype=bool),
        }
    )
    return build_graph_of(met_once(seen), folder)


def random_likes(rng: np.random.Generator, num_users: int, num_items: int, share: float) -> np.ndarray:
    """A dense (U, I) boolean matrix of likes; rows and columns may be empty."""
    return rng.random((num_users, num_items)) < share


def fit_here(graph: Graph, folder: Path, **changes: object) -> Fitted:
    """Both fits in this process, without ranks to launch: for what comes after training."""
    spec = spec_for(graph, folder, **changes)
    torch.set_num_threads(spec.threads)
    alone = Ranks(rank=0, world=1, device=torch.device("cpu"))
    judged = fit(spec, alone, "judged", epochs=spec.max_epochs, validation=validation_of(spec), identity="")
    served = fit(spec, alone, "served", epochs=judged.epochs, validation=None, identity="")
    served_path = folder / "served.safetensors"
    return Fitted(
        folder=str(folder),
        judged_path=str(folder / "judged.safetensors"),
        served_path=str(served_path),
        fingerprint=fingerprint_of(file_sha256(folder / "judged.safetensors"), file_sha256(served_path)),
        epochs=judged.epochs,
        best_validation_recall=max(e.validation_recall for e in judged.curve if e.validation_recall is not None),
        seconds_judged=judged.seconds,
        seconds_served=served.seconds,
        ranks=1,
        threads=1,
        device="cpu",
        split="data",
        learning_rate=spec.learning_rate,
        peak_bytes=0,
        curve_path="",
        num_parameters=(graph.num_users + graph.num_items) * spec.width,
    )
