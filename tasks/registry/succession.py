"""What people, and the night by policy, decide about candidates: promote, approve, reject.

A decision rests on evidence (`tasks.registry.evidence`) and is an entry of the ledger; the alias is
moved by `tasks.registry.promotion`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.errors import PromotionRefused
from tasks.registry import evidence as evidences
from tasks.registry import ledger, promotion, versions
from tasks.registry.evidence import Evidence
from tasks.registry.promotion import PROBES, Move
from tasks.registry.versions import EVIDENCE, Version
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


def candidate(client: "MlflowClient", name: str, which: str | None) -> Version:
    """Return the candidate of that number or alias; None: the challenger.

    Raises PromotionRefused where no challenger waits, ServiceError where there is no such version.
    """
    if which is None:
        found = versions.challenger(client, name)
        if found is None:
            raise PromotionRefused(
                f"no challenger of {name} waits; name a version of {versions.candidates_of(name)}, "
                "or run a night"
            )
        return found
    return versions.named(client, versions.candidates_of(name), which)


def attach(workspace: Workspace, client: "MlflowClient", version: Version, shown: Evidence) -> str:
    """Keep the evidence, attach it to the candidate, and return its hash."""
    sha256 = evidences.keep(workspace, shown)
    if version.tags.get(EVIDENCE) != sha256:
        path = evidences.path_of(workspace, shown.model, sha256)
        versions.attach_evidence(client, version, sha256, path)
    return sha256


def standing_evidence(
    workspace: Workspace, client: "MlflowClient", name: str, version: Version, data: str
) -> tuple[Evidence, str]:
    """Return the candidate's evidence and its hash, if it still holds: same champion, same data.

    Raises PromotionRefused where it has none, or it has lapsed; StoreError where it was changed.
    """
    sha256 = version.tags.get(EVIDENCE)
    measure = f"`nightpress promote {version.number} --reason …` measures anew"
    if not sha256:
        raise PromotionRefused(
            f"version {version.number} of {version.model} has no evidence yet; {measure}"
        )
    shown = evidences.read(workspace, name, sha256)
    if shown.data != data:
        raise PromotionRefused(
            f"the evidence for version {version.number} is older than the data, which has changed "
            f"since; {measure}"
        )
    champion = versions.champion(client, name)
    if shown.champion != (None if champion is None else champion.node):
        raise PromotionRefused(
            f"the evidence for version {version.number} is beside another champion than the one "
            f"that stands now; {measure}"
        )
    return shown, sha256


def promote(
    workspace: Workspace,
    client: "MlflowClient",
    version: Version,
    shown: Evidence,
    sha256: str,
    *,
    reason: str,
    actor: str,
    policy: str,
    override: bool = False,
    texts: Sequence[str] = PROBES,
) -> Version:
    """Let the candidate be champion on the evidence; return the promoted version.

    Raises PromotionRefused where a gate says no and `override` is not given with a reason, or
    where another promotion got there first.
    """
    name = shown.model
    if not shown.passed and not (override and reason):
        raise _does_not_pass(version, shown)
    champion = versions.champion(client, name)
    if shown.champion != (None if champion is None else champion.node):
        raise PromotionRefused(
            "the champion has changed since the evidence was taken: another got there first; "
            "start again"
        )
    move = Move(
        "promote", reason if shown.passed else f"against the gates: {reason}", actor, policy,
        evidence=sha256, data=shown.data, fingerprint=shown.fingerprint,
    )  # fmt: skip
    promoted = promotion.promote(
        workspace, client, name, version, move,
        expected=None if champion is None else champion.number, texts=texts,
    )  # fmt: skip
    challenger = versions.challenger(client, name)
    if challenger is not None and challenger.node == promoted.node:
        versions.set_challenger(client, name, None)
    return promoted


def give_word(
    workspace: Workspace,
    name: str,
    version: Version,
    kind: ledger.Kind,
    *,
    reason: str,
    actor: str,
    shown: Evidence | None = None,
    sha256: str = "",
) -> None:
    """Write a person's word on the candidate into the ledger: `approved` or `rejected`."""
    with promotion.turn(workspace, name):
        told = ledger.load(workspace, name)
        ledger.append(
            workspace, told, kind=kind, actor=actor, reason=reason, candidate=version.number,
            node=version.node, evidence=sha256, data="" if shown is None else shown.data,
            fingerprint="" if shown is None else shown.fingerprint,
        )  # fmt: skip


def reject(
    workspace: Workspace,
    client: "MlflowClient",
    name: str,
    version: Version,
    *,
    reason: str,
    actor: str,
) -> None:
    """Write that the candidate is not to be champion; it is challenger no more."""
    sha256 = version.tags.get(EVIDENCE, "")
    give_word(workspace, name, version, "rejected", reason=reason, actor=actor, sha256=sha256)
    challenger = versions.challenger(client, name)
    if challenger is not None and challenger.number == version.number:
        versions.set_challenger(client, name, None)


def approve(
    workspace: Workspace,
    client: "MlflowClient",
    version: Version,
    shown: Evidence,
    sha256: str,
    *,
    reason: str,
    actor: str,
    policy: str,
) -> Version:
    """Write that a person approves this evidence, and promote the candidate on it.

    Raises what `promote` raises; an approval of what does not pass is not written.
    """
    if not shown.passed:
        raise _does_not_pass(version, shown)
    give_word(
        workspace, shown.model, version, "approved",
        reason=reason, actor=actor, shown=shown, sha256=sha256,
    )  # fmt: skip
    return promote(
        workspace, client, version, shown, sha256, reason=reason, actor=actor, policy=policy
    )


def roll_back(
    workspace: Workspace,
    client: "MlflowClient",
    name: str,
    which: str | None,
    *,
    reason: str,
    actor: str,
    policy: str,
) -> Version:
    """Let an earlier champion be champion again; None: the one before."""
    to = None if which is None else versions.named(client, name, which).number
    return promotion.rollback(workspace, client, name, to, Move("rollback", reason, actor, policy))


def outcome(workspace: Workspace, version: Version) -> dict[str, Any]:
    """Return what is told of a move: the model, its champion, and the ledger's entry of it."""
    last = ledger.load(workspace, version.model).moves[-1]
    return {
        "model": version.model,
        "champion": version.number,
        "before": last.before,
        "recipe": version.tags.get("nightpress.recipe", ""),
        "entry": last.sequence,
        "evidence": last.evidence,
    }


def _does_not_pass(version: Version, shown: Evidence) -> PromotionRefused:
    return PromotionRefused(
        f"version {version.number} of {version.model} does not pass: {'; '.join(shown.reasons)}; "
        "`nightpress promote --override --reason …` promotes it all the same"
    )
