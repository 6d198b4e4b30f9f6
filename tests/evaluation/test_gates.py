"""A verdict names the gate and by how much; exporting alone wins nothing."""

from dataclasses import replace

import pytest

from tasks.evaluation.config import GatesConfig
from tasks.evaluation.gates import (
    ACCURACY,
    Evidence,
    Succession,
    Verdict,
    judge,
    judge_succession,
)
from tasks.evaluation.paired import PairedLoss
from tasks.evaluation.proof import Proof
from tasks.evaluation.quality import Quality
from tasks.runtime.latency import Ratio

QUALITY = Quality(
    num_texts=200, loss=0.4, accuracy=0.86, macro_f1=0.86, recall={"bad": 0.85, "good": 0.87},
    confusion=[[85, 15], [13, 87]], ece=0.02,
)  # fmt: skip
LOSS = PairedLoss(
    points=0.4, bound_points=1.5, mcnemar_p=0.5, only_first=10, only_second=9
)  # fmt: skip
GOOD = Evidence(
    baseline=QUALITY,
    variant=replace(QUALITY, accuracy=0.856),
    loss=LOSS,
    speedup=Ratio(2.4, 2.1, 2.8),
    shrink=3.9,
    proof=Proof(True, "15 operators in int8"),
)
LIMITS = GatesConfig()


def failed(verdict: Verdict) -> list[str]:
    """Names of the gates not passed, which must be those with reasons."""
    names = [gate.name for gate in verdict.gates if not gate.passed]
    assert len(verdict.reasons) == len(names)
    assert verdict.passed == (not names)
    assert all(reason and "\n" not in reason for reason in verdict.reasons)
    return names


def test_a_good_variant_passes() -> None:
    verdict = judge(GOOD, LIMITS)
    assert failed(verdict) == []
    assert all(gate.message for gate in verdict.gates)


def test_the_gates_on_accuracy_are_among_all_and_the_effect_is_told() -> None:
    verdict = judge(GOOD, LIMITS)
    assert {gate.name for gate in verdict.gates} == ACCURACY | {"effect", "gain"}
    assert verdict.proof == "15 operators in int8"


@pytest.mark.parametrize(
    ("change", "gate", "words"),
    [
        ({"loss": replace(LOSS, points=1.25)}, "loss", "1.25 points (limit 1.00, 0.25 over)"),
        ({"loss": replace(LOSS, points=1.002)}, "loss", "1.0020 points (limit 1.00, 0.0020 over)"),
        ({"loss": replace(LOSS, bound_points=2.6)}, "loss bound", "2.60 points (limit 2.00, 0.60"),
        ({"variant": replace(QUALITY, accuracy=0.49)}, "floor", "0.4900 (floor 0.5000, 1.00 point"),
        (
            {"variant": replace(QUALITY, recall={"bad": 0.73, "good": 0.99})},
            "recall",
            "`bad`, is 12.00 points (limit 10.00, 2.00 over)",
        ),
        (
            {
                "baseline_slices": {"news": QUALITY, "tweets": QUALITY},
                "variant_slices": {"news": QUALITY, "tweets": replace(QUALITY, accuracy=0.75)},
            },
            "slices",
            "on `tweets`, is 11.00 points (limit 10.00, 1.00 over)",
        ),
        (
            {"variant": replace(QUALITY, ece=0.13)},
            "calibration",
            "0.1300, +0.1100 against the baseline's (limit 0.1000, 0.0100 over)",
        ),
        ({"proof": Proof(False, "pruning.magnitude changed nothing")}, "effect", "changed nothing"),
        (
            {"speedup": Ratio(1.2, 1.05, 1.3), "shrink": 1.2},
            "gain",
            "1.20× as fast as the fp32 baseline in the same runtime (at least 1.05×; limit 1.10×) "
            "and 1.20× as small (limit 1.50×)",
        ),
    ],
)
def test_each_gate_stops_alone_and_says_by_how_much(
    change: dict[str, object], gate: str, words: str
) -> None:
    verdict = judge(replace(GOOD, **change), LIMITS)  # type: ignore[arg-type]
    assert failed(verdict) == [gate]
    assert words in verdict.reasons[0]


def test_several_failures_are_all_told() -> None:
    evidence = replace(GOOD, loss=replace(LOSS, points=5, bound_points=7), shrink=1.0)
    assert failed(judge(evidence, LIMITS)) == ["loss", "loss bound"]


def test_at_the_limit_passes() -> None:
    evidence = replace(GOOD, loss=replace(LOSS, points=1.0, bound_points=2.0))
    assert judge(evidence, LIMITS).passed


def test_speed_or_size_is_enough() -> None:
    assert judge(replace(GOOD, shrink=1.0), LIMITS).passed
    assert judge(replace(GOOD, speedup=Ratio(1.0, 0.9, 1.1)), LIMITS).passed


@pytest.mark.parametrize("limits", [LIMITS, GatesConfig(min_speedup=1.0, min_shrink=1.0)])
def test_the_exported_baseline_itself_wins_nothing(limits: GatesConfig) -> None:
    nothing_lost = PairedLoss(0.0, 0.0, 1.0, 0, 0)
    same = replace(GOOD, variant=QUALITY, loss=nothing_lost, speedup=Ratio(1.01, 0.97, 1.06))
    assert failed(judge(replace(same, shrink=1.0), limits)) == ["gain"]


def test_a_gain_in_recall_is_no_fall() -> None:
    better = replace(QUALITY, recall={"bad": 0.99, "good": 0.99})
    assert judge(replace(GOOD, variant=better), LIMITS).passed


BETTER = Succession(
    loss=replace(LOSS, points=0.2, bound_points=0.9), speedup=Ratio(1.4, 1.2, 1.6), shrink=1.0
)


@pytest.mark.parametrize(
    ("change", "gates", "words"),
    [
        ({}, [], ""),
        ({"loss": replace(LOSS, points=1.3, bound_points=1.9)}, ["champion loss"], "0.30 over"),
        ({"loss": replace(LOSS, bound_points=2.2)}, ["champion loss bound"], "0.20 over"),
        ({"speedup": Ratio(1.1, 0.97, 1.2)}, ["improvement"], "1.10× as fast as the champion"),
        ({"speedup": Ratio(0.9, 0.8, 1.0), "shrink": 1.3}, [], ""),
        ({"speedup": Ratio(1.0, 0.9, 1.1), "loss": replace(LOSS, points=-2.0, bound_points=-0.4)},
         [], ""),
    ],
)  # fmt: skip
def test_a_successor_is_no_worse_and_better_beyond_noise(
    change: dict[str, object], gates: list[str], words: str
) -> None:
    found = judge_succession(replace(BETTER, **change), LIMITS)  # type: ignore[arg-type]
    assert [gate.name for gate in found if not gate.passed] == gates
    assert all(words in gate.message for gate in found if not gate.passed)
