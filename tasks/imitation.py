"""What an export computes in int8, imitated in PyTorch, each layer in integers or in float at will.

Weights and inputs are rounded to the integers' grid, as `tasks/calibration.py` does it for ranges
that were measured beforehand. Where the runtime takes an input's range from the text itself
(`quantization.dynamic`), so does the imitation: from its real tokens, padding left out. Answers are
then those of the runtime but for the order of sums; where query, key and value were fused and have
one scale for the three (`per_channel: false`), near them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks.affine import Grid, from_range, grid, of
from tasks.bundle import Bundle
from tasks.calibration import ACTIVATIONS, Simulation
from tasks.model_parts import is_linear
from tasks.quantizable import matrices

_FUSED_EMBEDDINGS = ("bert", "distilbert", "electra")
"""Kinds whose embeddings the exporter fuses with their norm, which is then rounded with them."""


@dataclass(frozen=True)
class Imitation:
    """The integers of one model."""

    names: tuple[str, ...]
    """Modules that the export computes in int8."""
    on: Callable[[Sequence[str]], AbstractContextManager[None]]
    """Lets those of the modules named compute so, while the context lasts."""


def imitation(bundle: Bundle) -> tuple[Imitation, str]:
    """Return the imitation of what the bundle's export plan quantizes, of no module where nothing.

    Then a line of words where what the plan does cannot be imitated, or shows in the weights
    themselves. The model is used where it is.
    """
    for step, settings in bundle.export.steps:
        if step not in _KNOWN:
            if step.startswith("quantize"):
                return _none(), f"of `{step}` this shows what it did to the weights themselves"
            continue
        if any(isinstance(module, nn.RNNBase) for module in bundle.model.modules()):
            return _none(), "recurrent layers in int8 are not imitated here: they count as in float"
        return _KNOWN[step](bundle.model, settings), ""
    return _none(), ""


def _none() -> Imitation:
    return Imitation((), lambda _: nullcontext())


def _static(model: PreTrainedModel, settings: Mapping[str, Any]) -> Imitation:
    weights = grid("int8", symmetric=True, reduce_range=settings["reduce_range"])
    ranges = {name: (lower, upper) for name, (lower, upper) in settings["ranges"].items()}
    simulation = Simulation(model, ranges, weights, per_channel=settings["per_channel"])
    names = [
        name
        for name, module in matrices(model).items()
        if name not in settings["fallback"] and (settings["embeddings"] or is_linear(module))
    ]
    return Imitation(tuple(names), simulation.on)


def _dynamic(model: PreTrainedModel, settings: Mapping[str, Any]) -> Imitation:
    kind = settings["weight_type"]
    weights = grid(kind, symmetric=kind == "int8", reduce_range=settings["reduce_range"])
    linear = {name for name, module in matrices(model).items() if is_linear(module)}
    of_layers = Simulation(model, {}, weights, per_channel=settings["per_channel"])
    tables = grid("uint8", symmetric=False)  # the runtime's quantizer rounds them so in any case
    of_tables = Simulation(model, {}, tables, per_channel=False)
    norm = _fused_norm(model)

    @contextmanager
    def on(names: Sequence[str]) -> Iterator[None]:
        layers = [name for name in names if name in linear]
        with ExitStack() as stack:
            stack.enter_context(of_layers.on(layers))
            stack.enter_context(of_tables.on([name for name in names if name not in linear]))
            if len(layers) < len(names):
                stack.enter_context(_rounded(norm, tables))
            stack.enter_context(_rounded_inputs(model, layers))
            yield

    return Imitation(tuple(matrices(model)), on)


_KNOWN: Mapping[str, Callable[[PreTrainedModel, Mapping[str, Any]], Imitation]] = {
    "quantize_dynamic": _dynamic,
    "quantize_static": _static,
}


def _fused_norm(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return what is rounded with the embedding tables besides them."""
    fused = isinstance(model.get_input_embeddings(), nn.Embedding)
    if model.config.model_type not in _FUSED_EMBEDDINGS or not fused:
        return []
    return list(model.base_model.embeddings.LayerNorm.parameters())


@contextmanager
def _rounded(parameters: Sequence[nn.Parameter], integers: Grid) -> Iterator[None]:
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = of(parameter.data, integers).rounded(parameter.data)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


@contextmanager
def _rounded_inputs(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Round the inputs of the modules `names`, each text's to integers over its own range."""
    mask = torch.empty(0, dtype=torch.bool)

    def remember(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
        nonlocal mask
        mask = given["attention_mask"].bool()

    def rounded(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (by_text(inputs[0], mask), *inputs[1:])

    hooks = [model.register_forward_pre_hook(remember, with_kwargs=True)]
    hooks += [model.get_submodule(name).register_forward_pre_hook(rounded) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_text(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values (texts, …, width) rounded to the 8-bit integers of each text's own range.

    `mask` (texts, tokens): what is no padding, where the values have tokens.
    """
    real = values
    if values.dim() == 3 and values.shape[:2] == mask.shape:
        real = values.masked_fill(~mask[:, :, None], 0.0)  # ranges hold zero anyway
    others = list(range(1, values.dim()))
    found = from_range(real.amin(others), real.amax(others), ACTIVATIONS, axis=0)
    return found.rounded(values).to(values.dtype)
