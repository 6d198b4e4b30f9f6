"""Bits chosen for each layer: 4, 8, or float, of least loss within a budget.

    minimize  Σ_l loss_l(b_l)    within    Σ_l cost_l(b_l) ≤ keep · Σ_l cost_l(float)

What a layer loses in b bits is measured: with this layer alone rounded, the divergence
KL(float ∥ rounded) of the answers on validation text, and losses are taken to add up (as in Dong et
al. 2020, "HAWQ-V2", whose loss is estimated by the Hessian's trace). What it costs is its bytes, or
the milliseconds that its product takes in ONNX Runtime on this machine, at the length of a usual
text. The choice is the best one, by dynamic programming (`tasks/knapsack.py`). Then the chosen bits
are given to the weights, by groups, as in `quantization.weight_only` (`tasks/weight_groups.py`).

Checkpoint and export hold the packed integers. Under `size` this saves bytes and no time; under
`latency` it takes few bits only where the measurement says that they are faster, and a budget that
they cannot meet is refused. The result then depends on the machine; on 2 cores of an AMD EPYC with
VNNI, 4 and 8 bits were slower than float for every matrix of a MiniLM.

Applies to every model with linear layers whose matrices are not shared; recurrent layers are
refused.
"""

import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tasks import knapsack, packing, weight_groups
from tasks.bundle import Bundle
from tasks.calibration import divergence
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.quantizable import refuse_quantized
from tasks.runtime import product_latency
from tasks.technique import Context
from tasks.training.batches import Encoded, Examples
from tasks.training.predict import encoded_logits
from tasks.weight_groups import Grid

LAST = True
EFFECT = "packed"
LEAVES = ("packed matrices",)
REFUSES = ("recurrent layers", "shared matrices")
NOTE = "quantization.mixed"
_FLOAT = 32
_BATCH = 32
Table = Mapping[str, Mapping[int, float]]
"""Module → bits → what it costs, or loses."""


