"""Keeps folders in the DVC store by content: a pointer is all it takes to have one back.

There are no .dvc files: pointers stand in manifests. The objects lie in the cache of the DVC
repository at the checkout's root, and in its default remote where one is configured.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import files
from tasks.errors import ServiceError, StoreError

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_CHUNK = 1 << 20
_FOLDER = ".dir"
Files = dict[str, str]
"""Path in the folder → md5."""


@dataclass(frozen=True)
class Pointer:
    """What is in the DVC store, by content."""

    md5: str
    """Ends in `.dir` for a folder."""
    size: int
    """Bytes in all."""
    nfiles: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Pointer":
        """Return the pointer that `to_dict` gave.

        Raises StoreError where it is none.
        """
        try:
            pointer = cls(str(value["md5"]), int(value["size"]), int(value["nfiles"]))
        except (KeyError, TypeError, ValueError):
            raise StoreError(f"{value} is not a DVC pointer") from None
        if not _MD5.fullmatch(pointer.md5):
            raise StoreError(f"{pointer.md5} is not the md5 of a DVC pointer")
        return pointer


@contextlib.contextmanager
def repository(root: Path) -> Iterator[Any]:
    """Open the DVC repository at `root`, quiet, waiting for its lock, leaving git alone.

    Raises ServiceError where there is none.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.ui import ui

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = {
        "core": {"no_scm": True, "site_cache_dir": str(root / ".dvc" / "tmp" / "site")},
    }
    try:
        repo = Repo(str(root), config=config, _wait_for_lock=True)
    except NotDvcRepoError as error:
        raise ServiceError(f"{root} is not a DVC repository; run `dvc init` there") from error
    shown, ui._enabled = ui._enabled, False
    try:
        yield repo
    finally:
        ui._enabled = shown
        repo.close()


def add(root: Path, path: Path) -> Pointer:
    """Put a folder or a file into the DVC cache and return its pointer; `path` stays as it is.

    Several may add at once. Raises StoreError where it cannot be read or there is no space.
    """
    with repository(root) as repo, _explained(root):
        from dvc_data.hashfile.transfer import transfer

        odb = repo.cache.local
        staging, meta, obj = _built(odb, path)
        done = transfer(staging, odb, {obj.hash_info}, hardlink=False, shallow=False)
        if done.failed:
            raise StoreError(f"{path}: {len(done.failed)} files could not be put into the cache")
        return Pointer(obj.hash_info.value, int(meta.size or 0), int(meta.nfiles or 1))


def _built(odb: Any, path: Path, *, dry_run: bool = False) -> Any:
    from dvc.fs import localfs
    from dvc_data.hashfile.build import build

    return build(odb, str(path), localfs, "md5", dry_run=dry_run)


def verify(root: Path, pointer: Pointer, path: Path) -> bool:
    """Tell whether what lies at `path` is what the pointer names."""
    if not path.exists():
        return False
    with repository(root) as repo, _explained(root):
        _, _, obj = _built(repo.cache.local, path, dry_run=True)
        return bool(obj.hash_info.value == pointer.md5)


def restore(root: Path, pointer: Pointer, destination: Path) -> None:
    """Write what the pointer names to `destination`, whole or not at all.

    What the cache has not, or has damaged, is pulled from the default remote. Every byte is
    checked. Raises StoreError where it cannot be had, or something stands at `destination`.
    """
    if destination.exists():
        raise StoreError(f"{destination} exists; move it away to restore another in its place")
    with (
        repository(root) as repo,
        _explained(root),
        files.staged(destination.parent, f".{destination.name[:16]}") as staging,
    ):
        made = staging / "restored"
        broken = _copy_out(repo, pointer, made)
        if broken:
            _pull(repo, pointer, broken)
            broken = _copy_out(repo, pointer, made)
        if broken:
            raise StoreError(
                f"{pointer.md5} cannot be restored: {len(broken)} of its objects are in neither "
                "the DVC cache nor a default remote; look into `dvc remote list`"
            )
        if made.is_dir():
            files.sync_folder(made)
        os.rename(made, destination)


