"""Real MLflow servers on a free loopback port, ended with all that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil


@contextlib.contextmanager
def started(command, folder, health, tracking_uri=None):
    """Run `mlflow COMMAND` until the body ends; give its address. No process may be left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # the server looks for uvicorn beside it
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        **({"MLFLOW_TRACKING_URI": tracking_uri} if tracking_uri else {}),
    }
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}{health}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        children = psutil.Process(server.pid).children(recursive=True)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        _, left = psutil.wait_procs(children, timeout=20)
        for process in left:
            process.kill()
    assert not left


def _wait(url, server, log):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())
