"""A node's exported model, made once for its content and the exporter's code."""

import hashlib
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


@dataclass(frozen=True)
class Export:
    """An exported model: the folder that is measured, served and registered."""

    node: str
    folder: Path
    facts: ExportFacts


def exported(workspace: Workspace, manifest: Manifest) -> Export:
    """Return the node's export, made now if it is not there.

    Raises ExportError where the model cannot be exported as its plan asks.
    """
    material = {
        "content": manifest.content,
        "code": code_hash("tasks.runtime.export"),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }
    key = hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()
    final = workspace.cache / "exports" / key
    described = final / "export.json"
    if not described.is_file():
        with files.staged(claims.staging(workspace), key[:16]) as folder:
            facts = export(store.load(workspace, manifest.key), folder / "export")
            files.write_json(folder / "export" / "export.json", facts.to_dict())
            _place(folder / "export", final)
    facts = ExportFacts.from_dict(json.loads(described.read_text(encoding="utf-8")))
    return Export(manifest.key, final, facts)


def _place(made: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(made, final)
    except OSError:
        if not (final / "export.json").is_file():  # a twin's equal export may stand there: keep it
            shutil.rmtree(final)
            os.rename(made, final)
