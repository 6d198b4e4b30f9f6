"""What is imported is declared, and the lock holds what is declared."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OURS = ("flows", "tasks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"]]


def plain(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, str]:
    """Top-level name of another's package → a file of ours that imports it."""
    found = {}
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            found.update({name.partition(".")[0]: path.name for name in names})
    return {n: p for n, p in found.items() if n not in (*sys.stdlib_module_names, *OURS)}


def test_every_import_is_declared() -> None:
    owners = importlib.metadata.packages_distributions()
    declared = {plain(requirement.name) for requirement in DECLARED}
    for name, path in imported().items():
        assert declared & {plain(owner) for owner in owners[name]}, f"{path} imports {name}"


def test_the_lock_is_within_the_ranges() -> None:
    lines = (ROOT / "requirements.lock").read_text().split()
    locked = {plain(name): version for name, version in (line.split("==") for line in lines)}
    extras = [Requirement(r) for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in (*DECLARED, *extras):
        assert requirement.specifier.contains(locked[plain(requirement.name)]), str(requirement)
