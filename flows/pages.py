"""`nightpress ui`: MLflow's and Prefect's own pages for what is stored here, on loopback."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from flows.server import running, serve, wait_until_ready
from tasks.registry.store import open_store, tracking_uri, without_password
from tasks.workspace import Workspace


def serve_pages(workspace: Workspace, name: str, mlflow_port: int, prefect_port: int) -> None:
    """Serve both pages until Ctrl-C; a server that is configured elsewhere is only named."""
    logs = workspace.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    store, prefect_api = tracking_uri(workspace), os.environ.get("PREFECT_API_URL")
    mlflow_url, mlflow_server, served_here = store, None, not prefect_api
    with contextlib.ExitStack() as servers:
        if not store.startswith(("http://", "https://")):
            log = logs / "mlflow-ui.log"
            mlflow_url, served_here = f"http://127.0.0.1:{mlflow_port}", True
            mlflow_server = servers.enter_context(_mlflow(workspace, store, mlflow_port, log))
        if not prefect_api:
            home, log = workspace.state / "prefect" / name, logs / "prefect-ui.log"
            prefect_api = servers.enter_context(serve(home, log, ui=True, port=prefect_port))
        if mlflow_server is not None:
            wait_until_ready(f"{mlflow_url}/health", mlflow_server, logs / "mlflow-ui.log")
        _tell(mlflow_url, prefect_api, served_here=served_here)
        while served_here and (mlflow_server is None or mlflow_server.poll() is None):
            time.sleep(0.5)


def _mlflow(
    workspace: Workspace, store: str, port: int, log: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run MLflow's server over the store for the length of the body."""
    open_store(workspace)  # brings the embedded store into being, and up to date
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port)]
    command += ["--default-artifact-root", str(workspace.mlflow / "artifacts")]
    environment = {
        **os.environ,
        # not on the command line, which all users of the machine see: it may hold a password
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return running(command, log, environment)


def _tell(mlflow_url: str, prefect_api: str, *, served_here: bool) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"MLflow   {without_password(mlflow_url)}")
    console.print(f"Prefect  {without_password(prefect_api).rstrip('/').removesuffix('/api')}")
    if served_here:
        console.print("Ctrl-C ends what is served here.", style="dim")
