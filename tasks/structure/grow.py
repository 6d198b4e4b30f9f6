"""Make a model larger without changing what it computes, then train it on.

Wider (Chen, Goodfellow and Shlens 2016, "Net2Net"): a feed-forward neuron or an attention head that
is there twice gives the same value twice, so that weights behind the two which add up to the old
one leave the sum as it was,

    w·h = f·w·h + (1 − f)·w·h.

The paper halves and adds a little noise; here the parts f are random and unequal, which lets the
two learn differently and changes nothing at first. Deeper: the new layer is a copy of the one
before it whose two outputs are zero, so that the residual stream passes it by (for Transformers so:
Wu et al. 2024, "LLaMA Pro"). Where norms come first (GPT-2) that is the identity. Where they come
last, the new layer normalizes what is normalized: LN(γẑ + β) is not γẑ + β, but LN(ẑ) is ẑ; so the
layer before hands its γ and β to the new one's last norm and keeps 1 and 0.

For a model that was cut too far, or that meets harder data. The answers are compared before any
training: more than 1e-5 apart, and the model is refused.

Applies to BERT and its kin, DistilBERT and GPT-2, and, but for heads, to MPNet; ALBERT, whose
layers are one, is refused. A layer that is as wide already stays as it is. New layers start with
the pruned zeros of the one that they copy, and may fill them.
"""

import copy
import math
from collections import Counter

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks import model_parts, retraining
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.model_parts import Layer
from tasks.retraining import Retraining
from tasks.technique import Context
from tasks.training.batches import Examples
from tasks.training.predict import logits

EFFECT = "grown"
REFUSES = ("recurrent layers", "shared matrices")
_TOLERANCE = 1e-5
"""Largest change of a logit, relative to the largest logit."""
_PROBES = 32
"""Texts that the answers are compared on."""
_NEW = -1
"""Stands for a layer that was not there before."""


class Config(Retraining):
    """What the model has afterwards."""

    ffn: int | None = Field(default=None, ge=1)
    """Neurons of each feed-forward network."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of each layer, each as wide as before."""
    layers: int | None = Field(default=None, ge=1)
    """Layers; the new ones are spread over the depth, the last of them at the end."""

    @model_validator(mode="after")
    def _grows(self) -> "Config":
        if self.ffn is None and self.heads is None and self.layers is None:
            raise ValueError("growing needs `ffn`, `heads` or `layers`")
        return self


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle grown, trained on.

    Raises TechniqueError where the model's parts are unknown or shared, its heads cannot be
    doubled, it has as much already, its answers would change, or the teacher knows other labels.
    """
    _require_growth(bundle, config)
    train = retraining.prepare(bundle.labels, config, context)
    pressed = bundle.copy()
    random = np.random.default_rng(context.seed)
    for part in model_parts.layers(pressed.model):
        if config.ffn is not None:
            widen_ffn(part, config.ffn, random)
        if config.heads is not None:
            widen_attention(part, config.heads, random)
    if config.layers is not None:
        deepen(pressed, config.layers)
    _require_unchanged(bundle, pressed, context.train)
    train(pressed)
    return pressed


def _require_growth(bundle: Bundle, config: Config) -> None:
    parts = model_parts.layers(bundle.model)
    model_parts.require_untied(bundle.model)
    if config.heads is not None and not model_parts.cuts_heads(bundle.model):
        raise TechniqueError(
            f"heads cannot be added to a model of type `{bundle.model.config.model_type}`: leave "
            "`heads` out"
        )
    present = {
        "ffn": min(part.num_neurons for part in parts),
        "heads": min(part.num_heads for part in parts),
        "layers": len(parts),
    }
    for name, number in present.items():
        wanted = getattr(config, name)
        if wanted is not None and wanted <= number:
            raise TechniqueError(
                f"`{name}: {wanted}` is not more than the {number} that the model has: ask for more"
            )


def widen_ffn(part: Layer, width: int, random: np.random.Generator) -> None:
    """Double random neurons until there are `width`, in place; the layer computes the same."""
    index, parts = _doubled(part.num_neurons, width, random)
    part.keep_neurons(index)
    _scale_inputs(part.ffn_output, parts)


def widen_attention(part: Layer, num_heads: int, random: np.random.Generator) -> None:
    """Double random heads until there are `num_heads`, in place; the layer computes the same."""
    index, parts = _doubled(part.num_heads, num_heads, random)
    part.keep_heads(index)
    _scale_inputs(part.attention_output, np.repeat(parts, part.head_size))


def _doubled(number: int, wanted: int, random: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Return which of `number` parts to have, all and some again, and the share of each (float64).

    The shares of one part's copies add up to 1.
    """
    more = max(wanted - number, 0)
    # each part once before one comes a third time
    rounds = [random.permutation(number) for _ in range(math.ceil(more / number))]
    index = (
        [*range(number), *np.concatenate(rounds)[:more].tolist()] if rounds else [*range(number)]
    )
    shares = random.uniform(0.5, 1.5, len(index))
    totals = np.bincount(index, weights=shares)
    often = Counter(index)
    exact = [1.0 if often[i] == 1 else s / totals[i] for i, s in zip(index, shares, strict=True)]
    return index, np.array(exact)


@torch.no_grad()
def _scale_inputs(module: nn.Module, factors: np.ndarray) -> None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    scale = torch.from_numpy(factors).to(weight)
    weight.mul_(scale[:, None] if isinstance(module, Conv1D) else scale)


def deepen(bundle: Bundle, wanted: int) -> None:
    """Add layers that change nothing until there are `wanted`, in place."""
    path, found = model_parts.layer_list(bundle.model)
    number, more = len(found), wanted - len(found)
    before = [math.ceil((i + 1) * number / more) - 1 for i in range(more)]
    for place in reversed(before):  # from the end, so that places stay what they were
        _insert_after(bundle, place)
    there = [i for old in range(number) for i in (old, *[_NEW] * before.count(old))]
    bundle.sparse = model_parts.renamed(bundle.sparse, path, there)


@torch.no_grad()
def _insert_after(bundle: Bundle, place: int) -> None:
    _, found = model_parts.layer_list(bundle.model)
    config = bundle.model.config  # one for all modules: the exporter sets their attention by it
    copied = copy.deepcopy(found[place], {id(config): config})
    model_parts.insert_layer(bundle.model, place + 1, copied)
    old, new = model_parts.layers(bundle.model)[place : place + 2]
    for module in (new.attention_output, new.ffn_output):
        for parameter in module.parameters():
            parameter.zero_()
    # the copy's last norm has the old γ and β; all before it must leave normalized values alone
    for norm in (*new.norms[:-1], *old.norms[-1:]):
        assert isinstance(norm, nn.LayerNorm)
        norm.reset_parameters()


def _require_unchanged(old: Bundle, new: Bundle, examples: Examples) -> None:
    probes = examples.take(np.arange(min(_PROBES, len(examples))))
    before, after = logits(old, probes), logits(new, probes)
    difference = float(np.abs(before - after).max(initial=0.0))
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(before).max(initial=0.0))):
        raise TechniqueError(
            f"growing this model would change a logit by {difference:.2g}: the norms of its layers "
            "add too much to the variance; grow `ffn` or `heads` instead of `layers`"
        )
