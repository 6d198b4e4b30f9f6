"""Lets a model train as it will be served in int8: weights and inputs rounded at every step.

    v̂ = s·(clamp(round(v / s) + z, low, high) − z)

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3; `tasks/affine.py`.) Rounding has no gradient: it is
passed on to v as it is where v / s + z lies on the grid, and not at all where it is clamped
(straight-through; Bengio et al. 2013). The step s of weights follows their own range, and that of
an input is what it was measured to be; or both are learned (Esser et al. 2020, "Learned Step Size
Quantization", eq. 2 and 3):

    ∂v̂/∂s = round(v / s) − v / s  on the grid,    low − z or high − z  where it is clamped,

times 1 / √(N·high) for the N values that share the step. What is trained is ln s: Adam moves a
parameter by its rate whatever its gradient, and a step must move by a share of itself (Jain et al.
2020, "Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference", section
4). Zero points stay: zero keeps its integer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.affine import Grid, from_range
from tasks.calibration import ACTIVATIONS, Calibration
from tasks.model_parts import is_linear
from tasks.quantizable import matrices, weight_map

_NAME = "fake_quantization"
_TINY = torch.finfo(torch.float32).tiny


class FakeQuantization(nn.Module):
    """The steps of a model's linear layers; a part of the model while it is `on`.

    Inputs that layers share have one step. Embedding tables are rounded by the range of each
    column, which is not learned.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Calibration,
        weights: Grid,
        *,
        learned: bool,
        per_channel: bool = True,
        embeddings: bool = True,
    ) -> None:
        super().__init__()
        assert weights.symmetric
        self._owner = [model]  # in a list, lest the model be registered as a part of its part
        self.weights, self.learned, self.per_channel = weights, learned, per_channel
        found = matrices(model)
        linear = {n: m for n, m in found.items() if is_linear(m)}
        self.linear = {n: m for n, m in linear.items() if n in seen.ranges}
        self.tables = [m for m in found.values() if isinstance(m, nn.Embedding)] * embeddings
        self.input_of = {name: unit for unit, names in seen.units.items() for name in names}
        self.zero_points: dict[str, int] = {}
        self.input_steps = nn.ParameterDict()
        """ln s of the input of each unit, ()."""
        self.weight_steps = nn.ParameterDict()
        """ln s of the weights of each layer, (outputs,) or (); where they are learned."""
        for unit in seen.units:
            step = from_range(*seen.ranges[unit], ACTIVATIONS)
            self.zero_points[unit] = int(step.zero_point)
            self.input_steps[_key(unit)] = nn.Parameter(step.scale.log(), requires_grad=learned)
        for name, module in self.linear.items() if learned else ():
            scale = weight_map(module, weights, per_channel=per_channel).scale
            self.weight_steps[_key(name)] = nn.Parameter(scale.log())
        self._table_steps: dict[nn.Module, torch.Tensor] = {}
        self.to(next(model.parameters()).device)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the model compute with rounded values, in training and in evaluation alike."""
        model = self._owner[0]
        model.add_module(_NAME, self)
        hooks = [table.register_forward_hook(self._look_up) for table in self.tables]
        for name, module in self.linear.items():
            module.forward = partial(self._multiply, name, module)
        try:
            yield
        finally:
            for module in self.linear.values():
                del module.forward  # the one of its class is seen again
            for hook in hooks:
                hook.remove()
            delattr(model, _NAME)
            self._table_steps.clear()

    def rates(self, step_rate: float, learning_rate: float) -> Callable[[str], float]:
        """Return what gives, for a parameter's name, the factor of its learning rate.

        So steps have the rate `step_rate`, and all else `learning_rate`.
        """
        inside = f"{_NAME}."
        return lambda name: step_rate / learning_rate if name.startswith(inside) else 1.0

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the least and greatest value of each layer's input that has an integer."""
        found = {}
        for name in self.linear:
            unit = self.input_of[name]
            step = float(self.input_steps[_key(unit)].detach().exp())
            zero = self.zero_points[unit]
            found[name] = ((ACTIVATIONS.low - zero) * step, (ACTIVATIONS.high - zero) * step)
        return found

    def scales(self) -> dict[str, torch.Tensor]:
        """Return the steps of the weights that were learned: float32 on the CPU."""
        return {n: self.weight_steps[_key(n)].detach().exp().cpu() for n in self.linear
                if _key(n) in self.weight_steps}  # fmt: skip

    def _multiply(self, name: str, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Do what a linear module does, with rounded values and weights."""
        unit = self.input_of[name]
        values = round_to(
            values, self.input_steps[_key(unit)].exp(), self.zero_points[unit], ACTIVATIONS
        )
        weight = module.get_parameter("weight")
        axis = 1 if isinstance(module, Conv1D) else 0
        if self.learned:
            step = self.weight_steps[_key(name)].exp()
        else:
            step = weight_map(module, self.weights, per_channel=self.per_channel).scale
        rounded = round_to(weight, step, 0, self.weights, axis if step.dim() else None)
        bias: Any = module.bias
        return F.linear(values, rounded.t() if axis else rounded, bias)

    def _look_up(self, table: nn.Module, _: Any, rows: torch.Tensor) -> torch.Tensor:
        """Round the rows (…, columns) that were found in an embedding table."""
        step = self._table_steps.get(table)
        if step is None:
            step = weight_map(table, self.weights, per_channel=self.per_channel).scale
            if not table.get_parameter("weight").requires_grad:  # it will not change
                self._table_steps[table] = step
        return round_to(rows, step, 0, self.weights, rows.dim() - 1 if step.dim() else None)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict's keys have no dots


def round_to(
    values: torch.Tensor, step: torch.Tensor, zero_point: int, grid: Grid, axis: int | None = None
) -> torch.Tensor:
    """Return the values rounded to the grid; `step` is (), or one for each place along `axis`."""
    step = step.clamp_min(_TINY)
    if axis is not None:
        shape = [1] * values.dim()
        shape[axis] = -1
        step = step.view(shape)
    low, high = grid.low - zero_point, grid.high - zero_point
    rounded: torch.Tensor = LearnedStep.apply(values, step, low, high, grid.high)  # type: ignore[no-untyped-call]
    return rounded


class LearnedStep(torch.autograd.Function):
    """s·clamp(round(v / s), low, high), straight-through for v, and the step's own gradient."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, step: torch.Tensor, low: int, high: int, levels: int
    ) -> torch.Tensor:
        """Return values of the same shape; `step` is broadcast to them; `levels` scales its
        gradient.
        """
        ctx.save_for_backward(values, step)
        ctx.limits = low, high, levels
        return (values / step).round_().clamp_(low, high).mul_(step).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of values and step."""
        (gradient,) = gradients
        values, step = ctx.saved_tensors
        low, high, levels = ctx.limits
        ratio = values / step
        rounded = ratio.round()
        inside = (rounded >= low) & (rounded <= high)
        of_values = gradient * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_values, None, None, None, None
        slope = torch.where(inside, rounded - ratio, rounded.clamp_(low, high))
        shared = values.numel() / step.numel()
        of_step = (gradient * slope).sum_to_size(step.shape) / (shared * levels) ** 0.5
        return of_values, of_step, None, None, None
