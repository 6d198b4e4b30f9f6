"""A training in a process of its own, to be killed. Arguments: scratch folder, weights' folder."""

import os
import sys
from pathlib import Path

import safetensors.torch
import torch

from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tests import tiny

SETTINGS = {
    "epochs": 8,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "checkpoint_seconds": 1e-6,
    "evaluations_per_epoch": 2,
    "patience": 100,
}
NUM_STEPS = 64


class Teller:
    """Writes every step to standard output at once."""

    def __init__(self) -> None:
        self.step = 0

    def start(self, description: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        """Say the step."""
        self.step += steps
        os.write(1, f"{self.step}\n".encode())

    def stop(self) -> None:
        """Ignore."""


def weights(scratch: Path) -> dict[str, torch.Tensor]:
    """Train in `scratch`, or go on there; return the weights."""
    torch.set_num_threads(1)
    bundle = tiny.tiny_bert()
    bundle.sparse = ("bert.encoder.layer.0.output.dense.weight",)
    bundle.model.get_parameter(bundle.sparse[0]).data[:4] = 0
    fit(
        bundle,
        tiny.examples(64),
        tiny.examples(32, seed=1),
        TrainingConfig.model_validate(SETTINGS),
        seed=3,
        device=torch.device("cpu"),
        scratch=scratch,
        progress=Teller(),
    )
    return dict(bundle.model.state_dict())


if __name__ == "__main__":
    safetensors.torch.save_file(weights(Path(sys.argv[1])), sys.argv[2])
