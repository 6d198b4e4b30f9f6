"""params.yaml: read, overridden, and checked once, before anything runs."""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tasks.data.config import Name, PrepareConfig, SourceConfig, ValidationConfig
from tasks.errors import SettingsError
from tasks.evaluation.config import EvaluationConfig, GatesConfig, RegistryConfig
from tasks.frozen import Frozen
from tasks.suggest import nearest
from tasks.training.config import BaselineConfig, TrainingConfig

RecipeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]
BASELINE = "baseline"
ALL = "all"
"""What `--recipes` says for every recipe of the file."""


class Step(Frozen):
    """One step of a recipe; its settings are checked by the technique when the plan is made."""

    technique: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept `family.name` and `family.name: {setting: value}`, as they stand in YAML."""
        if isinstance(value, str):
            return {"technique": value}
        if isinstance(value, Mapping) and len(value) == 1 and "technique" not in value:
            ((technique, settings),) = value.items()
            return {"technique": technique, "settings": {} if settings is None else settings}
        return value


class Settings(Frozen):
    """Everything that a night is told."""

    name: Name
    """The registered model; also names its experiment."""
    seed: int = 13
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of training; None: the machine's cores, shared among the workers."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Nodes pressed side by side; auto: one per GPU, or 1 on CPU."""
    time_limit_minutes: float = Field(default=600, gt=0)
    """A node that takes longer is stopped; the rest of the night goes on."""
    source: SourceConfig
    prepare: PrepareConfig = PrepareConfig()
    validation: ValidationConfig = ValidationConfig()
    baseline: BaselineConfig
    training: TrainingConfig = TrainingConfig()
    recipes: dict[RecipeName, tuple[Step, ...]] = {}
    tonight: tuple[RecipeName, ...] | None = None
    """The recipes of a plain `nightpress run`; None: all. The others wait for `--recipes`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    gates: GatesConfig = GatesConfig()
    registry: RegistryConfig = RegistryConfig()

    @field_validator("recipes")
    @classmethod
    def _have_steps(cls, recipes: dict[str, tuple[Step, ...]]) -> dict[str, tuple[Step, ...]]:
        for name, steps in recipes.items():
            if name == BASELINE:
                raise ValueError(f"`{BASELINE}` is the baseline's own name; rename the recipe")
            if not steps:
                raise ValueError(f"recipe `{name}` has no steps")
            if name == ALL:
                raise ValueError(f"`{ALL}` means every recipe; rename this one")
        return recipes

    @field_validator("tonight")
    @classmethod
    def _exist(cls, names: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        recipes = info.data.get("recipes")  # not there where it was refused itself
        for name in names or ():
            if recipes is not None and name not in recipes:
                raise ValueError(f"no recipe `{name}`{nearest(name, recipes)}")
        return names


def load(
    path: Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> Settings:
    """Read `path`, apply the profile, then `key.path=value` overrides; check the whole.

    `only` keeps the recipes named, and those that teach them; `all` keeps every one. None keeps
    those of the setting `tonight`. Without overrides the profiles that are not asked for are
    checked too.

    Raises SettingsError: one line with the place and, where a name is wrong, the nearest one.
    """
    document = _read(path)
    profiles = _profiles(document, path)
    if profile is not None and profile not in profiles:
        raise SettingsError(f"{path}: no profile `{profile}`{nearest(profile, profiles)}")
    settings = _checked(path, document, profile, overrides)
    # an override may be at odds with a profile that it was not meant for
    for other in profiles if not overrides else ():
        _checked(path, document, other, ())
    settings = _inherit_training(settings)
    chosen = settings.tonight if only is None else only
    return settings if chosen is None or ALL in chosen else _select(settings, chosen)


def _checked(path: Path, document: Any, profile: str | None, overrides: Sequence[str]) -> Settings:
    """Return the settings of the file, with the profile and the overrides laid on."""
    raw = _plain(document)
    profiles = raw.pop("profiles", None)
    if profile is not None:
        raw = merge(raw, profiles[profile] or {})
    for override in overrides:
        raw = merge(raw, _parse_override(override))
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        first = first_problem(error)
        place = _place(_location(first, raw), path, document, profile, overrides)
        others = {tuple(_location(p, raw)) for p in error.errors(include_url=False)}
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise SettingsError(f"{place}: {explain(first, Settings, raw)}{more}") from error


def _profiles(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return name → what the profile changes; None where nothing stands below its name."""
    found = _plain(document.get("profiles")) or {}
    if not isinstance(found, dict) or not all(isinstance(p, dict | None) for p in found.values()):
        line = _line_of(document, ["profiles"])
        raise SettingsError(f"{path}:{line}: `profiles` must hold names with settings below them")
    return found


