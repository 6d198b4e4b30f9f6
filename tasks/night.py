"""What all steps of one night share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks import plan as planning
from tasks import store
from tasks.data.model import FetchedModel
from tasks.data.pipeline import PreparedData
from tasks.errors import StoreError
from tasks.plan import Inputs, Node, Plan
from tasks.press import Ground
from tasks.settings import Settings
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Night:
    """One night of one model."""

    name: str
    """Its start, as `2026-01-31T020000`; names its run, its folder and its figures."""
    workspace: Workspace
    settings: Settings
    data: PreparedData
    plan: Plan
    ground: Ground


def begin(
    workspace: Workspace, settings: Settings, name: str, data: PreparedData, model: FetchedModel
) -> Night:
    """Return a night on the data and the base model, its tree planned.

    Raises SettingsError where a recipe cannot be pressed, or the device is not there.
    """
    device = planning.resolve_device(settings.device)
    facts = {"address": model.address, "sha256": model.sha256}
    ground = _ground(settings, data, model.folder, facts, device)
    plan = planning.make(settings, Inputs(data.pointer.md5, model.sha256, device))
    return Night(name, workspace, settings, data, plan, ground)


def around(
    workspace: Workspace, settings: Settings, name: str, data: PreparedData, key: str, recipe: str
) -> Night:
    """Return a night whose only variant is `key`, which some earlier night has pressed.

    Its baseline is the one that it was pressed from. Raises StoreError where a manifest on the way
    there is gone.
    """
    nodes: list[Node] = []
    at: str | None = key
    while at is not None:
        manifest = store.manifest(workspace, at)
        if manifest is None:
            raise StoreError(
                f"node {at[:12]}, which {recipe} comes from, is not published here; run this where "
                "its night ran, or press it again"
            )
        node = Node(
            at, manifest.technique, manifest.settings, manifest.parent, manifest.teachers,
            manifest.seed, manifest.code.get("hash", ""),
        )  # fmt: skip
        nodes.insert(0, node)
        at, base_model = manifest.parent, manifest.base_model
    keys = tuple(node.key for node in nodes)
    device = planning.resolve_device(settings.device)
    ground = _ground(settings, data, workspace.models, base_model, device)
    plan = Plan({n.key: n for n in nodes}, {recipe: key}, keys[0], {recipe: keys})
    return Night(name, workspace, settings, data, plan, ground)


def _ground(
    settings: Settings,
    data: PreparedData,
    base_model: Path,
    base_model_facts: Mapping[str, str],
    device: str,
) -> Ground:
    return Ground(
        name=settings.name,
        data_folder=data.folder,
        data_pointers={
            "prepared": data.pointer.to_dict(),
            "raw": data.raw_pointer.to_dict(),
            "sources": data.sources,
        },
        labels=data.labels,
        base_model=base_model,
        base_model_facts=base_model_facts,
        device=device,
        threads=settings.threads or planning.default_threads(settings.workers, device),
        time_limit_minutes=settings.time_limit_minutes,
    )
