"""A real small file system that fills up: one line, nothing half-written, and a night resumed."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import claims, store
from tasks.errors import StoreError
from tasks.workspace import Workspace
from tests import tiny, workspaces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 30 MB."""
    place = tmp_path / "volume"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def resize(volume: Path, megabytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", volume], check=True)


def left_unfinished(root: Path) -> list[Path]:
    return [
        path
        for folder in (".nightpress/staging", "data/checkpoints", "data/manifests")
        for path in (root / folder).rglob("*")
        if path.is_file()
    ]


# at the start, where the databases are made, and before the first publication
@pytest.mark.parametrize("megabytes", [3, 12])
def test_a_night_on_a_full_disk_goes_on_where_it_stopped(volume: Path, megabytes: int) -> None:
    root = workspaces.make(volume / "checkout")
    resize(volume, megabytes)
    done = workspaces.nightpress(root, "run")
    complaint = [line for line in done.stderr.splitlines() if line.startswith("nightpress:")]
    assert done.returncode == 6
    assert len(complaint) == 1, done.stderr
    assert "no space left" in complaint[0]
    assert "Traceback" not in done.stderr
    assert left_unfinished(root) == []
    resize(volume, 400)
    done = workspaces.nightpress(root, "run")
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fills_up_in_mid_publish(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(workspaces.make(volume / "checkout"))
    bundle = tiny.tiny_bert()
    configuration = type(bundle.model.config)
    whole = configuration.save_pretrained

    def save_while_others_write(self: Any, folder: Path) -> None:
        """Take what was free when the publication looked, as another program would."""
        with contextlib.suppress(OSError), (volume / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 2**16):
                pass
        whole(self, folder)

    monkeypatch.setattr(configuration, "save_pretrained", save_while_others_write)
    claim = claims.take(workspace, "a" * 64)
    assert claim is not None
    with pytest.raises(StoreError, match="no space left"):
        store.publish(workspace, claim, bundle, lambda **_: pytest.fail("it was described"))
    assert (volume / "filler").stat().st_size > 10_000_000
    assert left_unfinished(workspace.root) == []
