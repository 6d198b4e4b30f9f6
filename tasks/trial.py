"""One night's trial: every variant and the baseline, exported, asked, and timed together.

What is judged comes from one measurement: latencies of different runs are never compared.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks import files, predictions, store, technique
from tasks.code_hash import code_hash
from tasks.evaluation import gates, paired, pareto, proof
from tasks.evaluation.config import EvaluationConfig
from tasks.evaluation.gates import Evidence, Verdict
from tasks.evaluation.paired import PairedLoss
from tasks.evaluation.pareto import Candidate
from tasks.evaluation.quality import Agreement, Quality, agreement, quality
from tasks.exports import Export
from tasks.plan import Plan
from tasks.press import Ground
from tasks.runtime.eager import EagerModel
from tasks.runtime.fingerprint import fingerprint, machine
from tasks.runtime.latency import Contender, Latency, Ratio, measure, ratio
from tasks.runtime.memory import peak_memory_mb
from tasks.runtime.session import Session
from tasks.settings import Settings
from tasks.training.progress import Progress
from tasks.workspace import Workspace

EAGER = "pytorch"
"""The baseline as PyTorch runs it; beside it in the same rounds is its own fp32 export."""


@dataclass(frozen=True)
class Answers:
    """How good a model's answers are, and where they lie."""

    validation: Quality
    test: Quality
    slices: Mapping[str, Quality]
    agreement: Agreement
    """With the baseline, on test data."""
    correct: np.ndarray
    """bool (test rows,)."""
    predictions: Path


@dataclass(frozen=True)
class Trial:
    """All models tried together, and what came of it; keyed by node, the baseline among them."""

    labels: tuple[str, ...]
    exports: Mapping[str, Export]
    answers: Mapping[str, Answers]
    eager: Quality
    """The baseline's, as PyTorch runs it."""
    measured: "Measurement"
    losses: Mapping[str, PairedLoss]
    speedups: Mapping[str, Mapping[str, Ratio]]
    """Variant → what is slower (`EAGER`, or the baseline's key) → how many times."""
    verdicts: Mapping[str, Verdict]
    """Variants alone."""
    front: frozenset[str]
    """Variants that pass and that no other such variant dominates."""
    best: str | None
    """The front's best by the objective."""


@dataclass(frozen=True)
class Measurement:
    """Latencies taken in one run, on one machine, in interleaved rounds."""

    run: str
    """The night that took them."""
    time: float
    machine: Mapping[str, Any]
    fingerprint: str
    latencies: Mapping[str, Latency]
    """By node key, and `EAGER`."""
    memory_mb: Mapping[str, float]


def ask(workspace: Workspace, export: Export, ground: Ground, config: EvaluationConfig) -> Path:
    """Return the file of the model's predictions, made now if it is not there."""

    def load() -> predictions.Probabilities:
        session = Session(export.folder, ground.threads)
        # one at a time, as most are served: an int8 model's answer depends on what shares its batch
        return partial(session.probabilities, batch_size=1)

    return predictions.answered(
        workspace,
        export.facts.sha256,
        ground.data_pointers["prepared"]["md5"],
        predictions.held_out(ground.data_folder, config.max_slice_texts),
        ground.labels,
        load,
    )


def ask_eager(workspace: Workspace, key: str, ground: Ground) -> Quality:
    """Return the quality on test data of the node `key` as PyTorch runs it."""
    rows = predictions.held_out(ground.data_folder, 0)
    rows = rows[rows["split"] == "test"]
    described = store.manifest(workspace, key)
    assert described is not None

    def load() -> predictions.Probabilities:
        return EagerModel(store.load(workspace, key), ground.threads).probabilities

    path = predictions.answered(
        workspace, f"{EAGER} {described.content}", ground.data_pointers["prepared"]["md5"], rows,
        ground.labels, load,
    )  # fmt: skip
    probabilities, numbers = predictions.read(path, ground.labels, "test")
    return quality(probabilities, numbers, ground.labels)


def answers(path: Path, baseline: Path, labels: tuple[str, ...]) -> Answers:
    """Return what the predictions in `path` are worth, beside the baseline's."""

    def judged(split: str, domain: str = "") -> Quality:
        probabilities, numbers = predictions.read(path, labels, split, domain)
        return quality(probabilities, numbers, labels)

    own, numbers = predictions.read(path, labels, "test")
    others, _ = predictions.read(baseline, labels, "test")
    return Answers(
        validation=judged("validation"),
        test=judged("test"),
        slices={d: judged(predictions.SLICES, d) for d in predictions.domains(path)},
        agreement=agreement(own, others),
        correct=own.argmax(axis=1) == numbers,
        predictions=path,
    )


