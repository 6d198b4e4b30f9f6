"""Tells a night: its facts, kept as JSON, and the page made from them."""

import json
import os
from dataclasses import replace
from pathlib import Path

from tasks import files
from tasks.clock import Clock
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import StoreError
from tasks.plan import Plan
from tasks.press import Pressed
from tasks.registry import assembly, tracking
from tasks.registry.enrolment import Enrolment
from tasks.registry.night_facts import NightFacts, Phase, from_json, to_json
from tasks.registry.night_report import write_html
from tasks.registry.store import open_store
from tasks.settings import Settings
from tasks.trial import Trial
from tasks.workspace import Workspace

PAGE = "report.html"
_FACTS = "night.json"


def tell(
    workspace: Workspace,
    settings: Settings,
    night: str,
    data: PreparedData,
    validation: Validation,
    plan: Plan,
    pressed: Pressed,
    trial: Trial,
    enrolment: Enrolment,
    clock: Clock,
) -> NightFacts:
    """Return the night's facts, written beside its page, and log both to its run."""
    told = _facts(
        workspace, settings, night, data, validation, plan, pressed, trial, enrolment, clock
    )
    folder = nights(workspace, settings.name) / night
    files.write_json(folder / _FACTS, to_json(told))
    write_html(told, folder / PAGE)
    write_html(told, workspace.root / PAGE)
    client = open_store(workspace)
    metrics = {"seconds": told.seconds, "overhead_share": told.overhead_share}
    written = (folder / _FACTS, folder / PAGE)
    tracking.end_night(client, enrolment.run, metrics=metrics, files=written)
    return told


def nights(workspace: Workspace, name: str) -> Path:
    """Return the folder of what was told of the nights of the model `name`."""
    return workspace.state / name / "nights"


def past(workspace: Workspace, name: str, night: str | None) -> NightFacts:
    """Return the facts of a past night, the last one by default.

    Raises StoreError where there is none.
    """
    folder = nights(workspace, name)
    known = sorted(path.parent.name for path in folder.glob(f"*/{_FACTS}"))
    if not known:
        raise StoreError(f"no night of `{name}` has been told yet; `nightpress run` makes one")
    chosen = night or known[-1]
    if chosen not in known:
        raise StoreError(f"no night `{chosen}` of `{name}`; the last ones: {', '.join(known[-5:])}")
    return from_json(json.loads((folder / chosen / _FACTS).read_text(encoding="utf-8")))


def _facts(
    workspace: Workspace,
    settings: Settings,
    night: str,
    data: PreparedData,
    validation: Validation,
    plan: Plan,
    pressed: Pressed,
    trial: Trial,
    enrolment: Enrolment,
    clock: Clock,
) -> NightFacts:
    leaves = dict.fromkeys(plan.leaves.values())
    rows = [
        assembly.variant_row(
            key,
            plan,
            trial,
            cached=key not in pressed.fresh,
            version=enrolment.versions[key].number,
            night=night,
        )
        if key in trial.verdicts
        else assembly.failed_row(key, plan, pressed.failed[key])
        for key in leaves
    ]
    measured = trial.measured
    machine = {k: str(v) for k, v in measured.machine.items() if k != "versions"}
    told = NightFacts(
        night=night,
        name=settings.name,
        started=clock.began,
        seconds=0.0,
        data_name=settings.source.address.split("#")[0],
        rows=data.rows,
        pointers={"prepared": data.pointer.md5, "raw": data.raw_pointer.md5},
        labels=data.labels,
        validation=assembly.validation_facts(validation),
        nodes=tuple(assembly.node_row(node, pressed) for node in plan.nodes.values()),
        eager=assembly.eager_figures(trial, _weights_size(workspace, plan.baseline)),
        fp32=assembly.figures(plan.baseline, trial),
        variants=tuple(rows),
        champion_before=enrolment.champion_before,
        champion_after=enrolment.champion_after,
        challenger_before=enrolment.challenger_before,
        challenger_after=enrolment.challenger_after,
        fingerprint=measured.fingerprint,
        machine=machine,
        versions=dict(measured.machine["versions"]),
        max_loss_points=settings.gates.max_loss_points,
    )
    phases = tuple(Phase(*row) for row in clock.costs())
    return replace(told, seconds=clock.seconds, phases=phases)


def _weights_size(workspace: Workspace, key: str) -> int:
    return os.path.getsize(workspace.checkpoints / key / "model.safetensors")
