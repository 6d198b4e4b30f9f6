"""From a night's results to what the registry and the report are told of it."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tasks import technique
from tasks.evaluation.explained import lost_elsewhere, recall_change
from tasks.evaluation.quality import Quality
from tasks.plan import Node, Plan
from tasks.press import NOT_PRESSED, Pressed
from tasks.registry.facts import DataFacts, VariantFacts
from tasks.registry.night_facts import (
    CheckRow,
    Figures,
    Interval,
    NodeRow,
    ValidationFacts,
    VariantRow,
)
from tasks.runtime.latency import Latency, Ratio
from tasks.settings import BASELINE
from tasks.store import Manifest
from tasks.trial import EAGER, Trial


def variant_facts(
    key: str, plan: Plan, trial: Trial, manifests: Mapping[str, Manifest], data: DataFacts
) -> VariantFacts:
    """Return what the registry is told of the node `key`."""
    chain = plan.chain(key)
    answers, verdict = trial.answers[key], trial.verdicts.get(key)
    return VariantFacts(
        node_key=key,
        recipe=name_of(plan, key),
        steps=tuple((node.technique, node.settings) for node in chain[1:]),
        ancestors=tuple(node.key for node in reversed(chain[:-1])),
        manifest=manifests[key].model_dump(mode="json"),
        metrics=_metrics(key, plan, trial),
        labels=tuple(trial.labels),
        confusion=tuple(tuple(int(n) for n in row) for row in answers.test.confusion),
        export_folder=trial.exports[key].folder,
        predictions=answers.predictions,
        data=data,
        passed=verdict is not None and verdict.passed,
        reasons=_reasons(key, trial),
        fingerprint=trial.measured.fingerprint,
        seconds=manifests[key].seconds,
        measured_run=trial.measured.run,
    )


def name_of(plan: Plan, key: str) -> str:
    """Return the recipe that ends in `key` (the first of equal ones), or `baseline`."""
    return BASELINE if key == plan.baseline else plan.recipes_of(key)[0]


def _reasons(key: str, trial: Trial) -> tuple[str, ...]:
    verdict = trial.verdicts.get(key)
    if verdict is None:
        return ("the baseline is what variants are compared with",)
    return verdict.reasons


def _metrics(key: str, plan: Plan, trial: Trial) -> dict[str, float]:
    """Return the node's figures under flat names."""
    answers, latency = trial.answers[key], trial.measured.latencies[key]
    metrics = {
        "latency.p50_ms": latency.p50_ms,
        "latency.p95_ms": latency.p95_ms,
        "latency.throughput": latency.throughput,
        "latency.noise": _noise(latency),
        "size_bytes": float(trial.exports[key].facts.size_bytes),
        "memory.peak_mb": trial.measured.memory_mb[key],
        "agreement": answers.agreement.labels,
        "test.agreement_distance": answers.agreement.distance,
    }
    for split, quality in {"validation": answers.validation, "test": answers.test}.items():
        metrics |= {f"{split}.{name}": value for name, value in _figures(quality).items()}
    for domain, quality in answers.slices.items():
        metrics[f"slices.{domain}.accuracy"] = quality.accuracy
    for change, quality in answers.robustness.items():
        metrics[f"robustness.{change.replace(' ', '_')}.accuracy"] = quality.accuracy
    if key != plan.baseline:
        metrics["loss_points"] = trial.losses[key].points
        metrics["loss_bound_points"] = trial.losses[key].bound_points
        metrics["test.mcnemar_p"] = trial.losses[key].mcnemar_p
        metrics["speedup.pytorch"] = trial.speedups[key][EAGER].value
        metrics["speedup.fp32"] = trial.speedups[key][plan.baseline].value
    return metrics


def _figures(quality: Quality) -> dict[str, float]:
    recalls = {f"recall.{label}": value for label, value in quality.recall.items()}
    return {
        "loss": quality.loss,
        "accuracy": quality.accuracy,
        "macro_f1": quality.macro_f1,
        "calibration_error": quality.ece,
        **recalls,
    }


def figures(key: str, trial: Trial) -> Figures:
    """Return the row of figures of an exported model."""
    latency, test = trial.measured.latencies[key], trial.answers[key].test
    return Figures(
        accuracy=test.accuracy,
        p50_ms=latency.p50_ms,
        p95_ms=latency.p95_ms,
        throughput=latency.throughput,
        size_bytes=trial.exports[key].facts.size_bytes,
        memory_mb=trial.measured.memory_mb[key],
        macro_f1=test.macro_f1,
        noise=_noise(latency),
    )


