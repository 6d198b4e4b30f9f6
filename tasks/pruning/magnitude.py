"""Set the weights of least magnitude to zero: at once, in rounds, or while training goes on.

    zero w where |w| is among the s·N smallest

(Han et al. 2015, "Learning both Weights and Connections". Some texts write max(w, 0), which would
remove the negative weights instead: what is meant is the magnitude.) The sparsity s is reached

* `gradual`: over the first `ramp` of the training steps, fast at first and slower near the end
  (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1): s_t = s_f + (s_i − s_f)·(1 − t/(n·Δt))³
* `one_shot`: at once, before training;
* `iterative`: in rounds of pruning and training, each of which takes the same share of the weights
  that are left (Han et al. 2015, section 3.3; `tasks/masks.py` gives the formula).

With a `pattern` N:M, N of every M neighbours along a matrix's inputs stay, those of the largest
magnitude (2:4: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks"); the schedules hold
for it too. A weight once zero stays zero. Zeros alone, N:M ones included, make no dense runtime
faster and no float file smaller; they make the model compress better.

Applies to every model with linear or LSTM layers: the matrices of the layers, and by setting the
embeddings and the head. Biases and norms are kept.
"""

import math
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from tasks import masks
from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.technique import Context
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit

EFFECT = "zeros"


class Config(Frozen):
    """Settings of magnitude pruning."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the chosen weights that end at zero; 1 would leave nothing."""
    pattern: str | None = None
    """N:M, instead of `sparsity`: of every M neighbouring weights N stay, as in "2:4"."""
    schedule: Literal["gradual", "one_shot", "iterative"] = "gradual"
    """Reach it while training goes on, at once before training, or in rounds of both."""
    scope: masks.Scope = "global"
    """Rank the weights of all matrices together, or those of each matrix by themselves."""
    embeddings: bool = False
    """Prune the embedding tables too."""
    head: bool = False
    """Prune the pooler and the classifier too."""
    ramp: float = Field(default=0.5, gt=0, le=1)
    """Share of the training steps in which the sparsity rises; for `gradual`."""
    interval: int = Field(default=20, ge=1)
    """Steps between two rises (Δt); for `gradual`."""
    rounds: int = Field(default=3, ge=2, le=100)
    """Times that weights go and `training` is done; for `iterative`."""
    training: TrainingConfig = TrainingConfig()

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            masks.Pattern.of(pattern)
        return pattern

    @model_validator(mode="after")
    def _one_way(self) -> "Config":
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either `sparsity` or `pattern`: each says how much goes")
        for schedule, names in {"gradual": ("ramp", "interval"), "iterative": ("rounds",)}.items():
            for name in names if schedule != self.schedule else ():
                # what equals the default may have been written out by us, and harms nothing
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`{name}` goes with `schedule: {schedule}` alone")
        return self

    @property
    def mask_pattern(self) -> masks.Pattern | None:
        """The pattern, read."""
        return masks.Pattern.of(self.pattern) if self.pattern is not None else None

    @property
    def target(self) -> float:
        """The sparsity to end at."""
        pattern = self.mask_pattern
        if pattern is not None:
            return pattern.sparsity
        assert self.sparsity is not None
        return self.sparsity


def _leaves(config: Config) -> tuple[str, ...]:
    return ("pruned weights", *(("pruned embeddings",) if config.embeddings else ()))


LEAVES = _leaves


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle pruned to the sparsity asked, exact to one weight, and retrained.

    Raises TechniqueError where the model is as sparse already, has no matrices to prune, or has
    one that the pattern does not fit.
    """
    names = masks.prunable(bundle.model, embeddings=config.embeddings, head=config.head)
    start = masks.starting_sparsity(bundle.model, names, config.target, config.mask_pattern)
    pressed = bundle.copy()
    pressed.sparse = tuple(dict.fromkeys((*bundle.sparse, *names)))
    if config.schedule == "gradual":
        pruner = _Pruner(names, config, start)
        _train(pressed, config, context, after_step=pruner, keep="last")
        return pressed
    rounds = config.rounds if config.schedule == "iterative" else 1
    for number, target in enumerate(masks.rising(start, config.target, rounds)):
        _zero(pressed.model, names, config, target)
        _train(pressed, config, replace(context, seed=context.seed + number))
    return pressed


def _zero(model: nn.Module, names: tuple[str, ...], config: Config, target: float) -> None:
    masks.zero_lowest(model, names, target, config.scope, pattern=config.mask_pattern)


def _train(pressed: Bundle, config: Config, context: Context, **how: Any) -> None:
    fit(
        pressed,
        context.train,
        context.validation,
        config.training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
        **how,
    )


def scheduled(step: int, ramp_steps: int, start: float, end: float) -> float:
    """Return the sparsity after `step` of `ramp_steps` (Zhu and Gupta 2017, eq. 1)."""
    return end + (start - end) * (1 - min(step / ramp_steps, 1.0)) ** 3


class _Pruner:
    """Raises the sparsity after the steps of the schedule."""

    def __init__(self, names: tuple[str, ...], config: Config, start: float) -> None:
        self.names = names
        self.config = config
        self.start = start

    def __call__(self, model: nn.Module, step: int, total: int) -> None:
        ramp_steps = max(math.ceil(self.config.ramp * total), 1)
        due = step % self.config.interval == 0 and step < ramp_steps
        if due or step == ramp_steps:
            target = scheduled(step, ramp_steps, self.start, self.config.target)
            _zero(model, self.names, self.config, target)
