"""Learn from several teachers at once.

    loss = α·T²·KL(Σ_k w_k·softmax(z_k/T) ∥ softmax(z_student/T)) + (1 − α)·CE(label, z_student)

The target is the arithmetic mean of the teachers' softened distributions (Hinton, Vinyals and Dean
2015, "Distilling the Knowledge in a Neural Network", section 2). The weights w_k sum to 1. They are
given, or they follow, text by text, how sure each teacher is, c_k = max softmax(z_k):

    w_k ∝ v_k·c_k^γ

with v_k the weights given. A large γ leaves each text to the teacher who is surest of it (weights
by each example's confidence: Kwon et al. 2020, "Adaptive Knowledge Distillation Based on Entropy",
who take the entropy for it). Each teacher answers each text once; the logits are kept. T and α may
move over the training.

The student is chosen as in logit distillation; a cut is of the first teacher. Applies to every
model, and the teachers may be of different kinds and tokenizers: only their answers are learned.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from tasks import students
from tasks.bundle import Bundle
from tasks.students import StudentConfig, student
from tasks.teaching import EnsembleLoss, SoftConfig, lesson, teacher_of
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "answers"
_Name = Annotated[str, Field(min_length=1)]
_Weight = Annotated[float, Field(gt=0)]


class Config(SoftConfig):
    """Settings of distillation from several teachers."""

    teachers: tuple[_Name, ...] = Field(min_length=2)
    """The recipes whose last nodes teach, `baseline` among them or not."""
    weights: tuple[_Weight, ...] | None = None
    """One a teacher, in their order; only their proportions count. None: equal."""
    by: Literal["weights", "confidence"] = "weights"
    """Weigh the teachers alike for all texts, or each by how sure it is of the text."""
    sharpness: float = Field(default=1.0, gt=0, le=100)
    """γ: how much more the surer teacher counts; with `by: confidence`."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    student: StudentConfig | None = None
    """A smaller model; None: the node before."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _one_weight_each(self) -> "Config":
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("`teachers` names one twice: give it a larger weight instead")
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(
                f"{len(self.weights)} `weights` for {len(self.teachers)} teachers: give one each"
            )
        return self


def _cuts(config: Config) -> str | None:
    return students.cuts(config, config.teachers[0])


LEAVES, REFUSES, KEEPS = students.leaves, students.refuses, students.keeps
CUTS = _cuts


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the student, trained.

    Raises TechniqueError where a teacher knows other labels, the student is not smaller than what
    it comes from or its widths do not fit together, or the first teacher cannot be cut.
    """
    for name in config.teachers:
        teacher_of(context, name, bundle.labels)
    taught = student(bundle, config.student, context, config.teachers[0])
    examples, training = lesson(
        context, bundle.labels, config.teachers, config.training, transfer=config.transfer
    )
    loss = EnsembleLoss(config, lambda logits: weigh(logits, config))
    fit(
        taught,
        examples,
        context.validation,
        training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        loss=loss,
        before_step=loss.move,
    )
    return taught


def weigh(logits: torch.Tensor, config: Config) -> torch.Tensor:
    """Return the weights (batch, teachers) of logits (batch, teachers, labels); rows sum to 1."""
    given = [math.log(weight) for weight in config.weights or [1.0] * len(config.teachers)]
    powers = torch.tensor(given, device=logits.device).expand(logits.shape[:2])
    if config.by == "confidence":
        powers = powers + config.sharpness * logits.log_softmax(dim=-1).amax(dim=-1)
    return powers.softmax(dim=1)
