"""One node of the tree: the unit that a worker takes."""

import os
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner

from flows import worker
from tasks import press as pressing
from tasks import steps, store
from tasks.errors import TechniqueError
from tasks.night import Night
from tasks.plan import Node, Plan
from tasks.press import Pressed
from tasks.store import Manifest
from tasks.training.progress import Progress

_GRACE_SECONDS = 60.0


def press_all(night: Night, progress: Progress, workers: int) -> Pressed:
    """Press every node that is not cached, parents and teachers first, `workers` at a time.

    Raises what the baseline's pressing raised: there would be nothing to compare with. Any other
    node may fail.
    """
    cached = {key: store.manifest(night.workspace, key) for key in night.plan.nodes}
    pressed = Pressed({k: m for k, m in cached.items() if m is not None}, set(), {})
    waiting = [node for node in night.plan.nodes.values() if node.key not in pressed.manifests]
    if workers == 1:
        for node in waiting:
            _press_here(night, node, progress, pressed)
    elif waiting:
        _press_side_by_side(night, waiting, workers, pressed)
    return pressed


def title(plan: Plan, node: Node) -> str:
    """Return how a node is called in front of people."""
    recipes = plan.recipes_of(node.key)
    return f"{node.technique} ({', '.join(recipes)})" if recipes else node.technique


def _press_here(night: Night, node: Node, progress: Progress, pressed: Pressed) -> None:
    if _stands_on_failure(night.plan, node, pressed):
        return
    progress.say(f"pressing {title(night.plan, node)}")
    run = _step(night, node)
    state = run(str(night.workspace.root), node, night.ground, progress, return_state=True)
    _record(night, node, state.result(raise_on_failure=False), pressed)


def _press_side_by_side(night: Night, waiting: list[Node], workers: int, pressed: Pressed) -> None:
    """Press in processes of their own: training draws on the process's random numbers."""
    futures: dict[str, PrefectFuture[Manifest]] = {}
    with ProcessPoolTaskRunner(
        max_workers=workers, initializer=worker.begin, initargs=(night.workspace, os.getpid())
    ) as runner:
        for node in waiting:
            futures[node.key] = runner.submit(
                _step(night, node),
                parameters={
                    "root": str(night.workspace.root), "node": node, "ground": night.ground,
                },
                wait_for=[futures[key] for key in node.needs if key in futures],
            )  # fmt: skip
        for node in waiting:
            if not _stands_on_failure(night.plan, node, pressed):
                _record(night, node, _ending(futures[node.key]), pressed)


def _step(night: Night, node: Node) -> Any:
    # training keeps its own, finer limit; this one also ends what never trains
    limit = night.settings.time_limit_minutes * 60 + _GRACE_SECONDS
    name = title(night.plan, node)
    return steps.press_node.with_options(task_run_name=name, timeout_seconds=limit)


def _ending(future: PrefectFuture[Manifest]) -> object:
    """Wait for the node, and return what it ended with."""
    try:
        future.wait()
        return future.state.result(raise_on_failure=False)
    except BrokenProcessPool:
        return TechniqueError("its process was killed; is there enough memory for the workers?")


def _stands_on_failure(plan: Plan, node: Node, pressed: Pressed) -> bool:
    broken = [key for key in node.needs if key in pressed.failed]
    if broken:
        pressed.failed[node.key] = (
            f"{pressing.NOT_PRESSED}: {plan.nodes[broken[0]].technique} before it failed"
        )
    return bool(broken)


def _record(night: Night, node: Node, ending: object, pressed: Pressed) -> None:
    """Note what became of the node, whose task ended with a manifest or an error."""
    standing = store.manifest(night.workspace, node.key)
    if standing is not None:
        pressed.manifests[node.key] = standing
        pressed.fresh.add(node.key)
        return
    assert isinstance(ending, BaseException)
    if node.parent is None:
        raise ending
    pressed.failed[node.key] = pressing.failed_line(ending)


def worker_count(setting: int | str, device: str) -> int:
    """Return how many nodes are pressed side by side; `auto` is one per GPU, or 1 on CPU."""
    if isinstance(setting, int):
        return setting
    if device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())
