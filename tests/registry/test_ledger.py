"""The ledger holds, and whatever is done to it behind our back is named by its entry."""

import hashlib
import itertools
import json
import threading
import time

import pytest
import sqlalchemy as sa

from tasks import database
from tasks.errors import LedgerBroken, PromotionRefused
from tasks.registry import ledger
from tasks.workspace import Workspace

TABLE = database.ledger


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv(database.URL_VARIABLE, raising=False)
    return Workspace(tmp_path)


def write(place, model="reviews", rounds=3):
    """Promote versions 1, 2, …; return the ledger."""
    told = ledger.load(place, model)
    for number in range(1, rounds + 1):
        told = ledger.append(
            place, told, kind="intent", actor="ann@desk", reason="it is better", action="promote",
            before=number - 1 or None, after=number, candidate=number + 10, node="n" * 64,
        )  # fmt: skip
        told = ledger.append(
            place, told, kind="done", actor="ann@desk", reason="", closes=told.head.hash
        )
    return told


def change(place, statement):
    with database.engine(place).begin() as connection:
        connection.execute(statement)


def rows(place):
    with database.engine(place).connect() as connection:
        return connection.execute(sa.select(TABLE).order_by(TABLE.c.sequence)).all()


def test_what_is_written_is_read_and_tells_the_champion(place):
    assert ledger.load(place, "reviews").champion is None
    told = write(place)
    assert ledger.load(place, "reviews") == told
    assert [entry.sequence for entry in told.entries] == [1, 2, 3, 4, 5, 6]
    assert told.entries[0].previous == ledger.START
    assert (told.champion, told.open_intent) == (3, None)
    assert [move.after for move in told.moves] == [1, 2, 3]
    assert ledger.load(place, "others").entries == ()


def test_a_move_counts_once_it_is_done(place):
    told = write(place, rounds=1)
    told = ledger.append(
        place, told, kind="intent", actor="a", reason="r", action="promote", before=1, after=2
    )
    assert (told.champion, told.open_intent) == (1, told.head)
    told = ledger.append(
        place, told, kind="undone", actor="a", reason="it does not answer", closes=told.head.hash
    )
    assert (told.champion, told.open_intent) == (1, None)


def test_the_copy_can_be_checked_with_no_tool_of_ours(place):
    told = write(place)
    lines = ledger.copy_of(place, "reviews").read_bytes().splitlines()
    assert [hashlib.sha256(line).hexdigest() for line in lines] == [e.hash for e in told.entries]
    for before, line in itertools.pairwise(lines):
        assert json.loads(line)["previous"] == hashlib.sha256(before).hexdigest()


def test_of_two_who_follow_one_entry_one_writes(place):
    told = write(place, rounds=1)
    wins, losses = [], []
    start = threading.Barrier(4)

    def follow(number):
        start.wait()
        try:
            wins.append(
                ledger.append(place, told, kind="approved", actor="a", reason="", candidate=number)
            )
        except PromotionRefused as error:
            losses.append(str(error))

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wins), len(losses)) == (1, 3)
    assert all("another process got there first" in loss for loss in losses)
    assert ledger.load(place, "reviews") == wins[0]


def test_the_last_word_on_a_candidate_counts(place):
    told = write(place, rounds=1)
    assert told.word_on(7) is None
    for kind in ("approved", "rejected"):
        told = ledger.append(
            place, told, kind=kind, actor="a", reason="", candidate=7, evidence=kind
        )
        assert told.word_on(7).kind == kind
    assert told.word_on(8) is None


def test_a_clock_that_runs_backwards_stands_still(place, monkeypatch):
    told = write(place, rounds=1)
    then = told.head.time
    monkeypatch.setattr(time, "time", lambda: then - 3600)
    told = ledger.append(place, told, kind="approved", actor="a", reason="", candidate=7)
    assert told.head.time == then
    assert ledger.load(place, "reviews") == told


def edited(row):
    text = row.entry.replace("it is better", "it is a bit better")
    return TABLE.update().where(TABLE.c.sequence == row.sequence).values(entry=text)


def edited_with_its_hash(row):
    text = row.entry.replace("it is better", "it is a bit better")
    hash_ = hashlib.sha256(text.encode()).hexdigest()
    return TABLE.update().where(TABLE.c.sequence == row.sequence).values(entry=text, hash=hash_)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (edited, "entry 3 of the ledger of reviews was edited"),
        (edited_with_its_hash, "entry 4 of the ledger of reviews does not follow the one before"),
        (lambda row: TABLE.delete().where(TABLE.c.sequence == row.sequence), "entry 3 .* is gone"),
        (lambda row: TABLE.delete().where(TABLE.c.sequence >= row.sequence), "entry 3 .* cut off"),
        (lambda _: TABLE.delete(), "entry 1 .* cut off"),
        (
            lambda row: (
                TABLE.update().where(TABLE.c.sequence == row.sequence).values(entry="{", hash="0")
            ),
            "entry 3 .* cannot be read",
        ),
    ],
)
def test_damage_is_named_by_its_entry(place, damage, reason):
    write(place)
    change(place, damage(rows(place)[2]))
    with pytest.raises(LedgerBroken, match=reason):
        ledger.load(place, "reviews")


def test_entries_that_changed_places_are_named(place):
    write(place)
    second, third = rows(place)[1:3]
    for sequence, to in ((second.sequence, 99), (third.sequence, 2), (99, 3)):
        change(place, TABLE.update().where(TABLE.c.sequence == sequence).values(sequence=to))
    with pytest.raises(LedgerBroken, match="entry 2 of the ledger of reviews was moved here"):
        ledger.load(place, "reviews")


def test_a_line_of_the_copy_that_was_edited_is_named(place):
    write(place)
    path = ledger.copy_of(place, "reviews")
    path.write_text(path.read_text().replace('"after":2', '"after":3'))
    with pytest.raises(LedgerBroken, match=r"line 3 of .*ledger.jsonl is not entry 3"):
        ledger.load(place, "reviews")


def test_a_copy_of_one_who_died_before_it_is_completed_by_the_next(place):
    told = write(place)
    path = ledger.copy_of(place, "reviews")
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:-1]))
    told = ledger.append(
        place, ledger.load(place, "reviews"), kind="approved", actor="a", reason="", candidate=7
    )
    assert len(path.read_text().splitlines()) == len(told.entries) == 7


def test_words_with_markup_and_control_characters_are_kept_as_they_are(place):
    reason = "<script>alert(1)</script>\x1b[31m\n\u202e"
    told = ledger.append(
        place, ledger.load(place, "reviews"), kind="approved", actor="a", reason=reason, candidate=7
    )
    assert ledger.load(place, "reviews").head.reason == reason
    text = ledger.copy_of(place, "reviews").read_text()
    assert "\x1b" not in text
    assert len(text.splitlines()) == 1
    assert told.head.text == text.rstrip("\n")
