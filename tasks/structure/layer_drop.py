"""Drop whole Transformer layers.

The residual stream carries the kept layers' outputs past the gap; later training or distillation
closes it (Sajjad et al. 2023, "On the Effect of Dropping Layers of Pre-trained Transformer
Models"; DistilBERT starts from every second layer: Sanh et al. 2019). With n layers of which k
stay, `even` keeps layer round(i·(n − 1)/(k − 1)) for i = 0 … k − 1, so the first and the last.
`importance` keeps the k layers on which the loss depends most, to first order: with a gate ξ = 1 on
what a layer f changes, x + ξ·(f(x) − x), its score is Σ_x |∂L(x)/∂ξ| over training examples
(`tasks/stream_importance.py`; the Taylor criterion of Molchanov et al. 2019), in one pass.

Applies to BERT and its kin, DistilBERT, MPNet and GPT-2; a model whose layers share one set of
weights (ALBERT) is refused. Nothing is trained, and only `importance` reads data.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator

from tasks import model_parts, stream_importance
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import calibration
from tasks.technique import Context

_Count = Annotated[int, Field(ge=1)]
_Index = Annotated[int, Field(ge=0)]

EFFECT = "parameters"
REFUSES = ("recurrent layers",)


class Config(Frozen):
    """Which layers stay."""

    keep: _Count | tuple[_Index, ...]
    """How many layers stay, or the list of them (0 is the first)."""
    strategy: Literal["even", "top", "bottom", "importance"] = "even"
    """For a number: spread over the depth, the last, the first, or the most important ones."""
    importance_examples: int = Field(default=512, ge=1)
    """Training examples that importance is measured on."""

    @field_validator("keep")
    @classmethod
    def _ascending(cls, keep: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(keep, tuple) and (not keep or list(keep) != sorted(set(keep))):
            raise ValueError("a list of layers to keep must name each once, in ascending order")
        return keep

    @model_validator(mode="after")
    def _one_way(self) -> "Config":
        # of a node's settings every default is written out, so that `even` may be one
        if isinstance(self.keep, tuple) and self.strategy != "even":
            raise ValueError("`strategy` goes with a number of layers, not with a list of them")
        return self


def _reads_data(config: Config) -> bool:
    return config.strategy == "importance"


READS_DATA = _reads_data


def kept_layers(
    config: Config, num_layers: int, scores: Callable[[], torch.Tensor] | None = None
) -> list[int]:
    """Return the ascending indices of the layers that stay.

    `scores` gives the layers' importance where the strategy asks for it. Raises TechniqueError
    where the model has no such layer, or none would go.
    """
    wanted = len(config.keep) if isinstance(config.keep, tuple) else config.keep
    if isinstance(config.keep, tuple) and config.keep[-1] >= num_layers:
        raise TechniqueError(
            f"the model has no layer {config.keep[-1]}: its layers are 0 to {num_layers - 1}"
        )
    if wanted >= num_layers:
        raise TechniqueError(
            f"the model has {num_layers} layers: `keep` must be fewer for any to be dropped"
        )
    if isinstance(config.keep, tuple):
        return list(config.keep)
    if config.strategy == "importance":
        assert scores is not None
        return sorted(torch.argsort(scores(), descending=True, stable=True)[:wanted].tolist())
    return _spread(wanted, num_layers, config.strategy)


def _spread(count: int, num_layers: int, strategy: str) -> list[int]:
    if strategy == "top":
        return list(range(num_layers - count, num_layers))
    if strategy == "bottom":
        return list(range(count))
    return model_parts.spread(count, num_layers)


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle without the layers that are not kept.

    Raises TechniqueError where the model's layers are unknown or shared, none would go, or their
    importance is asked for and there are no training texts.
    """
    path, found = model_parts.layer_list(bundle.model)
    pressed = bundle.copy()

    def scores() -> torch.Tensor:
        examples = calibration(context, config.importance_examples)
        return stream_importance.score(pressed, examples, context.device, "first_order").layers

    kept = kept_layers(config, len(found), scores)
    model_parts.keep_layers(pressed.model, kept)
    pressed.model.to("cpu")
    sparse = model_parts.every_name(bundle.model, bundle.sparse)  # one of them may go
    pressed.sparse = model_parts.renamed(sparse, path, kept)
    return pressed
