"""A key covers the code that it ran: no more, no less."""

import shutil
from pathlib import Path

import pytest

from tasks.code_hash import code_hash


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "code" / "tasks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "shared.py").write_text("STEP = 2\n")
    (package / "one.py").write_text('"""One."""\nfrom tasks.shared import STEP\nX = STEP + 1\n')
    (package / "two.py").write_text("Y = 5\n")
    return package.parent


def edited(root: Path, name: str, old: str, new: str) -> Path:
    """A copy of the code with one text replaced: a process reads a file once."""
    copy = root.with_name(f"{root.name}-{name}-{len(list(root.parent.iterdir()))}")
    shutil.copytree(root, copy)
    path = copy / "tasks" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return copy


def test_comment_docstring_and_layout_cost_nothing(root: Path) -> None:
    after = edited(root, "one.py", "X = STEP + 1", "# why\n\n\nX = (STEP\n     + 1)")
    after = edited(after, "one.py", '"""One."""', '"""Another text."""')
    assert code_hash("tasks.one", root=after) == code_hash("tasks.one", root=root)


def test_a_changed_number_costs_the_module(root: Path) -> None:
    after = edited(root, "one.py", "+ 1", "+ 2")
    assert code_hash("tasks.one", root=after) != code_hash("tasks.one", root=root)


def test_what_it_imports_counts_and_nothing_else(root: Path) -> None:
    after = edited(root, "shared.py", "2", "3")
    assert code_hash("tasks.one", root=after) != code_hash("tasks.one", root=root)
    assert code_hash("tasks.two", root=after) == code_hash("tasks.two", root=root)


def test_an_import_inside_a_function_counts(root: Path) -> None:
    lazy = "def f():\n    from tasks import shared\n    return shared.STEP"
    before = edited(root, "two.py", "Y = 5", lazy)
    after = edited(before, "shared.py", "2", "3")
    assert code_hash("tasks.two", root=after) != code_hash("tasks.two", root=before)


def test_a_file_that_was_edited_meanwhile_keeps_the_hash_of_what_was_imported(root: Path) -> None:
    before = code_hash("tasks.one", root=root)
    (root / "tasks" / "shared.py").write_text("STEP = 3\n")
    assert code_hash("tasks.one", root=root) == before
