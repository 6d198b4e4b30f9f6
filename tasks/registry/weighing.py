"""Weighs a candidate: measured again beside champion and baseline, in one run, for its evidence."""

from datetime import UTC, datetime

from tasks import exports, store, trial
from tasks import night as nights
from tasks.data.pipeline import PreparedData
from tasks.errors import PromotionRefused
from tasks.night import Night
from tasks.registry import evidence, succession, versions
from tasks.registry.evidence import Evidence
from tasks.registry.store import open_store
from tasks.registry.versions import Version
from tasks.settings import Settings
from tasks.store import Manifest
from tasks.training.progress import Progress
from tasks.trial import Trial
from tasks.workspace import Workspace


def weigh(
    workspace: Workspace,
    settings: Settings,
    version: Version,
    data: PreparedData,
    progress: Progress,
) -> tuple[Evidence, str]:
    """Return the candidate's evidence, kept and attached to it, and its hash.

    Raises PromotionRefused where it is champion already or the champion cannot be measured beside
    it, StoreError where what it is made of is gone, ExportError.
    """
    client = open_store(workspace)
    champion = versions.champion(client, settings.name)
    if champion is not None and champion.node == version.node:
        raise PromotionRefused(
            f"version {version.number} of {version.model} is the champion already"
        )
    run = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    recipe = str(version.tags.get("nightpress.recipe", version.number))
    night = nights.around(workspace, settings, run, data, version.node, recipe)
    tried = _try(night, version.node, _manifest_of(workspace, champion), progress)
    shown = evidence.of(night, tried, version.node)
    return shown, succession.attach(workspace, client, version, shown)


def _manifest_of(workspace: Workspace, champion: Version | None) -> Manifest | None:
    if champion is None:
        return None
    manifest = store.manifest(workspace, champion.node)
    if manifest is None:
        raise PromotionRefused(
            f"the champion, {champion.uri}, was not pressed in this checkout: it cannot be "
            "measured beside the candidate; promote where its night ran"
        )
    return manifest


def _try(night: Night, key: str, champion: Manifest | None, progress: Progress) -> Trial:
    wanted = dict.fromkeys((night.plan.baseline, key, *([champion.key] if champion else [])))
    manifests = {one: store.manifest(night.workspace, one) for one in wanted}
    made = {
        one: exports.exported(night.workspace, manifest)
        for one, manifest in manifests.items()
        if manifest is not None
    }
    answers = {one: trial.ask(night, export) for one, export in made.items()}
    eager = trial.ask_eager(night)
    measured = trial.measurement(night, made, progress)
    return trial.judge(night, made, answers, eager, measured, champion.key if champion else None)
