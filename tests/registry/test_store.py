import sqlite3
import subprocess
import sys
import time

import pytest

from tasks.errors import ServiceError
from tasks.registry import store
from tasks.workspace import Workspace

OPEN = """
import sys
from pathlib import Path
from tasks.registry.store import open_store
from tasks.workspace import Workspace
client = open_store(Workspace(Path(sys.argv[1])))
client.create_experiment(sys.argv[2])
"""


def test_embedded_store_is_whole_and_lets_readers_and_a_writer_in(client, workspace):
    files = {path.name for path in workspace.mlflow.iterdir()}
    assert "mlflow.db" in files
    assert not any(name.startswith("mlflow.db.part") for name in files)
    connection = sqlite3.connect(workspace.mlflow / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert client.search_experiments()[0].name


def test_opening_again_is_fast(client, workspace):
    began = time.perf_counter()
    again = store.open_store(workspace)
    assert again.tracking_uri == client.tracking_uri
    assert time.perf_counter() - began < 1


def test_server_that_is_away_is_one_line_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(ServiceError, match="no MLflow server answers at http://127") as caught:
        store.open_store(Workspace(tmp_path))
    assert time.perf_counter() - began < 8
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["file:/tmp/runs", "./mlruns"])
def test_folder_as_store_is_refused(monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ServiceError, match="no longer supports"):
        store.open_store(Workspace(tmp_path))


def test_what_mlflow_raises_becomes_one_line(client):
    expected = pytest.raises(ServiceError, match=r"^MLflow at sqlite:.*nowhere")
    with expected as caught, store.talking(client):
        client.get_registered_model("nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_first_users_of_an_empty_store_do_not_disturb_each_other(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    users = [
        subprocess.Popen([*command, f"user {i}"], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    for user in users:
        _, errors = user.communicate(timeout=300)
        assert user.returncode == 0, errors
    names = {e.name for e in store.open_store(Workspace(tmp_path)).search_experiments()}
    assert names >= {"user 0", "user 1", "user 2"}
