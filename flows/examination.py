"""`nightpress doctor`: what is in order, what is not, and the cure."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from tasks import claims, settings, store
from tasks.errors import NightpressError
from tasks.registry.store import URI_VARIABLE, without_password
from tasks.workspace import Workspace

_LEAST_FREE_BYTES = 3_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    check: str
    well: bool
    text: str


Mend = Literal["adopt", "restore"]
"""What to do with an alias that was moved without the ledger: write it down, or move it back."""


def examine(config: Path, *, fix: bool, mend: Mend | None, reason: str, as_json: bool) -> int:
    """Print what was found; return 0 where all is well, else 1."""
    findings = list(_findings(config, fix=fix))
    if all(finding.well for finding in findings if finding.check in ("settings", "registry")):
        workspace, name = Workspace.find(), settings.load(config).name
        findings.append(_guarded("champion", lambda: _champion(workspace, name, mend, reason)))
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        console = Console()
        for finding in findings:
            mark = "[green]ok[/]  " if finding.well else "[red]wrong[/]"
            console.print(mark, f"{finding.check}: ", end="", highlight=False)
            console.print(finding.text, highlight=False, markup=False)
    return 0 if all(finding.well for finding in findings) else 1


def _findings(config: Path, *, fix: bool) -> Iterator[Finding]:
    yield _python()
    workspace = Workspace.find()
    yield _packages(workspace)
    yield _disk(workspace)
    yield _guarded("settings", lambda: f"{config} is valid: {settings.load(config).name}")
    yield _guarded("database", lambda: _database(workspace))
    yield from _left_behind(workspace, fix=fix)
    yield from _checkpoints(workspace, fix=fix)
    yield _guarded("registry", lambda: _registry(workspace))
    for variable in ("PREFECT_API_URL", URI_VARIABLE):
        yield _server(variable)


def _guarded(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except NightpressError as error:
        return Finding(check, False, str(error))


def _python() -> Finding:
    well = sys.version_info[:2] >= (3, 11)
    return Finding("python", well, platform.python_version() + ("" if well else "; 3.11 is needed"))


def _packages(workspace: Workspace) -> Finding:
    lock = workspace.root / "requirements.lock"
    if not lock.is_file():
        return Finding("packages", True, f"{lock} is not there to compare with")
    wanted = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    differing = []
    for name, version in sorted(wanted.items()):
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != version:
            differing.append(f"{name} {found} (lock: {version})")
    if not differing:
        return Finding("packages", True, f"{len(wanted)} as in requirements.lock")
    shown = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
    return Finding("packages", False, f"{shown}; `make clean nightly` installs the lock anew")


def _disk(workspace: Workspace) -> Finding:
    free = shutil.disk_usage(workspace.root).free
    return Finding("disk", free >= _LEAST_FREE_BYTES, f"{free / 1e9:.1f} GB free")


def _database(workspace: Workspace) -> str:
    num = len(claims.stale(workspace))
    return f"opens; {num} stale claims" if num else "opens"


def _left_behind(workspace: Workspace, *, fix: bool) -> Iterator[Finding]:
    stale = claims.stale(workspace)
    if fix:
        for claim in stale:
            claims.release(workspace, claim)
        claims.sweep(workspace)
    what = f"{len(stale)} of processes that ended" + (", released" if fix and stale else "")
    # a stale claim is taken over by whoever needs it, so it is worth a word, not an alarm
    yield Finding("claims", True, what if stale else "none stale")


def _checkpoints(workspace: Workspace, *, fix: bool) -> Iterator[Finding]:
    try:
        manifests = {m.key: m for m in store.published(workspace)}
    except NightpressError as error:
        yield Finding("manifests", False, str(error))
        return
    folders = {p.name: p for p in workspace.checkpoints.glob("*") if p.is_dir()}
    orphans = [folder for key, folder in folders.items() if key not in manifests]
    if fix:
        for folder in orphans:
            shutil.rmtree(folder)
    text = f"{len(orphans)} with no manifest, of a run that died" + (", removed" if fix else "")
    yield Finding("orphans", not orphans or fix, text if orphans else "none")
    yield _guarded("checkpoints", lambda: _verify(manifests, folders))


def _verify(manifests: dict[str, store.Manifest], folders: dict[str, Path]) -> str:
    for key in manifests.keys() & folders.keys():
        store.verify(manifests[key], folders[key])
    away = len(manifests.keys() - folders.keys())
    text = f"{len(manifests) - away} are as published"
    return text + (f", {away} are in DVC alone" if away else "")


def _registry(workspace: Workspace) -> str:
    from tasks.registry.store import open_store

    client = open_store(workspace)
    return f"MLflow opens, {len(client.search_registered_models())} registered models"


def _champion(workspace: Workspace, name: str, mend: Mend | None, reason: str) -> str:
    """Hold the alias against the ledger, and mend it where that is asked for."""
    from tasks.registry import promotion
    from tasks.registry.promotion import Move
    from tasks.registry.store import open_store

    client = open_store(workspace)
    promotion.recover(workspace, client, name)
    alias, told = promotion.drift(workspace, client, name)
    if alias == told:
        return "none yet" if told is None else f"version {told} of {name}, as the ledger says"
    if mend is None:
        raise promotion.moved_otherwise(name, alias, told)
    act = promotion.adopt if mend == "adopt" else promotion.restore
    now = act(workspace, client, name, Move(mend, reason, promotion.whoami()))
    where = "no version" if now is None else f"version {now}"
    return f"{where} of {name} now, by the alias and by the ledger"


def _server(variable: str) -> Finding:
    url = os.environ.get(variable)
    if not url:
        return Finding(variable, True, "not set: the embedded one is used")
    shown = without_password(url)
    if not url.startswith("http"):
        return Finding(variable, True, shown)
    import requests

    try:
        answer = requests.get(f"{url.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:  # its own words hold the whole address
        return Finding(variable, False, f"{shown} does not answer ({type(error).__name__})")
    return Finding(variable, answer.ok, f"{shown} answers {answer.status_code} {answer.reason}")