class Config(Frozen):
    """Settings of mixed precision."""

    keep: float = Field(default=0.2, gt=0, lt=1)
    """Share of the cost that the chosen modules have in float, to keep at most."""
    constraint: Literal["size", "latency"] = "size"
    """What costs: bytes, or milliseconds at batch 1 measured in ONNX Runtime."""
    bits: tuple[Literal[4, 8], ...] = Field(default=(4, 8), min_length=1)
    """What may be chosen beside float."""
    group: Literal[16, 32, 64, 128, 256] = 32
    """Neighbouring weights that share a scale; fewer are more exact and larger."""
    symmetric: bool = False
    """The range is the same on both sides of zero; False: from the least to the greatest weight."""
    method: Literal["gptq", "nearest"] = "gptq"
    """Let the weights that are left make up for each error, or round each by itself."""
    calibration_examples: int = Field(default=128, ge=1)
    """Training texts that layers are watched on; for gptq."""
    sensitivity_examples: int = Field(default=64, ge=1)
    """Validation texts that a layer's own loss is measured on."""
    damping: float = Field(default=0.01, gt=0, le=100)
    """What is added to the Hessian's diagonal, as a share of its mean; for gptq."""
    embeddings: bool = True
    """Choose for the embedding tables too; under `latency` they stay in float."""
    head: bool = False
    """Choose for the pooler and the classifier too."""

    @property
    def choices(self) -> tuple[int, ...]:
        """The bits to choose from, ascending, float the last."""
        return (*sorted(set(self.bits)), _FLOAT)

    def grid(self, bits: int) -> Grid:
        """Return how weights of `bits` are grouped."""
        return Grid(bits, self.group, self.symmetric)


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with each matrix in the bits chosen for it.

    Raises TechniqueError where the plan quantizes already, a layer is recurrent, matrices are
    shared, there is no text to measure on, or the budget cannot be met.
    """
    refuse_quantized(bundle)
    tables = config.embeddings and config.constraint == "size"
    names = packing.chosen(bundle, embeddings=tables, head=config.head)
    for examples, what in ((context.train, "training"), (context.validation, "validation")):
        if len(examples) == 0:
            raise TechniqueError(f"there are no {what} texts to measure on: give more data")
    pressed = bundle.copy()
    pressed.model.to(context.device).eval()
    costs = _costs(pressed, names, config, context)
    budget = config.keep * sum(cost[_FLOAT] for cost in costs.values())
    _require_reachable(costs, budget, config)
    losses = _losses(pressed, names, config, context)
    options = [[(costs[n][b], losses[n][b]) for b in config.choices] for n in names]
    places = knapsack.choose(options, budget)
    assert places is not None
    bits = {n: config.choices[place] for n, place in zip(names, places, strict=True)}
    grids = {n: config.grid(b) for n, b in bits.items() if b != _FLOAT}
    calibration = context.train.sample(config.calibration_examples, context.seed)
    watched = calibration if config.method == "gptq" else None
    weight_groups.compress(pressed, grids, watched, config.damping, context.progress)
    pressed.model.to("cpu")
    counts = {b: list(bits.values()).count(b) for b in config.choices}
    told = ", ".join(f"{n} in {'float' if b == _FLOAT else f'{b} bits'}" for b, n in counts.items())
    pressed.notes = {**bundle.notes, NOTE: f"matrices: {told}"}
    return pressed


def _require_reachable(costs: Table, budget: float, config: Config) -> None:
    least = sum(min(cost.values()) for cost in costs.values())
    whole = sum(cost[_FLOAT] for cost in costs.values())
    # costs are rounded up to a ten-thousandth of the budget, once a matrix
    if least > budget * (1 - len(costs) / 10_000):
        what = "bytes" if config.constraint == "size" else "milliseconds"
        raise TechniqueError(
            f"`keep: {config.keep:g}` cannot be met: of the {what} in float {least / whole:.1%} "
            "are left at least; raise `keep`, or allow fewer `bits` or a larger `group`"
        )


def _costs(bundle: Bundle, names: list[str], config: Config, context: Context) -> Table:
    """Return what each module costs by its bits."""
    shapes = {n: packing.rows(bundle.model.get_submodule(n)).shape for n in names}
    if config.constraint == "size":
        return {
            name: {
                bits: 4.0 * rows * columns
                if bits == _FLOAT
                else float(config.grid(bits).bytes(rows, columns))
                for bits in config.choices
            }
            for name, (rows, columns) in shapes.items()
        }
    wanted = [(r, c, bits) for r, c in shapes.values() for bits in config.choices]
    path = context.scratch / "product-latency.json"
    if not path.is_file():  # what was measured before a kill is gone on with
        examples = context.train.sample(config.calibration_examples, context.seed)
        lengths = Encoded(examples, bundle.tokenizer, bundle.max_length).lengths
        found = product_latency.measure(
            wanted, config.group, int(np.median(lengths)), torch.get_num_threads()
        )
        path.write_text(json.dumps([[*shape, ms] for shape, ms in found.items()]))
    times = {(r, c, b): ms for r, c, b, ms in json.loads(path.read_text())}
    return {n: {b: times[r, c, b] for b in config.choices} for n, (r, c) in shapes.items()}


def _losses(bundle: Bundle, names: list[str], config: Config, context: Context) -> Table:
    """Return what each module loses by its bits, alone, in nats; in float nothing."""
    examples: Examples = context.validation.sample(config.sensitivity_examples, context.seed)
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    expected = encoded_logits(bundle.model, encoded, _BATCH)
    found: dict[str, dict[int, float]] = {}
    context.progress.start("measuring layers", len(names))
    try:
        for name in names:
            module = bundle.model.get_submodule(name)
            found[name] = {_FLOAT: 0.0}
            for bits in config.choices[:-1]:
                given = _rounded(module, config.grid(bits))
                found[name][bits] = divergence(
                    expected, encoded_logits(bundle.model, encoded, _BATCH)
                )
                with torch.no_grad():
                    packing.rows(module).copy_(given)
            context.progress.advance(1)
    finally:
        context.progress.stop()
    return found


@torch.no_grad()
def _rounded(module: nn.Module, grid: Grid) -> torch.Tensor:
    """Round a module's weights to nearest, in place; return what they were."""
    weight = packing.rows(module)
    given = weight.clone()
    codes, scale, zero = weight_groups.nearest(given.cpu(), grid)
    made = packing.fresh(module, grid.bits, grid.group, grid.offset)
    made.fill(codes.to(torch.uint8), scale.float(), zero)
    weight.copy_(made.rows_at())
    return given
