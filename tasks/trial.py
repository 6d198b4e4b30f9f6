"""One night's trial: every variant and the baseline, exported, asked, and timed together.

What is judged comes from one measurement: latencies of different runs are never compared.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import files, predictions, store, technique
from tasks.code_hash import code_hash
from tasks.evaluation import gates, paired, pareto, proof
from tasks.evaluation.explained import Changed, Undoing, most_changed
from tasks.evaluation.gates import Evidence, Verdict
from tasks.evaluation.paired import PairedLoss
from tasks.evaluation.pareto import Candidate
from tasks.evaluation.quality import Agreement, Quality, agreement, quality
from tasks.exports import Export
from tasks.night import Night
from tasks.runtime.eager import EagerModel
from tasks.runtime.fingerprint import fingerprint, machine
from tasks.runtime.latency import Contender, Latency, Ratio, measure, ratio
from tasks.runtime.memory import peak_memory_mb
from tasks.runtime.session import Session
from tasks.settings import Settings
from tasks.training.progress import Progress
from tasks.workspace import Workspace

_MOST_CHANGED = 8
EAGER = "pytorch"
"""The baseline as PyTorch runs it; beside it in the same rounds is its own fp32 export."""


@dataclass(frozen=True)
class Answers:
    """How good a model's answers are, and where they lie."""

    validation: Quality
    test: Quality
    slices: Mapping[str, Quality]
    """Other domain → on its texts."""
    robustness: Mapping[str, Quality]
    """Change → on test texts changed so."""
    agreement: Agreement
    """With the baseline, on test data."""
    correct: np.ndarray
    """bool (test rows,)."""
    changed: tuple[Changed, ...]
    """Test texts that the baseline gets right and this model does not, the worst first."""
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
    """The best of the front by the objective: tonight's, an incumbent from elsewhere left out."""
    incumbent: str | None
    """The node that production loads, where it was tried too."""
    better: bool
    """Whether `best` beats the incumbent: by the objective, with no more accuracy lost against it
    than against the baseline."""
    undone: Mapping[str, Undoing] = field(default_factory=dict)
    """Variant that loses too much → what is regained by undoing each of its parts."""


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


def ask(night: Night, export: Export) -> Path:
    """Return the file of the model's predictions, made now if it is not there."""
    ground, config = night.ground, night.settings.evaluation

    def load() -> predictions.Probabilities:
        session = Session(export.folder, ground.threads)
        # one at a time, as most are served: an int8 model's answer depends on what shares its batch
        return partial(session.probabilities, batch_size=1)

    return predictions.answered(
        night.workspace,
        export.facts.sha256,
        "tasks.runtime.session",
        predictions.held_out(
            ground.data_folder, config.max_slice_texts, config.max_robustness_texts
        ),
        ground.labels,
        load,
    )


def ask_eager(night: Night) -> Quality:
    """Return the quality on test data of the baseline as PyTorch runs it."""
    workspace, ground, key = night.workspace, night.ground, night.plan.baseline
    rows = predictions.held_out(ground.data_folder, 0, 0)
    rows = rows[rows["split"] == "test"]
    described = store.manifest(workspace, key)
    assert described is not None

    def load() -> predictions.Probabilities:
        return EagerModel(store.load(workspace, key), ground.threads).probabilities

    path = predictions.answered(
        workspace, described.content, "tasks.runtime.eager", rows, ground.labels, load
    )
    probabilities, numbers = predictions.of_split(pd.read_parquet(path), ground.labels, "test")
    return quality(probabilities, numbers, ground.labels)


def answers(path: Path, baseline: Path, labels: tuple[str, ...], texts: Sequence[str]) -> Answers:
    """Return what the predictions in `path` are worth, beside the baseline's.

    `texts` are those of the test split, in its order.
    """
    table = pd.read_parquet(path)

    def judged(split: str, domain: str = "") -> Quality:
        probabilities, numbers = predictions.of_split(table, labels, split, domain)
        return quality(probabilities, numbers, labels)

    def of(split: str) -> dict[str, Quality]:
        return {domain: judged(split, domain) for domain in predictions.domains(table, split)}

    own, numbers = predictions.of_split(table, labels, "test")
    others, _ = predictions.of_split(pd.read_parquet(baseline), labels, "test")
    return Answers(
        validation=judged("validation"),
        test=judged("test"),
        slices=of(predictions.SLICES),
        robustness=of(predictions.ROBUSTNESS),
        agreement=agreement(own, others),
        correct=own.argmax(axis=1) == numbers,
        changed=most_changed(others, own, numbers, texts, labels, _MOST_CHANGED),
        predictions=path,
    )


