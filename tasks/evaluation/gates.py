"""The gates: what a variant must show, on test data and in one measurement, to be worth having."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.evaluation.config import GatesConfig
from tasks.evaluation.paired import PairedLoss
from tasks.evaluation.proof import Proof
from tasks.evaluation.quality import Quality
from tasks.runtime.latency import Ratio

ACCURACY = frozenset({"loss", "loss bound", "floor", "recall", "slices", "calibration"})
"""The gates on accuracy, by name."""
_SMALLER = 1.01
"""Bytes this many times fewer count as smaller."""


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on. The baseline is the fp32 one in the variant's own runtime."""

    baseline: Quality
    variant: Quality
    loss: PairedLoss
    speedup: Ratio
    """Baseline's p50 at batch 1 divided by the variant's, in one interleaved measurement."""
    shrink: float
    """Baseline's bytes divided by the variant's."""
    proof: Proof
    baseline_slices: Mapping[str, Quality] = field(default_factory=dict)
    variant_slices: Mapping[str, Quality] = field(default_factory=dict)
    """Other domain → on its labelled texts."""


@dataclass(frozen=True)
class Succession:
    """A candidate beside the champion that it is to replace, in one measurement."""

    loss: PairedLoss
    """What the candidate loses against the champion."""
    speedup: Ratio
    """Champion's p50 at batch 1 divided by the candidate's."""
    shrink: float
    """Champion's bytes divided by the candidate's."""


@dataclass(frozen=True)
class GateResult:
    """One gate's answer."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verdict:
    """All gates' answers; a variant passes when every one does."""

    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Tell whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def proof(self) -> str:
        """Return what the variant's effect is proven by, or why it is not."""
        return next(gate.message for gate in self.gates if gate.name == "effect")

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return one line per gate that was not passed."""
        return tuple(gate.message for gate in self.gates if not gate.passed)


def judge(evidence: Evidence, gates: GatesConfig) -> Verdict:
    """Hold the evidence against the gates."""
    return Verdict(
        (
            _at_most("loss", evidence.loss.points, gates.max_loss_points, "accuracy lost"),
            _at_most(
                "loss bound",
                evidence.loss.bound_points,
                gates.max_loss_bound_points,
                "95% bound of the accuracy lost",
            ),
            _floor(evidence.variant.accuracy, gates.min_accuracy),
            _recall(evidence.baseline.recall, evidence.variant.recall, gates),
            _slices(evidence.baseline_slices, evidence.variant_slices, gates),
            _calibration(evidence.baseline.ece, evidence.variant.ece, gates),
            GateResult("effect", evidence.proof.changed, evidence.proof.message),
            _gain(evidence, gates),
        )
    )


def judge_succession(shown: Succession, gates: GatesConfig) -> tuple[GateResult, ...]:
    """Hold a candidate against the champion: no worse by more than the margins, and better.

    The margins are those against the baseline; McNemar's test decides nothing, since not
    significant is not equal.
    """
    return (
        _at_most(
            "champion loss",
            shown.loss.points,
            gates.max_loss_points,
            "accuracy lost against the champion",
        ),
        _at_most(
            "champion loss bound",
            shown.loss.bound_points,
            gates.max_loss_bound_points,
            "95% bound of the accuracy lost against the champion",
        ),
        _improvement(shown),
    )


def _improvement(shown: Succession) -> GateResult:
    """Faster, smaller or more accurate than the champion, beyond noise."""
    speed, shrink, loss = shown.speedup, shown.shrink, shown.loss
    passed = speed.lower > 1 or shrink >= _SMALLER or loss.bound_points < 0
    message = (
        f"{speed.value:.2f}× as fast as the champion (at least {speed.lower:.2f}×), "
        f"{shrink:.2f}× as small, {-loss.points:+.2f} points of accuracy"
    )
    if not passed:
        message = f"no better than the champion beyond noise: {message}"
    return GateResult("improvement", passed, message)


def _at_most(name: str, value: float, limit: float, what: str) -> GateResult:
    passed = value <= limit
    # as many digits as it takes to see on which side of the limit it lies
    digits = 2 if passed or value - limit >= 0.005 else 4
    over = "" if passed else f", {value - limit:.{digits}f} over"
    return GateResult(
        name, passed, f"{what} is {value:.{digits}f} points (limit {limit:.2f}{over})"
    )


def _floor(accuracy: float, limit: float) -> GateResult:
    passed = accuracy >= limit
    below = "" if passed else f", {(limit - accuracy) * 100:.2f} points below"
    return GateResult("floor", passed, f"accuracy is {accuracy:.4f} (floor {limit:.4f}{below})")


def _recall(
    before: Mapping[str, float], after: Mapping[str, float], gates: GatesConfig
) -> GateResult:
    falls = {label: (before[label] - after[label]) * 100 for label in before}
    worst = max(falls, key=lambda label: falls[label])
    return _at_most(
        "recall",
        falls[worst],
        gates.max_recall_drop_points,
        f"the largest fall in recall, of `{worst}`,",
    )


def _slices(
    before: Mapping[str, Quality], after: Mapping[str, Quality], gates: GatesConfig
) -> GateResult:
    falls = {
        name: (before[name].accuracy - after[name].accuracy) * 100
        for name in before.keys() & after.keys()
    }
    if not falls:
        return GateResult("slices", True, "there are no texts of other domains")
    worst = max(sorted(falls), key=lambda name: falls[name])
    return _at_most(
        "slices",
        falls[worst],
        gates.max_slice_drop_points,
        f"the largest fall on other text, on `{worst}`,",
    )


def _calibration(before: float, after: float, gates: GatesConfig) -> GateResult:
    rise = after - before
    passed = rise <= gates.max_calibration_rise
    over = "" if passed else f", {rise - gates.max_calibration_rise:.4f} over"
    return GateResult(
        "calibration",
        passed,
        f"calibration error is {after:.4f}, {rise:+.4f} against the baseline's "
        f"(limit {gates.max_calibration_rise:.4f}{over})",
    )


def _gain(evidence: Evidence, gates: GatesConfig) -> GateResult:
    """Faster or smaller than the fp32 baseline of the same runtime, so that exporting wins nothing.

    Faster means beyond noise: the interval's lower end counts, not the ratio.
    """
    speed, shrink = evidence.speedup, evidence.shrink
    # a limit of 1 asks for some gain too: the exported baseline itself never passes
    faster = speed.lower >= gates.min_speedup and speed.lower > 1
    smaller = shrink >= gates.min_shrink and shrink > 1
    message = (
        f"{speed.value:.2f}× as fast as the fp32 baseline in the same runtime (at least "
        f"{speed.lower:.2f}×; limit {gates.min_speedup:.2f}×) and {shrink:.2f}× as small (limit "
        f"{gates.min_shrink:.2f}×)"
    )
    if not (faster or smaller):
        message = f"no gain in speed or size: {message}"
    return GateResult("gain", faster or smaller, message)
