"""Many who promote at once: of those who expect one champion, one wins."""

import multiprocessing
import queue

import pytest

from tasks.errors import PromotionRefused
from tasks.registry import ledger, promotion, store, tracking, versions
from tasks.registry.promotion import Move
from tasks.workspace import Workspace
from tests.registry import samples

PROCESSES, ROUNDS = 8, 50

pytestmark = pytest.mark.slow


def contend(root, name, number, tasks, results):
    """Promote, each time one is told to, a candidate of one's own that is not champion."""
    workspace = Workspace(root)
    client = store.open_store(workspace)
    own = [
        versions.by_number(client, versions.candidates_of(name), 2 * number + one) for one in (1, 2)
    ]
    results.put("ready")
    while (champion := tasks.get()) is not None:
        node, expected = champion
        candidate = next(one for one in own if one.node != node)
        move = Move("promote", f"process {number}", f"process {number}")
        try:
            promoted = promotion.promote(
                workspace, client, name, candidate, move, expected=expected
            )
            results.put(("won", promoted.number))
        except PromotionRefused as error:
            results.put(("lost", str(error)))
        except BaseException as error:
            results.put(("failed", repr(error)))


def test_of_eight_who_expect_one_champion_one_wins_each_round(
    client, workspace, name, export_folder
):
    night = tracking.start_night(
        client, name, "2026-01-02", artifacts=store.artifact_root(workspace)
    )
    for one in range(2 * PROCESSES):
        facts = samples.variant(export_folder, f"{name} {one}")
        versions.register_variant(client, name, night, facts)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    tasks = [spawn.Queue() for _ in range(PROCESSES)]
    processes = [
        spawn.Process(target=contend, args=(workspace.root, name, n, tasks[n], results))
        for n in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        assert [results.get(timeout=120) for _ in processes] == ["ready"] * PROCESSES
        expected, node = None, ""
        for _ in range(ROUNDS):
            for one in tasks:
                one.put((node, expected))
            found = [results.get(timeout=120) for _ in processes]
            (winner,) = [number for outcome, number in found if outcome == "won"]
            lost = [told for outcome, told in found if outcome == "lost"]
            assert len(lost) == PROCESSES - 1, found
            assert all("another got there first" in told for told in lost)
            champion = versions.champion(client, name)
            told = ledger.load(workspace, name)
            assert champion.number == told.champion == winner
            assert told.moves[-1].before == expected
            expected, node = champion.number, champion.node
        assert len(ledger.load(workspace, name).moves) == ROUNDS
    except queue.Empty:
        pytest.fail(f"a process said nothing: {[p.exitcode for p in processes]}")
    finally:
        for one in tasks:
            one.put(None)
        for process in processes:
            process.join(30)
            process.kill()
            process.close() if process.exitcode is not None else None
