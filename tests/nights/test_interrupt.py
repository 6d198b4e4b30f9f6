"""A night that is ended with Ctrl-C says so in one line, and leaves nothing behind."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import workspaces
from tests.nights.test_kills import processes_of

pytestmark = pytest.mark.slow


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    root = workspaces.make(tmp_path / "checkout")
    night = subprocess.Popen(
        workspaces.command("run"), cwd=root, env=workspaces.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    began = time.monotonic()
    while not list((root / "data" / "manifests").glob("*.json")):
        assert night.poll() is None
        assert time.monotonic() - began < 240
        time.sleep(0.05)
    night.send_signal(signal.SIGINT)
    _, told = night.communicate(timeout=60)
    assert night.returncode == 130, told
    assert "Traceback" not in told
    assert [line for line in told.splitlines() if line.startswith("nightpress: interrupted")]
    assert processes_of(root) == []
    done = workspaces.nightpress(root, "run")
    assert done.returncode == 0, done.stderr
