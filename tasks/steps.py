"""The steps of a night as Prefect tasks: names, tags, retries where a retry can help, time limits.

Only small values pass between them: keys, hashes, paths, figures. No step caches: the derivation
tree is the one cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import press as pressing
from tasks import verdicts
from tasks.data import fetch_model, pipeline
from tasks.errors import ServiceError, SourceError
from tasks.plan import Node
from tasks.press import Ground
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.training.progress import Progress
from tasks.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")


def _step(
    name: str, *tags: str, retries: int = 0, minutes: float | None = None
) -> Callable[[Callable[P, R]], Any]:
    """Return the decorator of a step; a retry is for what a network can do, never for bad data."""
    return task(
        name=name,
        tags=list(tags),
        retries=retries,
        retry_delay_seconds=[2, 10, 30][:retries] or None,
        retry_condition_fn=_may_pass if retries else None,
        timeout_seconds=None if minutes is None else minutes * 60,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Tell whether trying again can help: a service or a network that was away."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ServiceError | ConnectionError | TimeoutError)
