"""Enters a night's variants into the registry, and promotes by policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks import claims, store
from tasks.errors import LedgerBroken, PromotionRefused
from tasks.night import Night
from tasks.press import Pressed
from tasks.registry import evidence, ledger, promotion, succession, tracking, versions
from tasks.registry.assembly import variant_facts
from tasks.registry.evidence import Evidence
from tasks.registry.facts import DataFacts
from tasks.registry.night_facts import Standing
from tasks.registry.store import artifact_root, open_store
from tasks.registry.versions import Version
from tasks.store import Manifest
from tasks.trial import Trial, texts_of_test

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROBES = 8
"""Test texts that a new champion is asked."""


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
    note: str = ""
    """Why nothing was promoted, where something should have been."""


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
    note = ""
    try:
        promotion.recover(workspace, client, name)
    except LedgerBroken as error:
        note = f"No promotion tonight. {error}"
    champion, challenger = versions.champion(client, name), versions.challenger(client, name)
    if trial.best is not None and not note:
        try:
            _advance(night, client, registered[trial.best], champion, trial)
        except (PromotionRefused, LedgerBroken) as error:  # the night's work stands all the same
            note = f"No promotion tonight. {error}"
    return Enrolment(
        run=run,
        versions=registered,
        champion_before=_standing(champion),
        champion_after=_standing(versions.champion(client, name)),
        challenger_before=_standing(challenger),
        challenger_after=_standing(versions.challenger(client, name)),
        note=note,
    )


def _advance(
    night: Night, client: "MlflowClient", best: Version, champion: Version | None, trial: Trial
) -> None:
    """Make tonight's best the challenger, with its evidence, and promote it where policy says so.

    One that a person has rejected, or that is champion already, is left as it is.
    """
    workspace, name = night.workspace, night.settings.name
    if champion is not None and champion.node == best.node:
        versions.set_challenger(client, name, None)
        return
    word = ledger.load(workspace, name).word_on(best.number)
    if word is not None and word.kind == "rejected":
        return
    shown = evidence.of(night, trial, best.node)
    sha256 = succession.attach(workspace, client, best, shown)
    versions.set_challenger(client, name, best)
    policy = night.settings.registry.promotion
    if not _is_next(champion, shown, policy):
        return
    first = "the first model that passed" if champion is None else "better than the champion"
    succession.promote(
        workspace,
        client,
        best,
        shown,
        sha256,
        reason=f"night {night.name}: {first}",
        actor=promotion.whoami(),
        policy=policy,
        texts=texts_of_test(night)[:_PROBES],
    )


def _is_next(champion: Version | None, shown: Evidence, policy: str) -> bool:
    """Tell whether the night's best becomes champion without a person's word."""
    if champion is None:
        return policy != "manual"
    return policy == "auto" and champion.node == shown.champion and shown.passed and shown.better


def _standing(version: Version | None) -> Standing | None:
    if version is None:
        return None
    tags: Mapping[str, Any] = version.tags
    return Standing(str(tags.get("nightpress.recipe", "")), version.node, version.number)
