"""Weights of two or three levels: how they are chosen, trained and packed.

Each row of a matrix (an output channel; of a table, a token) has one scale α, by least squares:

    binary   Ŵ = α·B,  B = sign(W) in {−1, +1},      α = mean |W|
    ternary  Ŵ = α·T,  T in {−1, 0, +1},  0 where |W| ≤ Δ = 0.7·mean |W|,
             α = mean of |W| where |W| > Δ

(Rastegari et al. 2016, "XNOR-Net", section 3.1; Li and Liu 2016, "Ternary Weight Networks", eq. 3
to 6, whose Δ is a rule of thumb.) sign(0) is +1 here: a binary weight has no zero.

Training keeps latent weights W in float and computes with Ŵ. Rounding has no gradient, so it is
passed straight through to W, where |W| is within its limit, and W is kept within it (Courbariaux et
al. 2015, "BinaryConnect", section 2; Hubara et al. 2016). Their weights are drawn between −1 and 1;
those of a trained model are small, so the limit is a multiple of a row's mean |W| at the start.
By setting the gradient itself has one bit: sign(g)·mean |g| of each row (Bernstein et al. 2018,
"signSGD", whose scale is left to the learning rate).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks import packing, retraining
from tasks.bundle import Bundle
from tasks.packed import Packed
from tasks.quantizable import refuse_quantized
from tasks.retraining import Retraining
from tasks.technique import Context

Levels = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Weights (rows, columns) → levels of the same shape, in float, and α (rows,)."""
_FLAT = 0.7
"""Δ over mean |W|, where |W| is not far from normal."""


def binary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and α of weights (rows, columns)."""
    return torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean(dim=1)


def ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T and α of weights (rows, columns); α is 0 where a row is."""
    size = weight.abs()
    kept = size > _FLAT * size.mean(dim=1, keepdim=True)
    count = kept.sum(dim=1).clamp_min(1)
    return weight.sign() * kept, (size * kept).sum(dim=1) / count


class FewLevelsConfig(Retraining):
    """What binary and ternary weights have in common."""

    train: bool = True
    """Train with the rounded weights; False: round once, as they are."""
    limit: float = Field(default=3.0, gt=1, le=1000)
    """Largest size of a latent weight, over the mean size of its row at the start."""
    gradients: Literal["float", "binary"] = "float"
    """The gradient of the latent weights: as it is, or one bit each and a scale a row."""
    embeddings: bool = False
    """Treat the embedding tables too."""
    head: bool = False
    """Treat the pooler and the classifier too."""


def press(
    bundle: Bundle, config: FewLevelsConfig, context: Context, levels: Levels, bits: int
) -> Bundle:
    """Return the bundle with its matrices packed in `bits` each, trained before if asked.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, matrices are
    shared or no linear layer is left to treat, or as training does.
    """
    refuse_quantized(bundle)
    names = packing.chosen(bundle, embeddings=config.embeddings, head=config.head)
    train = retraining.prepare(bundle.labels, config, context) if config.train else None
    pressed = bundle.copy()
    if train is not None:
        latent = Latent(pressed.model, names, levels, config)
        with latent.on():
            train(pressed, after_update=latent.clip)
    modules = {name: pressed.model.get_submodule(name) for name in names}
    packing.install(pressed, {n: packed(m, levels, bits) for n, m in modules.items()})
    return pressed


def packed(module: nn.Module, levels: Levels, bits: int) -> Packed:
    """Return what stands in the place of a linear layer or a table, its weights in few levels."""
    weight = packing.rows(module)
    found, alpha = levels(weight)
    columns = weight.shape[1]
    # of one bit the codes 0 and 1 lie at −½ and ½; of two bits 0, 1 and 2 at −1, 0 and 1
    codes, offset, step = (found > 0, 0.5, 2 * alpha) if bits == 1 else (found + 1, 1.0, alpha)
    made = packing.fresh(module, bits, columns, offset)
    made.fill(codes.to(torch.uint8), step[:, None])
    return made


class Latent:
    """Lets a model compute with the levels of its weights, while it is `on`."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], levels: Levels, config: FewLevelsConfig
    ) -> None:
        self.levels, self.config = levels, config
        self.modules = {name: model.get_submodule(name) for name in names}
        self.limits = {
            name: config.limit * packing.rows(module).abs().mean(dim=1)
            for name, module in self.modules.items()
        }
        self.clip(model, {})  # what lies beyond would have no gradient

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the modules compute with levels."""
        for name, module in self.modules.items():
            module.forward = partial(self._forward, name, module)
        try:
            yield
        finally:
            for module in self.modules.values():
                del module.forward  # the one of its class is seen again

    @torch.no_grad()
    def clip(self, model: nn.Module, rates: Mapping[str, float]) -> None:
        """Keep the latent weights within their limits, in place."""
        for name, module in self.modules.items():
            rows = packing.rows(module)
            limit = self._limit(name, rows)
            rows.copy_(torch.maximum(torch.minimum(rows, limit), -limit))

    def _limit(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self.limits[name].to(rows.device)[:, None]

    def _forward(self, name: str, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Do what a linear layer or a table does, with levels."""
        weight = module.get_parameter("weight")
        latent = weight.t() if isinstance(module, Conv1D) else weight
        rounded: torch.Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
            latent, self._limit(name, latent), self.levels, self.config.gradients == "binary"
        )
        if isinstance(module, nn.Embedding):
            return F.embedding(values, rounded, module.padding_idx)
        bias: Any = module.bias
        return F.linear(values, rounded, bias)


class StraightThrough(torch.autograd.Function):
    """α·levels(W), whose gradient reaches W where |W| is within the limit."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, limit: torch.Tensor, levels: Levels, one_bit: bool
    ) -> torch.Tensor:
        """Return weights (rows, columns) of few levels; `limit` is (rows, 1)."""
        ctx.save_for_backward(weight.abs() <= limit)
        ctx.one_bit = one_bit
        found, alpha = levels(weight)
        return found * alpha[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the weights."""
        (gradient,) = gradients
        (inside,) = ctx.saved_tensors
        if ctx.one_bit:
            gradient = gradient.sign() * gradient.abs().mean(dim=1, keepdim=True)
        return gradient * inside, None, None, None
