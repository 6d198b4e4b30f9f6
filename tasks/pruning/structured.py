"""Remove heads, feed-forward neurons, dimensions of the residual stream, and whole layers.

Those go first that matter least. A part's importance is by default first-order: how much the loss
of an example changes when a gate ξ on the part goes from 1 to 0, summed over examples

    I = Σ_x |∂L(x)/∂ξ|

(`tasks/importance.py`, `tasks/stream_importance.py`; Michel, Levy and Neubig 2019, "Are Sixteen
Heads Really Better than One?"; Molchanov et al. 2019, "Importance Estimation for Neural Network
Pruning"); by setting its square, which is the Fisher information's diagonal (Theis et al. 2018), or
the norm of the part's weights (Li et al. 2017). All scores are taken once, of the model as it is
given. What goes is cut out of the matrices, so that the model is smaller and faster in any
runtime; then it is retrained, with a teacher if one is named.

Heads and neurons are ranked over all layers together, so that layers may end unequal, each with at
least one head and one group of neurons. A dimension of the residual stream is cut everywhere at
once: embeddings, norms, every layer's inputs and outputs, pooler and classifier; norms then run
over the dimensions that are left (so does the width of the model in Sheared LLaMA: Xia et al.
2024). The hidden layer before the classifier is cut to as large a share, by its own scores.

Applies to BERT and its kin, DistilBERT and GPT-2, and, but for heads, to MPNet.
"""

from typing import Any

import torch
from pydantic import Field, model_validator

from tasks import model_parts, stream_importance
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import Criterion, Importance, calibration, choose, normalized, score
from tasks.stream import stream
from tasks.stream_importance import StreamImportance
from tasks.teaching import SoftAndHardLoss, lesson
from tasks.technique import Context
from tasks.training.batches import Examples
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "parameters"


class Config(Frozen):
    """Settings of structured pruning."""

    heads: float = Field(default=0.5, gt=0, le=1)
    """Share of the attention heads to keep."""
    neurons: float = Field(default=0.5, gt=0, le=1)
    """Share of the feed-forward neurons to keep."""
    hidden: float = Field(default=1.0, gt=0, le=1)
    """Share of the residual stream's dimensions to keep (the hidden width)."""
    layers: float = Field(default=1.0, gt=0, le=1)
    """Share of the layers to keep, one at least."""
    criterion: Criterion = "first_order"
    """How importance is measured; `magnitude` reads no data."""
    uniform_heads: bool = False
    """Keep equally many heads in every layer, instead of ranking all layers together."""
    uniform_neurons: bool = False
    """Keep equally many neurons in every layer, instead of ranking all layers together."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    hidden_multiple: int = Field(default=32, ge=1)
    """Dimensions of the residual stream are kept in groups of this many."""
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
        if self.heads == self.neurons == self.hidden == self.layers == 1:
            raise ValueError(
                "`heads`, `neurons`, `hidden` and `layers` are all 1: nothing would be removed"
            )
        return self


def _refuses(config: Config) -> tuple[str, ...]:
    narrower = ("factorized embeddings",) if config.hidden < 1 else ()
    return ("recurrent layers", "shared matrices", *narrower)


REFUSES = _refuses


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with the least important parts removed, retrained.

    Raises TechniqueError where the model's parts are unknown or shared, its heads cannot be cut,
    nothing would be removed, there are no training texts, or the teacher knows other labels.
    """
    model_parts.layer_list(bundle.model)  # refuses a model that cannot be cut
    model_parts.require_untied(bundle.model)
    if config.hidden < 1:
        stream(bundle.model).require_tables()
    if config.heads < 1 and not model_parts.cuts_heads(bundle.model):
        raise TechniqueError(
            f"heads cannot be cut from a model of type `{bundle.model.config.model_type}`: "
            "set `heads: 1`"
        )
    measured = calibration(context, config.importance_examples)
    examples, training, loss = _retraining(bundle, config, context)
    pressed = bundle.copy()
    _shrink(pressed, config, measured, context)
    if pressed.num_parameters() == bundle.num_parameters():
        raise TechniqueError(
            "nothing would be removed: the model is too small for these shares; lower `heads`, "
            "`neurons`, `hidden`, `layers`, `multiple` or `hidden_multiple`"
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


def _shrink(pressed: Bundle, config: Config, measured: Examples, context: Context) -> None:
    """Measure, then cut, in place."""
    importance = score(pressed, measured, context.device, config.criterion)
    if config.hidden < 1 or config.layers < 1:
        scores = stream_importance.score(pressed, measured, context.device, config.criterion)
        kept = cut_layers(pressed, scores, config)
        importance = Importance(
            [importance.heads[i] for i in kept], [importance.neurons[i] for i in kept]
        )
        cut_width(pressed, scores, config)
    cut(model_parts.layers(pressed.model), importance, config)


def _retraining(bundle: Bundle, config: Config, context: Context) -> tuple[Any, ...]:
    """Return examples, training settings and the loop's further arguments."""
    if config.teacher is None:
        return context.train, config.training, {}
    examples, training = lesson(
        context, bundle.labels, config.teacher, config.training, transfer=config.transfer
    )
    return examples, training, {"loss": SoftAndHardLoss(config.temperature, config.alpha)}


def cut_layers(bundle: Bundle, scores: StreamImportance, config: Config) -> list[int]:
    """Remove the least important layers, in place; return the places of those that stay."""
    (kept,) = choose([scores.layers], config.layers, even=False)
    if len(kept) < len(scores.layers):
        path, _ = model_parts.layer_list(bundle.model)
        model_parts.keep_layers(bundle.model, kept)
        bundle.sparse = model_parts.renamed(bundle.sparse, path, kept)
    return kept


def cut_width(bundle: Bundle, scores: StreamImportance, config: Config) -> None:
    """Remove the least important dimensions of the residual stream, in place."""
    if config.hidden == 1:
        return

    def best(one: torch.Tensor) -> list[int]:
        return choose([one], config.hidden, even=False, multiple=config.hidden_multiple)[0]

    pooled = best(scores.pooled) if len(scores.pooled) > 0 else None
    stream(bundle.model).keep(best(scores.dimensions), pooled)


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
