"""Moves the alias `champion`, and writes it down: compare and set, one mover at a time.

A move is: write the intent, move the alias, ask the new champion, write `done`. Where it does not
answer the alias goes back and `undone` is written. Whoever comes after a mover who died completes
or undoes his move first, so that after that alias and ledger agree.
"""

import contextlib
import getpass
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks import claims, faults
from tasks.errors import NightpressError, PromotionRefused
from tasks.registry import ledger, versions
from tasks.registry.ledger import Action, Ledger
from tasks.registry.versions import CANDIDATE, Version
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.1
PROBES = ("It is.", "A long evening, and a short one: both were worth it?", "nothing at all 0%")
"""What a champion is asked where its data gives no text."""


@dataclass(frozen=True)
class Move:
    """Why the alias is to move."""

    action: Action
    reason: str
    actor: str
    policy: str = ""
    evidence: str = ""
    """SHA-256 of the evidence file."""
    data: str = ""
    fingerprint: str = ""


def whoami() -> str:
    """Return who asks: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number with no name, in a container say
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def turn(workspace: Workspace, name: str, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the right to move the alias of `name`; wait for who holds it.

    Raises PromotionRefused after `wait` seconds.
    """
    end = time.monotonic() + wait
    while (claim := claims.take(workspace, f"promotion:{name}")) is None:
        if time.monotonic() > end:
            raise PromotionRefused(
                f"another promotion of {name} has been under way for {wait:.0f} s; "
                "`nightpress history` tells which"
            )
        time.sleep(_POLL_SECONDS)
    with claims.held(workspace, claim):
        yield


def promote(
    workspace: Workspace,
    client: "MlflowClient",
    name: str,
    candidate: Version,
    move: Move,
    *,
    expected: int | None,
    texts: Sequence[str] = PROBES,
) -> Version:
    """Copy the candidate to `NAME` and let `champion` point at the copy; return the copy.

    `expected` is the version that is champion now, None where there is none. Raises
    PromotionRefused where it is another one or the candidate does not answer, LedgerBroken, and
    ServiceError; the champion then stays.
    """
    with turn(workspace, name):
        told = settled(workspace, client, name, texts)
        _require_expected(told, expected)
        copy = versions.copy(client, name, candidate)
        faults.point("copied")
        _require_other(copy, told)
        return _move(workspace, client, told, copy, move, texts)


def rollback(
    workspace: Workspace,
    client: "MlflowClient",
    name: str,
    to: int | None,
    move: Move,
    *,
    texts: Sequence[str] = PROBES,
) -> Version:
    """Let `champion` point at an earlier version of `NAME` again, `to` or the one before.

    Raises PromotionRefused where there is none, or it does not answer.
    """
    with turn(workspace, name):
        told = settled(workspace, client, name, texts)
        target = _earlier(told) if to is None else to
        version = versions.named(client, name, str(target))
        _require_other(version, told)
        return _move(workspace, client, told, version, move, texts)


def _earlier(told: Ledger) -> int:
    """Return the champion before the one that stands, going back over earlier rollbacks too."""
    track: list[int] = []
    for move in told.moves:
        if move.after is None:
            continue
        if move.action == "rollback" and move.after in track:
            del track[track.index(move.after) + 1 :]
        else:
            track.append(move.after)
    if len(track) < 2:
        raise PromotionRefused(
            f"{told.model} has had no champion before this one: there is nothing to go back to"
        )
    return track[-2]


def settled(
    workspace: Workspace, client: "MlflowClient", name: str, texts: Sequence[str] = PROBES
) -> Ledger:
    """Return the ledger after ending what a mover who died left open. Only in one's own turn.

    Raises PromotionRefused where the alias was moved without the ledger.
    """
    told = _end_open_move(workspace, client, ledger.load(workspace, name), texts)
    standing = versions.champion(client, name)
    number = None if standing is None else standing.number
    if number != told.champion:
        raise moved_otherwise(name, number, told.champion)
    return told


def moved_otherwise(name: str, alias: int | None, told: int | None) -> PromotionRefused:
    """Return the error of an alias that is not where the ledger says."""
    return PromotionRefused(
        f"the alias `champion` of {name} points at {_version(alias)}, and the ledger says "
        f"{_version(told)}: it was moved by other means; `nightpress doctor --adopt` takes that "
        "into the ledger, `nightpress doctor --restore` moves it back"
    )


def recover(workspace: Workspace, client: "MlflowClient", name: str) -> None:
    """End what a mover who died left open. Raises LedgerBroken."""
    if ledger.load(workspace, name).open_intent is None:
        return
    with turn(workspace, name):
        _end_open_move(workspace, client, ledger.load(workspace, name), PROBES)


def drift(workspace: Workspace, client: "MlflowClient", name: str) -> tuple[int | None, int | None]:
    """Return the versions that are champion by the alias and by the ledger."""
    standing = versions.champion(client, name)
    return None if standing is None else standing.number, ledger.load(workspace, name).champion


