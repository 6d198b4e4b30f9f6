"""`nightpress ui` and `doctor` name servers that are elsewhere, and show no password."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.server import free_port
from tests import workspaces

SECRET = "hunter2"
ELSEWHERE = {
    "MLFLOW_TRACKING_URI": f"http://someone:{SECRET}@127.0.0.1:9",
    "PREFECT_API_URL": f"http://someone:{SECRET}@127.0.0.1:9/api",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(json.dumps(workspaces.QUICK))
    return tmp_path


def test_pages_elsewhere_are_named_and_nothing_is_started(checkout: Path) -> None:
    done = workspaces.nightpress(checkout, "ui", **ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MLflow   http://127.0.0.1:9",
        "Prefect  http://127.0.0.1:9",
    ]
    assert not (checkout / "mlflow").exists()


@pytest.mark.parametrize(
    "addresses",
    [
        ELSEWHERE,
        # no port: a parser may take the password for one
        dict.fromkeys(ELSEWHERE, f"http://someone:{SECRET}@localhost"),
        {"PREFECT_API_URL": f"mysql://someone:{SECRET}@127.0.0.1:9/prefect"},
    ],
)
def test_doctor_shows_no_password(checkout: Path, addresses: dict[str, str]) -> None:
    done = workspaces.nightpress(checkout, "doctor", "--json", **addresses)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    for name in addresses:
        assert "127.0.0.1" in found[name]["text"] or "localhost" in found[name]["text"]
    assert SECRET not in done.stdout + done.stderr


@contextlib.contextmanager
def shown(checkout: Path, port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `nightpress ui` until it has told where the pages are."""
    process = subprocess.Popen(
        workspaces.command("ui", "--mlflow-port", str(port)), cwd=checkout, text=True,
        stdout=subprocess.PIPE, env=workspaces.environment(**environment),
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"MLflow   http://127.0.0.1:{port}\n"
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_the_store_is_on_no_command_line(checkout: Path) -> None:
    port, database = free_port(), checkout / "elsewhere.db"
    uri = f"sqlite:///{database}"
    with shown(
        checkout, port, MLFLOW_TRACKING_URI=uri, PREFECT_API_URL=ELSEWHERE["PREFECT_API_URL"]
    ) as process:
        started = psutil.Process(process.pid).children(recursive=True)
        lines = [" ".join(child.cmdline()) for child in started]
        assert any("mlflow" in line for line in lines)
        assert not any(database.name in line for line in lines)
        assert database.is_file()  # it is the one that is served
    assert psutil.wait_procs(started, timeout=20)[1] == []
