"""What a technique gets to work with: examples of the prepared data, teachers, a device."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tasks.data import prepared
from tasks.technique import Context, Teacher
from tasks.training.batches import Examples, unlabelled
from tasks.training.progress import Progress


@lru_cache(maxsize=8)
def labelled(folder: Path, split: str, labels: tuple[str, ...]) -> Examples:
    """Return a split as examples; a label is its place in `labels`."""
    frame = prepared.read(folder, split)
    index = {label: number for number, label in enumerate(labels)}
    numbers = np.array([index[label] for label in frame["label"]], dtype=np.int64)
    return Examples(frame["text"].tolist(), numbers)


@lru_cache(maxsize=4)
def transfer(folder: Path) -> Examples:
    """Return the unlabelled texts of other domains."""
    return unlabelled(prepared.read(folder, "transfer")["text"].tolist())


def build(
    folder: Path,
    labels: tuple[str, ...],
    *,
    teachers: Mapping[str, Teacher],
    seed: int,
    device: torch.device,
    scratch: Path,
    progress: Progress,
) -> Context:
    """Return the context of one node over the prepared data in `folder`."""
    return Context(
        train=labelled(folder, "train", labels),
        validation=labelled(folder, "validation", labels),
        transfer=transfer(folder),
        teachers=teachers,
        seed=seed,
        device=device,
        scratch=scratch,
        progress=progress,
    )