def measurement(night: Night, exports: Mapping[str, Export], progress: Progress) -> Measurement:
    """Return the latencies of all `exports` and of the baseline in PyTorch, from one run.

    Taken now, unless this machine has measured exactly these models before.
    """
    here, ground, config = machine(), night.ground, night.settings.evaluation
    material = {
        "exports": {key: export.facts.sha256 for key, export in sorted(exports.items())},
        "data": ground.data_pointers["prepared"]["md5"],
        "config": config.model_dump(mode="json"),
        "threads": config.threads or ground.threads,
        "fingerprint": fingerprint(here),
        "code": code_hash(
            "tasks.runtime.latency",
            "tasks.runtime.memory",
            "tasks.runtime.session",
            "tasks.runtime.eager",
        ),
    }
    path = night.workspace.cache / "measurements" / f"{files.key(material)}.json"
    if not path.is_file():
        taken = _measure(night, exports, progress)
        files.write_json(path, asdict(taken))
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["latencies"] = {key: Latency(**value) for key, value in saved["latencies"].items()}
    return Measurement(**saved)


def _measure(night: Night, exports: Mapping[str, Export], progress: Progress) -> Measurement:
    ground, config = night.ground, night.settings.evaluation
    threads = config.threads or ground.threads
    baseline = store.load(night.workspace, night.plan.baseline)
    contenders: dict[str, Contender] = {EAGER: EagerModel(baseline, threads)}
    for key, export in exports.items():
        contenders[key] = Session(export.folder, threads)
    texts = texts_of_test(night)
    latencies = measure(contenders, texts, config, progress)
    sample = texts[: config.batch_size]
    memory = {key: peak_memory_mb(e.folder, threads, sample) for key, e in exports.items()}
    return Measurement(
        run=night.name,
        time=time.time(),
        machine=machine(),
        fingerprint=fingerprint(machine()),
        latencies=latencies,
        memory_mb=memory,
    )


def texts_of_test(night: Night) -> list[str]:
    """Return the texts of the test split, in its order."""
    rows = predictions.held_out(night.ground.data_folder, 0, 0)
    texts: list[str] = rows.loc[rows["split"] == "test", "text"].tolist()
    return texts


def judge(
    night: Night,
    exports: Mapping[str, Export],
    files_of_answers: Mapping[str, Path],
    eager: Quality,
    measured: Measurement,
    incumbent: str | None,
) -> Trial:
    """Return every variant's verdict, and the best of those that pass.

    `incumbent` is the node that production loads; it is judged as a variant of tonight's baseline.
    """
    base, labels, settings = night.plan.baseline, night.ground.labels, night.settings
    texts = texts_of_test(night)
    answered = {
        key: answers(path, files_of_answers[base], labels, texts)
        for key, path in files_of_answers.items()
    }
    # a baseline is weighed as a candidate where a person asks for it
    variants = [key for key in exports if key != base or key in night.plan.leaves.values()]
    losses = {key: _loss(answered[base], answered[key], settings) for key in variants}
    speedups = {key: _speedups(measured, key, base, settings) for key in variants}
    evidence = {
        key: Evidence(
            baseline=answered[base].test,
            variant=answered[key].test,
            loss=losses[key],
            speedup=speedups[key][base],
            shrink=exports[base].facts.size_bytes / exports[key].facts.size_bytes,
            proof=_proof(night, exports, key),
            baseline_slices=answered[base].slices,
            variant_slices=answered[key].slices,
        )
        for key in variants
    }
    verdicts = {key: gates.judge(shown, settings.gates) for key, shown in evidence.items()}
    passing = {
        key: _candidate(key, exports, answered, measured)
        for key in variants
        if verdicts[key].passed
    }
    tonight = {key: one for key, one in passing.items() if key in night.plan.nodes}
    best = pareto.choose(tonight, settings.registry.objective)
    return Trial(
        labels=labels,
        exports=exports,
        answers=answered,
        eager=eager,
        measured=measured,
        losses=losses,
        speedups=speedups,
        verdicts=verdicts,
        front=frozenset(pareto.front(tonight)),
        best=best,
        incumbent=incumbent,
        better=_is_better(best, incumbent, passing, answered, settings),
    )


