"""The loss that labels give, and how answers are measured against labels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tasks.training.batches import UNLABELLED, Batch

Loss = Callable[[Any, Batch], torch.Tensor]
"""(model output with `.logits`, batch) → scalar."""


def cross_entropy(output: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over the labelled texts of the batch; 0 where none is."""
    labels = batch["labels"]
    summed = F.cross_entropy(
        output.logits.float(), labels, ignore_index=UNLABELLED, reduction="sum"
    )
    return summed / (labels != UNLABELLED).sum().clamp(min=1)


def measured(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy of logits (texts, labels) on labelled texts."""
    known = labels != UNLABELLED
    rows, truth = logits[known].astype(np.float64), labels[known]
    rows -= rows.max(axis=1, keepdims=True)
    log_likelihood = rows[np.arange(len(rows)), truth] - np.log(np.exp(rows).sum(axis=1))
    return float(-log_likelihood.mean()), float((rows.argmax(axis=1) == truth).mean())
