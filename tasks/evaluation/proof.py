"""Proof of effect: what a recipe's steps changed in the model that is really served."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Substance:
    """What a model consists of."""

    num_parameters: int
    num_zeros: int
    """Parameters that are exactly zero."""
    size_bytes: int
    """All files that are served."""
    num_quantized: int
    """Operators of the exported graph that compute in int8."""
    num_packed: int = 0
    """Matrices of the exported graph that are stored in few bits."""


@dataclass(frozen=True)
class Proof:
    """Whether a variant differs in substance from the baseline, and in what."""

    changed: bool
    message: str


def substance(
    model: nn.Module, size_bytes: int, num_quantized: int, num_packed: int = 0
) -> Substance:
    """Count what `model` holds; sizes, operators and matrices are those of its export."""
    parameters = list(model.parameters())
    return Substance(
        num_parameters=sum(p.numel() for p in parameters),
        num_zeros=sum(int((p == 0).sum()) for p in parameters),
        size_bytes=size_bytes,
        num_quantized=num_quantized,
        num_packed=num_packed,
    )


def prove(baseline: Substance, variant: Substance, effects: Mapping[str, str]) -> Proof:
    """Say what a recipe changed, given technique → effect that it is known by.

    Every effect among them must show between baseline and variant, or nothing is proven. Steps of
    one effect are proven together: which of two that leave fewer parameters did so cannot be told
    from the two ends of a recipe. Of a step known by its answers alone nothing is proven here.
    """
    fewer = 1 - variant.num_parameters / baseline.num_parameters
    share = variant.num_zeros / variant.num_parameters
    before = baseline.num_zeros / baseline.num_parameters
    marks = {
        "parameters": (fewer > 0, f"{fewer:.0%} fewer parameters"),
        "zeros": (share > before, f"{share:.0%} zeros (which speed nothing up in this runtime)"),
        "quantized": (variant.num_quantized > 0, f"{variant.num_quantized} operators in int8"),
        "packed": (
            variant.num_packed > 0,
            f"{variant.num_packed} matrices stored in few bits (smaller, hardly faster)",
        ),
        "answers": (True, "trained"),
    }
    silent = [name for name, effect in effects.items() if not marks[effect][0]]
    if silent:
        return Proof(False, f"{', '.join(silent)} changed nothing in the model that is served")
    return Proof(True, ", ".join(dict.fromkeys(marks[effect][1] for effect in effects.values())))
