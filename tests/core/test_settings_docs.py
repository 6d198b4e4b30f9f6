"""A table of settings says what the class does: types, limits, defaults, and the words below."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from tasks import settings_docs, technique
from tasks.frozen import Frozen
from tasks.settings_docs import Setting


class Inner(Frozen):
    """Settings within settings."""

    width: int = Field(default=3, ge=1)
    """How wide."""


class Base(Frozen):
    """What others inherit."""

    rate: float = Field(default=1e-4, gt=0, lt=1)
    """Inherited,
    on two lines."""


class Example(Base):
    """One field of every sort."""

    keep: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...]
    """Needed."""
    kind: Literal["one", "a|b"] | None = None
    """With a bar."""
    names: tuple[str, ...] = Field(default=("x",), min_length=1)
    flags: dict[str, bool] = {"a": True}
    inner: Inner | None = None
    """Another class."""
    shown_elsewhere: Inner = Inner()
    on: bool = False

    @property
    def no_setting(self) -> int:
        """No line of the table."""
        return 1


def rows(config: type[BaseModel]) -> dict[str, Setting]:
    return {one.name: one for one in settings_docs.settings(config, {})}


def test_every_sort_of_field_is_told() -> None:
    found = rows(Example)
    assert [one for one in found if "." not in one] == list(Example.model_fields)
    told = {name: (one.kind, one.default) for name, one in found.items()}
    assert told == {
        "rate": ("number, above 0, below 1", "0.0001"),
        "keep": ("integer (at least 1) or list of integer (at least 0)", "*required*"),
        "kind": ("`one`, `a|b` or null", "null"),
        "names": ("list of text, at least 1 long", "[`x`]"),
        "flags": ("text → true or false", "{a: true}"),
        "inner": ("the settings below or null", "null"),
        "inner.width": ("integer, at least 1", "3"),
        "shown_elsewhere": ("the settings below", ""),
        "shown_elsewhere.width": ("integer, at least 1", "3"),
        "on": ("true or false", "false"),
    }


def test_the_string_below_a_field_is_its_text_also_where_it_is_inherited() -> None:
    found = rows(Example)
    assert found["rate"].text == "Inherited, on two lines."
    assert found["inner.width"].text == "How wide."
    assert found["names"].text == ""


def test_a_table_keeps_its_columns_and_links_what_is_shown_elsewhere() -> None:
    lines = settings_docs.table(Example, {Inner: "[inner](#inner)"})
    assert len(lines) == 2 + len(Example.model_fields)
    assert "| `kind` | `one`, `a\\|b` or null | null | With a bar. |" in lines
    assert "| `inner` | [inner](#inner) | null | Another class. |" in lines


@pytest.mark.parametrize("name", technique.names())
def test_every_setting_of_a_technique_is_documented(name: str) -> None:
    texts = settings_docs.documented(technique.config_class(name))
    bare = [field for field in technique.config_class(name).model_fields if not texts.get(field)]
    assert set(bare) <= {"training"}, f"{name}: a string below each setting says what it is"
