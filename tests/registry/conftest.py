"""One embedded store for the whole session: making it costs seconds."""

import pytest

from tasks.registry import store
from tasks.workspace import Workspace
from tests.registry import tiny_export


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def client(workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # left by one who was killed in the middle of the migration
        workspace.mlflow.mkdir()
        (workspace.mlflow / "mlflow.db.part").write_text("half a database")
        yield store.open_store(workspace)


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory):
    return tiny_export.write(tmp_path_factory.mktemp("export"))


@pytest.fixture
def name(request):
    """A registered model of the test's own."""
    return request.node.name.replace("[", "-").replace("]", "").replace("_", "-")[:80]
