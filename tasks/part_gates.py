"""Gates on heads and neurons while a model trains: what they let through, and what they learn.

A gate ξ multiplies the output of its part. The model computes with ξ = 1 for the parts that are
open and ξ = 0 for the others; from every training batch each gate learns how much the loss depends
on it,

    s ← β·s + (1 − β)·Σ_x (∂L(x)/∂ξ)²,

a running mean of the diagonal of the empirical Fisher information (Theis et al. 2018, "Faster gaze
prediction with dense networks and Fisher pruning"; Kwon et al. 2022). Closed gates have a gradient
too, so that a part whose score comes back can be opened again (as weights are in Evci et al. 2020,
"Rigging the Lottery"). What is closed has no gradient of its own and waits as it was.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.mask_search import Kept
from tasks.model_parts import Layer

_NAME = "part_gates"


class PartGates(nn.Module):
    """The gates of all layers of a model; its buffers go on with an interrupted training.

    While entered it is a part of the model, and its hooks are on.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Layer], decay: float) -> None:
        super().__init__()
        self._owner = [model]  # in a list, lest the model be registered as a part of its part
        self.parts = list(parts)
        self.decay = decay
        for place, part in enumerate(self.parts):
            for kind, count in (("heads", part.num_heads), ("neurons", part.num_neurons)):
                device = part.ffn_output.get_parameter("weight").device
                self.register_buffer(f"{kind}_{place}", torch.ones(count, device=device))
                self.register_buffer(f"{kind}_{place}_score", torch.zeros(count, device=device))
        self._hooks: list[Any] = []

    def __enter__(self) -> "PartGates":
        """Attach the gates."""
        self._owner[0].add_module(_NAME, self)
        for place, part in enumerate(self.parts):
            for kind, module, size in (
                ("heads", part.attention_output, part.head_size),
                ("neurons", part.ffn_output, 1),
            ):
                hook = partial(self._pass, f"{kind}_{place}", size)
                self._hooks.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model as it was before."""
        for hook in self._hooks:
            hook.remove()
        delattr(self._owner[0], _NAME)

    def scores(self, kind: str) -> list[torch.Tensor]:
        """Return what the gates of `heads` or `neurons` have learned: float32, one tensor a layer.

        On the CPU.
        """
        return [self.get_buffer(f"{kind}_{i}_score").cpu() for i in range(len(self.parts))]

    def open(self, kept: Kept) -> None:
        """Open the gates of the parts in `kept` and close all others."""
        for kind, layers in (("heads", kept.heads), ("neurons", kept.neurons)):
            for place, indices in enumerate(layers):
                gate = self.get_buffer(f"{kind}_{place}")
                gate.zero_()
                gate[torch.as_tensor(indices, device=gate.device)] = 1

    def kept(self) -> Kept:
        """Return the parts whose gates are open."""

        def of(kind: str) -> list[list[int]]:
            gates = [self.get_buffer(f"{kind}_{i}") for i in range(len(self.parts))]
            return [torch.nonzero(gate).flatten().tolist() for gate in gates]

        return Kept(of("heads"), of("neurons"))

    def _pass(
        self, name: str, size: int, module: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Multiply what goes into `module` by the gates: (batch, tokens, parts × size)."""
        values = inputs[0]
        # one gate for each example: a backward pass then gives every example's own gradient
        gate = self.get_buffer(name).expand(len(values), -1)
        if module.training and torch.is_grad_enabled():
            gate = gate.clone().requires_grad_(True)
            gate.register_hook(partial(self._learn, name))  # type: ignore[no-untyped-call]
        wide = gate if size == 1 else gate.repeat_interleave(size, dim=1)
        return (values * wide[:, None, :].to(values.dtype), *inputs[1:])

    @torch.no_grad()
    def _learn(self, name: str, gradient: torch.Tensor) -> None:
        """Take in the gradient (batch, parts) of a mean over the batch."""
        found = (gradient.float() * len(gradient)).square().sum(0)
        if torch.isfinite(found).all():  # fp16's scale may be too large for a step
            score = self.get_buffer(f"{name}_score")
            score.mul_(self.decay).add_(found, alpha=1 - self.decay)
