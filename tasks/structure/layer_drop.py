"""Drop whole Transformer layers.

The residual stream carries the kept layers' outputs past the gap; later training or distillation
closes it (Sajjad et al. 2023, "On the Effect of Dropping Layers of Pre-trained Transformer
Models"; DistilBERT starts from every second layer: Sanh et al. 2019). With n layers of which k
stay, `even` keeps layer round(i·(n − 1)/(k − 1)) for i = 0 … k − 1, so the first and the last.

Applies to BERT and its kin, DistilBERT, MPNet and GPT-2; a model whose layers share one set of
weights (ALBERT) is refused. Nothing is trained and no data is read.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.technique import Context

READS_DATA = False
_Count = Annotated[int, Field(ge=1)]
_Index = Annotated[int, Field(ge=0)]

EFFECT = "parameters"


class Config(Frozen):
    """Which layers stay."""

    keep: _Count | tuple[_Index, ...]
    """How many layers stay, or the list of them (0 is the first)."""
    strategy: Literal["even", "top", "bottom"] = "even"
    """For a number: spread over the depth, the last ones, or the first ones."""

    @field_validator("keep")
    @classmethod
    def _ascending(cls, keep: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(keep, tuple) and (not keep or list(keep) != sorted(set(keep))):
            raise ValueError("a list of layers to keep must name each once, in ascending order")
        return keep

    @model_validator(mode="after")
    def _one_way(self) -> "Config":
        if isinstance(self.keep, tuple) and self.strategy != "even":
            raise ValueError("`strategy` goes with a number of layers, not with a list of them")
        return self


def kept_layers(config: Config, num_layers: int) -> list[int]:
    """Return the ascending indices of the layers that stay.

    Raises TechniqueError where the model has no such layer, or none would go.
    """
    if isinstance(config.keep, tuple):
        if config.keep[-1] >= num_layers:
            raise TechniqueError(
                f"the model has no layer {config.keep[-1]}: its layers are 0 to {num_layers - 1}"
            )
        kept = list(config.keep)
    else:
        kept = _spread(min(config.keep, num_layers), num_layers, config.strategy)
    if len(kept) >= num_layers:
        raise TechniqueError(
            f"the model has {num_layers} layers: `keep` must be fewer for any to be dropped"
        )
    return kept


def _spread(count: int, num_layers: int, strategy: str) -> list[int]:
    if strategy == "top":
        return list(range(num_layers - count, num_layers))
    if strategy == "bottom":
        return list(range(count))
    return model_parts.spread(count, num_layers)


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle without the layers that are not kept.

    Raises TechniqueError where the model's layers are unknown or shared, or none would go.
    """
    path, found = model_parts.layer_list(bundle.model)
    kept = kept_layers(config, len(found))
    pressed = bundle.copy()
    sparse = model_parts.every_name(bundle.model, bundle.sparse)  # one of them may go
    model_parts.keep_layers(pressed.model, kept)
    pressed.sparse = model_parts.renamed(sparse, path, kept)
    return pressed
