"""Runs one stage of the data pipeline as a process of its own, as DVC starts it.

    python -m tasks.data.fetch [ROOT]

reads the sections `source` and `prepare` of `params.yaml` in the current folder; relative paths
of the settings, and the downloads, are looked up from the checkout ROOT (default: here).
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import errors, files
from tasks.data.config import PrepareConfig, SourceConfig
from tasks.errors import NightpressError, SettingsError, SourceError
from tasks.processes import die_with_parent

ERROR_FILE = "NIGHTPRESS_STAGE_ERROR"
"""Variable naming the file that a failing stage writes its error to, for who started it."""
PARENT = "NIGHTPRESS_STAGE_PARENT"
"""Variable with the process that the stage must not outlive."""
PARAMS = "params.yaml"
INTERRUPTED = 130
"""Exit code of a stage that Ctrl-C has ended."""


def sections(path: Path) -> tuple[SourceConfig, PrepareConfig]:
    """Return the two sections of `path` that the data stages read.

    Raises SettingsError where the file cannot be read or says something impossible.
    """
    try:
        raw: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
        source, prepare = raw["source"], raw.get("prepare") or {}
        return SourceConfig.model_validate(source), PrepareConfig.model_validate(prepare)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise SettingsError(f"{path} cannot be read: {first}") from error
    except (KeyError, TypeError, AttributeError):
        raise SettingsError(f"{path} has no section `source`") from None
    except ValidationError as error:
        first_problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first_problem["loc"])
        raise SettingsError(f"{path}: `{where}`: {first_problem['msg']}") from None


def main(work: Callable[[Path, SourceConfig, PrepareConfig], None]) -> int:
    """Do the stage's `work` in the current folder and return the exit code."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        die_with_parent(int(parent))
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    try:
        try:
            work(root, *sections(Path(PARAMS)))
        except OSError as error:
            if files.ran_out(error):
                raise files.full_disk(Path.cwd()) from error
            raise SourceError(f"{error.filename or 'a file'}: {error.strerror or error}") from error
    except NightpressError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def home(root: Path) -> Path:
    """Return where the outputs belong: the checkout's `data`, or the pipeline's own folder."""
    return root / "data" if Path.cwd().resolve() == root else Path.cwd()


def replace(made: Path, final: Path) -> None:
    """Move the folder `made` to where `final` may stand already."""
    files.sync_folder(made)
    if final.exists():
        shutil.rmtree(final)
    os.rename(made, final)


def sweep(folder: Path, prefix: str) -> None:
    """Remove what a killed stage left half-written."""
    for leftover in folder.glob(f"{prefix}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def raise_told(path: Path) -> None:
    """Raise the error that a stage has written to `path`, if it has."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        raise getattr(errors, told["class"], SourceError)(told["message"])


def _tell(error: NightpressError) -> int:
    target = os.environ.get(ERROR_FILE)
    if target:
        told = {"class": type(error).__name__, "message": str(error)}
        files.write_json(Path(target), told)
    else:
        print(error, file=sys.stderr)
    return error.exit_code