def _copy_out(repo: Any, pointer: Pointer, destination: Path) -> list[str]:
    """Copy objects to `destination`; return the md5s of those missing or damaged.

    A damaged one is removed from the cache, so that a pull brings it anew.
    """
    if destination.is_dir():
        shutil.rmtree(destination)
    if not pointer.md5.endswith(_FOLDER):
        return [] if _copy(repo, pointer.md5, destination) else [pointer.md5]
    listed = _listing(repo, pointer)
    if listed is None:
        return [pointer.md5]
    destination.mkdir()
    broken = []
    for name, md5 in listed.items():
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _copy(repo, md5, target):
            broken.append(md5)
    return broken


def _listing(repo: Any, pointer: Pointer) -> Files | None:
    """Return what the folder holds; None where its list is missing or damaged."""
    path = Path(repo.cache.local.oid_to_path(pointer.md5))
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() + _FOLDER != pointer.md5:
        path.unlink()
        return None
    listed: Files = {entry["relpath"]: entry["md5"] for entry in json.loads(raw)}
    for name, md5 in listed.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or not _MD5.fullmatch(md5):
            raise StoreError(f"{pointer.md5} names {name}, which is no path inside a folder")
    return listed


def _copy(repo: Any, md5: str, target: Path) -> bool:
    """Copy one object, hashing it on the way; tell whether it was there and whole."""
    source = Path(repo.cache.local.oid_to_path(md5))
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
    except FileNotFoundError:
        return False
    if digest.hexdigest() == md5:
        return True
    source.unlink()
    return False


def _pull(repo: Any, pointer: Pointer, broken: Sequence[str]) -> None:
    """Fetch objects from the default remote, if there is one."""
    if repo.config["core"].get("remote") is None:
        return
    _transfer(repo, repo.cloud.pull, broken)
    if pointer.md5 in broken and pointer.md5.endswith(_FOLDER):
        listed = _listing(repo, pointer)
        _transfer(repo, repo.cloud.pull, list((listed or {}).values()))


def push(root: Path, pointers: Sequence[Pointer]) -> bool:
    """Copy what the pointers name to the default remote; False where none is configured.

    Raises StoreError where the cache has not all of it, ServiceError where the remote cannot be
    used.
    """
    with repository(root) as repo, _explained(root):
        if repo.config["core"].get("remote") is None:
            return False
        for pointer in pointers:
            wanted = [pointer.md5]
            if pointer.md5.endswith(_FOLDER):
                listed = _listing(repo, pointer)
                if listed is None:
                    raise StoreError(f"{pointer.md5} is not in the DVC cache; it cannot be pushed")
                # the list goes last: where it lies, all that it names lies too
                _transfer(repo, repo.cloud.push, list(listed.values()))
            _transfer(repo, repo.cloud.push, wanted)
        return True


def _transfer(repo: Any, move: Any, md5s: Sequence[str]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo

    if not md5s:
        return
    result = move([HashInfo("md5", md5) for md5 in md5s])
    if result.failed:
        name = repo.config["core"]["remote"]
        raise ServiceError(
            f"DVC remote `{name}`: {len(result.failed)} objects could not be transferred; check "
            "that it can be reached and start again"
        )


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn DVC's own errors into ours."""
    from dvc.exceptions import DvcException
    from dvc_objects.errors import ObjectFormatError

    try:
        yield
    except ObjectFormatError as error:
        raise StoreError(f"the DVC cache of {root} is damaged: {error}") from error
    except DvcException as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ServiceError(f"DVC: {first}") from error
    except OSError as error:
        if files.ran_out(error):
            raise files.full_disk(root) from error
        raise ServiceError(f"DVC: {error}") from error
