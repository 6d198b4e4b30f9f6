"""A node's exported model, made once for its content and the exporter's code."""

import errno
import importlib.metadata
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tasks import claims, files, store
from tasks.code_hash import code_hash
from tasks.runtime.export import ExportFacts, export
from tasks.store import Manifest
from tasks.workspace import Workspace

_PACKAGES = ("onnx", "onnxruntime", "torch", "transformers")
_FACTS = "export.json"


@dataclass(frozen=True)
class Export:
    """An exported model: the folder that is measured, served and registered."""

    node: str
    folder: Path
    facts: ExportFacts


def exported(workspace: Workspace, manifest: Manifest) -> Export:
    """Return the node's export, made now if it is not there, or not as it was made.

    Raises ExportError where the model cannot be exported as its plan asks.
    """
    material = {
        "content": manifest.content,
        "code": code_hash("tasks.runtime.export"),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }
    key = files.key(material)
    final = workspace.cache / "exports" / key
    facts = _standing(final)
    if facts is None:
        with files.staged(claims.staging(workspace), key[:16]) as folder:
            made = folder / "export"
            facts = export(store.load(workspace, manifest.key), made)
            files.write_json(made / _FACTS, facts.to_dict())
            files.sync_folder(made)
            _place(made, final)
    return Export(manifest.key, final, facts)


def _standing(folder: Path) -> ExportFacts | None:
    """Return the facts of the export in `folder`; None where it is not there, whole and as made."""
    try:
        facts = ExportFacts.from_dict(json.loads((folder / _FACTS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    hashes = files.content(folder)
    del hashes[_FACTS]
    return facts if files.combined(hashes) == facts.sha256 else None


def _place(made: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(made, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if _standing(final) is None:  # a twin's equal export may stand there: keep it
            shutil.rmtree(final)
            os.rename(made, final)
