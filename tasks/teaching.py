"""What techniques share that learn from a teacher's logits."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tasks.errors import TechniqueError
from tasks.technique import Context
from tasks.training.batches import UNLABELLED, Batch, Examples, join
from tasks.training.config import TrainingConfig

_LOGITS = "teacher_logits"


class SoftAndHardLoss:
    """α·T²·KL(teacher ∥ student) at temperature T, plus (1 − α)·cross-entropy with the label.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: both
    distributions are softened by T, and T² keeps the soft gradient's size when T changes. The mean
    runs over the batch; a text without a label has the soft term alone.
    """

    def __init__(self, temperature: float, alpha: float) -> None:
        self.temperature = temperature
        self.alpha = alpha

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the loss (scalar) of `output.logits` (batch, labels)."""
        student = output.logits.float()
        teacher = batch[_LOGITS].float()
        soft = F.kl_div(
            F.log_softmax(student / self.temperature, dim=-1),
            F.log_softmax(teacher / self.temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(student, batch["labels"], ignore_index=UNLABELLED, reduction="sum")
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard / len(student)


def lesson(
    context: Context, labels: tuple[str, ...], teacher: str, training: TrainingConfig, *,
    transfer: bool,
) -> tuple[Examples, TrainingConfig]:  # fmt: skip
    """Return the training examples with the teacher's logits, and the settings to fit them with.

    `max_examples` and `max_transfer` are applied here, to each kind on its own, so that their
    proportion is the one asked for; the settings returned no longer hold the former.

    Raises TechniqueError where the teacher knows other labels.
    """
    master = context.teachers[teacher]
    if master.labels != labels:
        raise TechniqueError(
            f"teacher `{teacher}` knows the labels {', '.join(master.labels)}, not "
            f"{', '.join(labels)}: name a teacher trained on the same labels"
        )
    kinds = [context.train.sample(training.max_examples, context.seed)]
    if transfer and len(context.transfer) > 0:
        kinds.append(context.transfer.sample(training.max_transfer, context.seed))
    taught = [
        examples.with_columns(**{_LOGITS: np.asarray(master.logits(examples), dtype=np.float32)})
        for examples in kinds
        if len(examples) > 0
    ]
    merged = taught[0] if len(taught) == 1 else join(*taught)
    return merged, training.model_copy(update={"max_examples": None})
