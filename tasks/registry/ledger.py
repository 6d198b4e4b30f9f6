"""The ledger: who moved the champion, when, why, and on what evidence. Append-only.

Every entry carries the hash of the one before it, and no two entries of a model can follow the same
one: entries that are edited, moved or gone show, and two writers cannot both be next. A move of the
alias is two entries: the `intent`, written before the alias is touched, and its end, `done` or
`undone`. A person's word on a candidate, `approved` or `rejected`, is an entry too.

The database holds the ledger. A file of JSON lines beside it holds the same entries, line by line
with the same hashes, so that they can be read, copied and checked with no tool of this project; and
so that entries cut off the end of the table are missed.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from tasks import claims, database, files
from tasks.errors import LedgerBroken, PromotionRefused
from tasks.workspace import Workspace

Kind = Literal["intent", "done", "undone", "approved", "rejected"]
Action = Literal["promote", "rollback", "adopt", "restore"]
ACTIONS: tuple[Action, ...] = get_args(Action)
START = "0" * 64
"""What the first entry of a model follows."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    model: str
    sequence: int
    """From 1."""
    previous: str
    """The hash of the entry before; `START` of the first."""
    time: float
    """Seconds since the epoch, never before the entry before: a clock that runs backwards stands
    still here."""
    kind: Kind
    actor: str
    """Who: user@host."""
    reason: str = ""
    action: Action | None = None
    """Of an intent: why the alias moves."""
    before: int | None = None
    """Version of `model` that was champion; None: none was."""
    after: int | None = None
    """Version that is to be."""
    candidate: int | None = None
    """Version of `NAME-candidates` that it came from, or that was approved or rejected."""
    node: str = ""
    evidence: str = ""
    """SHA-256 of the evidence file."""
    data: str = ""
    """DVC hash of the prepared data that the evidence was taken on."""
    fingerprint: str = ""
    """Machine that it was measured on."""
    policy: str = ""
    closes: str = ""
    """Of `done` and `undone`: the hash of their intent."""

    @cached_property
    def text(self) -> str:
        """The entry as JSON, in one form only."""
        told = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of `text`, in hex."""
        return _hash(self.text)


@dataclass(frozen=True)
class Ledger:
    """All entries of one model, first to last, their chain checked."""

    model: str
    entries: tuple[Entry, ...]

    @property
    def head(self) -> Entry | None:
        """The last entry."""
        return self.entries[-1] if self.entries else None

    @cached_property
    def moves(self) -> tuple[Entry, ...]:
        """The intents that were done, in the order in which they were."""
        intents = {entry.hash: entry for entry in self.entries if entry.kind == "intent"}
        return tuple(intents[entry.closes] for entry in self.entries if entry.kind == "done")

    @property
    def champion(self) -> int | None:
        """The version that the alias points at, by this ledger."""
        return self.moves[-1].after if self.moves else None

    @property
    def open_intent(self) -> Entry | None:
        """The move that was begun and not ended."""
        closed = {entry.closes for entry in self.entries if entry.closes}
        opened = [e for e in self.entries if e.kind == "intent" and e.hash not in closed]
        return opened[-1] if opened else None

    def word_on(self, candidate: int) -> Entry | None:
        """Return the last approval or rejection of the candidate."""
        words = [e for e in self.entries if e.kind in ("approved", "rejected")]
        return next((e for e in reversed(words) if e.candidate == candidate), None)


def load(workspace: Workspace, model: str) -> Ledger:
    """Return the ledger of `model`.

    Raises LedgerBroken, naming the entry, where it is not as it was written.
    """
    table = database.ledger
    query = sa.select(table).where(table.c.model == model).order_by(table.c.sequence)
    with database.engine(workspace).connect() as connection:
        rows = connection.execute(query).all()
    entries = tuple(_chained(model, ((row.entry, row.hash, row.sequence) for row in rows)))
    _hold_against_copy(entries, copy_of(workspace, model))
    return Ledger(model, entries)


def append(workspace: Workspace, ledger: Ledger, **facts: Any) -> Ledger:
    """Return the ledger with one more entry, written.

    Raises PromotionRefused where another process has written one meanwhile.
    """
    head = ledger.head
    entry = Entry(
        model=ledger.model,
        sequence=1 if head is None else head.sequence + 1,
        previous=START if head is None else head.hash,
        time=time.time() if head is None else max(time.time(), head.time),
        **facts,
    )
    row = {name: getattr(entry, name) for name in ("model", "sequence", "previous", "hash")}
    try:
        with database.engine(workspace).begin() as connection:
            connection.execute(database.ledger.insert().values(**row, entry=entry.text))
    except sa.exc.IntegrityError as error:
        raise PromotionRefused(
            f"the ledger of {ledger.model} has grown meanwhile: another process got there first; "
            "look at `nightpress history` and start again"
        ) from error
    grown = Ledger(ledger.model, (*ledger.entries, entry))
    _copy(workspace, grown)
    return grown


def copy_of(workspace: Workspace, model: str) -> Path:
    """Return where the ledger's JSON lines are."""
    return workspace.state / model / "ledger.jsonl"