def adopt(workspace: Workspace, client: "MlflowClient", name: str, move: Move) -> int | None:
    """Write the alias, as it was moved by other means, into the ledger; return where it points."""
    with turn(workspace, name):
        told = _end_open_move(workspace, client, ledger.load(workspace, name), PROBES)
        standing = versions.champion(client, name)
        after = None if standing is None else standing.number
        node = "" if standing is None else standing.node
        if after != told.champion:
            told = _intend(workspace, told, after, node, None, move)
            _end(workspace, client, told, "done", "the alias stood there already")
        return after


def restore(workspace: Workspace, client: "MlflowClient", name: str, move: Move) -> int | None:
    """Let `champion` point where the ledger says again; return where that is.

    A version that was deleted is copied anew from its candidate. Raises PromotionRefused where that
    is gone too, or it does not answer.
    """
    with turn(workspace, name):
        told = _end_open_move(workspace, client, ledger.load(workspace, name), PROBES)
        standing = versions.champion(client, name)
        number = None if standing is None else standing.number
        if number == told.champion:
            return number
        if told.champion is None:
            told = _intend(workspace, told, None, "", None, move)
            versions.point(client, name, None)
            _end(workspace, client, told, "done", "")
            return None
        return _move(workspace, client, told, _restorable(client, told), move, PROBES).number


def _restorable(client: "MlflowClient", told: Ledger) -> Version:
    """Return the ledger's champion; a copy of its candidate where it was deleted."""
    last = told.moves[-1]
    found = versions.by_number(client, told.model, last.after)
    if found is not None:
        return found
    candidate = versions.by_number(client, versions.candidates_of(told.model), last.candidate)
    if candidate is None:
        raise PromotionRefused(
            f"version {last.after} of {told.model} was deleted, and the candidate that it was "
            "copied from too; `nightpress doctor --adopt` takes the alias as it is"
        )
    return versions.copy(client, told.model, candidate)


def _move(
    workspace: Workspace,
    client: "MlflowClient",
    told: Ledger,
    version: Version,
    move: Move,
    texts: Sequence[str],
) -> Version:
    """Move the alias to `version`, which was asked before and is asked again through the alias."""
    _ask(client, version, texts)
    candidate = version.tags.get(CANDIDATE)
    told = _intend(
        workspace, told, version.number, version.node, int(candidate) if candidate else None, move
    )
    faults.point("intended")
    versions.point(client, told.model, version.number)
    faults.point("moved")
    told = _end_open_move(workspace, client, told, texts)
    last = told.entries[-1]
    if last.kind == "undone":
        raise PromotionRefused(f"version {version.number} of {told.model}: {last.reason}")
    return version


def _end_open_move(
    workspace: Workspace, client: "MlflowClient", told: Ledger, texts: Sequence[str]
) -> Ledger:
    """Return the ledger with its open move, if there is one, completed or undone."""
    intent = told.open_intent
    if intent is None:
        return told
    standing = versions.champion(client, told.model)
    number = None if standing is None else standing.number
    if number != intent.after:
        return _end(workspace, client, told, "undone", "the alias had not been moved")
    if standing is not None:
        try:
            _ask(client, standing, texts)
        except NightpressError as error:
            versions.point(client, told.model, intent.before)
            faults.point("moved back")
            return _end(workspace, client, told, "undone", f"taken back by itself: {error}")
    return _end(workspace, client, told, "done", "")


def _intend(
    workspace: Workspace,
    told: Ledger,
    after: int | None,
    node: str,
    candidate: int | None,
    move: Move,
) -> Ledger:
    return ledger.append(
        workspace, told, kind="intent", action=move.action, actor=move.actor, reason=move.reason,
        policy=move.policy, evidence=move.evidence, data=move.data, fingerprint=move.fingerprint,
        before=told.champion, after=after, candidate=candidate, node=node,
    )  # fmt: skip


def _end(
    workspace: Workspace, client: "MlflowClient", told: Ledger, kind: str, reason: str
) -> Ledger:
    intent = told.open_intent
    assert intent is not None
    ended = ledger.append(
        workspace, told, kind=kind, actor=whoami(), reason=reason, closes=intent.hash
    )
    faults.point("ended")
    assert ended.head is not None
    versions.mirror(client, ended.model, ended.head, ended.champion)
    return ended


def _ask(client: "MlflowClient", version: Version, texts: Sequence[str]) -> None:
    """Raise PromotionRefused unless the version loads and answers every text with a label."""
    try:
        answers: Any = versions.load(client, version).predict([{"text": text} for text in texts])
        chances = [float(p) for p in answers["probability"]]
        well = len(chances) == len(texts) and all(0 < p <= 1 for p in chances)
    except NightpressError:
        raise
    except Exception as error:  # whatever a model's files raise: it cannot be served
        raise PromotionRefused(
            f"{version.uri} does not answer: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not well:
        raise PromotionRefused(f"{version.uri} answers with no probabilities; the champion stays")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _require_expected(told: Ledger, expected: int | None) -> None:
    if told.champion != expected:
        raise PromotionRefused(
            f"the champion of {told.model} is {_version(told.champion)} now, not "
            f"{_version(expected)}: another got there first; look at `nightpress history`"
        )


def _require_other(version: Version, told: Ledger) -> None:
    if version.number == told.champion:
        raise PromotionRefused(f"version {version.number} of {told.model} is champion already")


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
