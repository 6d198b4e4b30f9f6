"""Keep the weights that fine-tuning moves away from zero, by scores learned while it goes on.

A layer computes with W' = W ⊙ M, M of zeros and ones by the scores S, one a weight, which start
at 0 and are learned as W is:

    hard    M = 1 where S is not among the s·N lowest
    soft    M = 1 where σ(S) > τ;  the loss has λ·mean(σ(S)) added to it

M has no gradient, and what falls to it is passed on to S as it is (straight-through):

    ∂L/∂S = ∂L/∂W' ⊙ W,    ∂L/∂W = ∂L/∂W' ⊙ M

(Sanh, Wolf and Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", sections 3 and 4.)
So S rises where a step makes |W| larger and falls where it makes it smaller: large weights that
fine-tuning shrinks go, small ones that it grows stay. A weight whose score comes back comes back.
After the share `delay` of the steps sparsity, threshold and λ rise over the share `ramp`, and stay
for the rest (their section 5): p = 1 − (1 − t)³ of the way at the share t of the ramp. The soft
threshold is on σ(S), as in the authors' code; their text has it on S. Their λ is of the sum over
scores in the text, of the mean in the code, and here.

Zeros alone make no dense runtime faster and no float file smaller.

Applies to every model with linear layers: BERT and its kin, DistilBERT, MPNet, ALBERT, GPT-2; the
matrices of the layers, and by setting the head. Embeddings, biases and norms are kept, as in the
paper. Not to an LSTM, whose matrices cannot be masked one product at a time.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks import masks
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.model_parts import is_linear
from tasks.technique import Context
from tasks.training import schedules
from tasks.training.batches import Batch
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.losses import cross_entropy

EFFECT = "zeros"
LEAVES = ("pruned weights",)
_SCORES, _MASK = "movement_scores", "movement_mask"


class Config(Frozen):
    """Settings of movement pruning."""

    form: Literal["hard", "soft"] = "hard"
    """Rank the scores, to a sparsity; or cut them off at a threshold, to what comes of it."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the chosen weights that end at zero; for hard, which needs it."""
    scope: masks.Scope = "global"
    """Rank the scores of all matrices together, or those of each by themselves; for hard."""
    threshold: float = Field(default=0.1, gt=0, lt=0.5)
    """What σ(S) must be above for a weight to stay; it starts at 0.5. For soft."""
    regularization: float = Field(default=100.0, gt=0, le=1e6)
    """λ: weight of the mean of σ(S) in the loss; more of it, more zeros. For soft."""
    head: bool = False
    """Prune the pooler and the classifier too."""
    delay: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training steps before the first weight goes."""
    ramp: float = Field(default=0.6, gt=0, le=1)
    """Share of the training steps, after those, in which the sparsity rises."""
    interval: int = Field(default=20, ge=1)
    """Steps between two choices of the mask; 1 in the paper, and slow where weights are many."""
    score_rate: float = Field(default=1e-2, gt=0, le=1)
    """Learning rate of the scores, which moves by the schedule of `training` too."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _one_form(self) -> "Config":
        if self.form == "hard" and self.sparsity is None:
            raise ValueError("`form: hard` needs a `sparsity`")
        if self.form == "soft" and self.sparsity is not None:
            raise ValueError("`sparsity` goes with `form: hard` alone: soft has a `threshold`")
        others = ("scope",) if self.form == "soft" else ("threshold", "regularization")
        for name in others:
            # what equals the default may have been written out by us, and harms nothing
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` is no setting of `form: {self.form}`")
        if self.delay + self.ramp > 1 + 1e-9:
            raise ValueError("`delay` and `ramp` are more than 1 together: the ramp must end")
        return self


def _refuses(config: Config) -> tuple[str, ...]:
    return () if config.head else ("recurrent layers",)


REFUSES = _refuses


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle fine-tuned and pruned, by hard scores exact to one weight.

    Raises TechniqueError where the model has no linear layers to prune or is as sparse already,
    or soft scores cannot reach, or did not reach, the threshold.
    """
    names = _linear(bundle.model, config)
    if config.sparsity is not None:
        masks.starting_sparsity(bundle.model, names, config.sparsity)
    before = masks.sparsity(bundle.model, names)
    pressed = bundle.copy()
    scores = Scores(pressed.model, names, config, before)
    fit(
        pressed,
        context.train,
        context.validation,
        config.training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        loss=scores.loss,
        before_step=scores.move,
        after_step=scores.choose,
        keep="last",
        rate_of=scores.rate_of,
    )
    scores.settle()
    pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
    after = masks.sparsity(pressed.model, names)
    if after <= before:
        raise TechniqueError(
            f"no score fell to `threshold` {config.threshold}, so that nothing was pruned: raise "
            "`regularization`, `score_rate` or `training.epochs`"
        )
    pressed.notes = {**bundle.notes, "pruning.movement": f"{after:.1%} of the weights went"}
    return pressed


def _linear(model: nn.Module, config: Config) -> tuple[str, ...]:
    found = masks.prunable(model, embeddings=False, head=config.head)
    names = tuple(n for n in found if is_linear(model.get_submodule(n.rpartition(".")[0])))
    if not names:
        raise TechniqueError(
            "the model has no linear layers whose scores could be learned: take `pruning.magnitude`"
        )
    return names


class Scores:
    """Scores and masks of a model's matrices `names`, attached to it until they are settled."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], config: Config, start: float
    ) -> None:
        self.model, self.names, self.config, self.start = model, names, config, start
        self.penalty = 0.0
        self.modules: list[nn.Module] = []
        for name in names:
            weight = model.get_parameter(name)
            scores = nn.Parameter(torch.zeros(weight.numel()))  # flat: it is not to be decayed
            kept = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
            # a matrix that several layers share has one set of scores
            for module in (m for m in model.modules() if is_linear(m) and m.weight is weight):
                module.register_parameter(_SCORES, scores)
                module.register_buffer(_MASK, kept)
                module.forward = partial(_masked, module)
                self.modules.append(module)

    def rate_of(self, name: str) -> float:
        """Return the factor of a parameter's learning rate."""
        return self.config.score_rate / self.config.training.learning_rate if _is(name) else 1.0

    def loss(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy, and of soft scores the penalty."""
        loss = cross_entropy(output, batch)
        if self.penalty == 0:
            return loss
        scores = [p for name, p in self.model.named_parameters() if _is(name)]
        total = torch.stack([torch.sigmoid(s).sum() for s in scores]).sum()
        return loss + self.penalty * total / sum(s.numel() for s in scores)

    def move(self, step: int, total: int) -> None:
        """Set the penalty that the step after `step` of `total` steps is done with."""
        if self.config.form == "soft":
            if step == 0:
                _check_reach(self.config, total)
            self.penalty = self.config.regularization * progress(self.config, step, total)

    def choose(self, model: nn.Module, step: int, total: int) -> None:
        """Choose the masks anew after `step` of `total` steps, where it is time."""
        if step % self.config.interval == 0 or step >= total:
            self.mask(progress(self.config, step, total))

    @torch.no_grad()
    def mask(self, done: float) -> None:
        """Choose the masks for the share `done` of the way."""
        if self.config.form == "soft":
            threshold = self.config.threshold * done
            for module in self.modules:
                kept = torch.sigmoid(_scores(module)) > threshold
                _mask(module).copy_(kept.view(_mask(module).shape))
            return
        assert self.config.sparsity is not None
        share = self.start + (self.config.sparsity - self.start) * done
        least = min(float(_scores(module).min()) for module in self.modules)

        def worth(name: str, weight: torch.Tensor) -> torch.Tensor:
            # a mask's scores must not be negative; what differs in the last bits becomes equal
            return (_scores(self._owner(name)) - least).view(weight.shape)

        for name, chosen in masks.lowest(self.model, self.names, share, self.config.scope, worth):
            _mask(self._owner(name)).copy_(~chosen)

    def _owner(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0])

    @torch.no_grad()
    def settle(self) -> None:
        """Leave W' in the place of W, and nothing else of this."""
        for module in self.modules:
            assert isinstance(module.weight, nn.Parameter)
            module.weight.masked_fill_(~_mask(module), 0)
        for module in self.modules:
            delattr(module, _SCORES)
            delattr(module, _MASK)
            del module.forward  # the one of its class is seen again


def _is(name: str) -> bool:
    return name.endswith(_SCORES)


def _scores(module: nn.Module) -> nn.Parameter:
    return module.get_parameter(_SCORES)


def _mask(module: nn.Module) -> torch.Tensor:
    return module.get_buffer(_MASK)


def progress(config: Config, step: int, total: int) -> float:
    """Return which share of its end the sparsity has after `step` of `total` steps."""
    if step >= total:
        return 1.0
    way = (step / total - config.delay) / config.ramp
    return 1 - (1 - min(max(way, 0.0), 1.0)) ** 3


def _check_reach(config: Config, total: int) -> None:
    """Raise TechniqueError where scores that fell at every step would not reach the threshold.

    Adam moves a parameter by its rate at most, as long as its gradients stay alike.
    """
    factor = schedules.factor(config.training, total)
    reach = config.score_rate * sum(factor(step, ()) for step in range(total))
    needed = math.log(1 / config.threshold - 1)
    if reach < needed:
        raise TechniqueError(
            f"in {total} steps scores can fall by {reach:.2g}, and must by {needed:.2g} to reach "
            f"`threshold` {config.threshold}: raise `score_rate`, `threshold` or `training.epochs`"
        )


def _masked(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Do what a linear module does, with its masked weights."""
    product: torch.Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
        inputs, module.weight, _scores(module), _mask(module), isinstance(module, Conv1D)
    )
    assert isinstance(module.bias, nn.Parameter | None)
    return product if module.bias is None else product + module.bias.to(product.dtype)


class StraightThrough(torch.autograd.Function):
    """inputs · (weight ⊙ mask), whose gradient reaches the scores past the mask.

    The masked weights are not kept for the backward pass: they would be one more copy of all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        scores: torch.Tensor,
        mask: torch.Tensor,
        inputs_first: bool,
    ) -> torch.Tensor:
        """Return (…, outputs) of `inputs` (…, inputs); `weight` is of shape (inputs, outputs)
        where `inputs_first`, else (outputs, inputs). `scores` are flat.
        """
        ctx.save_for_backward(inputs, weight, mask)
        ctx.inputs_first = inputs_first
        masked = weight * mask
        return inputs @ (masked if inputs_first else masked.t())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of inputs, weight and scores."""
        (gradient,) = gradients
        inputs, weight, mask = ctx.saved_tensors
        of_inputs = None
        if ctx.needs_input_grad[0]:
            masked = (weight * mask).to(gradient.dtype)
            of_inputs = gradient @ (masked.t() if ctx.inputs_first else masked)
            of_inputs = of_inputs.to(inputs.dtype)
        rows = gradient.flatten(0, -2)
        columns = inputs.to(gradient.dtype).flatten(0, -2)
        of_masked = columns.t() @ rows if ctx.inputs_first else rows.t() @ columns
        of_masked = of_masked.to(weight.dtype)
        return of_inputs, of_masked * mask, (of_masked * weight).flatten(), None, None
