"""Promotion: compare and set, written down, and mended whoever dies where."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from tasks import claims, faults
from tasks.errors import PromotionRefused
from tasks.registry import ledger, promotion, store, tracking, versions
from tasks.registry.promotion import Move
from tests.registry import samples

MOVE = Move("promote", "it is better", "ann@desk", policy="manual", evidence="e" * 64)
BACK = Move("rollback", "users complain", "bob@desk")
POINTS = ("copied", "intended", "moved", "ended")


@pytest.fixture
def candidates(client, workspace, name, export_folder):
    night = tracking.start_night(
        client, name, "2026-01-02", artifacts=store.artifact_root(workspace)
    )

    def made(recipe):
        return versions.register_variant(
            client, name, night, samples.variant(export_folder, recipe)
        )

    return made


def champion(client, name):
    found = versions.champion(client, name)
    return None if found is None else found.number


def agree(client, workspace, name):
    """The alias is what the ledger says, and no move is open; return the version."""
    told = ledger.load(workspace, name)
    assert told.open_intent is None
    assert champion(client, name) == told.champion
    return told.champion


def spoil(client, name, number):
    """Break the files of a version."""
    address = client.get_model_version_download_uri(name, str(number))
    folder = url2pathname(urlsplit(address).path)
    (model,) = Path(folder).rglob("model.onnx")
    model.write_bytes(b"no model")


def test_promotion_is_an_entry_with_its_evidence(client, workspace, name, candidates):
    one, two = candidates("one"), candidates("two")
    promotion.promote(workspace, client, name, one, MOVE, expected=None)
    promoted = promotion.promote(workspace, client, name, two, MOVE, expected=1)
    assert (promoted.number, agree(client, workspace, name)) == (2, 2)
    told = ledger.load(workspace, name)
    assert [entry.kind for entry in told.entries] == ["intent", "done"] * 2
    move = told.moves[-1]
    assert (move.before, move.after, move.candidate) == (1, 2, two.number)
    assert (move.actor, move.reason, move.evidence) == ("ann@desk", "it is better", "e" * 64)
    assert move.node == two.node
    head = told.head
    shown = client.get_registered_model(name).tags[versions.LEDGER]
    assert shown == f"{head.sequence}:{head.hash}"
    assert client.get_model_version(name, "2").tags[versions.LEDGER] == str(head.sequence)


def test_who_expects_another_champion_is_refused(client, workspace, name, candidates):
    promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=None)
    for expected in (None, 7):
        with pytest.raises(PromotionRefused, match=r"is version 1 now, not .*got there first"):
            promotion.promote(workspace, client, name, candidates("two"), MOVE, expected=expected)
    with pytest.raises(PromotionRefused, match=r"version 1 .* is champion already"):
        promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=1)
    assert agree(client, workspace, name) == 1
    assert len(ledger.load(workspace, name).entries) == 2


def test_rollback_goes_back_and_further_back(client, workspace, name, candidates):
    for number, recipe in enumerate(("one", "two", "three")):
        promotion.promote(
            workspace, client, name, candidates(recipe), MOVE, expected=number or None
        )
    assert promotion.rollback(workspace, client, name, None, BACK).number == 2
    assert promotion.rollback(workspace, client, name, None, BACK).number == 1
    with pytest.raises(PromotionRefused, match="nothing to go back to"):
        promotion.rollback(workspace, client, name, None, BACK)
    assert promotion.rollback(workspace, client, name, 3, BACK).number == 3
    assert agree(client, workspace, name) == 3
    assert [move.after for move in ledger.load(workspace, name).moves] == [1, 2, 3, 2, 1, 3]


def test_a_version_that_does_not_answer_never_becomes_champion(
    client, workspace, name, candidates, tmp_path, export_folder, monkeypatch
):
    promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=None)
    two = candidates("two")
    spoil(client, two.model, two.number)
    with pytest.raises(PromotionRefused, match="does not answer"):
        promotion.promote(workspace, client, name, two, MOVE, expected=1)
    assert agree(client, workspace, name) == 1


def test_a_champion_that_stops_answering_goes_back_by_itself(
    client, workspace, name, candidates, monkeypatch
):
    promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=None)
    real = versions.point

    def point(client_, model, number):
        real(client_, model, number)
        if number == 2:
            spoil(client_, model, 2)

    monkeypatch.setattr(versions, "point", point)
    with pytest.raises(PromotionRefused, match=r"taken back by itself: .* does not answer"):
        promotion.promote(workspace, client, name, candidates("two"), MOVE, expected=1)
    assert agree(client, workspace, name) == 1
    assert ledger.load(workspace, name).head.kind == "undone"


PROMOTE = """
import sys
from pathlib import Path
from tasks.registry import promotion, store, versions
from tasks.registry.promotion import Move
from tasks.workspace import Workspace

