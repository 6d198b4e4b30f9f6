"""Train under a penalty that draws weights to zero, then remove what has come close.

    minimize  loss(w) + λ·Ω(w)

    l1      Ω = Σ |w|               w ← sign(w)·max(|w| − ηλ, 0)
    l2      Ω = Σ w²/2              w ← w / (1 + ηλ)
    group   Ω = Σ_g √n_g·‖w_g‖₂     w_g ← w_g·max(1 − ηλ√n_g / ‖w_g‖₂, 0)

(Tibshirani 1996, the lasso; Hoerl and Kennard 1970, ridge regression; Yuan and Lin 2006, the group
lasso, n_g the weights of the group.) An update by the gradient of the loss alone is followed by the
proximal step of the penalty, at the right, with η the learning rate of that very step (Parikh and
Boyd 2014, "Proximal Algorithms", sections 4.2 and 6.5): unlike a penalty added to the loss it
brings weights to zero exactly. The gradient's step is Adam's, at most about η whatever the
gradient's size. So the data can hold a weight against l1 with λ below 1; from 1 on every weight
comes down, by η(λ − 1) a step or more. (A proximal step in Adam's own metric, Yun et al. 2021,
"Adaptive Proximal Gradient Methods for Structured Neural Networks", would be another one.)

Then the smallest go: weights up to a threshold, or a share of them. A group is an attention head
or a feed-forward neuron, with all its rows, columns and biases (Wen et al. 2016, "Learning
Structured Sparsity in Deep Neural Networks"), and is cut out of the matrices: the model is smaller
and faster in any runtime. Zeros of l1 and l2 alone make none faster. What is left is trained on
without the penalty.

Applies to: l1 and l2, every model with linear or LSTM layers; group, BERT and its kin, DistilBERT
and GPT-2, and, for neurons alone, MPNet.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from tasks import masks, model_parts
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import choose
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

_NAME = "pruning.regularized"
_OF_WEIGHTS = ("sparsity", "scope", "embeddings", "head")
_OF_GROUPS = ("heads", "neurons", "multiple")


class Config(Frozen):
    """Settings of regularized pruning."""

    penalty: Literal["l1", "l2", "group"] = "l1"
    """l1 draws small weights to zero, l2 large ones more, group whole heads and neurons."""
    strength: float = Field(gt=0, le=1e6)
    """λ. For l1 and group 1 is as strong as the data can be, and all that the penalty can take from
    a weight is λ times the sum of the learning rates; l2 takes hundreds to be felt."""
    threshold: float | None = Field(default=None, ge=0)
    """Largest size at which a weight goes; of a group, the root mean square of its weights. None:
    as the shares below say, and without them 0, what the penalty itself has brought there."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights that end at zero, or more where the penalty brought more; l1 and l2."""
    scope: masks.Scope = "global"
    """Rank the weights of all matrices together, or those of each by themselves; l1 and l2."""
    embeddings: bool = False
    """Prune the embedding tables too; l1 and l2."""
    head: bool = False
    """Prune the pooler and the classifier too; l1 and l2."""
    heads: float | None = Field(default=None, gt=0, le=1)
    """Share of the attention heads to keep, those of all layers ranked together; 1: they are left
    alone, None: by the threshold. For group."""
    neurons: float | None = Field(default=None, gt=0, le=1)
    """Share of the feed-forward neurons to keep, alike. For group."""
    multiple: int = Field(default=32, ge=1)
    """Neurons are kept in groups of this many: matrix products like round widths. For group."""
    recovery: float = Field(default=0.5, ge=0, le=100)
    """Epochs of training afterwards, without the penalty, over those with it; 0: none."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _of_one_penalty(self) -> "Config":
        for name in _OF_WEIGHTS if self.penalty == "group" else _OF_GROUPS:
            # what equals the default may have been written out by us, and harms nothing
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` is no setting of `penalty: {self.penalty}`")
        if self.heads == 1 and self.neurons == 1:
            raise ValueError("`heads` and `neurons` are both 1: nothing would be removed")
        by_share = self.sparsity is not None or None not in (self.heads, self.neurons)
        if by_share and self.threshold is not None:
            raise ValueError("give either shares or a `threshold`: each says what goes")
        if self.penalty == "l2" and not by_share and not self.threshold:
            raise ValueError(
                "l2 brings no weight to zero by itself: give a `sparsity`, or a `threshold` above 0"
            )
        return self


def _effect(config: Config) -> str:
    return "parameters" if config.penalty == "group" else "zeros"


def _leaves(config: Config) -> tuple[str, ...]:
    tables = ("pruned embeddings",) if config.embeddings else ()
    return () if config.penalty == "group" else ("pruned weights", *tables)


EFFECT = _effect
LEAVES = _leaves


def _refuses(config: Config) -> tuple[str, ...]:
    return ("recurrent layers", "shared matrices") if config.penalty == "group" else ()


REFUSES = _refuses


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle trained under the penalty, pruned, and trained on without it.

    Raises TechniqueError where the model cannot be treated or is as sparse already, nothing would
    be removed, or, after training, nothing has come down to the threshold.
    """
    names = _weights(bundle, config)
    _check_groups(bundle, config)
    # zeros of the node before stay; what the penalty alone holds at zero may come back
    pressed = replace(bundle.copy(), sparse=())
    proximal = Proximal(bundle, pressed, names, config)
    _train(pressed, config.training, context, after_update=proximal, keep="last")
    pressed.sparse = bundle.sparse
    if config.penalty == "group":
        told = _cut(pressed, config)
    else:
        pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
        told = _zero(pressed.model, names, config, masks.sparsity(bundle.model, names))
    pressed.notes = {**bundle.notes, _NAME: told}
    if config.recovery > 0:
        epochs = config.training.epochs * config.recovery
        training = config.training.model_copy(update={"epochs": epochs})
        _train(pressed, training, replace(context, seed=context.seed + 1))
    return pressed


