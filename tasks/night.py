"""What all steps of one night share."""

from dataclasses import dataclass

from tasks.data.pipeline import PreparedData
from tasks.plan import Plan
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
