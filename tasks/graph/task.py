"""Interactions in, the split graph's arrays out."""

import logging
from pathlib import Path

import numpy as np
from prefect import task

from models.graph import Csr, by_users, load_csr
from tasks.config import GraphConfig
from tasks.contracts import Graph, Interactions, Run
from tasks.errors import is_worth_a_retry
from tasks.graph.edges import FITS, fingerprint_of_graph, leave_out, write_adjacencies, write_interactions
from tasks.graph.pairs import open_pairs, save_ids
from tasks.graph.split import Parts, part_pairs, plan_split
from tasks.run import finish_stage

log = logging.getLogger("nightgraph.graph")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def build_graph(run: Run, interactions: Interactions) -> Graph:
    """Number the ids, split the likes by time, write both fits' graphs."""
    return finish_stage(
        run,
        "graph",
        Graph,
        lambda folder: graph_of(Path(interactions.folder), folder, run.config.graph),
        inputs=(interactions.fingerprint, run.config.graph, run.registry_epoch),
    )


def graph_of(pairs_folder: Path, folder: Path, settings: GraphConfig) -> Graph:
    """From the pairs of contracts.Interactions to arrays in `folder`, some users at a time."""
    pairs = open_pairs(pairs_folder)
    num_likes = sum(len(piece) for piece in pairs.like_times())
    split = plan_split(
        pairs.like_times,
        num_likes,
        kind=settings.split,
        validation_share=settings.validation_share,
        test_share=settings.test_share,
    )
    parts = Parts(split)
    blocks = ((users, parts.add(part_pairs(block, split))) for users, block in pairs.blocks())
    write_interactions(blocks, folder, num_users=pairs.num_users, num_items=pairs.num_items)
    parts.finish()
    cold_users, cold_items = _count_cold(folder, pairs.num_items)
    left_out = leave_out(folder, pairs.num_items, settings)
    write_adjacencies(folder, pairs.num_items)
    save_ids(folder, pairs)
    likes = {name: load_csr(folder, f"liked_{name}").counts() for name in ("train", "validation", "test")}
    graph = Graph(
        folder=str(folder),
        fingerprint=fingerprint_of_graph(folder),
        split=split.kind,
        num_users=pairs.num_users,
        num_items=pairs.num_items,
        num_likes=num_likes,
        num_train=parts.likes["train"],
        num_validation=parts.likes["validation"],
        num_test=parts.likes["test"],
        num_validation_users=int(np.count_nonzero(likes["validation"])),
        num_test_users=int(np.count_nonzero(likes["test"])),
        num_test_users_with_history=int(np.count_nonzero((likes["test"] > 0) & (likes["train"] > 0))),
        validation_from_us=parts.begins("validation"),
        test_from_us=parts.begins("test"),
        cold_users=cold_users,
        cold_items=cold_items,
        left_out={fit: vars(left_out[fit]) for fit in FITS},
    )
    _tell(graph)
    return graph


def _count_cold(folder: Path, num_items: int) -> tuple[int, int]:
    """Users and items with a like to find and none to learn from: no fit of before the cut can know them."""
    knows_U, knows_I = _who_and_what(load_csr(folder, "liked_train"), num_items)
    asked = [_who_and_what(load_csr(folder, f"liked_{part}"), num_items) for part in ("validation", "test")]
    asks_U, asks_I = (np.logical_or(*of_parts) for of_parts in zip(*asked, strict=True))
    return int(np.count_nonzero(asks_U & ~knows_U)), int(np.count_nonzero(asks_I & ~knows_I))


def _who_and_what(likes: Csr, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    has_like_I = np.zeros(num_items, np.bool_)
    for _, block in by_users(likes):
        has_like_I[block.indices] = True
    return likes.counts() > 0, has_like_I


def _tell(graph: Graph) -> None:
    log.info(
        "%s users x %s items, likes: %s train, %s validation, %s test (%s); only after the cut: %s users, %s items",
        f"{graph.num_users:,}",
        f"{graph.num_items:,}",
        f"{graph.num_train:,}",
        f"{graph.num_validation:,}",
        f"{graph.num_test:,}",
        graph.split,
        f"{graph.cold_users:,}",
        f"{graph.cold_items:,}",
    )
    if served := graph.left_out["all"]["likes"]:
        log.info(
            "kept out of the served graph, not out of what is seen and popular: %s likes (%s beyond a user's latest), "
            "%s users, %s items",
            f"{served:,}",
            f"{graph.left_out['all']['over_cap']:,}",
            f"{graph.left_out['all']['users']:,}",
            f"{graph.left_out['all']['items']:,}",
        )