def _noise(latency: Latency) -> float:
    """Return half the spread of the middle half of the rounds' medians, over their median."""
    first, median, third = np.quantile(np.median(latency.rounds_ms, axis=1), [0.25, 0.5, 0.75])
    return float((third - first) / 2 / median)


def eager_figures(trial: Trial, size_bytes: int) -> Figures:
    """Return the row of the baseline as PyTorch runs it."""
    latency = trial.measured.latencies[EAGER]
    return Figures(
        accuracy=trial.eager.accuracy,
        p50_ms=latency.p50_ms,
        p95_ms=latency.p95_ms,
        throughput=latency.throughput,
        size_bytes=size_bytes,
        macro_f1=trial.eager.macro_f1,
        noise=_noise(latency),
    )


def variant_row(
    key: str, plan: Plan, trial: Trial, *, cached: bool, version: int | None, night: str
) -> VariantRow:
    """Return the report's row of a variant that was tried."""
    verdict, loss, speedups = trial.verdicts[key], trial.losses[key], trial.speedups[key]
    answers, baseline = trial.answers[key], trial.answers[plan.baseline]
    return VariantRow(
        recipe=", ".join(plan.recipes_of(key)),
        node_key=key,
        steps=tuple(node.technique for node in plan.chain(key)[1:]),
        verdict="passed" if verdict.passed else "rejected",
        reasons=_reasons(key, trial),
        figures=figures(key, trial),
        loss_points=loss.points,
        loss_bound_points=loss.bound_points,
        agreement=answers.agreement.labels,
        distance=answers.agreement.distance,
        mcnemar_p=loss.mcnemar_p,
        speedup_eager=_interval(speedups[EAGER]),
        speedup_fp32=_interval(speedups[plan.baseline]),
        recall_change=recall_change(baseline.test, answers.test),
        lost_elsewhere={
            **lost_elsewhere(baseline.slices, answers.slices),
            **lost_elsewhere(baseline.robustness, answers.robustness),
        },
        changed=answers.changed,
        undoing=trial.undone.get(key),
        proof=verdict.proof,
        on_front=key in trial.front,
        cached=cached,
        version=version,
        measured_run="" if trial.measured.run == night else trial.measured.run,
    )


def failed_row(key: str, plan: Plan, why: str) -> VariantRow:
    """Return the report's row of a variant that there is none of."""
    return VariantRow(
        recipe=", ".join(plan.recipes_of(key)),
        node_key=key,
        steps=tuple(node.technique for node in plan.chain(key)[1:]),
        verdict="failed",
        reasons=(why,),
    )


def node_row(node: Node, pressed: Pressed) -> NodeRow:
    """Return the report's row of a node of the tree."""
    manifest, why = pressed.manifests.get(node.key), pressed.failed.get(node.key, "")
    status: Literal["pressed", "cached", "failed", "skipped"]
    if manifest is None:
        status = "skipped" if why.startswith(NOT_PRESSED) else "failed"
    else:
        status = "pressed" if node.key in pressed.fresh else "cached"
    seconds = manifest.seconds if manifest else 0.0
    return NodeRow(node.key, node.parent, node.technique, _words(node), status, seconds, why)


def _words(node: Node) -> str:
    """Return the settings that differ from the technique's defaults, in a few words."""
    if node.technique == BASELINE:
        return f"{node.settings['training']['epochs']:g} epochs" if node.settings["train"] else ""
    defaults = technique.config_class(node.technique).model_fields
    told: dict[str, Any] = {}
    for name, value in node.settings.items():
        if name == "training":
            told["epochs"] = value["epochs"]
        elif value != defaults[name].default:
            told[name] = value
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in told.items())


def validation_facts(validation: Any) -> ValidationFacts:
    """Return what the report tells of the validation gate."""
    checks = tuple(
        CheckRow(check.name, check.split, check.passed, str(check.observed))
        for check in validation.checks
    )
    return ValidationFacts(validation.passed, checks, str(validation.docs))


def _interval(ratio: Ratio) -> Interval:
    return Interval(ratio.value, ratio.lower, ratio.upper)