root, name, number, expected = sys.argv[1:]
workspace = Workspace(Path(root))
client = store.open_store(workspace)
candidate = versions.by_number(client, versions.candidates_of(name), int(number))
move = Move("promote", "it is better", "ann@desk")
promotion.promote(workspace, client, name, candidate, move, expected=int(expected) or None)
"""


def promote_elsewhere(workspace, name, candidate, expected, point=""):
    environment = {**os.environ, faults.VARIABLE: point}
    done = subprocess.run(
        [sys.executable, "-c", PROMOTE, workspace.root, name, str(candidate), str(expected)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
def test_killed_at_every_step_alias_and_ledger_agree_after_the_next(
    client, workspace, name, candidates
):
    promotion.promote(workspace, client, name, candidates("zero"), MOVE, expected=None)
    for point in POINTS:
        before = agree(client, workspace, name)
        new, other = candidates(point), candidates(f"{point} after")
        code, errors = promote_elsewhere(workspace, name, new.number, before, point)
        assert code == -signal.SIGKILL, errors
        with promotion.turn(workspace, name):
            told = promotion.settled(workspace, client, name)
        now = agree(client, workspace, name)
        copy = versions.find(client, name, new.node)
        assert now == (copy.number if point in ("moved", "ended") else before), point
        answers = versions.load(client, versions.champion(client, name)).predict([{"text": "so"}])
        assert len(answers) == 1
        assert told.head.kind in ("done", "undone")
        # and the next promotion goes on from there
        promotion.promote(workspace, client, name, other, MOVE, expected=now)
        agree(client, workspace, name)


@pytest.mark.slow
def test_killed_while_a_bad_champion_goes_back(client, workspace, name, candidates):
    promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=None)
    two = candidates("two")
    code, errors = promote_elsewhere(workspace, name, two.number, 1, "moved")
    assert code == -signal.SIGKILL, errors
    assert champion(client, name) == 2
    spoil(client, name, 2)
    with promotion.turn(workspace, name):
        promotion.settled(workspace, client, name)
    assert agree(client, workspace, name) == 1
    assert "does not answer" in ledger.load(workspace, name).head.reason


def test_an_alias_moved_by_other_means_is_adopted_or_restored(client, workspace, name, candidates):
    promotion.promote(workspace, client, name, candidates("one"), MOVE, expected=None)
    promotion.promote(workspace, client, name, candidates("two"), MOVE, expected=1)
    adopting, restoring = (Move(action, "seen", "ann@desk") for action in ("adopt", "restore"))
    for mend, expected in ((promotion.restore, 2), (promotion.adopt, 1)):
        client.set_registered_model_alias(name, "champion", "1")
        assert promotion.drift(workspace, client, name) == (1, 2)
        with pytest.raises(PromotionRefused, match="moved by other means; `nightpress doctor"):
            promotion.rollback(workspace, client, name, None, BACK)
        move = restoring if mend is promotion.restore else adopting
        assert mend(workspace, client, name, move) == expected
        assert agree(client, workspace, name) == expected
    entries = len(ledger.load(workspace, name).entries)
    assert promotion.adopt(workspace, client, name, adopting) == 1
    assert len(ledger.load(workspace, name).entries) == entries  # nothing to write


def test_a_champion_that_was_deleted_is_copied_anew(client, workspace, name, candidates):
    one = candidates("one")
    promotion.promote(workspace, client, name, one, MOVE, expected=None)
    client.delete_model_version(name, "1")
    assert promotion.drift(workspace, client, name) == (None, 1)
    assert promotion.restore(workspace, client, name, Move("restore", "", "ann")) == 2
    assert versions.champion(client, name).node == one.node
    client.delete_model_version(name, "2")
    client.delete_model_version(one.model, str(one.number))
    with pytest.raises(PromotionRefused, match="was deleted, and the candidate"):
        promotion.restore(workspace, client, name, Move("restore", "", "ann"))
    assert promotion.adopt(workspace, client, name, Move("adopt", "", "ann")) is None
    agree(client, workspace, name)


def test_who_waits_too_long_for_his_turn_is_told(client, workspace, name):
    claim = claims.take(workspace, f"promotion:{name}")
    late = promotion.turn(workspace, name, wait=0.2)
    with pytest.raises(PromotionRefused, match="has been under way for 0 s"), late:
        pytest.fail("two at once")
    claims.release(workspace, claim)
    with promotion.turn(workspace, name, wait=0.2):
        pass
