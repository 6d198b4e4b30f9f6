"""The loss that labels give."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tasks.training.batches import UNLABELLED, Batch

Loss = Callable[[Any, Batch], torch.Tensor]
"""(model output with `.logits`, batch) → scalar."""


def cross_entropy(output: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over the labelled texts of the batch."""
    return F.cross_entropy(output.logits.float(), batch["labels"], ignore_index=UNLABELLED)
