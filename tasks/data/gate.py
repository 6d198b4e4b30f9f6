"""The validation gate as a night uses it: what passed once need not be looked at again."""

import json
from pathlib import Path

from tasks import files
from tasks.code_hash import code_hash
from tasks.data import accepted
from tasks.data.config import ValidationConfig
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation, validate
from tasks.errors import DataRejected
from tasks.workspace import Workspace


def pass_or_raise(
    workspace: Workspace, name: str, config: ValidationConfig, data: PreparedData
) -> Validation:
    """Return what the gate found in data that passes.

    Raises DataRejected, with every failed expectation, its count and first rows, otherwise. Data
    Docs are written either way, each validation's into a folder of its own.
    """
    path = _record(workspace, name, config, data)
    if path.is_file():
        found = Validation.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if found.docs.is_file():
            return found
    docs = workspace.state / name / "data-docs" / path.stem
    folder = accepted_folder(workspace, name)
    found = validate(data.folder, config, folder if folder.is_dir() else None, docs)
    if not found.passed:
        lines = "; ".join(failure.message for failure in found.failures)
        raise DataRejected(f"the data is not fit to train on: {lines} (all of it: {found.docs})")
    files.write_json(path, found.to_dict())
    return found


def accept(
    workspace: Workspace,
    name: str,
    config: ValidationConfig,
    data: PreparedData,
    validation: Validation,
) -> None:
    """Record the data of a night that ended: later nights are compared with it.

    The same data passes again tomorrow: compared with itself it cannot have drifted.
    """
    accepted.record(data.folder, accepted_folder(workspace, name))
    files.write_json(_record(workspace, name, config, data), validation.to_dict())


def accepted_folder(workspace: Workspace, name: str) -> Path:
    """Return where the last accepted night's data is remembered."""
    return workspace.state / name / "accepted"


def _record(workspace: Workspace, name: str, config: ValidationConfig, data: PreparedData) -> Path:
    """Return where it is noted that this data passes these bounds beside that accepted night."""
    night = accepted_folder(workspace, name)
    material = [
        data.pointer.md5,
        config.model_dump(mode="json"),
        files.content(night) if night.is_dir() else None,
        code_hash("tasks.data.validation"),
    ]
    return workspace.state / name / "validations" / f"{files.key(material)[:16]}.json"
