"""Addresses of data and models: `pypi://`, `hf://`, or a local path."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tasks.errors import SourceError

_PYPI = re.compile(
    r"pypi://(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"/(?P<path>[^#]+)#sha256=(?P<sha256>[0-9a-fA-F]{64})"
)
_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?"
    r"(#(?P<config>[\w.-]+))?"
)


@dataclass(frozen=True)
class PypiAddress:
    """A file, or a folder, inside one archive of a package index."""

    package: str
    version: str
    path: str
    """Inside the archive; it may go on inside an archive that lies there."""
    sha256: str
    """Of the archive as the index has it."""


@dataclass(frozen=True)
class HubAddress:
    """A repository of a Hugging Face hub."""

    repo: str
    revision: str | None = None
    config: str | None = None
    """Which of a data set's configurations."""


@dataclass(frozen=True)
class HubFolder:
    """A local folder in the form of a hub's repository."""

    path: Path
    config: str | None = None


@dataclass(frozen=True)
class LocalPath:
    """A file or a folder of this machine."""

    path: Path


Address = PypiAddress | HubAddress | HubFolder | LocalPath


def parse(text: str, root: Path) -> Address:
    """Return what `text` names; a relative path is looked up from `root`.

    Raises SourceError where it has none of the forms.
    """
    if text.startswith("pypi://"):
        return _parse_pypi(text)
    if text.startswith("hf://"):
        return _parse_hub(text, root)
    if "://" in text:
        raise SourceError(
            f"{text}: addresses are `pypi://…`, `hf://…` or a local path; download the file first"
        )
    return LocalPath(_local(text, root))


def _parse_pypi(text: str) -> PypiAddress:
    match = _PYPI.fullmatch(text)
    if match is None:
        raise SourceError(
            f"{text}: write it as `pypi://package==version/path/in/archive#sha256=<64 hex digits>`"
        )
    path = unquote(match["path"]).strip("/")
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise SourceError(f"{text}: `{match['path']}` is not a plain path inside an archive")
    return PypiAddress(match["package"], match["version"], path, match["sha256"].lower())


def _parse_hub(text: str, root: Path) -> HubAddress | HubFolder:
    rest = text.removeprefix("hf://")
    if rest.startswith(("/", "./", "../", "~")):
        path, _, config = rest.partition("#")
        return HubFolder(_local(path, root), config or None)
    match = _HUB.fullmatch(rest)
    if match is None:
        raise SourceError(
            f"{text}: write it as `hf://owner/name`, `hf://owner/name@revision` or "
            "`hf://./folder` for a local folder of that form"
        )
    return HubAddress(match["repo"], match["revision"], match["config"])


def _local(text: str, root: Path) -> Path:
    return root / Path(text).expanduser()