def _train(pressed: Bundle, training: TrainingConfig, context: Context, **how: Any) -> None:
    fit(
        pressed,
        context.train,
        context.validation,
        training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        **how,
    )


def _weights(bundle: Bundle, config: Config) -> tuple[str, ...]:
    """Return the matrices whose weights are drawn to zero one by one."""
    if config.penalty == "group":
        return ()
    names = masks.prunable(bundle.model, embeddings=config.embeddings, head=config.head)
    if config.sparsity is not None:
        masks.starting_sparsity(bundle.model, names, config.sparsity)
    return names


def _check_groups(bundle: Bundle, config: Config) -> None:
    if config.penalty != "group":
        return
    parts = model_parts.layers(bundle.model)
    model_parts.require_untied(bundle.model)
    if config.heads != 1 and not model_parts.cuts_heads(bundle.model):
        raise TechniqueError(
            f"heads cannot be cut from a model of type `{bundle.model.config.model_type}`: "
            "set `heads: 1`"
        )
    heads = [torch.zeros(part.num_heads) for part in parts]
    neurons = [torch.zeros(part.num_neurons) for part in parts]
    for scores, share, multiple in (
        (heads, config.heads, 1),
        (neurons, config.neurons, config.multiple),
    ):
        left = 0 if share is None else sum(map(len, choose(scores, share, even=False,
                                                           multiple=multiple)))  # fmt: skip
        if left < sum(map(len, scores)):
            return
    raise TechniqueError(
        "nothing would be removed: the model is too small for these shares; lower `heads`, "
        "`neurons` or `multiple`"
    )


class Proximal:
    """Does the penalty's proximal step after every update, and keeps the zeros of before."""

    def __init__(
        self, bundle: Bundle, pressed: Bundle, names: tuple[str, ...], config: Config
    ) -> None:
        self.config, self.names = config, names
        self.parts = model_parts.layers(pressed.model) if config.penalty == "group" else []
        self.called = {id(p): name for name, p in pressed.model.named_parameters()}
        self.zeros = {name: bundle.model.get_parameter(name) == 0 for name in bundle.sparse}

    @torch.no_grad()
    def __call__(self, model: nn.Module, rates: Mapping[str, float]) -> None:
        """Draw the weights to zero, by the learning rates they were updated with."""
        for name in self.names:
            if name in rates:  # frozen tables are not trained, so not drawn either
                shrink(model.get_parameter(name), rates[name] * self.config.strength, self.config)
        for part in self.parts:
            weight = part.ffn_output.weight
            reach = rates[self.called[id(weight)]] * self.config.strength
            for views in _groups(part, self.config):
                shrink_groups(views, reach)
        for name, zero in self.zeros.items():
            weight = model.get_parameter(name)
            self.zeros[name] = zero = zero.to(weight.device)
            weight.masked_fill_(zero, 0)


