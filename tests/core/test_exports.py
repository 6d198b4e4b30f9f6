"""A node is exported once, and anew where its export is no longer as it was made."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import bundle, exports, files
from tasks.errors import StoreError
from tasks.store import Manifest
from tasks.workspace import Workspace
from tests import tiny


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "checkout")


def published(workspace: Workspace, key: str = "k" * 64) -> Manifest:
    """A node as it stands after it was published."""
    folder = workspace.checkpoints / key
    bundle.save(tiny.tiny_bert(), folder)
    manifest = Manifest(
        key=key, technique="baseline", settings={}, parent=None, parent_content=None, teachers={},
        data={}, base_model={}, code={}, versions={}, machine={}, seed=7, seconds=1.0,
        files=files.content(folder), pointer={}, num_parameters=1, created=0.0,
    )  # fmt: skip
    files.write_json(workspace.manifests / f"{key}.json", manifest.model_dump(mode="json"))
    return manifest


def test_an_export_is_made_once(workspace: Workspace) -> None:
    manifest = published(workspace)
    made = exports.exported(workspace, manifest)
    before = (made.folder / "model.onnx").stat()
    again = exports.exported(workspace, manifest)
    assert again == made
    assert (made.folder / "model.onnx").stat() == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda f: flip(f / "model.onnx"), id="a bit of the model"),
        pytest.param(lambda f: os.truncate(f / "tokenizer.json", 9), id="half a tokenizer"),
        pytest.param(lambda f: (f / "serving.json").unlink(), id="no labels"),
        pytest.param(lambda f: (f / "more.bin").write_bytes(b"x"), id="a file too many"),
        pytest.param(lambda f: os.truncate(f / "export.json", 9), id="half the facts"),
        pytest.param(lambda f: (f / "export.json").write_text("[]"), id="no facts"),
        pytest.param(lambda f: (f / "export.json").unlink(), id="facts gone"),
    ],
)
def test_an_export_that_was_changed_is_made_anew(
    workspace: Workspace, spoil: Callable[[Path], object]
) -> None:
    manifest = published(workspace)
    made = exports.exported(workspace, manifest)
    served = {n: h for n, h in files.content(made.folder).items() if n != "export.json"}
    spoil(made.folder)
    again = exports.exported(workspace, manifest)
    assert again.folder == made.folder
    assert {n: h for n, h in files.content(made.folder).items() if n != "export.json"} == served
    assert again.facts.sha256 == made.facts.sha256 == files.combined(served)
    assert exports.exported(workspace, manifest) == again


def test_an_export_is_on_the_disk_before_it_has_its_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def watch(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    manifest = published(workspace)
    monkeypatch.setattr(os, "fsync", watch)
    made = exports.exported(workspace, manifest)
    beside = {p.name for p in synced if p.is_relative_to(workspace.staging)}
    assert beside >= {path.name for path in made.folder.iterdir()}


def test_the_twin_that_comes_second_keeps_what_stands(workspace: Workspace, tmp_path: Path) -> None:
    manifest = published(workspace)
    made = exports.exported(workspace, manifest)
    before = (made.folder / "model.onnx").stat()
    (tmp_path / "second").mkdir()
    exports._place(tmp_path / "second", made.folder)
    assert (made.folder / "model.onnx").stat() == before


def test_what_else_goes_wrong_is_not_hidden_and_destroys_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    standing = tmp_path / "standing"
    standing.mkdir()
    (standing / "model.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        exports._place(tmp_path / "nothing", standing)
    assert (standing / "model.onnx").is_file()


def test_a_node_that_is_not_there_leaves_nothing(workspace: Workspace) -> None:
    manifest = published(workspace)
    (workspace.manifests / f"{manifest.key}.json").unlink()
    with pytest.raises(StoreError, match="is not published"):
        exports.exported(workspace, manifest)
    assert [path for path in workspace.staging.rglob("*") if path.is_file()] == []
    assert not (workspace.cache / "exports").exists()
