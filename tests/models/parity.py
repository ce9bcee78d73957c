"""What ranks compute, written down for a test to compare: `python -m tests.models.parity spec.json`, by torchrun.

For each split, cold and from the spec's start: the gradient of the first step, and table and lists' tables after one
pass.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.clock import Clock
from models.distributed import SPLITS, Ranks, join_ranks
from models.fold_in import fold_table
from models.graph import load_csr
from models.train import Spec, begin, sampler_of


def first_step_and_one_pass(spec: Spec, ranks: Ranks) -> dict[str, torch.Tensor]:
    liked = load_csr(spec.graph_folder, "liked_train")
    training = begin(spec, ranks, "judged", liked, Clock())
    sampler = sampler_of(spec, liked, ranks.device, training.likeness_U)
    measured: dict[str, torch.Tensor] = {}
    for number, step in enumerate(sampler.epoch(1, ranks.rank, ranks.world)):
        training.step(step, learning_rate=spec.learning_rate, at=(1, number))
        if number == 0:
            gradient = training.model.table.grad
            assert gradient is not None
            measured["gradient"] = training.layout.whole(gradient).clone()
    tables = training.tables()
    measured |= tables._asdict() | {"hop_ID": training.hop()}
    measured["fold_ID"], measured["fold_length"] = fold_table(tables, training.liked, training.degree_I)
    return {name: tensor.contiguous() for name, tensor in measured.items()}


def main(spec_path: str) -> None:
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    torch.set_num_threads(1)
    with join_ranks("cpu", timeout_s=60) as ranks:
        for loss in ("softmax", "bpr"):
            for split in SPLITS:
                for begun, start in (("cold", ""), ("warm", spec.start)):
                    measured = first_step_and_one_pass(replace(spec, split=split, loss=loss, start=start), ranks)
                    if ranks.is_first:
                        save_file(measured, Path(spec.output_folder) / f"{loss}-{split}-{begun}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
