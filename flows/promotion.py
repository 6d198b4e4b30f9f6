"""Promotion: weigh the candidate beside the champion → move the alias → ask the new champion."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows import console
from tasks import steps
from tasks.settings import Settings
from tasks.workspace import Workspace

Act = Literal["promote", "approve", "reject", "rollback"]


@flow(name="promotion", flow_run_name="{act}", persist_result=False, validate_parameters=False)
def promotion(
    settings: dict[str, Any],
    root: str,
    act: Act,
    which: str | None,
    reason: str,
    actor: str,
    override: bool,
) -> dict[str, Any]:
    """Do what a person asks of the registry, and return what came of it.

    `which` is a candidate's number or alias, for `rollback` a version of the model itself; None:
    the challenger, or the champion before. Raises PromotionRefused, and what measuring raises; the
    champion then stays.
    """
    told, workspace = Settings.model_validate(settings), Workspace(Path(root))
    progress = console.in_use()
    done: dict[str, Any]
    if act == "rollback":
        done = steps.roll_back(workspace, told, which, reason, actor)
        return done
    version = steps.find_candidate(workspace, told, which)
    if act == "reject":
        done = steps.reject(workspace, told, version, reason, actor)
        return done
    data = steps.reproduce_data(workspace, told)
    if act == "approve":
        done = steps.approve(workspace, told, version, data, reason, actor)
        return done
    progress.say(f"weighing version {version.number} of {version.model} beside the champion")
    weighed = steps.weigh(workspace, told, version, data, progress)
    done = steps.promote(workspace, told, version, weighed, reason, actor, override)
    return done
