"""Versions: every variant is one version of `NAME-candidates`; `NAME` holds what was promoted.

A version carries the key of its node as a tag from its creation on, and is found by it: that is
what makes registering and promoting safe to repeat after a crash at any point.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ServiceError
from tasks.registry import serving, tracking
from tasks.registry.facts import VariantFacts
from tasks.registry.store import talking, without_password
from tasks.registry.tracking import NODE
from tasks.suggest import nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.registry.ledger import Entry

CHAMPION = "champion"
CHALLENGER = "challenger"
VERDICT = "nightpress.verdict"
REASONS = "nightpress.reasons"
CANDIDATE = "nightpress.candidate"
LEDGER = "nightpress.ledger"
EVIDENCE = "nightpress.evidence"
_MODEL = "nightpress.model"
_REASONS_LENGTH = 5000
_SHOWN = 10


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    node: str
    tags: Mapping[str, str]
    run_id: str
    model_id: str | None
    """Its LoggedModel."""
    fresh: bool = False
    """Whether it was made by the call that returned it."""

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.model}/{self.number}"


def candidates_of(name: str) -> str:
    """Return the registered model that holds every variant of `name`."""
    return f"{name}-candidates"


def find(client: "MlflowClient", model: str, node: str) -> Version | None:
    """Return the version of the registered model that holds `node`; None where there is none."""
    assert node.isalnum(), f"{node!r} cannot be a node's key"
    with talking(client):
        rows = client.search_model_versions(f"name = '{model}' and tags.`{NODE}` = '{node}'")
    found = sorted((_version(row) for row in rows), key=lambda v: v.number)
    return found[0] if found else None


def register_variant(
    client: "MlflowClient", name: str, night_run: str, facts: VariantFacts
) -> Version:
    """Return the variant's one version of `NAME-candidates`, logged and made where it is new.

    In any case its tags tell tonight's verdict and the measurement under it; one that the registry
    does not know yet is logged. Raises ServiceError.
    """
    model = candidates_of(name)
    version = find(client, model, facts.node_key) or _first(client, model, night_run, facts)
    told = {
        **verdict_tags(facts.passed, facts.reasons),
        tracking.FINGERPRINT: facts.fingerprint,
        # the last one: until it is told, all that comes before is done again
        tracking.MEASURED_RUN: facts.measured_run,
    }
    with talking(client):
        if version.tags.get(tracking.MEASURED_RUN) != facts.measured_run:
            assert version.model_id
            tracking.log_measurement(client, night_run, facts, version.model_id)
        for key, value in told.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(model, str(version.number), key, value)
    return replace(version, tags={**version.tags, **told})


def _first(client: "MlflowClient", model: str, night_run: str, facts: VariantFacts) -> Version:
    """Log the variant, and make its version."""
    with talking(client):
        parent = _nearest_model(client, model, facts.ancestors)
        logged = tracking.log_variant(client, night_run, facts, parent)
        return _create(
            client,
            model,
            source=_source(client, logged),
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            tags={
                **_shown(logged.tags),
                _MODEL: logged.model_id,
                **verdict_tags(facts.passed, facts.reasons),
            },
            description=_describe(facts),
        )


def verdict_tags(passed: bool, reasons: Sequence[str]) -> dict[str, str]:
    """Return the tags that tell a version's verdict; the reasons as a JSON list, cut to fit."""
    kept = [reason[:500] for reason in reasons]
    text = json.dumps(kept, ensure_ascii=False)
    while len(text) > _REASONS_LENGTH:
        kept = kept[:-1]
        text = json.dumps([*kept, f"… {len(reasons) - len(kept)} more"], ensure_ascii=False)
    return {VERDICT: "passed" if passed else "rejected", REASONS: text}


def set_challenger(client: "MlflowClient", name: str, candidate: Version | None) -> None:
    """Point `challenger` of `NAME-candidates` at the candidate; None takes the alias away."""
    model = candidates_of(name)
    standing = by_alias(client, model, CHALLENGER)
    with talking(client):
        if candidate is not None and (standing is None or standing.number != candidate.number):
            client.set_registered_model_alias(model, CHALLENGER, str(candidate.number))
        elif candidate is None and standing is not None:
            client.delete_registered_model_alias(model, CHALLENGER)


def attach_evidence(client: "MlflowClient", candidate: Version, sha256: str, path: Path) -> Version:
    """Attach the evidence file to the candidate, and name it there by its hash."""
    with talking(client):
        client.log_artifact(candidate.run_id, str(path), "evidence")
        client.set_model_version_tag(candidate.model, str(candidate.number), EVIDENCE, sha256)
    return replace(candidate, tags={**candidate.tags, EVIDENCE: sha256})


def copy(client: "MlflowClient", name: str, candidate: Version) -> Version:
    """Return the candidate's one copy in `NAME`, made where there is none yet. Raises ServiceError.

    `NAME` holds nothing but what was promoted: production needs no right on the candidates.
    """
    standing = find(client, name, candidate.node)
    if standing is not None:
        return standing
    with talking(client):
        row = client.get_model_version(candidate.model, str(candidate.number))
        return _create(
            client,
            name,
            source=candidate.uri,
            # a server refuses what its own row does not say
            run_id=row.run_id,
            model_id=row.model_id,
            tags={**candidate.tags, CANDIDATE: str(candidate.number)},
            description=f"Version {candidate.number} of {candidate.model}.",
        )


