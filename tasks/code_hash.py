"""The hash of the code that a result depends on: a module and all of the project that it imports.

Of the syntax tree, without docstrings and places, so that a comment or a reformatting costs
nothing and a changed number costs exactly the nodes that ran it. A process reads each file once:
what it has imported does not change with the file either.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = "tasks"
_WITHOUT_EFFECT = frozenset(
    {"tasks.errors", "tasks.suggest", "tasks.technique", "tasks.training.progress"}
)
"""Modules that hold messages and types alone: they cannot change what is computed."""


def code_hash(*modules: str, root: Path = _ROOT) -> str:
    """Return the sha256 (hex) over `modules` and everything of the project they import."""
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in seen or module in _WITHOUT_EFFECT:
            continue
        digest, imported = _parsed(_path(module, root), root)
        seen[module] = digest
        waiting += imported
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _path(module: str, root: Path) -> Path:
    plain = root.joinpath(*module.split("."))
    return plain / "__init__.py" if plain.is_dir() else plain.with_suffix(".py")


@cache
def _parsed(path: Path, root: Path) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(a.name for a in node.names if a.name.split(".")[0] == _PACKAGE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE:
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.add(inner if _path(inner, root).is_file() else node.module)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstrings(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted(imported))


def _drop_docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    """Remove bare strings: docstrings, and those that document a setting."""
    node.body = [
        statement
        for statement in node.body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]
