"""The night: data → validation → baseline → variants → gates → registry → report."""

import os
import time
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows import variant
from flows.variant import Pressed
from tasks import plan as planning
from tasks import provenance, steps, verdicts
from tasks.clock import Clock
from tasks.data import gate
from tasks.data.address import FetchedModel
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import TechniqueError
from tasks.plan import Inputs, Plan
from tasks.press import Ground
from tasks.registry import night_report
from tasks.registry.facts import NightFacts
from tasks.settings import Settings
from tasks.training.progress import Progress, Silent
from tasks.workspace import Workspace

_progress: Progress = Silent()


def use_progress(progress: Progress) -> None:
    """Show the work of nights in this process with `progress`; a worker's say nothing."""
    global _progress
    _progress = progress


@flow(name="nightly", flow_run_name="{night}", persist_result=False, validate_parameters=False)
def nightly(settings: dict[str, Any], root: str, night: str) -> NightFacts:
    """Run one night and return what there is to tell of it.

    Raises NightpressError where the night cannot go on: data refused, no baseline, a service away.
    A variant that fails does not end the night.
    """
    told = Settings.model_validate(settings)
    workspace = Workspace(Path(root))
    clock = Clock()
    with clock.phase("data", "overhead"):
        data = steps.reproduce_data(workspace, told)
    with clock.phase("validation", "overhead"):
        validation = steps.validate_data(workspace, told, data)
    with clock.phase("base model", "overhead"):
        model = steps.fetch_base_model(workspace, told)
