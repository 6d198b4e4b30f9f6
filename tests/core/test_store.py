"""A node is published once: a late finisher is refused, and the first publication stands."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import claims, files, store
from tasks.bundle import Bundle
from tasks.claims import Claim
from tasks.errors import ClaimLost
from tasks.store import Manifest
from tasks.workspace import Workspace
from tests import tiny
from tests.data import checkouts

KEY = "a" * 64


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return checkouts.make(tmp_path / "checkout")


def taken(workspace: Workspace, lease: float = claims.LEASE_SECONDS) -> Claim:
    claim = claims.take(workspace, KEY, lease)
    assert claim is not None
    return claim


def described(seconds: float) -> Callable[..., Manifest]:
    def describe(**found: Any) -> Manifest:
        return Manifest(
            key=KEY, technique="baseline", settings={}, parent=None, parent_content=None,
            teachers={}, data={}, base_model={}, code={}, versions={}, machine={}, seed=7,
            seconds=seconds, created=0.0, **found,
        )  # fmt: skip

    return describe


def publish(workspace: Workspace, claim: Claim, bundle: Bundle, seconds: float = 1.0) -> Manifest:
    return store.publish(workspace, claim, bundle, described(seconds))


def events(workspace: Workspace) -> list[str]:
    with sqlite3.connect(workspace.state / "nightpress.db") as connection:
        return [event for (event,) in connection.execute("select event from journal order by time")]


def left_in_staging(workspace: Workspace) -> list[Path]:
    return [path for path in workspace.staging.rglob("*") if path.is_file()]


def test_who_was_replaced_publishes_nothing(workspace: Workspace) -> None:
    sleeper = taken(workspace, lease=0.01)
    time.sleep(0.05)
    successor = taken(workspace)
    with pytest.raises(ClaimLost, match="another worker took over"):
        store.publish(workspace, sleeper, tiny.tiny_bert(), lambda **_: pytest.fail("described"))
    assert store.manifest(workspace, KEY) is None
    assert not workspace.checkpoints.exists()
    assert left_in_staging(workspace) == []
    made = publish(workspace, successor, tiny.tiny_bert())
    assert store.manifest(workspace, KEY) == made
    assert events(workspace) == ["published"]


def test_a_second_publication_is_discarded_and_the_first_stands(workspace: Workspace) -> None:
    claim = taken(workspace)
    first = publish(workspace, claim, tiny.tiny_bert(seed=1))
    claims.release(workspace, claim)
    second = publish(workspace, taken(workspace), tiny.tiny_bert(seed=2), seconds=2.0)
    assert second == first == store.manifest(workspace, KEY)
    assert files.content(workspace.checkpoints / KEY) == first.files
    assert events(workspace) == ["published", "discarded"]
    assert left_in_staging(workspace) == []
    loaded = store.load(workspace, KEY).model.state_dict()
    for name, value in tiny.tiny_bert(seed=1).model.state_dict().items():
        assert loaded[name].equal(value)


def test_what_one_left_who_died_before_the_manifest_is_replaced(workspace: Workspace) -> None:
    left = workspace.checkpoints / KEY
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"of a checkpoint")
    made = publish(workspace, taken(workspace), tiny.tiny_bert())
    assert files.content(left) == made.files
    assert store.load(workspace, KEY).num_parameters() == made.num_parameters
