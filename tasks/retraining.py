"""The training that follows a change of a model's structure: labels, and a teacher if one is named.

Settings that inherit from `Retraining` get it whole. With a teacher the loss is
α·T²·KL(teacher ∥ student) + (1 − α)·cross-entropy (`tasks/teaching.py`), without one the
cross-entropy with the labels.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.teaching import SoftAndHardLoss, lesson
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.record import FitResult


class Retraining(Frozen):
    """Settings of the training afterwards."""

    teacher: str | None = None
    """Retrain with the logits of this recipe (or `baseline`) beside the labels."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens both distributions; with a teacher."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the soft loss; 1 − alpha is the labels'. With a teacher."""
    transfer: bool = True
    """Train on unlabelled texts of other domains too; with a teacher."""
    training: TrainingConfig = TrainingConfig()


def prepare(
    labels: tuple[str, ...], config: Retraining, context: Context
) -> Callable[..., FitResult]:
    """Return a function that trains a bundle in place; called beforehand, it refuses beforehand.

    Further arguments of that function go to `fit`.

    Raises TechniqueError where the teacher knows other labels than `labels`.
    """
    examples, training = context.train, config.training
    more: dict[str, Any] = {}
    if config.teacher is not None:
        examples, training = lesson(
            context, labels, config.teacher, config.training, transfer=config.transfer
        )
        more = {"loss": SoftAndHardLoss(config.temperature, config.alpha)}

    def train(bundle: Bundle, **others: Any) -> FitResult:
        return fit(
            bundle,
            examples,
            context.validation,
            training,
            seed=context.seed,
            device=context.device,
            scratch=context.scratch,
            progress=context.progress,
            **more,
            **others,
        )

    return train
