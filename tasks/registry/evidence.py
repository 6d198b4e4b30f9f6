"""The evidence of a promotion: one file, and its hash, by which approvals and the ledger name it.

All in it comes from one measurement of candidate, champion and baseline, on one machine, on the
same test texts.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks import claims, files, trial
from tasks.errors import StoreError
from tasks.evaluation import gates
from tasks.evaluation.explained import Changed
from tasks.evaluation.gates import GateResult
from tasks.evaluation.paired import PairedLoss
from tasks.night import Night
from tasks.registry import assembly
from tasks.registry.night_facts import Figures
from tasks.runtime.latency import Ratio
from tasks.trial import Trial
from tasks.workspace import Workspace

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """One of the models measured together."""

    node: str
    export: str
    """SHA-256 over the files that are served."""
    figures: Figures


@dataclass(frozen=True)
class Succession:
    """The candidate beside the champion."""

    champion: Measured
    loss: PairedLoss
    speedup: Ratio
    """Champion's p50 divided by the candidate's."""
    agreement: float
    """Share of test texts that both answer alike."""
    changed: tuple[Changed, ...]
    """Test texts that the champion gets right and the candidate does not, the worst first."""


@dataclass(frozen=True)
class Evidence:
    """What was found of one candidate."""

    model: str
    taken: float
    """When the latencies were, in seconds since the epoch."""
    run: str
    """The night, or the promotion, that took them."""
    data: str
    """DVC hash of the prepared data."""
    num_texts: int
    fingerprint: str
    machine: dict[str, Any]
    candidate: Measured
    baseline: Measured
    loss: PairedLoss
    """Of the candidate against the baseline."""
    speedup: Ratio
    """p50 of the fp32 baseline divided by the candidate's."""
    succession: Succession | None
    """None where no champion stood, or its files are gone."""
    gates: tuple[GateResult, ...]
    better: bool
    """Whether it is the better one by the objective too, or the first."""
    format: int = FORMAT

    @property
    def passed(self) -> bool:
        """Tell whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return one line per gate that was not passed."""
        return tuple(gate.message for gate in self.gates if not gate.passed)

    @property
    def champion(self) -> str | None:
        """The champion's node; None where there was none."""
        return None if self.succession is None else self.succession.champion.node


_ADAPTER = TypeAdapter(Evidence)


def of(night: Night, tried: Trial, key: str) -> Evidence:
    """Return the evidence for the candidate `key`, tried beside the champion that stood."""
    base = night.plan.baseline
    results, succession = tried.verdicts[key].gates, None
    if tried.incumbent is not None and tried.incumbent != key:
        beside = trial.beside(night, tried, key, tried.incumbent)
        results = (*results, *gates.judge_succession(beside.shown, night.settings.gates))
        succession = Succession(
            champion=_measured(tried, tried.incumbent),
            loss=beside.shown.loss,
            speedup=beside.shown.speedup,
            agreement=beside.agreement.labels,
            changed=beside.changed,
        )
    return Evidence(
        model=night.settings.name,
        taken=tried.measured.time,
        run=tried.measured.run,
        data=night.data.pointer.md5,
        num_texts=len(tried.answers[key].correct),
        fingerprint=tried.measured.fingerprint,
        machine=dict(tried.measured.machine),
        candidate=_measured(tried, key),
        baseline=_measured(tried, base),
        loss=tried.losses[key],
        speedup=tried.speedups[key][base],
        succession=succession,
        gates=results,
        better=succession is None or (key == tried.best and tried.better),
    )


def keep(workspace: Workspace, evidence: Evidence) -> str:
    """Write the evidence into the state folder, once, and return its SHA-256."""
    text = json.dumps(asdict(evidence), sort_keys=True, indent=1, ensure_ascii=False)
    sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
    path = path_of(workspace, evidence.model, sha256)
    if not path.is_file():
        with files.staged(claims.staging(workspace), "evidence") as folder:
            part = folder / path.name
            part.write_text(text, encoding="utf-8")
            files.sync_folder(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)
    return sha256


def path_of(workspace: Workspace, model: str, sha256: str) -> Path:
    """Return where evidence of that hash is kept."""
    assert sha256.isalnum(), f"{sha256!r} cannot be a hash"
    return workspace.state / model / "evidence" / f"{sha256}.json"


def read(workspace: Workspace, model: str, sha256: str) -> Evidence:
    """Return the evidence of that hash.

    Raises StoreError where it is gone, or is not what was hashed.
    """
    path = path_of(workspace, model, sha256)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(
            f"the evidence {sha256[:12]} is not in {path.parent}; `nightpress promote` measures "
            "anew"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(
            f"{path} was changed: it is not the evidence that was weighed; `nightpress promote` "
            "measures anew"
        )
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError as error:
        raise StoreError(f"{path} is of another version of Nightpress") from error


def _measured(tried: Trial, key: str) -> Measured:
    return Measured(key, tried.exports[key].facts.sha256, assembly.figures(key, tried))
