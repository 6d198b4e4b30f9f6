"""Workers end with the process that they work for, and share GPUs out among themselves."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flows.worker import take_gpu
from tasks.workspace import Workspace

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import os, time
from tasks.processes import die_with_parent
die_with_parent(os.getppid())
time.sleep(60)
"""
TAKER = """
import sys, time
from pathlib import Path
from flows.worker import take_gpu
from tasks.workspace import Workspace
print(take_gpu(Workspace(Path(sys.argv[1])), 2), flush=True)
time.sleep(60)
"""


def test_a_worker_dies_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(1.5)  # it must have come to the call
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert alive == []


def test_who_works_for_a_dead_process_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"from tasks.processes import die_with_parent; die_with_parent({gone.pid}); print('on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""


def test_each_worker_takes_a_gpu_of_its_own_and_gives_it_back_at_its_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
            for _ in range(2)
        ]
        taken = [int(other.stdout.readline()) for other in others if other.stdout]
        for other in others:
            other.kill()
    assert sorted(taken) == [0, 1]
    assert take_gpu(Workspace(tmp_path), 2) == 0