def _select(settings: Settings, only: Sequence[str]) -> Settings:
    """Return the settings with the recipes in `only` and, in turn, their teachers."""
    kept: dict[str, tuple[Step, ...]] = {}
    waiting = list(only)
    while waiting:
        name = waiting.pop()
        if name not in settings.recipes:
            raise SettingsError(f"no recipe `{name}`{nearest(name, settings.recipes)}")
        if name not in kept:
            kept[name] = settings.recipes[name]
            teachers = [t for step in kept[name] for t in _taught_by(step)]
            waiting += [t for t in teachers if t in settings.recipes]
    ordered = {name: steps for name, steps in settings.recipes.items() if name in kept}
    # what was chosen is no longer a choice: a flow's parameters are checked again
    return settings.model_copy(update={"recipes": ordered, "tonight": None})


def _taught_by(step: Step) -> list[str]:
    """Return the names that a step gives for teachers; what is none is told when planning."""
    several = step.settings.get("teachers")
    found = [step.settings.get("teacher"), *(several if isinstance(several, list) else ())]
    return [name for name in found if isinstance(name, str)]


def _read(path: Path) -> Any:
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; `nightpress init DATA` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise SettingsError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, Mapping):
        raise SettingsError(f"{path} must hold settings as `name: value` lines")
    return document


def _plain(value: Any) -> Any:
    """Return ruamel's containers and scalars as Python's own."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def merge(base: Any, over: Any) -> Any:
    """Return `base` with `over` laid on it: mappings merge, None removes, all else replaces."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SettingsError(f"-S {text}: write it as `name.of.setting=value`")
    try:
        parsed = _plain(YAML(typ="safe").load(value))
    except (YAMLError, ValueError) as error:
        raise SettingsError(f"-S {text}: the value is not valid YAML") from error
    nested: Any = parsed
    for part in reversed(parts):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def _inherit_training(settings: Settings) -> Settings:
    """Lay the baseline's own training settings over the general ones."""
    own = settings.baseline.training
    training = settings.training.model_copy(
        update={name: getattr(own, name) for name in own.model_fields_set}
    )
    baseline = settings.baseline.model_copy(update={"training": training})
    return settings.model_copy(update={"baseline": baseline})


def _place(
    location: Sequence[Any],
    path: Path,
    document: Any,
    profile: str | None,
    overrides: Sequence[str],
) -> str:
    """Return where the setting got its value last: an override, or the file's line."""
    for override in reversed(overrides):
        key = override.partition("=")[0].strip().split(".")
        if key == [str(part) for part in location[: len(key)]]:
            return f"-S {override}"
    named = "" if profile is None else f": with profile `{profile}`"
    in_profile = ["profiles", profile, *location]
    line = _line_of(document, in_profile if _holds(document, in_profile) else location)
    return f"{path}{'' if line is None else f':{line}'}{named}"


def _holds(given: Any, location: Sequence[Any]) -> bool:
    """Tell whether the setting at `location` is given here."""
    for part in location:
        if not _is_in(part, given):
            return False
        given = given[part]
    return True


def _is_in(part: Any, given: Any) -> bool:
    if isinstance(given, Mapping):
        return part in given
    return isinstance(given, list) and isinstance(part, int) and part < len(given)


def _location(problem: Any, given: Any) -> list[Any]:
    """Return the path of the setting, without what pydantic adds: a union's kinds, `[key]`."""
    location = []
    for part in problem["loc"]:
        if _is_in(part, given):
            given = given[part]
        elif problem["type"] != "missing":
            continue
        location.append(part)
    return location


def first_problem(error: ValidationError) -> Any:
    """Return the problem to tell: an unknown name before what is missing because of it."""
    problems = error.errors(include_url=False)
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    return (unknown or problems)[0]


def explain(problem: Any, model: type[BaseModel], given: Any) -> str:
    """Return one pydantic problem as `setting.path: message`, with the nearest valid name.

    `model` is the settings class that refused what was `given`.
    """
    location = [str(part) for part in _location(problem, given)]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        return (
            f"unknown setting `{name}`{nearest(location[-1], owner.model_fields) if owner else ''}"
        )
    if problem["type"] == "missing":
        return f"setting `{name}` is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        message = "only letters, digits, `-` and `_` can stand in this name"
    value = problem["input"]
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"`{name}`: {message}{shown}" if name else message


def _line_of(document: Any, location: Sequence[Any]) -> int | None:
    """Return the line (from 1) of the setting, or of the nearest one around it."""
    node, line = document, None
    for part in location:
        lc = getattr(node, "lc", None)
        if lc is None or lc.data is None or part not in lc.data:
            break
        line = lc.data[part][0] + 1
        node = node[part]
    return line


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """Return the settings class that `location` leads to."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            if part not in current.model_fields:
                return None
            current = current.model_fields[part].annotation
        arguments = [a for a in typing.get_args(current) if a is not types.NoneType]
        classes = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        if classes:
            current = classes[0]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
