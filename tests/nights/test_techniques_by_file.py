"""A technique is its file: gone with it, there with it, in a copy of the project's own tree."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests import workspaces

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GONE = "structure.activation"
ADDED = "structure.no_biases"
TECHNIQUE = '''
"""Set the biases of a model's layers to zero: b ← 0.

Applies to every model with linear layers.
"""

import torch
from torch import nn

from tasks.bundle import Bundle
from tasks.frozen import Frozen
from tasks.technique import Context

EFFECT = "zeros"
READS_DATA = False
LEAVES = REFUSES = ("no biases",)


class Config(Frozen):
    """Which biases go."""

    head: bool = False
    """Those of the classifier too."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle without biases."""
    pressed = bundle.copy()
    for name, parameter in pressed.model.named_parameters():
        if name.endswith(".bias") and (config.head or ".layer." in name or ".h." in name):
            with torch.no_grad():
                parameter.zero_()
    return pressed
'''
TEST = """
from tests.techniques.contract import Contract, zeros


def _prove(before, after, config):
    names = [n for n, p in before.model.named_parameters() if n.endswith(".bias")]
    assert zeros(after, names)[0] > zeros(before, names)[0]


CONTRACT = Contract(good=({}, {"head": True}), bad=(({"head": 3}, "boolean"),), prove=_prove)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project, to be changed."""
    root = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout to plan a night in."""
    return workspaces.make(tmp_path / "checkout", count=200)


def recipes(tree: Path) -> dict[str, Any]:
    """The recipes of the project's own settings."""
    found: dict[str, Any] = YAML(typ="safe").load((tree / "params.yaml").read_text())["recipes"]
    return found


def names(step: Any) -> str:
    """The technique of a step."""
    return step if isinstance(step, str) else next(iter(step))


def python(tree: Path, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=where, capture_output=True, text=True, timeout=300,
        env=workspaces.environment(PYTHONPATH=str(tree)), check=False,
    )  # fmt: skip


def planned(
    tree: Path, checkout: Path, steps: dict[str, Any], *more: str
) -> subprocess.CompletedProcess[str]:
    """`nightpress plan` by the code in `tree`, of these recipes."""
    settings = {**workspaces.QUICK, "recipes": steps}
    (checkout / "params.yaml").write_text(json.dumps(settings))
    command = "from flows import cli; assert cli.__file__.startswith({!r}); cli.main()"
    return python(tree, checkout, "-c", command.format(str(tree)), "plan", *more)


def line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (told,) = [text for text in done.stderr.splitlines() if text.strip()]
    return told


def contract(tree: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The contract test, by the code in `tree`."""
    given = ("-q", "-p", "no:cacheprovider", "tests/techniques/test_contract.py", *more)
    return python(tree, tree, "-m", "pytest", *given)


def test_a_technique_is_gone_with_its_file(tree: Path, checkout: Path) -> None:
    every = recipes(tree)
    using = [name for name, steps in every.items() if GONE in map(names, steps)]
    assert using
    before = planned(tree, checkout, every)
    assert before.returncode == 0, before.stderr
    assert GONE in before.stdout

    path = GONE.replace(".", "/")
    (tree / "tasks" / f"{path}.py").unlink()
    (tree / "tests/techniques" / f"test_{GONE.replace('.', '_')}.py").unlink()
    told = line(planned(tree, checkout, every))
    assert f"recipes.{using[0]}[0] {GONE}: unknown technique `{GONE}`" in told

    after = planned(tree, checkout, {n: s for n, s in every.items() if n not in using})
    assert after.returncode == 0, after.stderr
    assert GONE not in after.stdout
    remade = python(tree, tree, "-m", "tasks.technique_docs")
    assert remade.returncode == 0, remade.stderr
    # it is made of the techniques that are there, and of results of the past
    generated = tree / "docs/techniques.md"
    assert "### `structure.grow`" in generated.read_text()
    assert f"### `{GONE}`" not in generated.read_text()
    told_of = [tree / "README.md", *(tree / "docs").glob("*.md")]
    for text in [*tree.glob("tasks/**/*.py"), *tree.glob("flows/**/*.py"), *told_of]:
        if text != generated:
            assert GONE not in text.read_text(), text
            assert path not in text.read_text(), text
    everything = (
        "import importlib, pkgutil, tasks, flows\n"
        "for package in (tasks, flows):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert tasks.__path__[0].startswith({!r})\n"
    )
    imported = python(tree, tree, "-W", "ignore", "-c", everything.format(str(tree)))
    assert imported.returncode == 0, imported.stderr
    collected = contract(tree, "--collect-only")
    assert collected.returncode == 0, collected.stdout
    assert "structure.grow" in collected.stdout
    assert GONE not in collected.stdout


def test_a_technique_is_there_with_its_file(tree: Path, checkout: Path) -> None:
    steps = {"plain": [{ADDED: {"head": True}}, "quantization.dynamic"]}
    assert f"unknown technique `{ADDED}`" in line(planned(tree, checkout, steps))

    (tree / "tasks" / f"{ADDED.replace('.', '/')}.py").write_text(TECHNIQUE)
    done = planned(tree, checkout, steps, "--json")
    assert done.returncode == 0, done.stderr
    nodes = {node["technique"]: node for node in json.loads(done.stdout)}
    assert nodes[ADDED]["settings"] == {"head": True}
    assert nodes["quantization.dynamic"]["parent"] == nodes[ADDED]["key"]
    assert "did you mean `head`?" in line(planned(tree, checkout, {"a": [{ADDED: {"heads": 1}}]}))
    told = line(planned(tree, checkout, {"a": [ADDED, ADDED]}))
    assert f"recipes.a[1] {ADDED}: it cannot follow `{ADDED}`, which leaves no biases" in told

    untested = contract(tree, "-k", ADDED)
    test = f"tests/techniques/test_{ADDED.replace('.', '_')}.py"
    assert f"`{ADDED}` has no test: write {test}" in untested.stdout
    (tree / test).write_text(TEST)
    tested = contract(tree, "-k", ADDED)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout
