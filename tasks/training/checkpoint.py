"""A training's state between two steps: written whole or not at all, in safetensors alone."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

_NAME = "training.safetensors"
_FACTS = "nightpress"


def write(folder: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(whole, part, metadata={_FACTS: json.dumps(facts)})
        os.replace(part, folder / _NAME)
    finally:
        Path(part).unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return what was written last; None where there is nothing, or nothing whole."""
    path = folder / _NAME
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
