"""What techniques share that learn from a teacher's answers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.technique import Context, Teacher
from tasks.training.batches import UNLABELLED, Batch, Examples, join
from tasks.training.config import TrainingConfig

TEACHER_LOGITS = "teacher_logits"
"""The column of the teacher's logits: (labels,) a text, or (teachers, labels) for several."""
Form = Literal["kl", "cross_entropy"]
Shape = Literal["linear", "cosine", "exponential"]


class SoftConfig(Frozen):
    """How a teacher's answers are weighed against the labels, and how that moves in training."""

    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens both distributions."""
    temperature_end: float | None = Field(default=None, gt=0, le=100)
    """The temperature that the last step has; None: it stays as it is."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the soft loss; 1 − alpha is the labels'."""
    alpha_end: float | None = Field(default=None, ge=0, le=1)
    """The alpha that the last step has; None: it stays as it is."""
    schedule: Shape | None = None
    """How temperature and alpha move to their ends; exponential: by a constant factor a step.
    None: linear."""
    loss: Form = "kl"
    """The soft loss. Their gradients are equal: they differ by the entropy of the teacher."""

    @model_validator(mode="after")
    def _moves(self) -> "SoftConfig":
        still = self.temperature_end is None and self.alpha_end is None
        if still and self.schedule is not None:
            raise ValueError("`schedule` needs `temperature_end` or `alpha_end` to move to")
        if self.schedule == "exponential" and self.alpha_end == 0:
            raise ValueError("an exponential `schedule` never reaches `alpha_end` 0: take linear")
        return self


class SoftAndHardLoss:
    """α·T²·soft(teacher, student) at temperature T, plus (1 − α)·cross-entropy with the label.

    soft is, of the teacher's distribution p and the student's q, the log-likelihood form
    KL(p ∥ q) = Σ p·(ln p − ln q), or the cross-entropy −Σ p·ln q, which is larger by the entropy of
    p. Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2:
    both distributions are softened by T, and T² keeps the soft gradient's size when T changes. The
    mean runs over the batch; a text without a label has the soft term alone.
    """

    def __init__(self, temperature: float, alpha: float, form: Form = "kl") -> None:
        self.temperature = temperature
        self.alpha = alpha
        self.form = form

    def target(self, batch: Batch) -> torch.Tensor:
        """Return the teacher's log-probabilities (batch, labels) at the temperature."""
        return F.log_softmax(batch[TEACHER_LOGITS].float() / self.temperature, dim=-1)

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the loss (scalar) of `output.logits` (batch, labels)."""
        student = output.logits.float()
        log_q = F.log_softmax(student / self.temperature, dim=-1)
        log_p = self.target(batch)
        if self.form == "kl":
            soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        else:
            soft = -(log_p.exp() * log_q).sum(dim=-1).mean()
        hard = F.cross_entropy(student, batch["labels"], ignore_index=UNLABELLED, reduction="sum")
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard / len(student)


class MovingLoss(SoftAndHardLoss):
    """The same with temperature and mixing that move over the training, as the settings say.

    A falling temperature: Jafari et al. 2021, "Annealing Knowledge Distillation". A falling alpha,
    from the teacher to the labels: Clark et al. 2019, "BAM! Born-Again Multi-Task Networks for
    Natural Language Understanding", teacher annealing.
    """

    def __init__(self, config: SoftConfig) -> None:
        super().__init__(config.temperature, config.alpha, config.loss)
        self.config = config

    def move(self, step: int, total: int) -> None:
        """Set what the step after `step` of `total` steps is computed with."""
        config, done = self.config, step / max(total - 1, 1)
        if config.temperature_end is not None:
            self.temperature = between(
                config.temperature, config.temperature_end, done, config.schedule
            )
        if config.alpha_end is not None:
            self.alpha = between(config.alpha, config.alpha_end, done, config.schedule)


def between(start: float, end: float, done: float, shape: Shape | None) -> float:
    """Return the value after the share `done` of the way from `start` to `end`."""
    if shape == "exponential":
        return float(start * (end / start) ** done)
    if shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * done


class EnsembleLoss(MovingLoss):
    """The same with several teachers, whose mean distribution p = Σ_k w_k·p_k is learned.

    `weigh` gives the weights (batch, teachers) of their logits (batch, teachers, labels).
    """

    def __init__(self, config: SoftConfig, weigh: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(config)
        self.weigh = weigh

    def target(self, batch: Batch) -> torch.Tensor:
        """Return the log of the mean distribution (batch, labels) at the temperature."""
        teachers = batch[TEACHER_LOGITS].float()
        weights = self.weigh(teachers)[..., None]
        each = F.log_softmax(teachers / self.temperature, dim=-1)
        return torch.logsumexp(each + weights.log(), dim=1)


def teacher_of(context: Context, name: str, labels: tuple[str, ...]) -> Teacher:
    """Return the teacher called `name`.

    Raises TechniqueError where it knows other labels.
    """
    teacher = context.teachers[name]
    if teacher.labels != labels:
        raise TechniqueError(
            f"teacher `{name}` knows the labels {', '.join(teacher.labels)}, not "
            f"{', '.join(labels)}: name a teacher trained on the same labels"
        )
    return teacher


def texts(
    context: Context, training: TrainingConfig, *, transfer: bool
) -> tuple[list[Examples], TrainingConfig]:
    """Return the labelled texts and, if asked, the unlabelled ones, and settings to fit with.

    `max_examples` and `max_transfer` are applied here, to each kind on its own, so that their
    proportion is the one asked for; the settings returned no longer hold the former.
    """
    kinds = [context.train.sample(training.max_examples, context.seed)]
    if transfer:
        kinds.append(context.transfer.sample(training.max_transfer, context.seed))
    unlimited = training.model_copy(update={"max_examples": None})
    return [examples for examples in kinds if len(examples) > 0], unlimited


def lesson(
    context: Context, labels: tuple[str, ...], teacher: str | tuple[str, ...],
    training: TrainingConfig, *, transfer: bool,
) -> tuple[Examples, TrainingConfig]:  # fmt: skip
    """Return the training examples with the teacher's logits, and the settings to fit them with.

    Of several teachers the column holds all logits, (texts, teachers, labels). Raises
    TechniqueError where a teacher knows other labels, or there are no texts.
    """
    names = (teacher,) if isinstance(teacher, str) else teacher
    masters = [teacher_of(context, name, labels) for name in names]
    kinds, unlimited = texts(context, training, transfer=transfer)
    columns = [
        [np.asarray(master.logits(examples), dtype=np.float32) for examples in kinds]
        for master in masters
    ]
    taught = []
    for examples, answers in zip(kinds, zip(*columns, strict=True), strict=True):
        column = answers[0] if isinstance(teacher, str) else np.stack(answers, axis=1)
        taught.append(examples.with_columns(**{TEACHER_LOGITS: column}))
    return together(taught), unlimited


def together(kinds: Sequence[Examples]) -> Examples:
    """Return all examples, one kind after the other.

    Raises TechniqueError where there are none.
    """
    if not kinds:
        raise TechniqueError("there are no training texts: give more data")
    merged = kinds[0]
    for examples in kinds[1:]:
        merged = join(merged, examples)
    return merged
