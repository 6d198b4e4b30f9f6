"""What all steps of one night share."""

from dataclasses import dataclass

from tasks import plan as planning
from tasks.data.model import FetchedModel
from tasks.data.pipeline import PreparedData
from tasks.plan import Inputs, Plan
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
    ground = Ground(
        name=settings.name,
        data_folder=data.folder,
        data_pointers={
            "prepared": data.pointer.to_dict(),
            "raw": data.raw_pointer.to_dict(),
            "sources": data.sources,
        },
        labels=data.labels,
        base_model=model.folder,
        base_model_facts={"address": model.address, "sha256": model.sha256},
        device=device,
        threads=settings.threads or planning.default_threads(settings.workers, device),
        time_limit_minutes=settings.time_limit_minutes,
    )
    plan = planning.make(settings, Inputs(data.pointer.md5, model.sha256, device))
    return Night(name, workspace, settings, data, plan, ground)