@dataclass(frozen=True)
class Beside:
    """A variant beside the champion, on the same test texts and in the same measurement."""

    shown: gates.Succession
    agreement: Agreement
    changed: tuple[Changed, ...]
    """Test texts that the champion gets right and the variant does not, the worst first."""


def beside(night: Night, tried: Trial, key: str, champion: str) -> Beside:
    """Return what the variant `key` is beside the node `champion`; both were tried."""
    settings, labels = night.settings, tried.labels
    own, others = tried.answers[key], tried.answers[champion]
    (mine, numbers), (theirs, _) = (
        predictions.of_split(pd.read_parquet(one.predictions), labels, "test")
        for one in (own, others)
    )
    latencies = tried.measured.latencies
    sizes = {one: tried.exports[one].facts.size_bytes for one in (key, champion)}
    return Beside(
        shown=gates.Succession(
            loss=_loss(others, own, settings),
            speedup=ratio(
                latencies[champion].rounds_ms, latencies[key].rounds_ms, settings.evaluation
            ),
            shrink=sizes[champion] / sizes[key],
        ),
        agreement=agreement(theirs, mine),
        changed=most_changed(theirs, mine, numbers, texts_of_test(night), labels, _MOST_CHANGED),
    )


def _is_better(
    best: str | None,
    incumbent: str | None,
    passing: Mapping[str, Candidate],
    answered: Mapping[str, Answers],
    settings: Settings,
) -> bool:
    """Tell whether `best` should stand in the incumbent's place."""
    if best is None or incumbent is None or best == incumbent:
        return False
    lost = _loss(answered[incumbent], answered[best], settings)
    within = (
        lost.points <= settings.gates.max_loss_points
        and lost.bound_points <= settings.gates.max_loss_bound_points
    )
    # an incumbent that no longer passes is not among those to choose from
    two = {key: passing[key] for key in (best, incumbent) if key in passing}
    return within and pareto.choose(two, settings.registry.objective) == best


def _candidate(
    key: str,
    exports: Mapping[str, Export],
    answered: Mapping[str, Answers],
    measured: Measurement,
) -> Candidate:
    return Candidate(
        validation_accuracy=answered[key].validation.accuracy,
        p50_ms=measured.latencies[key].p50_ms,
        throughput=measured.latencies[key].throughput,
        size_bytes=exports[key].facts.size_bytes,
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


def _proof(night: Night, exports: Mapping[str, Export], key: str) -> proof.Proof:
    if key not in night.plan.nodes:
        return proof.Proof(True, "proven on the night that registered it")
    chain = night.plan.chain(key)
    effects: dict[str, tuple[str, ...]] = {}
    for node in chain[1:]:
        found = technique.effects(node.technique, node.settings)
        effects[node.technique] = (*effects.get(node.technique, ()), *found)
    sizes: dict[str, list[float]] = {}
    for before, after in pairwise(chain):
        old, new = (store.manifest(night.workspace, node.key) for node in (before, after))
        assert old is not None
        assert new is not None
        share = new.num_parameters / old.num_parameters
        sizes.setdefault(after.technique, []).append(share)
    base, variant = (_substance(night.workspace, exports[k]) for k in (night.plan.baseline, key))
    return proof.prove(base, variant, effects, sizes)


def _substance(workspace: Workspace, export: Export) -> proof.Substance:
    """Count once per export: loading a model for it takes longer than all else here."""
    path = export.folder.with_suffix(".substance.json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # an earlier version may have counted less
    if kept.keys() != {one.name for one in fields(proof.Substance)}:
        bundle, facts = store.load(workspace, export.node), export.facts
        counted = proof.substance(
            bundle.model,
            facts.size_bytes,
            facts.quantized,
            facts.operators,
            bundle.max_length,
            facts.packed,
        )
        kept = asdict(counted)
        files.write_json(path, kept)
    return proof.Substance(**kept)
