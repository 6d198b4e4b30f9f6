"""The steps of a night as Prefect tasks: names, tags, retries where a retry can help.

Only small values pass between them: keys, hashes, paths, figures. No step caches: the derivation
tree is the one cache. Time limits are in the work itself, since a thread cannot be stopped.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import exports, trial
from tasks import press as pressing
from tasks.clock import Clock
from tasks.data import gate, pipeline
from tasks.data.model import FetchedModel, fetch_model
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import NightpressError, ServiceError
from tasks.evaluation.quality import Quality
from tasks.exports import Export
from tasks.plan import Node, Plan
from tasks.press import Ground, Pressed
from tasks.registry import enrolment, telling
from tasks.registry.enrolment import Enrolment
from tasks.registry.night_facts import NightFacts
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.training.progress import Progress, Silent
from tasks.trial import Measurement, Trial
from tasks.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Tell whether trying again can help: a service or a network that was away, never bad data."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ServiceError | ConnectionError | TimeoutError)


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


@_step("export", "measure")
def export_node(workspace: Workspace, manifest: Manifest) -> Export:
    """Export one node to its runtime."""
    return exports.exported(workspace, manifest)


@_step("ask", "measure")
def ask_model(workspace: Workspace, export: Export, ground: Ground, settings: Settings) -> Path:
    """Ask one exported model about all held-out text."""
    return trial.ask(workspace, export, ground, settings.evaluation)


@_step("measure", "measure")
def measure_all(
    workspace: Workspace,
    models: Mapping[str, Export],
    baseline: str,
    ground: Ground,
    settings: Settings,
    progress: Progress,
    night: str,
) -> Measurement:
    """Time all models together."""
    return trial.measurement(
        workspace, models, baseline, ground, settings.evaluation, progress, night
    )


@_step("ask PyTorch", "measure")
def ask_eager(workspace: Workspace, baseline: str, ground: Ground) -> Quality:
    """Ask the baseline in PyTorch about the test texts."""
    return trial.ask_eager(workspace, baseline, ground)


@_step("judge", "gates")
def judge(
    workspace: Workspace,
    settings: Settings,
    plan: Plan,
    ground: Ground,
    models: Mapping[str, Export],
    answers: Mapping[str, Path],
    eager: Quality,
    measured: Measurement,
) -> Trial:
    """Hold every variant against the gates."""
    return trial.judge(workspace, settings, plan, ground, models, answers, eager, measured)


@_step("register", "registry", network=True)
def register(
    workspace: Workspace,
    settings: Settings,
    night: str,
    data: PreparedData,
    plan: Plan,
    pressed: Pressed,
    tried: Trial,
) -> Enrolment:
    """Register every variant with its verdict, and promote by policy."""
    return enrolment.enrol(workspace, settings, night, data, plan, pressed, tried)


@_step("report", "report", network=True)
def report(
    workspace: Workspace,
    settings: Settings,
    night: str,
    data: PreparedData,
    validation: Validation,
    plan: Plan,
    pressed: Pressed,
    tried: Trial,
    enrolled: Enrolment,
    clock: Clock,
) -> NightFacts:
    """Write the night's page and log it."""
    return telling.tell(
        workspace, settings, night, data, validation, plan, pressed, tried, enrolled, clock
    )


def reason(state: Any) -> str:
    """Return why a step failed, in one line. Raises what a user cannot have caused."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, NightpressError):
        return pressing.failed_line(error)
    raise error
