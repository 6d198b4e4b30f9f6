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
from tasks.data import gate, pipeline
from tasks.data.model import FetchedModel, fetch_model
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import ServiceError
from tasks.exports import Export
from tasks.plan import Node
from tasks.press import Ground
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.training.progress import Progress, Silent
from tasks.trial import Measurement
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
) -> Measurement:
    """Time all models together."""
    return trial.measurement(workspace, models, baseline, ground, settings.evaluation, progress)