def measurement(
    workspace: Workspace,
    exports: Mapping[str, Export],
    baseline: str,
    ground: Ground,
    config: EvaluationConfig,
    progress: Progress,
    night: str,
) -> Measurement:
    """Return the latencies of all `exports` and of the baseline in PyTorch, from one run.

    Taken now, unless this machine has measured exactly these models before.
    """
    here = machine()
    material = {
        "exports": {key: export.facts.sha256 for key, export in sorted(exports.items())},
        "data": ground.data_pointers["prepared"]["md5"],
        "config": config.model_dump(mode="json"),
        "threads": config.threads or ground.threads,
        "fingerprint": fingerprint(here),
        "code": code_hash("tasks.runtime.latency", "tasks.runtime.session", "tasks.runtime.eager"),
    }
    name = hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()
    path = workspace.cache / "measurements" / f"{name}.json"
    if not path.is_file():
        taken = _measure(workspace, exports, baseline, ground, config, progress, here, night)
        files.write_json(path, asdict(taken))
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["latencies"] = {key: Latency(**value) for key, value in saved["latencies"].items()}
    return Measurement(**saved)


def _measure(
    workspace: Workspace,
    exports: Mapping[str, Export],
    baseline: str,
    ground: Ground,
    config: EvaluationConfig,
    progress: Progress,
    here: dict[str, Any],
    night: str,
) -> Measurement:
    threads = config.threads or ground.threads
    contenders: dict[str, Contender] = {EAGER: EagerModel(store.load(workspace, baseline), threads)}
    for key, export in exports.items():
        contenders[key] = Session(export.folder, threads)
    rows = predictions.held_out(ground.data_folder, 0)
    texts = rows.loc[rows["split"] == "test", "text"].tolist()
    latencies = measure(contenders, texts, config, progress)
    sample = texts[: config.batch_size]
    memory = {key: peak_memory_mb(e.folder, threads, sample) for key, e in exports.items()}
    return Measurement(
        run=night,
        time=time.time(),
        machine=here,
        fingerprint=fingerprint(here),
        latencies=latencies,
        memory_mb=memory,
    )


def judge(
    workspace: Workspace,
    settings: Settings,
    plan: Plan,
    ground: Ground,
    exports: Mapping[str, Export],
    files_of_answers: Mapping[str, Path],
    eager: Quality,
    measured: Measurement,
) -> Trial:
    """Return every variant's verdict, and the best of those that pass."""
    base = plan.baseline
    answered = {
        key: answers(path, files_of_answers[base], ground.labels)
        for key, path in files_of_answers.items()
    }
    variants = [key for key in exports if key != base]
    losses = {key: _loss(answered[base], answered[key], settings) for key in variants}
    speedups = {key: _speedups(measured, key, base, settings) for key in variants}
    verdicts = {}
    for key in variants:
        evidence = Evidence(
            baseline=answered[base].test,
            variant=answered[key].test,
            loss=losses[key],
            speedup=speedups[key][base],
            shrink=exports[base].facts.size_bytes / exports[key].facts.size_bytes,
            proof=_proof(workspace, plan, exports, key),
        )
        verdicts[key] = gates.judge(evidence, settings.gates)
    candidates = {
        key: Candidate(
            validation_accuracy=answered[key].validation.accuracy,
            p50_ms=measured.latencies[key].p50_ms,
            throughput=measured.latencies[key].throughput,
            size_bytes=exports[key].facts.size_bytes,
        )
        for key in variants
        if verdicts[key].passed
    }
    return Trial(
        labels=ground.labels,
        exports=exports,
        answers=answered,
        eager=eager,
        measured=measured,
        losses=losses,
        speedups=speedups,
        verdicts=verdicts,
        front=frozenset(pareto.front(candidates)),
        best=pareto.choose(candidates, settings.registry.objective),
    )


def _loss(baseline: Answers, variant: Answers, settings: Settings) -> PairedLoss:
    config = settings.evaluation
    return paired.loss(baseline.correct, variant.correct, config.resamples, config.seed)


def _speedups(
    measured: Measurement, key: str, baseline: str, settings: Settings
) -> dict[str, Ratio]:
    own = measured.latencies[key].rounds_ms
    return {
        slower: ratio(measured.latencies[slower].rounds_ms, own, settings.evaluation)
        for slower in (EAGER, baseline)
    }


def _proof(
    workspace: Workspace, plan: Plan, exports: Mapping[str, Export], key: str
) -> proof.Proof:
    effects = {
        node.technique: technique.load(node.technique).EFFECT for node in plan.chain(key)[1:]
    }
    found = [_substance(workspace, exports[k]) for k in (plan.baseline, key)]
    return proof.prove(found[0], found[1], effects)


def _substance(workspace: Workspace, export: Export) -> proof.Substance:
    """Count once per export: loading a model for it takes longer than all else here."""
    path = export.folder.with_suffix(".substance.json")
    if not path.is_file():
        model = store.load(workspace, export.node).model
        counted = proof.substance(model, export.facts.size_bytes, export.facts.quantized)
        files.write_json(path, asdict(counted))
    return proof.Substance(**json.loads(path.read_text(encoding="utf-8")))
