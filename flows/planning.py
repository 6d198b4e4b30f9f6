"""`nightpress plan`: the tree, what is cached, and what tonight would cost."""

import json
import statistics
import sys
from collections import defaultdict

from rich.console import Console
from rich.tree import Tree

from tasks import store
from tasks.data import pipeline
from tasks.data.model import fetch_model
from tasks.plan import Inputs, Node, Plan, check, make, resolve_device
from tasks.settings import Settings
from tasks.workspace import Workspace


def show_plan(workspace: Workspace, settings: Settings, *, as_json: bool) -> None:
    """Print the derivation tree of `settings` over the data as it is now."""
    check(settings)
    data = pipeline.reproduce(workspace, settings.name, settings.source, settings.prepare)
    model = fetch_model(settings.baseline.model, workspace.models)
    plan = make(settings, Inputs(data.pointer.md5, model.sha256, resolve_device(settings.device)))
    cached = {key for key in plan.nodes if store.manifest(workspace, key) is not None}
    expected = _expected_seconds(workspace)
    if as_json:
        json.dump([_row(plan, n, cached, expected) for n in plan.nodes.values()], sys.stdout)
        sys.stdout.write("\n")
        return
    console = Console()
    console.print(_tree(plan, cached, expected))
    console.print(_sum(plan, cached, expected), highlight=False)


def _expected_seconds(workspace: Workspace) -> dict[str, float]:
    """Return technique → median seconds over the nodes pressed here so far."""
    seconds = defaultdict(list)
    for manifest in store.published(workspace):
        seconds[manifest.technique].append(manifest.seconds)
    return {technique: statistics.median(found) for technique, found in seconds.items()}


def _row(plan: Plan, node: Node, cached: set[str], expected: dict[str, float]) -> dict[str, object]:
    return {
        "key": node.key,
        "technique": node.technique,
        "settings": dict(node.settings),
        "parent": node.parent,
        "teachers": dict(node.teachers),
        "recipes": list(plan.recipes_of(node.key)),
        "cached": node.key in cached,
        "expected_seconds": None if node.key in cached else expected.get(node.technique),
    }


def _tree(plan: Plan, cached: set[str], expected: dict[str, float]) -> Tree:
    branches: dict[str, Tree] = {}
    for node in plan.nodes.values():
        line = _line(plan, node, cached, expected)
        if node.parent is None:
            branches[node.key] = Tree(line)
        else:
            branches[node.key] = branches[node.parent].add(line)
    return branches[plan.baseline]


def _line(plan: Plan, node: Node, cached: set[str], expected: dict[str, float]) -> str:
    names = ", ".join(plan.recipes_of(node.key))
    cost = expected.get(node.technique)
    if node.key in cached:
        state = "[green]cached[/]"
    else:
        state = "[yellow]to press[/]" + (f", about {cost:.0f} s" if cost is not None else "")
    return f"{node.technique} [dim]{node.key[:10]}[/] {state}" + (f"  → {names}" if names else "")


def _sum(plan: Plan, cached: set[str], expected: dict[str, float]) -> str:
    missing = [n for n in plan.nodes.values() if n.key not in cached]
    known = [expected[n.technique] for n in missing if n.technique in expected]
    text = f"{len(cached)} of {len(plan.nodes)} nodes are cached; {len(missing)} to press"
    if not missing:
        return text
    if known:
        text += f": about {sum(known) / 60:.1f} minutes for {len(known)} of them"
    unknown = len(missing) - len(known)
    return text + (f" ({unknown} never pressed here: cost not known)" if unknown else "")
