"""Interactions in, the split graph's arrays out."""

import logging
from pathlib import Path

import numpy as np
from prefect import task

from models.graph import load_csr
from tasks.contracts import Graph, Interactions, Run
from tasks.errors import is_worth_a_retry
from tasks.graph.edges import write_graph
from tasks.graph.ids import number_ids, read_pairs, save_ids
from tasks.graph.split import first_instant, split_by_time
from tasks.run import finish_stage

log = logging.getLogger("nightgraph.graph")


@task(persist_result=False, result_serializer="json", retry_condition_fn=is_worth_a_retry)
def build_graph(run: Run, interactions: Interactions) -> Graph:
    """Number the ids, split the likes by time, write both fits' graphs."""
    return finish_stage(
        run,
        "graph",
        Graph,
        lambda folder: _build(run, interactions, folder),
        inputs=(interactions.fingerprint, run.config.graph),
    )


def _build(run: Run, interactions: Interactions, folder: Path) -> Graph:
    settings = run.config.graph
    pairs, user_ids, item_ids = number_ids(read_pairs(Path(interactions.folder)))
    parted = split_by_time(
        pairs, split=settings.split, validation_share=settings.validation_share, test_share=settings.test_share
    )
    save_ids(folder, user_ids, item_ids)
    fingerprint = write_graph(parted, folder, num_users=len(user_ids), num_items=len(item_ids))
    likes = {name: load_csr(folder, f"liked_{name}").counts() for name in ("train", "validation", "test", "all")}
    graph = Graph(
        folder=str(folder),
        fingerprint=fingerprint,
        split=settings.split,
        num_users=len(user_ids),
        num_items=len(item_ids),
        num_likes=int(likes["all"].sum()),
        num_train=int(likes["train"].sum()),
        num_validation=int(likes["validation"].sum()),
        num_test=int(likes["test"].sum()),
        num_validation_users=int(np.count_nonzero(likes["validation"])),
        num_test_users=int(np.count_nonzero(likes["test"])),
        num_test_users_with_history=int(np.count_nonzero((likes["test"] > 0) & (likes["train"] > 0))),
        validation_from_us=first_instant(parted, "validation", settings.split),
        test_from_us=first_instant(parted, "test", settings.split),
    )
    log.info(
        "%s users x %s items, likes: %s train, %s validation, %s test (%s)",
        f"{graph.num_users:,}",
        f"{graph.num_items:,}",
        f"{graph.num_train:,}",
        f"{graph.num_validation:,}",
        f"{graph.num_test:,}",
        graph.split,
    )
    return graph
