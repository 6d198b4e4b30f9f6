"""One holder at a time; a lapsed lease is taken over once; a late finisher is refused."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import claims
from tasks.errors import ClaimLost
from tasks.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_second_taker_gets_nothing_until_release(workspace: Workspace) -> None:
    first = claims.take(workspace, "node")
    assert first is not None
    assert claims.take(workspace, "node") is None
    claims.release(workspace, first)
    second = claims.take(workspace, "node")
    assert second is not None
    assert second.fence > first.fence


def test_lapsed_lease_is_taken_over_and_the_sleeper_refused(workspace: Workspace) -> None:
    sleeper = claims.take(workspace, "node", lease=0.01)
    assert sleeper is not None
    time.sleep(0.05)
    successor = claims.take(workspace, "node")
    assert successor is not None
    with pytest.raises(ClaimLost):
        claims.check(workspace, sleeper)
    claims.check(workspace, successor)
    claims.release(workspace, sleeper)
    assert claims.take(workspace, "node") is None, "a sleeper's release must not free the key"


def test_heartbeat_keeps_a_short_lease(workspace: Workspace) -> None:
    claim = claims.take(workspace, "node", lease=0.3)
    assert claim is not None
    with claims.held(workspace, claim, lease=0.3):
        time.sleep(0.8)
        assert claims.take(workspace, "node") is None
    assert claims.take(workspace, "node") is not None


def test_owner_that_ended_is_replaced_at_once(workspace: Workspace) -> None:
    code = (
        "from pathlib import Path; from tasks import claims; from tasks.workspace import Workspace;"
        f"print(claims.take(Workspace(Path({str(workspace.root)!r})), 'node', lease=3600))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fence=1" in done.stdout
    assert [c.key for c in claims.stale(workspace)] == ["node"]
    assert claims.take(workspace, "node") is not None


def _race(root: str, start: object, wins: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    if claims.take(Workspace(Path(root)), "node") is not None:
        wins.put(1)  # type: ignore[attr-defined]
        time.sleep(2)  # whoever ends would be replaced


def test_of_many_takers_one_wins(workspace: Workspace) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, wins = spawn.Event(), spawn.Queue()
    takers = [
        spawn.Process(target=_race, args=(str(workspace.root), start, wins)) for _ in range(4)
    ]
    for taker in takers:
        taker.start()
    time.sleep(2)
    start.set()
    for taker in takers:
        taker.join()
    assert wins.get(timeout=1) == 1
    assert wins.empty()


def test_sweep_removes_only_what_ended_processes_left(workspace: Workspace) -> None:
    mine = claims.staging(workspace)
    mine.mkdir(parents=True)
    gone = workspace.staging / mine.name.replace(str(mine.name.split("@")[1]), "999999999")
    gone.mkdir()
    assert claims.sweep(workspace) == 1
    assert mine.is_dir()
    assert not gone.exists()
