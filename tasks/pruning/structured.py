"""Remove attention heads and feed-forward neurons, those that matter least first.

A part's importance is first-order: how much the loss of an example changes when the part's output
goes to zero, |Σ activation × gradient|, summed over examples (`tasks/importance.py`; Michel, Levy
and Neubig 2019, "Are Sixteen Heads Really Better than One?"; Molchanov et al. 2019, "Importance
Estimation for Neural Network Pruning"). The least important are cut out of the matrices, so that
the model is smaller and faster in any runtime; then it is retrained, with a teacher if one is
named.

Ranked over all layers together, layers may end unequal, each with at least one head and one group
of neurons. Applies to BERT and its kin, DistilBERT and GPT-2, and, for neurons alone, to MPNet.
"""

from typing import Any

from pydantic import Field, model_validator

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import Importance, choose, first_order, normalized
from tasks.teaching import SoftAndHardLoss, lesson
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "parameters"


class Config(Frozen):
    """Settings of structured pruning."""

    heads: float = Field(default=0.5, gt=0, le=1)
    """Share of the attention heads to keep."""
    neurons: float = Field(default=0.5, gt=0, le=1)
    """Share of the feed-forward neurons to keep."""
    uniform_heads: bool = False
    """Keep equally many heads in every layer, instead of ranking all layers together."""
    uniform_neurons: bool = False
    """Keep equally many neurons in every layer, instead of ranking all layers together."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    normalize: bool = True
    """Divide a layer's scores by their L2 norm before layers are ranked together."""
    importance_examples: int = Field(default=512, ge=1)
    """Training examples that importance is measured on."""
    teacher: str | None = None
    """Retrain with the logits of this recipe (or `baseline`) beside the labels."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens both distributions; with a teacher."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the soft loss; 1 − alpha is the labels'. With a teacher."""
    transfer: bool = True
    """Train on unlabelled texts of other domains too; with a teacher."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _removes(self) -> "Config":
        if self.heads == 1 and self.neurons == 1:
            raise ValueError("`heads` and `neurons` are both 1: nothing would be removed")
        return self


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with heads and neurons removed, retrained.

    Raises TechniqueError where the model's parts are unknown or shared, its heads cannot be cut,
    nothing would be removed, or the teacher knows other labels.
    """
    pressed = bundle.copy()
    parts = model_parts.layers(pressed.model)
    model_parts.require_untied(pressed.model)
    if config.heads < 1 and not model_parts.cuts_heads(pressed.model):
        raise TechniqueError(
            f"heads cannot be cut from a model of type `{pressed.model.config.model_type}`: "
            "set `heads: 1`"
        )
    examples, training, loss = _retraining(bundle, config, context)
    measured = context.train.sample(config.importance_examples, context.seed)
    importance = first_order(pressed, measured, context.device)
    cut(parts, importance, config)
    if pressed.num_parameters() == bundle.num_parameters():
        raise TechniqueError(
            "nothing would be removed: the model is too small for these shares; lower `heads`, "
            "`neurons` or `multiple`"
        )
    fit(
        pressed,
        examples,
        context.validation,
        training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        **loss,
    )
    return pressed


def _retraining(bundle: Bundle, config: Config, context: Context) -> tuple[Any, ...]:
    """Return examples, training settings and the loop's further arguments."""
    if config.teacher is None:
        return context.train, config.training, {}
    examples, training = lesson(
        context, bundle.labels, config.teacher, config.training, transfer=config.transfer
    )
    return examples, training, {"loss": SoftAndHardLoss(config.temperature, config.alpha)}


def cut(parts: list[model_parts.Layer], importance: Importance, config: Config) -> None:
    """Remove the least important heads and neurons of `parts`, in place."""
    scale = normalized if config.normalize else list
    if config.heads < 1:
        kept = choose(scale(importance.heads), config.heads, even=config.uniform_heads)
        for part, heads in zip(parts, kept, strict=True):
            part.keep_heads(heads)
    if config.neurons < 1:
        kept = choose(
            scale(importance.neurons),
            config.neurons,
            even=config.uniform_neurons,
            multiple=config.multiple,
        )
        for part, neurons in zip(parts, kept, strict=True):
            part.keep_neurons(neurons)
