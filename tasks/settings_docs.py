"""Settings classes as tables of Markdown: name, type, limits, default, and the words below each.

The string that stands below a field in its class is its documentation; pydantic holds the rest.
"""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Linked = Mapping[type[BaseModel], str]
"""Classes that are shown elsewhere → what stands in their place."""
_NAMES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    types.NoneType: "null",
}
_LIMITS = {
    "gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}",
    "min_length": "at least {} long", "max_length": "at most {} long", "pattern": "as `{}`",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One line of such a table."""

    name: str
    kind: str
    """Its type, and the limits of its values."""
    default: str
    text: str


def table(config: type[BaseModel], linked: Linked | None = None) -> list[str]:
    """Return the lines of the table of all settings of `config`, those within others too."""
    lines = ["| setting | type and limits | default | |", "|---|---|---|---|"]
    for one in settings(config, linked or {}):
        lines.append(
            f"| `{one.name}` | {_cell(one.kind)} | {_cell(one.default)} | {_cell(one.text)} |"
        )
    return lines


def settings(config: type[BaseModel], linked: Linked, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of `config` in its order; those of a class within follow its own line."""
    texts = documented(config)
    for name, field in config.model_fields.items():
        inner = _class_in(field.annotation)
        kind, text = _kind(field), texts.get(name, "")
        if inner is not None and inner in linked:
            yield Setting(f"{prefix}{name}", linked[inner], _default(field), text)
            continue
        yield Setting(f"{prefix}{name}", kind, _default(field), text)
        if inner is not None:
            yield from settings(inner, linked, f"{prefix}{name}.")


@cache
def documented(config: type[BaseModel]) -> dict[str, str]:
    """Return field → the string below it, on one line, from `config` and what it inherits."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = _string(below)
    return found


def _string(statement: ast.stmt) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def _kind(field: FieldInfo) -> str:
    """Return type and limits; where null is allowed, they are those of any other value."""
    words = _type(field.annotation)
    limits = _limits(field.metadata)
    return f"{words}, {limits}" if limits else words


def _type(annotation: Any) -> str:
    words = list(_choices(annotation))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _choices(annotation: Any) -> Iterator[str]:
    """Yield what the annotation leaves to choose from: of a union its members, of those their own.

    Most annotations are one choice: their type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _choices(one)
    elif origin is Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin is Annotated:
        limits = _limits(arguments[1:])
        yield f"{_type(arguments[0])} ({limits})" if limits else _type(arguments[0])
    elif origin in (tuple, list):
        yield f"list of {_type(arguments[0])}"
    elif origin in (dict, Mapping):
        yield f"{_type(arguments[0])} → {_type(arguments[1])}"
    elif _class_in(annotation) is not None:
        yield "the settings below"
    else:
        yield _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(metadata: Any) -> str:
    found = []
    for one in metadata:
        # annotated-types has a class a limit, a Field within Annotated holds several
        parts = one.metadata if isinstance(one, FieldInfo) else [one]
        for part in parts:
            for name, words in _LIMITS.items():
                value = getattr(part, name, None)
                if value is not None:
                    found.append(words.format(f"{value:g}" if _is_number(value) else value))
    return ", ".join(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _class_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class that the annotation is, or allows beside others."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_class_in(one) for one in typing.get_args(annotation))
    return next((one for one in found if one is not None), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    return _value(field.get_default(call_default_factory=True, validated_data={}))


def _value(value: Any) -> str:
    """Return the value as it would stand in the settings file."""
    if isinstance(value, BaseModel):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if _is_number(value):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key}: {_value(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    return f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
