"""A key covers the code that it ran: no more, no less."""

from pathlib import Path

import pytest

from tasks.code_hash import code_hash


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "tasks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shared.py").write_text("STEP = 2\n")
    (package / "one.py").write_text('"""One."""\nfrom tasks.shared import STEP\nX = STEP + 1\n')
    (package / "two.py").write_text("Y = 5\n")
    return tmp_path


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / "tasks" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_comment_docstring_and_layout_cost_nothing(root: Path) -> None:
    before = code_hash("tasks.one", root=root)
    edit(root, "one.py", "X = STEP + 1", "# why\n\n\nX = (STEP\n     + 1)")
    edit(root, "one.py", '"""One."""', '"""Another text."""')
    assert code_hash("tasks.one", root=root) == before


def test_a_changed_number_costs_the_module(root: Path) -> None:
    before = code_hash("tasks.one", root=root)
    edit(root, "one.py", "+ 1", "+ 2")
    assert code_hash("tasks.one", root=root) != before


def test_what_it_imports_counts_and_nothing_else(root: Path) -> None:
    one, two = code_hash("tasks.one", root=root), code_hash("tasks.two", root=root)
    edit(root, "shared.py", "2", "3")
    assert code_hash("tasks.one", root=root) != one
    assert code_hash("tasks.two", root=root) == two


def test_an_import_inside_a_function_counts(root: Path) -> None:
    edit(root, "two.py", "Y = 5", "def f():\n    from tasks import shared\n    return shared.STEP")
    before = code_hash("tasks.two", root=root)
    edit(root, "shared.py", "2", "3")
    assert code_hash("tasks.two", root=root) != before
