"""One node of the tree: the unit that a worker takes."""

from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner

from tasks import press as pressing
from tasks import steps, store
from tasks.plan import Node, Plan
from tasks.press import Ground, Pressed
from tasks.store import Manifest
from tasks.training.progress import Progress
from tasks.workspace import Workspace


def press_all(
    workspace: Workspace, plan: Plan, ground: Ground, progress: Progress, workers: int
) -> Pressed:
    """Press every node that is not cached, parents and teachers first, `workers` at a time.

    Raises what the baseline's pressing raised: there would be nothing to compare with. Any other
    node may fail.
    """
    cached = {key: store.manifest(workspace, key) for key in plan.nodes}
    pressed = Pressed({k: m for k, m in cached.items() if m is not None}, set(), {})
    waiting = [node for node in plan.nodes.values() if node.key not in pressed.manifests]
    if workers == 1:
        for node in waiting:
            _press_here(workspace, plan, node, ground, progress, pressed)
    elif waiting:
        _press_side_by_side(workspace, plan, waiting, ground, workers, pressed)
    return pressed


def title(plan: Plan, node: Node) -> str:
    """Return how a node is called in front of people."""
    recipes = plan.recipes_of(node.key)
    return f"{node.technique} ({', '.join(recipes)})" if recipes else node.technique


def _press_here(
    workspace: Workspace,
    plan: Plan,
    node: Node,
    ground: Ground,
    progress: Progress,
    pressed: Pressed,
) -> None:
    if _stands_on_failure(plan, node, pressed):
        return
    progress.say(f"pressing {title(plan, node)}")
    run = steps.press_node.with_options(task_run_name=title(plan, node))
    state = run(str(workspace.root), node, ground, progress, return_state=True)
    _record(workspace, node, state, pressed)


def _press_side_by_side(
    workspace: Workspace,
    plan: Plan,
    waiting: list[Node],
    ground: Ground,
    workers: int,
    pressed: Pressed,
) -> None:
    """Press in processes of their own: training draws on the process's random numbers."""
    futures: dict[str, PrefectFuture[Manifest]] = {}
    with ProcessPoolTaskRunner(max_workers=workers) as runner:
        for node in waiting:
            run = steps.press_node.with_options(task_run_name=title(plan, node))
            futures[node.key] = runner.submit(
                run,
                parameters={"root": str(workspace.root), "node": node, "ground": ground},
                wait_for=[futures[key] for key in node.needs if key in futures],
            )
        for node in waiting:
            futures[node.key].wait()
            if not _stands_on_failure(plan, node, pressed):
                _record(workspace, node, futures[node.key].state, pressed)


def _stands_on_failure(plan: Plan, node: Node, pressed: Pressed) -> bool:
    broken = [key for key in node.needs if key in pressed.failed]
    if broken:
        pressed.failed[node.key] = (
            f"not pressed: {plan.nodes[broken[0]].technique} before it failed"
        )
    return bool(broken)


def _record(workspace: Workspace, node: Node, state: object, pressed: Pressed) -> None:
    standing = store.manifest(workspace, node.key)
    if standing is not None:
        pressed.manifests[node.key] = standing
        pressed.fresh.add(node.key)
        return
    error = state.result(raise_on_failure=node.parent is None)  # type: ignore[attr-defined]
    pressed.failed[node.key] = pressing.failed_line(error)


def worker_count(setting: int | str, device: str) -> int:
    """Return how many nodes are pressed side by side; `auto` is one per GPU, or 1 on CPU."""
    if isinstance(setting, int):
        return setting
    if device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())
