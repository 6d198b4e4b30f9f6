"""What heads and neurons cost in one layer: arithmetic, bytes, or time measured on this machine.

A search for the parts to keep (`tasks/mask_search.py`) needs one price a head and one a neuron, and
a budget in the same coin.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tasks import model_parts
from tasks.bundle import Bundle, ExportPlan
from tasks.errors import TechniqueError
from tasks.mask_search import PartCost, fitted, least
from tasks.runtime import layer_latency
from tasks.stream import stream
from tasks.technique import Context
from tasks.training.batches import Encoded, Examples

Constraint = Literal["flops", "latency", "size"]
"""What costs: multiplications, milliseconds at batch 1 in ONNX Runtime, or parameters."""
_LATENCY = "layer-latency.json"


def arithmetic(width: int, head_size: int, length: float) -> tuple[PartCost, PartCost]:
    """Return the multiplications per token of heads and of neurons, at texts of `length` tokens.

    A head: query, key, value and output, width × head size each, and its products with all keys and
    all values. A neuron: once the width in, once out.
    """
    head = 4 * width * head_size + 2 * length * head_size
    return PartCost(head, 1, head), PartCost(2.0 * width, 1, 2.0 * width)


def size(width: int, head_size: int) -> tuple[PartCost, PartCost]:
    """Return the parameters of heads and of neurons, biases with them."""
    head, neuron = (4.0 * width + 3) * head_size, 2.0 * width + 1
    return PartCost(head, 1, head), PartCost(neuron, 1, neuron)


def limits(
    bundle: Bundle,
    keep: float,
    constraint: Constraint,
    multiple: int,
    examples: Examples,
    context: Context,
    plan: ExportPlan = ExportPlan(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Return what a search must keep to: costs, groups of `multiple` neurons, and as `budget` the
    share `keep` of what all layers cost.

    `examples` give the length of a text. Under `latency`, `plan` is what the measured layers are
    exported with; the table stays in the scratch folder, so that a press that was killed goes on
    with it. Raises TechniqueError where even the least costs more than the budget, or where in the
    measurement smaller layers are no faster.
    """
    parts = model_parts.layers(bundle.model)
    heads, neurons = _costs(bundle, constraint, examples, context, plan)
    whole = sum(heads.of(p.num_heads) + neurons.of(p.num_neurons) for p in parts)
    found: dict[str, Any] = {
        "head_cost": heads,
        "neuron_cost": neurons,
        "multiple": multiple,
        "every_head": not model_parts.cuts_heads(bundle.model),
    }
    spent = least([p.num_heads for p in parts], [p.num_neurons for p in parts], **found)
    if spent > keep * whole:
        raise TechniqueError(
            f"`keep: {keep:g}` cannot be met: what every layer keeps in any case (its best "
            f"head, its best group of neurons, and what costs nothing) is {spent / whole:.0%} of "
            "the cost; raise `keep` or lower `multiple`"
        )
    return {**found, "budget": keep * whole}


def _costs(
    bundle: Bundle, constraint: Constraint, examples: Examples, context: Context, plan: ExportPlan
) -> tuple[PartCost, PartCost]:
    """Return what heads and neurons cost by the constraint."""
    head_size = model_parts.layers(bundle.model)[0].head_size
    width = stream(bundle.model).width
    if constraint == "size":
        return size(width, head_size)
    lengths = Encoded(examples, bundle.tokenizer, bundle.max_length).lengths
    if constraint == "flops":
        # a text of twice the length has twice the tokens, each with twice the keys
        mean = float((lengths.astype(float) ** 2).sum() / lengths.sum())
        return arithmetic(width, head_size, mean)
    measured = _measured(bundle, int(np.median(lengths)), context, plan)
    heads, neurons = fitted(measured.heads), fitted(measured.neurons)
    if heads.each == 0 and neurons.each == 0:
        raise TechniqueError(
            "in this measurement a layer of fewer heads or neurons is no faster: "
            "set `constraint: flops`"
        )
    # both were measured with all of the other kind, so that one whole layer is counted twice
    return heads, PartCost(neurons.base - measured.whole, neurons.free, neurons.each)


def _measured(
    bundle: Bundle, length: int, context: Context, plan: ExportPlan
) -> layer_latency.LayerLatency:
    """Return the latency of a layer by its widths, from the scratch folder where it is there."""
    path = context.scratch / _LATENCY
    if path.is_file():
        return _read(path)
    threads = torch.get_num_threads()
    found = layer_latency.measure(bundle, length, threads, context.progress, plan)
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _read(path: Path) -> layer_latency.LayerLatency:
    facts = json.loads(path.read_text(encoding="utf-8"))

    def counted(kind: str) -> Mapping[int, float]:
        return {int(count): ms for count, ms in facts[kind].items()}

    return layer_latency.LayerLatency(facts["whole"], counted("heads"), counted("neurons"))
