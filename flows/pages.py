"""`nightpress ui`: MLflow's and Prefect's own pages for what is stored here, on loopback."""

import os
import sys
import time

from rich.console import Console

from flows.server import running, serve, wait_until_ready
from tasks.registry.store import open_store, tracking_uri
from tasks.workspace import Workspace


def serve_pages(workspace: Workspace, name: str, mlflow_port: int, prefect_port: int) -> None:
    """Serve both pages until Ctrl-C; a server that is configured elsewhere is only named."""
    console = Console()
    logs = workspace.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    open_store(workspace)  # brings the embedded store into being, and up to date
    artifacts = workspace.mlflow / "artifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(mlflow_port), "--backend-store-uri"]
    command += [tracking_uri(workspace), "--default-artifact-root", str(artifacts)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    home = workspace.state / "prefect" / name
    with (
        running(command, logs / "mlflow-ui.log", environment) as mlflow_server,
        serve(home, logs / "prefect-ui.log", ui=True, port=prefect_port) as prefect_api,
    ):
        mlflow_url = f"http://127.0.0.1:{mlflow_port}"
        wait_until_ready(f"{mlflow_url}/health", mlflow_server, logs / "mlflow-ui.log")
        console.print(f"MLflow   {mlflow_url}", highlight=False)
        console.print(f"Prefect  {prefect_api.removesuffix('/api')}", highlight=False)
        console.print("Ctrl-C ends both.", style="dim")
        while mlflow_server.poll() is None:
            time.sleep(0.5)
