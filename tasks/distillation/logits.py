"""Learn a teacher's logits beside the labels.

    loss = α·T²·KL(softmax(z_teacher/T) ∥ softmax(z_student/T)) + (1 − α)·CE(label, z_student)

(Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".) Texts of other
domains can be learned from too, unlabelled: the teacher answers for them, and their loss is the
soft term alone. The teacher answers each text once; its logits are kept.

The student is the node before, or a fresh smaller model of the same architecture and tokenizer.
Applies to every model; a fresh student needs an architecture whose widths are settings.
"""

import copy
from typing import Any

from pydantic import Field, model_validator
from transformers import AutoModelForSequenceClassification

from tasks.bundle import Bundle, ExportPlan
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.teaching import SoftAndHardLoss, lesson
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.seeding import seed_everything

EFFECT = "answers"


class StudentConfig(Frozen):
    """A fresh model; what is not given is as in the node before."""

    layers: int | None = Field(default=None, ge=1)
    """Transformer layers."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the residual stream."""
    ffn: int | None = Field(default=None, ge=1)
    """Width of the feed-forward networks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of a layer; they divide `hidden`."""

    @model_validator(mode="after")
    def _fits(self) -> "StudentConfig":
        if not self.model_dump(exclude_none=True):
            raise ValueError("a student needs `layers`, `hidden`, `ffn` or `heads`")
        if self.hidden and self.heads and self.hidden % self.heads:
            raise ValueError(f"`hidden` {self.hidden} is not a multiple of `heads` {self.heads}")
        return self


class Config(Frozen):
    """Settings of logit distillation."""

    teacher: str = Field(default="baseline", min_length=1)
    """The recipe whose last node teaches, or `baseline`."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens both distributions."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the soft loss; 1 − alpha is the labels'."""
    transfer: bool = True
    """Learn from unlabelled texts of other domains too."""
    student: StudentConfig | None = None
    """A fresh smaller model; None: the node before."""
    training: TrainingConfig = TrainingConfig()


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the student, trained.

    Raises TechniqueError where the teacher knows other labels, or the fresh student is not
    smaller than the node before or its widths do not fit together.
    """
    student = bundle.copy() if config.student is None else fresh(bundle, config.student, context)
    examples, training = lesson(
        context, bundle.labels, config.teacher, config.training, transfer=config.transfer
    )
    fit(
        student,
        examples,
        context.validation,
        training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        loss=SoftAndHardLoss(config.temperature, config.alpha),
    )
    return student


_WIDTHS = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
_FFN = ("intermediate_size", "hidden_dim", "n_inner")
"""What architectures call the width of the feed-forward network: BERT, DistilBERT, GPT-2."""


def fresh(bundle: Bundle, widths: StudentConfig, context: Context) -> Bundle:
    """Return a bundle with a new model of the given widths, random by the context's seed.

    Raises TechniqueError where it would not be smaller, or the widths do not fit together.
    """
    model_config = copy.deepcopy(bundle.model.config)
    for name, value in widths.model_dump(exclude_none=True, exclude={"ffn"}).items():
        setattr(model_config, _WIDTHS[name], value)
    if widths.ffn is not None:
        setattr(model_config, _ffn_name(model_config), widths.ffn)
    if model_config.hidden_size % model_config.num_attention_heads:
        raise TechniqueError(
            f"the student's hidden width {model_config.hidden_size} is not a multiple of its "
            f"{model_config.num_attention_heads} heads: set `hidden` or `heads`"
        )
    seed_everything(context.seed)
    student = Bundle(
        model=AutoModelForSequenceClassification.from_config(model_config),
        tokenizer=bundle.tokenizer,
        labels=bundle.labels,
        max_length=bundle.max_length,
        export=ExportPlan(),
    )
    if student.num_parameters() >= bundle.num_parameters():
        raise TechniqueError(
            f"the student has {student.num_parameters():,} parameters, not fewer than the node "
            f"before it ({bundle.num_parameters():,}): give it smaller widths"
        )
    return student


def _ffn_name(model_config: Any) -> str:
    for name in _FFN:
        if hasattr(model_config, name):
            return name
    raise TechniqueError(
        f"a student of type `{model_config.model_type}` has no width `ffn` to set: leave it out"
    )