def _groups(part: model_parts.Layer, config: Config) -> Iterator[Sequence[torch.Tensor]]:
    """Yield the views of the heads and the neurons that the settings may remove."""
    if config.heads != 1:
        yield part.head_weights()
    if config.neurons != 1:
        yield part.neuron_weights()


def shrink(weight: torch.Tensor, reach: float, config: Config) -> None:
    """Do the proximal step of l1 or l2 on `weight`, in place; `reach` is ηλ."""
    if config.penalty == "l1":
        weight.copy_(F.softshrink(weight, reach))
    else:
        weight.div_(1 + reach)


def shrink_groups(views: Sequence[torch.Tensor], reach: float) -> None:
    """Do the proximal step of the group lasso on `views` (groups, …), in place; `reach` is ηλ."""
    norms, count = _norms(views)
    tiny = torch.finfo(norms.dtype).tiny
    factors = (1 - reach * math.sqrt(count) / norms.clamp_min(tiny)).clamp_min(0)
    for view in views:
        view.mul_(factors.view(-1, *[1] * (view.dim() - 1)))


def _norms(views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the L2 norm of every group, and how many weights it has."""
    squares = [view.square().flatten(1).sum(1) for view in views]
    return torch.stack(squares).sum(0).sqrt(), sum(view[0].numel() for view in views)


@torch.no_grad()
def _zero(model: nn.Module, names: tuple[str, ...], config: Config, before: float) -> str:
    """Set the smallest weights to zero; return what is told of it."""
    if config.sparsity is not None:
        masks.zero_lowest(model, names, config.sparsity, config.scope)
    else:
        for name in names:
            weight = model.get_parameter(name)
            weight.masked_fill_(weight.abs() <= (config.threshold or 0), 0)
    after = masks.sparsity(model, names)
    if after <= before:
        raise _nothing_came_down("weight", config)
    return f"{after:.1%} of the weights went"


def _cut(pressed: Bundle, config: Config) -> str:
    """Remove the smallest heads and neurons; return what is told of it."""
    parts = model_parts.layers(pressed.model)
    told = []
    if config.heads != 1:
        kept = _kept([part.head_weights() for part in parts], config.heads, 1, config)
        told.append(f"{sum(p.num_heads for p in parts) - sum(map(len, kept))} heads")
        for part, heads in zip(parts, kept, strict=True):
            part.keep_heads(heads)
    if config.neurons != 1:
        views = [part.neuron_weights() for part in parts]
        kept = _kept(views, config.neurons, config.multiple, config)
        told.append(f"{sum(p.num_neurons for p in parts) - sum(map(len, kept))} neurons")
        for part, neurons in zip(parts, kept, strict=True):
            part.keep_neurons(neurons)
    if all(text.startswith("0 ") for text in told):
        raise _nothing_came_down("head or neuron", config)
    return f"{' and '.join(told)} went"


def _kept(
    layers: Sequence[Sequence[torch.Tensor]], share: float | None, multiple: int, config: Config
) -> list[list[int]]:
    """Return, for each layer, the ascending indices of the groups to keep, one at the least."""
    sizes = []
    for views in layers:
        norms, count = _norms(views)
        sizes.append(norms / math.sqrt(count))
    if share is not None:
        return choose(sizes, share, even=False, multiple=multiple)
    kept = []
    for size in sizes:
        above = int((size > (config.threshold or 0)).sum())
        whole = max(math.ceil(above / multiple), 1) * multiple
        kept.append(sorted(size.argsort(descending=True, stable=True)[:whole].tolist()))
    return kept


def _nothing_came_down(what: str, config: Config) -> TechniqueError:
    return TechniqueError(
        f"no {what} has come down to {config.threshold or 0:g}, so that nothing was removed: raise "
        "`strength`, `threshold` or `training.epochs`, or give shares"
    )
