"""Enters a night's variants into the registry, and promotes by policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks import claims, store
from tasks.night import Night
from tasks.press import Pressed
from tasks.registry import promotion, tracking, versions
from tasks.registry.assembly import variant_facts
from tasks.registry.facts import DataFacts
from tasks.registry.night_facts import Standing
from tasks.registry.promotion import Move
from tasks.registry.store import artifact_root, open_store
from tasks.registry.versions import Version
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.trial import Trial


@dataclass(frozen=True)
class Enrolment:
    """What the registry holds after a night."""

    run: str
    """The night's run."""
    versions: Mapping[str, Version]
    """Node → its version of `NAME-candidates`."""
    champion_before: Standing | None
    champion_after: Standing | None
    challenger_before: Standing | None
    challenger_after: Standing | None


def standing_champion(night: Night) -> Manifest | None:
    """Return the manifest of the champion's node; None where there is neither one nor its files.

    Raises ServiceError.
    """
    found = versions.champion(open_store(night.workspace), night.settings.name)
    return store.manifest(night.workspace, found.node) if found is not None else None


def enrol(night: Night, pressed: Pressed, trial: Trial) -> Enrolment:
    """Register every model of tonight's plan, once, and move the aliases as the policy says.

    Whatever a killed night left undone is completed. Raises ServiceError, and ClaimLost where
    another process has taken over tonight's run.
    """
    workspace, settings, data = night.workspace, night.settings, night.data
    claims.require(workspace, f"night:{settings.name}")
    client, name = open_store(workspace), settings.name
    params = {
        "seed": settings.seed,
        "recipes": ", ".join(settings.recipes),
        "data": data.pointer.md5,
        "objective": settings.registry.objective,
    }
    run = tracking.start_night(
        client, name, night.name, params=params, artifacts=artifact_root(workspace)
    )
    tracking.end_dead_nights(client, run)
    told = DataFacts(name, data.pointer.md5, data.rows)
    registered = {
        key: versions.register_variant(
            client, name, run, variant_facts(key, night.plan, trial, pressed.manifests, told)
        )
        for key in trial.exports
        if key in night.plan.nodes
    }
    champion, challenger = versions.champion(client, name), versions.challenger(client, name)
    if trial.best is not None:
        versions.set_challenger(client, name, registered[trial.best])
        if _replaces(champion, trial, settings):
            _promote(night, client, registered[trial.best], champion, trial)
    return Enrolment(
        run=run,
        versions=registered,
        champion_before=_standing(champion),
        champion_after=_standing(versions.champion(client, name)),
        challenger_before=_standing(challenger),
        challenger_after=_standing(versions.challenger(client, name)),
    )


def _promote(
    night: Night, client: Any, candidate: Version, champion: Version | None, trial: Trial
) -> None:
    settings = night.settings
    first = "the first model that passed" if champion is None else "better than the champion"
    promotion.promote(
        night.workspace,
        client,
        settings.name,
        candidate,
        Move(
            action="promote",
            reason=f"night {night.name}: {first}",
            actor=promotion.whoami(),
            policy=settings.registry.promotion,
            data=night.data.pointer.md5,
            fingerprint=trial.measured.fingerprint,
        ),
        expected=None if champion is None else champion.number,
    )


def _replaces(champion: Version | None, trial: Trial, settings: Settings) -> bool:
    """Tell whether the night's best becomes champion without a person's word.

    It does where there is none yet; else by policy, where it was tried beside the one that stands
    now and is better.
    """
    if champion is None:
        return True
    if settings.registry.promotion != "auto" or champion.node != trial.incumbent:
        return False
    return trial.better


def _standing(version: Version | None) -> Standing | None:
    if version is None:
        return None
    tags: Mapping[str, Any] = version.tags
    return Standing(str(tags.get("nightpress.recipe", "")), version.node, version.number)