def point(client: "MlflowClient", name: str, number: int | None) -> None:
    """Let `champion` of `NAME` point at the version; None takes the alias away."""
    with talking(client):
        if number is None:
            client.delete_registered_model_alias(name, CHAMPION)
        else:
            client.set_registered_model_alias(name, CHAMPION, str(number))


def mirror(client: "MlflowClient", name: str, head: "Entry", champion: int | None) -> None:
    """Show the ledger's last entry on the registered model, and on the version it concerns."""
    with talking(client):
        client.set_registered_model_tag(name, LEDGER, f"{head.sequence}:{head.hash}")
        if champion is not None:
            client.set_model_version_tag(name, str(champion), LEDGER, f"{head.sequence}")


def champion(client: "MlflowClient", name: str) -> Version | None:
    """Return the version of `NAME` that production loads; None before the first promotion."""
    return by_alias(client, name, CHAMPION)


def challenger(client: "MlflowClient", name: str) -> Version | None:
    """Return the candidate that waits to be promoted."""
    return by_alias(client, candidates_of(name), CHALLENGER)


def by_alias(client: "MlflowClient", model: str, alias: str) -> Version | None:
    """Return the version that the alias points at; None where model or alias do not exist."""
    from mlflow.exceptions import MlflowException

    with talking(client):
        try:
            return _version(client.get_model_version_by_alias(model, alias))
        except MlflowException as error:
            # MLflow says INVALID_PARAMETER_VALUE for an alias that no version has
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def by_number(client: "MlflowClient", model: str, number: int | None) -> Version | None:
    """Return the version of that number; None where there is none."""
    from mlflow.exceptions import MlflowException

    if number is None:
        return None
    with talking(client):
        try:
            return _version(client.get_model_version(model, str(number)))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def named(client: "MlflowClient", name: str, which: str) -> Version:
    """Return the version of the registered model `name` that `which`, an alias or a number, means.

    Raises ServiceError where there is none, with those that there are.
    """
    which = which.removeprefix("@")
    found = by_number(client, name, int(which)) if which.isdigit() else None
    if found is None and not which.isdigit():
        found = by_alias(client, name, which)
    if found is None:
        raise ServiceError(f"`{name}` has no `{which}`; {_known(client, name, which)}")
    return found


def _known(client: "MlflowClient", name: str, which: str) -> str:
    """Return what versions and aliases there are: the nearest alias, or the last versions."""
    with talking(client):
        rows = client.search_model_versions(
            f"name = '{name}'", max_results=_SHOWN, order_by=["version_number DESC"]
        )
        aliases = client.get_registered_model(name).aliases if rows else {}
    if not rows:
        return "it has no version yet: run a night"
    close = "" if which.isdigit() else nearest(which, aliases)
    if "did you mean" in close:
        return close.removeprefix("; ")
    return f"it has {', '.join(f'version {row.version}' for row in rows)}"


def load(client: "MlflowClient", version: Version) -> Any:
    """Return the version's pyfunc model, ready to predict.

    `mlflow.pyfunc.load_model(version.uri)` would look in the process-wide store. Raises
    ServiceError where its files are gone.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with talking(client):
        address = client.get_model_version_download_uri(version.model, str(version.number))
    try:
        folder = download_artifacts(artifact_uri=address, tracking_uri=client.tracking_uri)
    except (OSError, MlflowException) as error:
        raise ServiceError(
            f"the files of {version.uri} cannot be had from {without_password(address)}; restore "
            "them, or let the alias point at a version whose files are there"
        ) from error
    return serving.pyfunc().load_model(folder)


def _create(client: "MlflowClient", model: str, **given: Any) -> Version:
    """Create a version; where someone made one of the same node meanwhile, theirs stands."""
    _ensure_model(client, model)
    made = _version(client.create_model_version(model, **given))
    standing = find(client, model, made.node)
    assert standing is not None
    if standing.number != made.number:
        client.delete_model_version(model, str(made.number))
        return standing
    return replace(made, fresh=True)


def _ensure_model(client: "MlflowClient", model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, tags={"nightpress": "1"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _source(client: "MlflowClient", logged: Any) -> str:
    """Return where the files of a version are.

    Without a server MLflow would look up `models:/<id>` in the process-wide store, which may be
    another one; a server refuses folders, and looks it up in its own.
    """
    remote = str(client.tracking_uri).startswith("http")
    return f"models:/{logged.model_id}" if remote else str(logged.artifact_location)


def _nearest_model(client: "MlflowClient", model: str, ancestors: Sequence[str]) -> str | None:
    for node in ancestors:
        found = find(client, model, node)
        if found is not None and found.model_id:
            return found.model_id
    return None


def _shown(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.startswith("nightpress.")}


def _describe(facts: VariantFacts) -> str:
    return f"{facts.recipe}: {' → '.join(technique for technique, _ in facts.steps)}"


def _version(row: Any) -> Version:
    tags = dict(row.tags)
    return Version(
        model=row.name,
        number=int(row.version),
        node=tags.get(NODE, ""),
        tags=tags,
        run_id=row.run_id or "",
        # MLflow's own database does not keep what it is told
        model_id=row.model_id or tags.get(_MODEL),
    )
