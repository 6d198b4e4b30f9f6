"""A night that is killed, over and over, ends as if it had not been."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import workspaces

KILLS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def outcome(root: Path) -> dict[str, Any]:
    """What must be equal: keys, checkpoint hashes, predictions and verdicts; latencies aside."""
    manifests = [json.loads(p.read_text()) for p in (root / "data/manifests").glob("*.json")]
    done = workspaces.nightpress(root, "report", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {
        "checkpoints": {m["key"]: m["files"] for m in manifests},
        "accuracy": {v["recipe"]: v["figures"]["accuracy"] for v in told["variants"]},
        "lost": {v["recipe"]: v["loss_bound_points"] for v in told["variants"]},
        "versions": sorted(v["version"] for v in told["variants"]),
        "predictions": sorted(
            p.name for p in (root / ".nightpress/cache/predictions").glob("*.parquet")
        ),
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


def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    calm = workspaces.make(tmp_path / "calm")
    shutil.copytree(calm, tmp_path / "killed")
    killed = tmp_path / "killed"
    began = time.monotonic()
    done = workspaces.nightpress(calm, "run")
    assert done.returncode == 0, done.stderr
    length = time.monotonic() - began

    chance = random.Random(7)
    for _ in range(KILLS):
        night = subprocess.Popen(
            workspaces.command("run"), cwd=killed, env=workspaces.environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(0.1, 0.6) * length)
        night.send_signal(signal.SIGKILL)
        night.wait()
    time.sleep(2)
    assert processes_of(killed) == []
    done = workspaces.nightpress(killed, "run")
    assert done.returncode == 0, done.stderr

    assert outcome(killed) == outcome(calm)
    with sqlite3.connect(killed / ".nightpress" / "nightpress.db") as connection:
        published = [k for (k,) in connection.execute(
            "select key from journal where event in ('published', 'discarded')"
        )]  # fmt: skip
    assert len(published) == len(set(published)), "a node was pressed twice to the end"
    assert processes_of(killed) == []
