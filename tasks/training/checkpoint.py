"""A training's state between two steps: written whole or not at all, in safetensors alone.

The file is named after the training it belongs to, so that two trainings of one technique keep
theirs side by side; a checksum in its header covers all that it holds.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tasks.errors import StoreError
from tasks.files import full_disk

_FACTS, _CHECKSUM = "facts", "sha256"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, fingerprint: str, tensors: Mapping[str, torch.Tensor], facts: Any) -> None:
    """Replace the checkpoint of the training `fingerprint` (hex); `facts` must fit in JSON.

    Raises StoreError where it cannot be written; the checkpoint before then stands.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in _unshared(tensors)}
    text = json.dumps(facts, sort_keys=True)
    header = {_FACTS: text, _CHECKSUM: digest(whole, text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            safetensors.torch.save_file(whole, part, metadata=header)
            os.replace(part, path_of(folder, fingerprint))
        finally:
            Path(part).unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in whole.values())
        standing = next(place for place in (folder, *folder.parents) if place.exists())
        if shutil.disk_usage(standing).free < needed:
            raise full_disk(standing, needed) from error
        raise StoreError(f"the training's checkpoint cannot be written: {error}") from error


def read(folder: Path, fingerprint: str) -> tuple[Tensors, Any] | None:
    """Return tensors and facts written last for this training; None where nothing whole is there.

    What a kill left half-written is removed.
    """
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
    try:
        with safetensors.safe_open(path_of(folder, fingerprint), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(header[_FACTS])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
    return (tensors, facts) if digest(tensors, header[_FACTS]) == header.get(_CHECKSUM) else None


def digest(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """Return the sha256 (hex) over names, types, shapes and bytes of `tensors`, and `text`."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether every number in the tensors is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def path_of(folder: Path, fingerprint: str) -> Path:
    """Return where the checkpoint of the training `fingerprint` is kept."""
    return folder / f"training-{fingerprint[:16]}.safetensors"


def _unshared(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tied tensor once: safetensors refuses shared memory.

    The model that reads them back is tied alike, so one name of a pair is enough.
    """
    seen: set[tuple[torch.device, int]] = set()
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr())
        if place not in seen:
            seen.add(place)
            yield name, tensor
