"""A whole night on a tiny model, run once for all tests that only look at what it left."""

from pathlib import Path

import pytest

from tests import workspaces


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which one night has ended with a champion."""
    root = workspaces.make(tmp_path_factory.mktemp("night") / "checkout")
    done = workspaces.nightpress(root, "run")
    assert done.returncode == 0, done.stderr
    return root
