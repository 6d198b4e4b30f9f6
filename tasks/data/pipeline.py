"""Reproduces the DVC stages `fetch` and `prepare` for tonight's settings.

The checkout's own `dvc.yaml` serves the settings in its `params.yaml`. For others (a second
settings file, `-S`, a profile), and for sources that can change under one name, a pipeline is
written to `data/sets/<name>-<hash>/`. What a night reads is a copy by content in
`data/versions/<md5>/`: it stays as it is when the next night prepares other data.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks import files, versioning
from tasks.data import address as addresses
from tasks.data import fetch, hub, prepared, stage
from tasks.data.address import HubAddress, HubFolder, LocalPath, PypiAddress
from tasks.data.config import PrepareConfig, SourceConfig, TableConfig
from tasks.errors import NightpressError, ServiceError, SettingsError, SourceError, StoreError
from tasks.versioning import Pointer
from tasks.workspace import Workspace

_STAGES = ("fetch", "prepare")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAIT_SECONDS = 600
_CODE = {
    "fetch": ("address", "archive", "config", "fetch", "hub", "pypi", "tables"),
    "prepare": ("config", "groups", "normalize", "prepare", "prepared", "tables"),
}


@dataclass(frozen=True)
class PreparedData:
    """Data that is ready for a night, and where each part of it came from."""

    folder: Path
    """See `tasks.data.prepared`; nothing in it ever changes."""
    pointer: Pointer
    raw_pointer: Pointer
    labels: tuple[str, ...]
    rows: dict[str, int]
    sources: dict[str, Any]


@dataclass(frozen=True)
class _Pipeline:
    """Where a `dvc.yaml` lies, and where its outputs do."""

    home: Path
    outputs: Path


def reproduce(
    workspace: Workspace, name: str, source: SourceConfig, prepare: PrepareConfig
) -> PreparedData:
    """Bring raw and prepared data up to date with the settings and the sources.

    Raises what the failing stage raised (SourceError, mostly); ServiceError where DVC cannot be
    used.
    """
    source = _pinned(workspace, source)
    with _alone(workspace):
        pipeline = _choose(workspace, name, source, prepare)
        _run(workspace, pipeline)
        raw, made = _pointers(pipeline)
        folder = materialize(workspace, made)
    facts = prepared.facts(folder)
    return PreparedData(
        folder, made, raw, tuple(facts["labels"]), dict(facts["rows"]), dict(facts["sources"])
    )


def materialize(workspace: Workspace, pointer: Pointer) -> Path:
    """Return the folder with the prepared data that the pointer names, from DVC if need be.

    Raises StoreError where it can no longer be had.
    """
    folder = workspace.data / "versions" / pointer.md5.removesuffix(".dir")
    if folder.is_dir() and not versioning.verify(workspace.root, pointer, folder):
        with files.staged(workspace.staging, "damaged") as aside:
            os.rename(folder, aside / folder.name)
    if not folder.is_dir():
        versioning.restore(workspace.root, pointer, folder)
    return folder


def _pinned(workspace: Workspace, source: SourceConfig) -> SourceConfig:
    """Return the settings with every branch of a hub as the commit that it is today."""

    def pinned(config: TableConfig) -> str:
        address = addresses.parse(config.address, workspace.root)
        if not isinstance(address, HubAddress):
            return config.address
        found = hub.resolve(address, "dataset")
        revision = f"@{found.revision}" if found.revision else ""
        return f"hf://{found.repo}{revision}" + (f"#{found.config}" if found.config else "")

    others = {
        name: other.model_copy(update={"address": pinned(other)})
        for name, other in source.others.items()
    }
    return source.model_copy(update={"address": pinned(source), "others": others})


def _choose(
    workspace: Workspace, name: str, source: SourceConfig, prepare: PrepareConfig
) -> _Pipeline:
    """Return the checkout's own pipeline where it fits, else one written for these settings."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"`name`: {name!r} cannot name a folder")
    tables = [source, *source.others.values()]
    parsed = [addresses.parse(table.address, workspace.root) for table in tables]
    local = [_dependency(a) for a in parsed if isinstance(a, LocalPath | HubFolder)]
    if all(isinstance(a, PypiAddress) for a in parsed) and _is_own(workspace, source, prepare):
        return _Pipeline(workspace.root, workspace.data)
    sections = {
        "source": source.model_dump(mode="json", exclude_defaults=True),
        "prepare": prepare.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:8]
    home = workspace.data / "sets" / f"{name}-{key}"
    home.mkdir(parents=True, exist_ok=True)
    _write_yaml(home / stage.PARAMS, sections)
    _write_yaml(home / "dvc.yaml", _definition(workspace, home, local))
    return _Pipeline(home, home)


def _is_own(workspace: Workspace, source: SourceConfig, prepare: PrepareConfig) -> bool:
    path = workspace.root / stage.PARAMS
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        # DVC tracks both sections, and wants them there
        return "prepare" in raw and stage.sections(path) == (source, prepare)
    except (OSError, TypeError, NightpressError):
        return False