def mend_copy(workspace: Workspace, ledger: Ledger) -> None:
    """Write the JSON lines anew from the ledger: of one who died after writing an entry."""
    _copy(workspace, ledger)


def _copy(workspace: Workspace, ledger: Ledger) -> None:
    path = copy_of(workspace, ledger.model)
    lines = "".join(f"{entry.text}\n" for entry in ledger.entries)
    with files.staged(claims.staging(workspace), "ledger") as folder:
        part = folder / path.name
        part.write_text(lines, encoding="utf-8")
        files.sync_folder(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)


def _hold_against_copy(entries: tuple[Entry, ...], path: Path) -> None:
    """Raise LedgerBroken where the JSON lines tell another story, or go on where the table ends.

    A copy that ends earlier is of one who died between the two; the next entry completes it.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if number > len(entries):
            raise LedgerBroken(
                f"entry {number} of the ledger stands in {path} and not in the database: the "
                "table was cut off after entry "
                f"{len(entries)}; restore the database, or move the file away to go on without it"
            )
        if _hash(line) != entries[number - 1].hash:
            raise LedgerBroken(
                f"line {number} of {path} is not entry {number} of the ledger in the database: "
                "one of them was edited; the database's chain is whole, so move the file away and "
                "the next entry writes it anew"
            )


def _chained(model: str, rows: Iterator[tuple[str, str, int]]) -> Iterator[Entry]:
    """Yield the entries of (text, hash, sequence); raise LedgerBroken where the chain breaks."""
    previous, then = START, 0.0
    for expected, (text, hash_, sequence) in enumerate(rows, start=1):
        entry = _read(model, text, sequence)
        if sequence != expected:
            raise _broken(model, expected, "is gone")
        if _hash(text) != hash_:
            raise _broken(model, sequence, "was edited: it does not have the hash beside it")
        if entry.text != text or entry.model != model or entry.sequence != sequence:
            raise _broken(model, sequence, "was moved here, or edited together with its hash")
        if entry.previous != previous:
            raise _broken(
                model, sequence, "does not follow the one before, which was edited or replaced"
            )
        if entry.time < then:
            raise _broken(model, sequence, "is older than the one before")
        yield entry
        previous, then = hash_, entry.time


def _read(model: str, text: str, sequence: int) -> Entry:
    known = {field.name for field in fields(Entry)}
    try:
        told = json.loads(text)
        if not isinstance(told, dict) or not told.keys() <= known:
            raise ValueError
        return Entry(**told)
    except (TypeError, ValueError) as error:
        raise _broken(model, sequence, "cannot be read") from error


def _broken(model: str, sequence: int, what: str) -> LedgerBroken:
    return LedgerBroken(
        f"entry {sequence} of the ledger of {model} {what}; restore the project's database from "
        "a backup"
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
