"""The MLflow store: a server where one is configured, else an embedded one under `mlflow/`.

Nothing here sets MLflow's process-wide tracking address: every call goes through the client that
`open_store` returns, so that two stores can be used side by side.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tasks.errors import ServiceAway, ServiceError
from tasks.workspace import Workspace, quiet_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_DATABASE = "mlflow.db"
_LOCK_SECONDS = 120.0
_HEALTH_SECONDS = 5.0


def tracking_uri(workspace: Workspace) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or the embedded SQLite file."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{workspace.mlflow / _DATABASE}"


def artifact_root(workspace: Workspace) -> Path | None:
    """Return the folder of the embedded store's artifacts; None where a server keeps them."""
    return None if os.environ.get(URI_VARIABLE) else workspace.mlflow / "artifacts"


def open_store(workspace: Workspace) -> "MlflowClient":
    """Return a client of the store, made first where it does not exist yet.

    Raises ServiceError where a server does not answer, or the store is of another MLflow.
    """
    _quiet()
    uri = tracking_uri(workspace)
    if uri.startswith(("http://", "https://")):
        _ask_health(uri)
    elif artifact_root(workspace) is not None:
        _make_embedded(workspace.mlflow / _DATABASE)
    elif "://" not in uri or uri.startswith("file:"):
        raise ServiceError(
            f"{URI_VARIABLE}={uri} is a folder, which MLflow no longer supports; name a server or "
            "a database, or unset it for the embedded store"
        )
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    with talking(client):
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def talking(client: "MlflowClient") -> Iterator[None]:
    """Turn what MLflow raises into a ServiceError of one line that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        line = " ".join(str(error).split())[:400]
        # what MLflow has no better word for: a server gone, a database that is locked
        away = error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
        failure = ServiceAway if away else ServiceError
        raise failure(f"MLflow at {without_password(client.tracking_uri)}: {line}") from error


def without_password(uri: str) -> str:
    """Return the address with no user and password in it."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _quiet() -> None:
    """Switch off telemetry and the libraries' own chatter; before MLflow's first import."""
    quiet_libraries()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # alembic's two lines per migration step would else land on the user's terminal
    for library in ("alembic", "mlflow"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _ask_health(uri: str) -> None:
    """Ask the server once: MLflow's own retries would take minutes to say that nobody is there."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_HEALTH_SECONDS).raise_for_status()
    except requests.RequestException as error:
        raise ServiceAway(
            f"no MLflow server answers at {without_password(uri)} ({type(error).__name__}); start "
            f"it, or unset {URI_VARIABLE} for the embedded store"
        ) from error


def _make_embedded(database: Path) -> None:
    """Make the embedded store once, whole or not at all, whoever else is at it."""
    if database.exists():
        return
    from filelock import FileLock, Timeout

    database.parent.mkdir(parents=True, exist_ok=True)
    lock = database.with_name(f"{_DATABASE}.lock")
    try:
        with FileLock(lock, timeout=_LOCK_SECONDS):
            if not database.exists():
                _migrate(database)
    except Timeout as error:
        raise ServiceError(
            f"another process has been making {database} for {_LOCK_SECONDS:.0f} s; end it"
        ) from error


def _migrate(database: Path) -> None:
    """Run MLflow's migrations on a file beside, then move it into place."""
    from mlflow.store.db import utils
    from sqlalchemy import event

    part = database.with_name(f"{_DATABASE}.part")
    for left in part.parent.glob(f"{part.name}*"):  # by one who died in the middle
        left.unlink()
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{part}")
    event.listen(engine, "connect", _hurry)
    utils._safe_initialize_tables(engine)
    engine.dispose()
    connection = sqlite3.connect(part)
    try:
        # readers and a writer side by side; the mode is kept in the file
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, database)


def _hurry(connection: Any, _record: object) -> None:
    """Leave out the syncs of 70 migrations (3 of 5 s): the file counts only once it is whole."""
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")
