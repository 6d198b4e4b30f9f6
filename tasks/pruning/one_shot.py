"""Remove heads and feed-forward neurons with no training: search, rearrange, reconstruct.

Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers". With a gate m_i = 1 on
every head and neuron and g_x = ∂L(x)/∂m on a few labelled texts, removing parts costs about

    ½·(1 − m)ᵀ·I·(1 − m),    I = Σ_x g_x·g_xᵀ    (the empirical Fisher information)

1. Search (`tasks/mask_search.py`): by I's diagonal, the best mask under a budget, which is a share
   of the layers' arithmetic or parameters, or of their latency as measured here in the served
   runtime.
2. Rearrange: within each layer, by I's block, where parts stand in for one another.
3. Reconstruct (`tasks/reconstruction.py`): layer by layer, least squares bring the stream of the
   cut model near that of the whole one, by a factor for each head and neuron that is left (the
   paper), or by the output matrix itself (the default: the same system with a weight for a factor).

The parts are cut out of the matrices. Every layer keeps at least one head and one group of neurons
(the paper may empty a layer; `structure.layer_drop` does that). Under `latency` the result depends
on the machine: that is what is asked for; the table measured stays in the scratch folder, so that a
press that was killed goes on with it.

Applies to BERT and its kin, DistilBERT and GPT-2, and, for neurons alone, to MPNet.
"""

from typing import Literal

from pydantic import Field

from tasks import model_parts, part_costs, reconstruction
from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.importance import calibration, example_gradients
from tasks.mask_search import Kept, rearranged, search
from tasks.part_costs import Constraint
from tasks.technique import Context

EFFECT = "parameters"
REFUSES = ("recurrent layers", "shared matrices")


class Config(Frozen):
    """Settings of one-shot structured pruning."""

    keep: float = Field(default=0.6, gt=0, lt=1)
    """Share of the layers' cost to keep at most."""
    constraint: Constraint = "flops"
    """What costs: multiplications, milliseconds at batch 1 measured in ONNX Runtime in float, or
    parameters (`size`)."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths."""
    examples: int = Field(default=512, ge=1, le=16_384)
    """Training examples that importance is measured on."""
    rearrange: bool = True
    """Let parts of a layer change places by the layer's Fisher block."""
    refit: Literal["none", "scale", "weights"] = "weights"
    """Reconstruct the layers' outputs by each weight of the output matrices, or by one factor for a
    part, as in the paper."""
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
    limits = part_costs.limits(
        bundle, config.keep, config.constraint, config.multiple, examples, context
    )
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
    kept.cut(model_parts.layers(pressed.model))
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
