"""Tells a night: its facts, kept as JSON, and the page made from them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files, store
from tasks.clock import Clock
from tasks.data.validation import Validation
from tasks.errors import StoreError
from tasks.night import Night
from tasks.press import Pressed
from tasks.registry import assembly, tracking
from tasks.registry.enrolment import Enrolment
from tasks.registry.night_facts import NightFacts, Phase, VariantRow, from_json, to_json
from tasks.registry.night_report import write_html
from tasks.registry.store import open_store, without_password
from tasks.trial import Trial
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = "report.html"
_FACTS = "night.json"


def tell(
    night: Night,
    validation: Validation,
    pressed: Pressed,
    trial: Trial,
    enrolment: Enrolment,
    clock: Clock,
    note: str,
) -> NightFacts:
    """Return the night's facts, written beside its page, and log both to its run."""
    workspace, name = night.workspace, night.settings.name
    folder = nights(workspace, name) / night.name
    client = open_store(workspace)
    told = replace(
        _facts(night, validation, trial, enrolment, clock.began),
        nodes=tuple(assembly.node_row(node, pressed) for node in night.plan.nodes.values()),
        variants=tuple(_rows(night, pressed, trial, enrolment)),
        note=" ".join(filter(None, (enrolment.note, note))),
        links=_links(client, night, enrolment, folder / PAGE),
        seconds=clock.seconds,
        phases=tuple(Phase(*row) for row in clock.costs()),
    )
    files.write_json(folder / _FACTS, to_json(told))
    write_html(told, folder / PAGE)
    write_html(told, workspace.root / PAGE)
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
    night: Night, validation: Validation, trial: Trial, enrolment: Enrolment, began: float
) -> NightFacts:
    """Return what there is to tell besides the variants."""
    settings, data, measured = night.settings, night.data, trial.measured
    return NightFacts(
        night=night.name,
        name=settings.name,
        started=began,
        seconds=0.0,  # known last
        data_name=settings.source.address.split("#")[0],
        rows=data.rows,
        pointers={"prepared": data.pointer.md5, "raw": data.raw_pointer.md5},
        labels=data.labels,
        validation=assembly.validation_facts(validation),
        eager=assembly.eager_figures(trial, _checkpoint_size(night)),
        fp32=assembly.figures(night.plan.baseline, trial),
        champion_before=enrolment.champion_before,
        champion_after=enrolment.champion_after,
        challenger_before=enrolment.challenger_before,
        challenger_after=enrolment.challenger_after,
        fingerprint=measured.fingerprint,
        machine={k: str(v) for k, v in measured.machine.items() if k != "versions"},
        versions=dict(measured.machine["versions"]),
        max_loss_points=settings.gates.max_loss_points,
    )


def _rows(
    night: Night, pressed: Pressed, trial: Trial, enrolment: Enrolment
) -> Iterator[VariantRow]:
    for key in dict.fromkeys(night.plan.leaves.values()):
        if key in trial.verdicts:
            yield assembly.variant_row(
                key,
                night.plan,
                trial,
                cached=key not in pressed.fresh,
                version=enrolment.versions[key].number,
                night=night.name,
            )
        else:
            yield assembly.failed_row(key, night.plan, pressed.failed[key])


def _links(
    client: "MlflowClient", night: Night, enrolment: Enrolment, page: Path
) -> dict[str, str]:
    """Return where more is to be read: the page, Data Docs, MLflow's run."""
    links = {"report": page.as_uri()}
    server = str(client.tracking_uri)
    if server.startswith(("http://", "https://")):
        experiment = client.get_run(enrolment.run).info.experiment_id
        address = f"{without_password(server).rstrip('/')}/#/experiments/{experiment}"
        links["MLflow run"] = f"{address}/runs/{enrolment.run}"
    return links


def _checkpoint_size(night: Night) -> int:
    """Return the bytes of the baseline's checkpoint, which may lie in DVC alone."""
    manifest = store.manifest(night.workspace, night.plan.baseline)
    assert manifest is not None
    return int(manifest.pointer["size"])
