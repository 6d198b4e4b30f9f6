"""Proof of effect: what a recipe's steps changed in the model that is really served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from tasks import packed, replacements

_GELUS = ("BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu")
"""Operators that compute GELU, or, where it was not fused, the one that nothing else needs."""


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
    num_gelus: int = 0
    """Operators of the exported graph that compute GELU."""
    max_length: int = 0
    """Tokens that a text is cut to."""
    num_packed: int = 0
    """Matrices of the exported graph that are stored in few bits."""


@dataclass(frozen=True)
class Proof:
    """Whether a variant differs in substance from the baseline, and in what."""

    changed: bool
    message: str


def substance(
    model: nn.Module,
    size_bytes: int,
    num_quantized: int,
    operators: Mapping[str, int] = MappingProxyType({}),
    max_length: int = 0,
    num_packed: int = 0,
) -> Substance:
    """Count what `model` holds; sizes, operators and matrices are those of its export."""
    matrices = [part.rows_at() for part in packed.found(model).values()]
    return Substance(
        num_parameters=replacements.num_parameters(model),
        num_zeros=sum(int((p == 0).sum()) for p in (*model.parameters(), *matrices)),
        size_bytes=size_bytes,
        num_quantized=num_quantized,
        num_gelus=sum(number for name, number in operators.items() if name in _GELUS),
        max_length=max_length,
        num_packed=num_packed,
    )


def prove(
    baseline: Substance,
    variant: Substance,
    effects: Mapping[str, Sequence[str]],
    sizes: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Proof:
    """Say what a recipe changed, given technique → effects that it is known by.

    Every effect among them must show between baseline and variant, or nothing is proven. `sizes`
    tells of each technique's own steps how many parameters there were after, over those before: a
    recipe that cuts and then grows shows neither at its two ends. Where it is silent, steps that
    change their number are proven together. Of a step known by its answers alone nothing is proven
    here.
    """
    ratio = variant.num_parameters / baseline.num_parameters
    share = variant.num_zeros / variant.num_parameters
    before = baseline.num_zeros / baseline.num_parameters
    changed = f"{abs(1 - ratio):.0%} {'fewer' if ratio < 1 else 'more'} parameters"
    marks = {
        "zeros": (share > before, f"{share:.0%} zeros (which speed nothing up in this runtime)"),
        "quantized": (variant.num_quantized > 0, f"{variant.num_quantized} operators in int8"),
        "activation": (variant.num_gelus == 0 < baseline.num_gelus, "no GELU"),
        "length": (variant.max_length < baseline.max_length, f"{variant.max_length} tokens a text"),
        "packed": (
            variant.num_packed > 0,
            f"{variant.num_packed} matrices stored in few bits (smaller, hardly faster)",
        ),
        "answers": (True, "trained"),
    }

    def mark(name: str, effect: str) -> tuple[bool, str]:
        own = sizes.get(name, (ratio,))
        if effect == "parameters":
            return all(size < 1 for size in own), changed
        if effect == "grown":
            return all(size > 1 for size in own), changed
        return marks[effect]

    shown = [(name, *mark(name, effect)) for name, found in effects.items() for effect in found]
    silent = list(dict.fromkeys(name for name, seen, _ in shown if not seen))
    if silent:
        return Proof(False, f"{', '.join(silent)} changed nothing in the model that is served")
    return Proof(True, ", ".join(dict.fromkeys(text for _, _, text in shown)))
