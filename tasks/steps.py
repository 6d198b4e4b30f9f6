"""The steps of a night as Prefect tasks: names, tags, retries where a retry can help.

Only small values pass between them: keys, hashes, paths, figures. No step caches: the derivation
tree is the one cache. The flow gives those that compute their time limit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import explanations, exports, trial, versioning
from tasks import press as pressing
from tasks.clock import Clock
from tasks.data import gate, pipeline
from tasks.data.model import FetchedModel, fetch_model
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import NightpressError, ServiceAway, SourceAway
from tasks.evaluation.explained import Undoing
from tasks.evaluation.quality import Quality
from tasks.exports import Export
from tasks.night import Night
from tasks.plan import Node
from tasks.press import Ground, Pressed
from tasks.registry import enrolment, succession, telling, weighing
from tasks.registry.enrolment import Enrolment
from tasks.registry.evidence import Evidence
from tasks.registry.night_facts import NightFacts
from tasks.registry.store import open_store
from tasks.registry.versions import Version
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.training.progress import Progress, Silent
from tasks.trial import Measurement, Trial
from tasks.versioning import Pointer
from tasks.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Tell whether trying again can help: a service or a network that was away, never bad data."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, SourceAway | ServiceAway | ConnectionError)


def _step(name: str, *tags: str, network: bool = False) -> Callable[[F], Any]:
    """Return the decorator of a step; one that uses a network is tried three times more."""
    return task(
        name=name,
        tags=list(tags),
        retries=3 if network else 0,
        retry_delay_seconds=[2, 10, 30] if network else None,
        retry_condition_fn=_may_pass if network else None,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


@_step("reproduce data", "data", network=True)
def reproduce_data(workspace: Workspace, settings: Settings) -> PreparedData:
    """Bring the DVC stages up to date."""
    return pipeline.reproduce(workspace, settings.name, settings.source, settings.prepare)


@_step("validate data", "data")
def validate_data(workspace: Workspace, settings: Settings, data: PreparedData) -> Validation:
    """Hold the data against the gate. Raises DataRejected."""
    return gate.pass_or_raise(workspace, settings.name, settings.validation, data)


@_step("fetch base model", "data", network=True)
def fetch_base_model(workspace: Workspace, settings: Settings) -> FetchedModel:
    """Fetch the base model, unless it is there."""
    return fetch_model(settings.baseline.model, workspace.models)


@_step("press", "press")
def press_node(root: str, node: Node, ground: Ground, progress: Progress | None = None) -> Manifest:
    """Press one node."""
    pressed, _ = pressing.press(Workspace(Path(root)), node, ground, progress or Silent())
    return pressed


@_step("find champion", "registry", network=True)
def find_champion(night: Night) -> Manifest | None:
    """Find the model that production loads, to measure it beside tonight's."""
    return enrolment.standing_champion(night)


@_step("export", "measure")
def export_node(night: Night, manifest: Manifest) -> Export:
    """Export one node to its runtime."""
    return exports.exported(night.workspace, manifest)


@_step("ask", "measure")
def ask_model(night: Night, export: Export) -> Path:
    """Ask one exported model about all held-out text."""
    return trial.ask(night, export)


@_step("measure", "measure")
def measure_all(night: Night, models: Mapping[str, Export], progress: Progress) -> Measurement:
    """Time all models together."""
    return trial.measurement(night, models, progress)


@_step("ask PyTorch", "measure")
def ask_eager(night: Night) -> Quality:
    """Ask the baseline in PyTorch about the test texts."""
    return trial.ask_eager(night)


@_step("judge", "gates")
def judge(
    night: Night,
    models: Mapping[str, Export],
    answers: Mapping[str, Path],
    eager: Quality,
    measured: Measurement,
    incumbent: str | None,
) -> Trial:
    """Hold every variant against the gates."""
    return trial.judge(night, models, answers, eager, measured, incumbent)


@_step("explain", "gates")
def explain(night: Night, key: str, progress: Progress) -> Undoing:
    """Find which layers cost a variant that loses too much."""
    return explanations.undoing(night, key, progress)


