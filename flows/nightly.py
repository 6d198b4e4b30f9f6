"""The night: data → validation → baseline → variants → gates → registry → report."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows import console, variant
from tasks import plan as planning
from tasks import steps
from tasks.clock import Clock
from tasks.data import gate
from tasks.data.model import FetchedModel
from tasks.data.pipeline import PreparedData
from tasks.plan import Inputs, Plan
from tasks.press import Ground, Pressed
from tasks.registry.night_facts import NightFacts
from tasks.registry.night_report import markdown
from tasks.settings import Settings
from tasks.training.progress import Progress
from tasks.trial import Trial
from tasks.workspace import Workspace


@flow(name="nightly", flow_run_name="{night}", persist_result=False, validate_parameters=False)
def nightly(settings: dict[str, Any], root: str, night: str) -> NightFacts:
    """Run one night and return what there is to tell of it.

    Raises NightpressError where the night cannot go on: data refused, no baseline, a service away.
    A variant that fails does not end the night.
    """
    told, workspace, clock = Settings.model_validate(settings), Workspace(Path(root)), Clock()
    progress = console.in_use()
    with clock.phase("data", "overhead"):
        data = steps.reproduce_data(workspace, told)
    with clock.phase("validation", "overhead"):
        validation = steps.validate_data(workspace, told, data)
    with clock.phase("base model", "overhead"):
        model = steps.fetch_base_model(workspace, told)
    device = planning.resolve_device(told.device)
    plan = planning.make(told, Inputs(data.pointer.md5, model.sha256, device))
    ground = _ground(told, data, model, device)
    rows = ", ".join(f"{count} {split}" for split, count in data.rows.items())
    progress.say(f"data: {rows}; the validation gate is passed")
    with clock.phase("pressing", "work"):
        workers = variant.worker_count(told.workers, device)
        pressed = variant.press_all(workspace, plan, ground, progress, workers)
    trial = _try(workspace, told, plan, ground, pressed, clock, progress, night)
    with clock.phase("registry", "overhead"):
        enrolled = steps.register(workspace, told, night, data, plan, pressed, trial)
    with clock.phase("report", "overhead"):
        gate.accept(workspace, told.name, told.validation, data, validation)
        facts: NightFacts = steps.report(
            workspace, told, night, data, validation, plan, pressed, trial, enrolled, clock
        )
        create_markdown_artifact(markdown(facts), key="night", description=f"night {night}")
    return facts


def _ground(settings: Settings, data: PreparedData, model: FetchedModel, device: str) -> Ground:
    return Ground(
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


def _try(
    workspace: Workspace,
    settings: Settings,
    plan: Plan,
    ground: Ground,
    pressed: Pressed,
    clock: Clock,
    progress: Progress,
    night: str,
) -> Trial:
    """Export, ask, measure and judge all that was pressed; a variant that cannot be is failed."""
    judged = dict.fromkeys([plan.baseline, *plan.leaves.values()])
    exports, answers = {}, {}
    present = [key for key in judged if key in pressed.manifests]
    progress.say(f"exporting {len(present)} models, and asking them about held-out text")
    for key in present:
        with clock.phase("export", "work"):
            state = steps.export_node(workspace, pressed.manifests[key], return_state=True)
            if not state.is_completed():
                if key == plan.baseline:
                    state.result()  # raises: there is nothing to compare with
                pressed.failed[key] = steps.reason(state)
                continue
        exports[key] = state.result()
        with clock.phase("asking", "work"):
            answers[key] = steps.ask_model(workspace, exports[key], ground, settings)
    with clock.phase("asking", "work"):
        eager = steps.ask_eager(workspace, plan.baseline, ground)
    progress.say(f"measuring {len(exports)} models and the baseline in PyTorch, side by side")
    with clock.phase("measuring", "work"):
        measured = steps.measure_all(
            workspace, exports, plan.baseline, ground, settings, progress, night
        )
    tried: Trial = steps.judge(workspace, settings, plan, ground, exports, answers, eager, measured)
    return tried