def _dependency(address: LocalPath | HubFolder) -> Path:
    """Return the local source, which DVC watches."""
    if isinstance(address, LocalPath):
        return fetch.local_file(address.path)
    if not address.path.is_dir():
        raise SourceError(f"{address.path} is not a folder; `hf://` leads to a folder in hub form")
    return address.path


def _definition(workspace: Workspace, home: Path, local: list[Path]) -> dict[str, Any]:
    """Return a `dvc.yaml` like the checkout's own, that watches the local sources too."""
    code = Path(__file__).parent
    root = os.path.relpath(workspace.root, home)

    def watched(path: Path) -> str:
        inside = path.resolve().is_relative_to(workspace.root)
        # DVC would fill in ${…}
        return (os.path.relpath(path, home) if inside else str(path.resolve())).replace(
            "${", "\\${"
        )

    def one(name: str, deps: list[str], params: list[str], out: str) -> dict[str, Any]:
        modules = [watched(code / f"{module}.py") for module in _CODE[name]]
        return {
            "cmd": f"python -m tasks.data.{name} {root}",
            "deps": sorted({*modules, *deps}),
            "params": params,
            "outs": [out],
        }

    return {
        "stages": {
            "fetch": one("fetch", [watched(path) for path in local], ["source"], "raw"),
            "prepare": one("prepare", ["raw"], ["source", "prepare"], "prepared"),
        }
    }


def _write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write the file anew only where it says something else."""
    buffer = StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.dump(dict(value), buffer)
    text = buffer.getvalue()
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _run(workspace: Workspace, pipeline: _Pipeline) -> None:
    """Run the stages whose inputs have changed."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    targets = [f"{pipeline.home / 'dvc.yaml'}:{name}" for name in _STAGES]
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
            told = Path(folder) / "error.json"
            try:
                with versioning.repository(workspace.root) as repo:
                    repo.stage_cache = _no_run_cache(repo)
                    repo.reproduce(targets, single_item=True, run_env=_environment(told))
                return
            except DvcException as error:
                stage.raise_told(told)
                cause = _root_cause(error)
                if isinstance(cause, LockError) and time.monotonic() < until:
                    time.sleep(0.5)  # someone runs `dvc` by hand
                    continue
                if str(cause).endswith(f"exited with {stage.INTERRUPTED}"):
                    raise KeyboardInterrupt from error
                if files.ran_out(error):
                    raise files.full_disk(workspace.root) from error
                raise ServiceError(
                    f"DVC could not reproduce the data: {cause}; see `dvc repro -v "
                    f"{os.path.relpath(pipeline.home / 'dvc.yaml', workspace.root)}`"
                ) from error


def _no_run_cache(repo: Any) -> Any:
    """Return a run cache that remembers nothing: DVC's fails outside the repository's folders."""
    from dvc.stage.cache import RunCacheNotFoundError, StageCache

    class Forgetful(StageCache):  # type: ignore[misc]
        def save(self, _stage: Any) -> None:
            pass

        def restore(self, stage: Any, *_: Any, **__: Any) -> None:
            raise RunCacheNotFoundError(stage)

    return Forgetful(repo)


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _environment(told: Path) -> dict[str, str]:
    """Return what the stages are started with: this Python first, and where to tell an error."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, stage.ERROR_FILE: str(told), stage.PARENT: str(os.getpid())}


def _pointers(pipeline: _Pipeline) -> tuple[Pointer, Pointer]:
    """Return the pointers of raw and prepared data, as DVC recorded them."""
    path = pipeline.home / "dvc.lock"
    try:
        stages = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
        outs = [stages[name]["outs"][0] for name in _STAGES]
    except (OSError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path} does not tell what was made; delete it and run again") from error
    raw, made = (Pointer.from_dict(out) for out in outs)
    return raw, made


@contextlib.contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """Let one process at a time reproduce; clear away what a killed one left in DVC's lock."""
    workspace.state.mkdir(parents=True, exist_ok=True)
    with (workspace.state / "data.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # gone with the process that holds it
        _clear_stale(workspace.root / ".dvc" / "tmp" / "rwlock")
        yield


def _clear_stale(rwlock: Path) -> None:
    """Remove a lock list that is cut short, or whose owners are gone.

    DVC takes any process with the number of the killed one for its owner; one that began after
    the list was written is not.
    """
    import psutil

    try:
        written = rwlock.stat().st_mtime
        held = json.loads(rwlock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        rwlock.unlink()
        return
    owners = [*held.get("write", {}).values()]
    owners += [owner for readers in held.get("read", {}).values() for owner in readers]
    for owner in owners:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(owner["pid"])
            if process.create_time() <= written and process.pid != os.getpid():
                return
    rwlock.unlink()
