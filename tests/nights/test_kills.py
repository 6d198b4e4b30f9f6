"""A night that is killed, over and over, ends as if it had not been."""

import json
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import files
from tests import workspaces

KILLS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def outcome(root: Path) -> dict[str, Any]:
    """What must be equal: keys, checkpoint hashes, predictions and verdicts; latencies aside."""
    manifests = [json.loads(p.read_text()) for p in (root / "data/manifests").glob("*.json")]
    done = workspaces.nightpress(root, "report", "--json")
    assert done.returncode == 0, done.stderr
    variants = json.loads(done.stdout)["variants"]
    predictions = root / ".nightpress/cache/predictions"
    return {
        "checkpoints": {m["key"]: m["files"] for m in manifests},
        "accuracy": {v["recipe"]: v["figures"]["accuracy"] for v in variants},
        "lost": {v["recipe"]: v["loss_bound_points"] for v in variants},
        "verdicts": {v["recipe"]: v["verdict"] for v in variants},
        "versions": sorted(v["version"] for v in variants),
        "predictions": {p.name: files.sha256(p) for p in predictions.glob("*.parquet")},
    }


def processes_of(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            inside = str(root) in " ".join(process.cmdline()) or process.cwd().startswith(str(root))
        except psutil.Error:
            continue
        if inside:
            found.append(process)
    return found


def events(root: Path, *wanted: str) -> list[str]:
    """The nodes of these events in the journal; none where there is no journal yet."""
    journal = root / ".nightpress" / "nightpress.db"
    if not journal.is_file():
        return []
    with sqlite3.connect(journal) as connection:
        try:
            rows = connection.execute("select key, event from journal").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return []
    return [key for key, event in rows if event in wanted]


def kill_a_night(root: Path, ready: Callable[[], bool], *arguments: str) -> None:
    """Start a night and kill it once it is ready for that, or when it has ended."""
    night = subprocess.Popen(
        workspaces.command("run", *arguments), cwd=root, env=workspaces.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while night.poll() is None and not ready():
        time.sleep(0.02)
    night.kill()
    night.wait()


def nothing_runs(root: Path) -> bool:
    """Tell whether all that ran in the checkout has ended, or does within seconds."""
    _, alive = psutil.wait_procs(processes_of(root), timeout=10)
    return not alive


def assert_it_ends_as(calm: Path, killed: Path, *arguments: str) -> None:
    """Run the night that was killed to its end, and hold it against one that was not."""
    assert nothing_runs(killed)
    done = workspaces.nightpress(killed, "run", *arguments)
    assert done.returncode == 0, done.stderr
    assert outcome(killed) == outcome(calm)
    pressed = events(killed, "published", "discarded")
    assert len(pressed) == len(set(pressed)), "a node was pressed twice to the end"
    assert nothing_runs(killed)


def test_ten_kills_change_nothing(night: Path, tmp_path: Path) -> None:
    killed = workspaces.make(tmp_path / "killed")
    told = (night / ".nightpress").glob("*/nights/*/night.json")
    length = max(json.loads(path.read_text())["seconds"] for path in told)
    chance = random.Random(7)
    for _ in range(KILLS):
        end = time.monotonic() + chance.uniform(0.1, 0.6) * length
        kill_a_night(killed, lambda end=end: time.monotonic() > end)  # type: ignore[misc]
    assert_it_ends_as(night, killed)


def test_workers_die_with_their_night_and_change_nothing(night: Path, tmp_path: Path) -> None:
    killed = workspaces.make(tmp_path / "killed")
    side_by_side = ("-S", "workers=2")
    # while the baseline is pressed, once it is published, and among the variants
    for started, published in ((1, 0), (0, 1), (0, 3)):
        kill_a_night(
            killed,
            lambda s=started, p=published: (  # type: ignore[misc]
                len(events(killed, "started")) >= s and len(events(killed, "published")) >= p
            ),
            *side_by_side,
        )
        assert nothing_runs(killed), "a worker lives on"
    assert 3 <= len(events(killed, "published")) < len(outcome(night)["checkpoints"])
    assert_it_ends_as(night, killed, *side_by_side)
