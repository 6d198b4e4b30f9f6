"""Remove heads and feed-forward neurons with no training: search, rearrange, reconstruct.

Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers". With a gate m_i = 1 on
every head and neuron and g_x = ∂L(x)/∂m on a few labelled texts, removing parts costs about

    ½·(1 − m)ᵀ·I·(1 − m),    I = Σ_x g_x·g_xᵀ    (the empirical Fisher information)

1. Search (`tasks/mask_search.py`): by I's diagonal, the best mask under a budget, which is a share
   of the layers' arithmetic, or of their latency as measured here in the served runtime.
2. Rearrange: within each layer, by I's block, where parts stand in for one another.
3. Reconstruct (`tasks/reconstruction.py`): layer by layer, least squares bring the stream of the
   cut model near that of the whole one, by a factor for each head and neuron that is left.

The parts are cut out of the matrices. Every layer keeps at least one head and one group of neurons
(the paper may empty a layer; `structure.layer_drop` does that). Under `latency` the result depends
on the machine: that is what is asked for; the table measured stays in the scratch folder, so that a
press that was killed goes on with it.

Applies to BERT and its kin, DistilBERT and GPT-2, and, for neurons alone, to MPNet.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from tasks import model_parts, reconstruction
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import calibration, example_gradients
from tasks.mask_search import Kept, PartCost, fitted, least, rearranged, search
from tasks.runtime import layer_latency
from tasks.stream import stream
from tasks.technique import Context
from tasks.training.batches import Encoded, Examples

EFFECT = "parameters"
_LATENCY = "layer-latency.json"


class Config(Frozen):
    """Settings of one-shot structured pruning."""

    keep: float = Field(default=0.6, gt=0, lt=1)
    """Share of the layers' cost to keep at most."""
    constraint: Literal["flops", "latency"] = "flops"
    """What costs: multiplications, or milliseconds at batch 1 measured in ONNX Runtime, float."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    examples: int = Field(default=512, ge=1, le=16_384)
    """Training examples that importance is measured on."""
    rearrange: bool = True
    """Let parts of a layer change places by the layer's Fisher block."""
    refit: Literal["none", "scale", "weights"] = "scale"
    """Reconstruct the layers' outputs by a factor for each part, or by each weight anew."""
    shift_bias: bool = True
    """Let biases take up the mean of what a reconstruction leaves; not in the paper."""
    refit_examples: int = Field(default=512, ge=1, le=16_384)
    """Training examples that layers are reconstructed on."""
    damping: float = Field(default=0.01, gt=0, le=100)
    """Pull of the least squares towards no change, as a share of the mean of their diagonal."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with heads and neurons removed, and what is left made up for them.

    Raises TechniqueError where the model's parts are unknown, there are no training texts, or the
    budget is too small for one head and one group of neurons a layer or too large to cut anything.
    """
    model_parts.layer_list(bundle.model)  # refuses a model that cannot be cut
    model_parts.require_untied(bundle.model)
    examples = calibration(context, config.examples)
    limits = _limits(bundle, config, examples, context)
    pressed = bundle.copy()
    gradients = example_gradients(pressed, examples, context.device)
    kept = search(
        [g.double().square().sum(0) for g in gradients.heads],
        [g.double().square().sum(0) for g in gradients.neurons],
        **limits,
    )
    if config.rearrange:
        kept = Kept(
            [rearranged(g, k) for g, k in zip(gradients.heads, kept.heads, strict=True)],
            [rearranged(g, k) for g, k in zip(gradients.neurons, kept.neurons, strict=True)],
        )
    cut(model_parts.layers(pressed.model), kept)
    if config.refit != "none":
        reconstruction.mend(
            pressed,
            bundle,
            calibration(context, config.refit_examples),
            method=config.refit,
            bias=config.shift_bias,
            damping=config.damping,
            device=context.device,
            progress=context.progress,
        )
    for model in (bundle.model, pressed.model):
        model.to("cpu")
    return pressed


def cut(parts: list[model_parts.Layer], kept: Kept) -> None:
    """Remove all heads and neurons but those kept, in place."""
    for part, heads, neurons in zip(parts, kept.heads, kept.neurons, strict=True):
        if len(heads) < part.num_heads:
            part.keep_heads(heads)
        if len(neurons) < part.num_neurons:
            part.keep_neurons(neurons)


def arithmetic(width: int, head_size: int, length: float) -> tuple[PartCost, PartCost]:
    """Return the multiplications per token of heads and of neurons, at texts of `length` tokens.

    A head: query, key, value and output, width × head size each, and its products with all keys and
    all values. A neuron: once the width in, once out.
    """
    head = 4 * width * head_size + 2 * length * head_size
    return PartCost(head, 1, head), PartCost(2.0 * width, 1, 2.0 * width)


def _limits(bundle: Bundle, config: Config, examples: Examples, context: Context) -> dict[str, Any]:
    """Return what the search must keep to: costs, budget, groups.

    Raises TechniqueError where even the least costs more than the budget.
    """
    parts = model_parts.layers(bundle.model)
    heads, neurons = _costs(bundle, config, examples, context)
    whole = sum(heads.of(p.num_heads) + neurons.of(p.num_neurons) for p in parts)
    limits: dict[str, Any] = {
        "head_cost": heads,
        "neuron_cost": neurons,
        "multiple": config.multiple,
        "every_head": not model_parts.cuts_heads(bundle.model),
    }
    spent = least([p.num_heads for p in parts], [p.num_neurons for p in parts], **limits)
    if spent > config.keep * whole:
        raise TechniqueError(
            f"`keep: {config.keep:g}` cannot be met: what every layer keeps in any case (its best "
            f"head, its best group of neurons, and what costs nothing) is {spent / whole:.0%} of "
            "the cost; raise `keep` or lower `multiple`"
        )
    return {**limits, "budget": config.keep * whole}


def _costs(
    bundle: Bundle, config: Config, examples: Examples, context: Context
) -> tuple[PartCost, PartCost]:
    """Return what heads and neurons cost by the constraint."""
    lengths = Encoded(examples, bundle.tokenizer, bundle.max_length).lengths
    if config.constraint == "flops":
        first = model_parts.layers(bundle.model)[0]
        width = stream(bundle.model).width
        # a text of twice the length has twice the tokens, each with twice the keys
        mean = float((lengths.astype(float) ** 2).sum() / lengths.sum())
        return arithmetic(width, first.head_size, mean)
    measured = _measured(bundle, int(np.median(lengths)), context)
    heads, neurons = fitted(measured.heads), fitted(measured.neurons)
    if heads.each == 0 and neurons.each == 0:
        raise TechniqueError(
            "in this measurement a layer of fewer heads or neurons is no faster: "
            "set `constraint: flops`"
        )
    # both were measured with all of the other kind, so that one whole layer is counted twice
    return heads, PartCost(neurons.base - measured.whole, neurons.free, neurons.each)


def _measured(bundle: Bundle, length: int, context: Context) -> layer_latency.LayerLatency:
    """Return the latency of a layer by its widths, from the scratch folder where it is there."""
    path = context.scratch / _LATENCY
    if path.is_file():
        return _read(path)
    found = layer_latency.measure(bundle, length, torch.get_num_threads(), context.progress)
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _read(path: Path) -> layer_latency.LayerLatency:
    facts = json.loads(path.read_text(encoding="utf-8"))
    heads, neurons = (
        {int(count): ms for count, ms in facts[kind].items()} for kind in ("heads", "neurons")
    )
    return layer_latency.LayerLatency(facts["whole"], heads, neurons)
