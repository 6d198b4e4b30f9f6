"""`nightpress promote`, `approve`, `reject`, `rollback`, `history`."""

import json
import sys
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import console
from flows.console import Narrator
from flows.night import embedded_prefect
from tasks.registry import ledger, promotion
from tasks.registry.ledger import Entry
from tasks.registry.words import plain
from tasks.settings import Settings
from tasks.workspace import Workspace

_SHORT = 12
Act = Literal["promote", "approve", "reject", "rollback"]


def act(
    workspace: Workspace,
    settings: Settings,
    what: Act,
    which: str | None,
    *,
    reason: str,
    override: bool = False,
    as_json: bool,
) -> None:
    """Do it as a Prefect flow, and say what came of it.

    Raises PromotionRefused where the champion stays.
    """
    narrator = Narrator(Console(stderr=True))
    with embedded_prefect(workspace, settings.name, _get_ready):
        from flows.promotion import promotion as flow

        console.use(narrator)
        done = flow(
            settings.model_dump(mode="json"), str(workspace.root), what, which, reason,
            promotion.whoami(), override,
        )  # fmt: skip
    if as_json:
        json.dump(done, sys.stdout)
        sys.stdout.write("\n")
        return
    out = console.for_results()
    if "rejected" in done:
        out.print(f"version {done['rejected']} of {done['model']}-candidates is rejected")
        return
    before = "" if done["before"] is None else f", in place of version {done['before']}"
    out.print(
        f"{done['model']}: version {done['champion']} ({plain(done['recipe'])}) is champion{before}"
        f"; entry {done['entry']} of the ledger",
        highlight=False, markup=False,
    )  # fmt: skip


def show_history(workspace: Workspace, name: str, *, as_json: bool) -> None:
    """Print the ledger of the model. Raises LedgerBroken where it is not as it was written."""
    told = ledger.load(workspace, name)
    if as_json:
        rows = [json.loads(entry.text) | {"hash": entry.hash} for entry in told.entries]
        json.dump(rows, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    out = console.for_results()
    if not told.entries:
        out.print(f"nothing was promoted to {name} yet; a night, or `nightpress promote`, does it")
        return
    table = Table("entry", "when", "what", "by", "why", "evidence", box=None)
    ends = {entry.closes: entry for entry in told.entries if entry.closes}
    for entry in told.entries:
        if not entry.closes:
            table.add_row(*_cells(entry, ends.get(entry.hash)))
    out.print(table)
    champion = "none" if told.champion is None else f"version {told.champion}"
    out.print(f"champion of {name}: {champion}; the chain of {len(told.entries)} entries is whole")


def _cells(entry: Entry, end: Entry | None) -> list[Text]:
    when = datetime.fromtimestamp(entry.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    why = entry.reason
    if entry.kind == "intent":
        what = f"{entry.action}: {_number(entry.before)} → {_number(entry.after)}"
        if end is None:
            what += " (under way)"
        elif end.kind == "undone":
            what += " (undone)"
            why = f"{why}; {end.reason}"
    else:
        what = f"{entry.kind}: candidate {_number(entry.candidate)}"
    cells = (str(entry.sequence), when, what, entry.actor, why, entry.evidence[:_SHORT])
    return [Text(plain(cell)) for cell in cells]


def _number(version: int | None) -> str:
    return "none" if version is None else str(version)


def _get_ready() -> None:
    """Import what takes seconds, while the server comes up beside."""
    import flows.promotion  # noqa: F401
