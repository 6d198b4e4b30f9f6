"""Files that appear whole or not at all, and their hashes."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import StoreError

_FULL = ("no space left on device", "disk quota exceeded", "disk is full")


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(folder: Path) -> dict[str, str]:
    """Return relative path → sha256 of every file under `folder`, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def key(material: Any) -> str:
    """Return the sha256 (hex) that names what `material`, plain values for JSON, determines."""
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()


def combined(hashes: dict[str, str]) -> str:
    """Return one sha256 over the names and hashes of `content`."""
    return key(hashes)


def sync_folder(folder: Path) -> None:
    """Make what lies under `folder` survive a loss of power."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any, *, exclusive: bool = False) -> bool:
    """Write `value` beside `path` and move it there.

    With `exclusive`, a file that stands already is left alone. Returns whether ours is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def staged(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a new folder under `parent`; it is gone at the end unless it was moved away.

    Raises StoreError, with nothing left behind, where the disk is full.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}-"))
    try:
        yield folder
    except Exception as error:
        if ran_out(error):
            raise full_disk(parent) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ran_out(error: BaseException) -> bool:
    """Tell whether a full disk is behind `error`, whatever the library that met it made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # SQLite, safetensors and ONNX Runtime have no number for it
        if any(words in str(cause).lower() for words in _FULL):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def full_disk(folder: Path, needed: int | None = None) -> StoreError:
    """Return the error that says how much is free at `folder`, and how much it takes."""
    free = shutil.disk_usage(folder).free
    wanted = f"about {needed / 1e6:,.0f} MB are needed" if needed else "more is needed"
    return StoreError(
        f"no space left at {folder}: {free / 1e6:,.0f} MB are free, {wanted}; "
        "make room and start again: all that was published is kept"
    )