@_step("register", "registry", network=True)
def register(night: Night, pressed: Pressed, tried: Trial) -> Enrolment:
    """Register every variant with its verdict, and promote by policy."""
    return enrolment.enrol(night, pressed, tried)


@_step("push checkpoints", "data")
def push_checkpoints(night: Night, pressed: Pressed) -> str:
    """Copy data and checkpoints to the DVC remote; return why it could not be done, or nothing.

    A remote that is away costs no night: the next one pushes what is missing.
    """
    pointers = [night.data.raw_pointer, night.data.pointer]
    pointers += [Pointer.from_dict(m.pointer) for m in pressed.manifests.values()]
    try:
        versioning.push(night.workspace.root, pointers)
    except NightpressError as error:
        return f"The DVC remote has not all of this night yet; the next one tries again. {error}"
    return ""


@_step("report", "report", network=True)
def report(
    night: Night,
    validation: Validation,
    pressed: Pressed,
    tried: Trial,
    enrolled: Enrolment,
    clock: Clock,
    note: str,
) -> NightFacts:
    """Write the night's page and log it."""
    return telling.tell(night, validation, pressed, tried, enrolled, clock, note)


@_step("find candidate", "registry", network=True)
def find_candidate(workspace: Workspace, settings: Settings, which: str | None) -> Version:
    """Find the candidate that a person means."""
    return succession.candidate(open_store(workspace), settings.name, which)


@_step("weigh", "gates")
def weigh(
    workspace: Workspace,
    settings: Settings,
    version: Version,
    data: PreparedData,
    progress: Progress,
) -> tuple[Evidence, str]:
    """Measure the candidate, the champion and the baseline together, and keep the evidence."""
    return weighing.weigh(workspace, settings, version, data, progress)


@_step("promote", "registry", network=True)
def promote(
    workspace: Workspace,
    settings: Settings,
    version: Version,
    weighed: tuple[Evidence, str],
    why: str,
    actor: str,
    override: bool,
) -> dict[str, Any]:
    """Move the champion's alias to the candidate, on the evidence."""
    client = open_store(workspace)
    shown, sha256 = weighed
    promoted = succession.promote(
        workspace, client, version, shown, sha256, reason=why, actor=actor,
        policy=settings.registry.promotion, override=override,
    )  # fmt: skip
    return succession.outcome(workspace, promoted)


@_step("approve", "registry", network=True)
def approve(
    workspace: Workspace,
    settings: Settings,
    version: Version,
    data: PreparedData,
    why: str,
    actor: str,
) -> dict[str, Any]:
    """Write a person's approval of the candidate's evidence, and promote the candidate on it."""
    client, name = open_store(workspace), settings.name
    shown, sha256 = succession.standing_evidence(workspace, client, name, version, data.pointer.md5)
    promoted = succession.approve(
        workspace, client, version, shown, sha256, reason=why, actor=actor,
        policy=settings.registry.promotion,
    )  # fmt: skip
    return succession.outcome(workspace, promoted)


@_step("reject", "registry", network=True)
def reject(
    workspace: Workspace, settings: Settings, version: Version, why: str, actor: str
) -> dict[str, Any]:
    """Write a person's rejection of the candidate."""
    client = open_store(workspace)
    succession.reject(workspace, client, settings.name, version, reason=why, actor=actor)
    return {"model": settings.name, "rejected": version.number}


@_step("roll back", "registry", network=True)
def roll_back(
    workspace: Workspace, settings: Settings, which: str | None, why: str, actor: str
) -> dict[str, Any]:
    """Move the champion's alias back."""
    client = open_store(workspace)
    back = succession.roll_back(
        workspace, client, settings.name, which, reason=why, actor=actor,
        policy=settings.registry.promotion,
    )  # fmt: skip
    return succession.outcome(workspace, back)


def reason(state: Any) -> str:
    """Return why a step failed, in one line."""
    error = state.result(raise_on_failure=False)
    line = pressing.failed_line(error)
    return line if isinstance(error, NightpressError) else f"{type(error).__name__}: {line}"
