"""Checkpoints: published whole or not at all, each with a manifest; DVC keeps their bytes.

A node is published once its manifest stands. The first publication of a key wins: a later one is
discarded, since training is not bit-equal across machines and others may build on the first.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks import bundle as bundles
from tasks import claims, database, files, versioning
from tasks.bundle import Bundle
from tasks.claims import Claim
from tasks.errors import StoreError
from tasks.frozen import Frozen
from tasks.workspace import Workspace


class Manifest(Frozen):
    """All that is known of a published node."""

    format: int = 1
    key: str
    technique: str
    settings: dict[str, Any]
    parent: str | None
    parent_content: str | None
    """Content hash of the parent that was really used."""
    teachers: dict[str, str]
    data: dict[str, Any]
    """DVC pointers of the raw and prepared data."""
    base_model: dict[str, str]
    code: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]
    seed: int
    seconds: float
    """Wall time of the pressing, all attempts' last one."""
    files: dict[str, str]
    """Path in the checkpoint → sha256."""
    pointer: dict[str, Any]
    """The checkpoint in the DVC store."""
    num_parameters: int
    created: float

    @property
    def content(self) -> str:
        """One hash over everything that the checkpoint holds."""
        return files.combined(self.files)


def manifest(workspace: Workspace, key: str) -> Manifest | None:
    """Return the manifest of a published node; None where the node is not published.

    Raises StoreError where the manifest cannot be read.
    """
    path = workspace.manifests / f"{key}.json"
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(
            f"{path} is not a readable manifest; delete it, and the node is pressed again"
        ) from error


def publish(
    workspace: Workspace, claim: Claim, bundle: Bundle, describe: Callable[..., Manifest]
) -> Manifest:
    """Save `bundle` as the node that `claim` is for, and return the manifest that stands.

    `describe(files=…, pointer=…, num_parameters=…)` completes the manifest. Raises StoreError
    where there is no space, ClaimLost where the node was taken over; nothing is left then.
    """
    key, final = claim.key, workspace.checkpoints / claim.key
    needed = 2 * sum(p.numel() * p.element_size() for p in bundle.model.parameters()) + 20_000_000
    staging = claims.staging(workspace)
    staging.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(staging).free < needed:
        raise files.full_disk(staging, needed)
    with files.staged(staging, key[:16]) as folder:
        staged = folder / "checkpoint"
        bundles.save(bundle, staged)
        files.sync_folder(staged)
        hashes = files.content(staged)
        pointer = versioning.add(workspace.root, staged)
        claims.check(workspace, claim)
        _place(workspace, staged, final)
        made = describe(
            files=hashes, pointer=pointer.to_dict(), num_parameters=bundle.num_parameters()
        )
        won = files.write_json(
            workspace.manifests / f"{key}.json", made.model_dump(mode="json"), exclusive=True
        )
    note(workspace, key, "published" if won else "discarded")
    standing = manifest(workspace, key)
    assert standing is not None
    return standing


def _place(workspace: Workspace, staged: Path, final: Path) -> None:
    """Move the checkpoint into place, unless a published one stands there."""
    if manifest(workspace, final.name) is not None:
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():  # left by one who died before he wrote the manifest
        shutil.rmtree(final)
    os.rename(staged, final)


def load(workspace: Workspace, key: str) -> Bundle:
    """Load a published node, from DVC where the folder is gone.

    Raises StoreError where it was never published, cannot be restored, or differs from its
    manifest.
    """
    described = manifest(workspace, key)
    if described is None:
        raise StoreError(f"node {key[:12]} is not published; run the night that presses it")
    folder = workspace.checkpoints / key
    if not folder.is_dir():
        pointer = versioning.Pointer.from_dict(described.pointer)
        versioning.restore(workspace.root, pointer, folder)
    verify(described, folder)
    return bundles.load(folder)


def verify(described: Manifest, folder: Path) -> None:
    """Raise StoreError, naming the file, where the checkpoint differs from its manifest."""
    found = files.content(folder)
    for name in sorted(described.files.keys() | found.keys()):
        if found.get(name) != described.files.get(name):
            state = "is missing" if name not in found else "was changed"
            raise StoreError(
                f"checkpoint {folder}: {name} {state} since it was published; delete the folder "
                "and it is restored from DVC"
            )


def published(workspace: Workspace) -> list[Manifest]:
    """Return the manifests of all published nodes, oldest first."""
    found = (manifest(workspace, path.stem) for path in workspace.manifests.glob("*.json"))
    return sorted((m for m in found if m is not None), key=lambda m: m.created)


def note(workspace: Workspace, key: str, event: str, detail: str = "") -> None:
    """Write one line into the journal of what happened to nodes."""
    with database.engine(workspace).begin() as connection:
        connection.execute(
            database.journal.insert().values(
                time=time.time(), key=key, event=event, owner=claims.owner_name(), detail=detail
            )
        )
