"""A Prefect server of the run's own, where none is configured: loopback, a free port, SQLite."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tasks.errors import ServiceAway, ServiceError
from tasks.processes import die_with_parent
from tasks.registry.store import without_password

_START_SECONDS = 90


@contextlib.contextmanager
def prefect_api(home: Path, log: Path, meanwhile: Callable[[], None]) -> Iterator[str]:
    """Give the URL of the Prefect API: the configured one, or that of a server started here.

    The server keeps its database under `home`, writes to `log`, and ends with the body, also when
    this process is killed. `meanwhile` is called while it comes up, and may import `prefect`, which
    nothing may have done before. Raises ServiceError where the server does not come up.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        _require(configured)
        meanwhile()
        yield configured
        return
    port = free_port()
    # said before the server answers, so that `meanwhile` can import what reads it
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        with serve(home, log, ui=False, port=port, meanwhile=meanwhile) as url:
            try:
                yield url
            finally:
                _flush_logs()
    finally:
        del os.environ["PREFECT_API_URL"]


def _environment(home: Path) -> dict[str, str]:
    off = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "TRIGGERS")
    services = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in off}
    return {
        **os.environ,
        **services,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


@contextlib.contextmanager
def serve(
    home: Path,
    log: Path,
    *,
    ui: bool,
    port: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Run a Prefect server for the length of the body, and give its API's URL."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "WARNING", "--ui" if ui else "--no-ui"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with running(command, log, environment=_environment(home)) as process:
        url = f"http://127.0.0.1:{port}/api"
        meanwhile()
        wait_until_ready(f"{url}/health", process, log)
        yield url


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` as a child that dies with this process; end it, and its own, with the body."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            # a Ctrl-C is for the run alone, which then ends its server
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # takes no lock of another thread
        )
    try:
        yield process
    finally:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        # whoever of its children has not ended with it (MLflow's web server, say)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_until_ready(
    url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = _START_SECONDS
) -> None:
    """Wait until `url` answers. Raises ServiceError where the process ends or stays silent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServiceError(f"a server ended at its start with code {process.returncode}: {log}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise ServiceError(f"a server did not answer within {seconds:.0f} s: {log}")


def _flush_logs() -> None:
    """Send what Prefect has logged, while there is still a server to send it to."""
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)


def free_port() -> int:
    """Return a port of the loopback interface that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _require(api_url: str) -> None:
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=10):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # it answers: whether it lets us in, the client finds out and says
    except (OSError, ValueError) as error:
        raise ServiceAway(
            f"no Prefect server answers at PREFECT_API_URL={without_password(api_url)}; start it, "
            "or unset the variable and a server is started for the run"
        ) from error
