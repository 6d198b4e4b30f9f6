"""The night: data → validation → baseline → variants → gates → registry → report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows import console, variant
from tasks import explanations, steps
from tasks import night as nights
from tasks.clock import Clock
from tasks.data import gate
from tasks.evaluation.explained import Undoing
from tasks.night import Night
from tasks.press import Pressed
from tasks.registry.night_facts import NightFacts
from tasks.registry.night_report import markdown
from tasks.settings import Settings
from tasks.training.progress import Progress
from tasks.trial import Trial
from tasks.workspace import Workspace


@flow(name="nightly", flow_run_name="{night}", persist_result=False, validate_parameters=False)
def nightly(settings: dict[str, Any], root: str, night: str, began: float) -> NightFacts:
    """Run one night and return what there is to tell of it; `began` is the command's wall time.

    Raises NightpressError where the night cannot go on: data refused, no baseline, a service away.
    A variant that fails does not end the night.
    """
    clock = Clock(began)
    told, workspace = Settings.model_validate(settings), Workspace(Path(root))
    progress = console.in_use()
    with clock.phase("data", "overhead"):
        data = steps.reproduce_data(workspace, told)
    with clock.phase("validation", "overhead"):
        validation = steps.validate_data(workspace, told, data)
    with clock.phase("base model", "overhead"):
        model = steps.fetch_base_model(workspace, told)
    tonight = nights.begin(workspace, told, night, data, model)
    rows = ", ".join(f"{count} {split}" for split, count in data.rows.items())
    progress.say(f"data: {rows}; the validation gate is passed")
    with clock.phase("pressing", "work"):
        workers = variant.worker_count(told.workers, tonight.ground.device)
        pressed = variant.press_all(tonight, progress, workers)
    trial = _try(tonight, pressed, clock, progress)
    with clock.phase("registry", "overhead"):
        enrolled = steps.register(tonight, pressed, trial)
    with clock.phase("remote", "overhead"):
        note = steps.push_checkpoints(tonight, pressed)
    with clock.phase("report", "overhead"):
        gate.accept(workspace, told.name, told.validation, data, validation)
        facts: NightFacts = steps.report(tonight, validation, pressed, trial, enrolled, clock, note)
        create_markdown_artifact(markdown(facts), key="night", description=f"night {night}")
    return facts


def _try(night: Night, pressed: Pressed, clock: Clock, progress: Progress) -> Trial:
    """Export, ask, measure and judge all that was pressed, and the champion beside it.

    A variant that cannot be exported or asked is failed; raises where the baseline cannot be.
    """
    with clock.phase("registry", "overhead"):
        champion = steps.find_champion(night)
    manifests = dict(pressed.manifests)
    if champion is not None:
        manifests.setdefault(champion.key, champion)
    wanted = [
        night.plan.baseline,
        *night.plan.leaves.values(),
        *([champion.key] if champion else []),
    ]
    present = [key for key in dict.fromkeys(wanted) if key in manifests]
    progress.say(f"exporting {len(present)} models, and asking them about held-out text")
    exports, answers = {}, {}
    for key in present:
        with clock.phase("export", "work"):
            export = _outcome(night, key, pressed, steps.export_node, night, manifests[key])
        if export is None:
            continue
        with clock.phase("asking", "work"):
            answered = _outcome(night, key, pressed, steps.ask_model, night, export)
        if answered is not None:
            exports[key], answers[key] = export, answered
    with clock.phase("asking", "work"):
        eager = _limited(steps.ask_eager, night)(night)
    progress.say(f"measuring {len(exports)} models and the baseline in PyTorch, side by side")
    with clock.phase("measuring", "work"):
        measured = _limited(steps.measure_all, night)(night, exports, progress)
    incumbent = champion.key if champion is not None and champion.key in exports else None
    tried: Trial = steps.judge(night, exports, answers, eager, measured, incumbent)
    return replace(tried, undone=_explain(night, tried, clock, progress))


def _explain(night: Night, tried: Trial, clock: Clock, progress: Progress) -> dict[str, Undoing]:
    """Return, of every variant that loses too much, which of its layers do; in words where not."""
    undone, lossy = {}, explanations.lossy(night, tried)
    if lossy:
        progress.say(f"undoing the layers of {len(lossy)} variants that lose too much")
    for key in lossy:
        with clock.phase("explaining", "work"):
            state = _limited(steps.explain, night)(night, key, progress, return_state=True)
        undone[key] = (
            state.result()
            if state.is_completed()
            else Undoing(notes=(f"no layer could be undone: {steps.reason(state)}",))
        )
    return undone


def _outcome(night: Night, key: str, pressed: Pressed, step: Any, *given: Any) -> Any:
    """Return what the step gives for the node; None, with the reason noted, where it fails.

    Raises what the baseline's failed with: there would be nothing to compare with.
    """
    state = _limited(step, night)(*given, return_state=True)
    if state.is_completed() or key == night.plan.baseline:
        return state.result()
    pressed.failed[key] = steps.reason(state)
    return None


def _limited(step: Any, night: Night) -> Any:
    return step.with_options(timeout_seconds=night.settings.time_limit_minutes * 60)
