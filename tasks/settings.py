"""params.yaml: read, overridden, and checked once, before anything runs."""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
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
    workers: int | Literal["auto"] = "auto"
    """Nodes pressed side by side; auto: one per GPU, or 1 on CPU."""
    time_limit_minutes: float = Field(default=600, gt=0)
    """A node that takes longer is stopped; the rest of the night goes on."""
    source: SourceConfig
    prepare: PrepareConfig = PrepareConfig()
    validation: ValidationConfig = ValidationConfig()
    baseline: BaselineConfig
    training: TrainingConfig = TrainingConfig()
    recipes: dict[RecipeName, tuple[Step, ...]] = {}
    evaluation: EvaluationConfig = EvaluationConfig()
    gates: GatesConfig = GatesConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _recipes_have_steps(self) -> "Settings":
        for name, steps in self.recipes.items():
            if name == BASELINE:
                raise ValueError(f"`{BASELINE}` is the baseline's own name; rename the recipe")
            if not steps:
                raise ValueError(f"recipe `{name}` has no steps")
        return self


def load(
    path: Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> Settings:
    """Read `path`, apply the profile, then `key.path=value` overrides; check the whole.

    `only` keeps the recipes named, and those that teach them.

    Raises SettingsError: one line with the place and, where a name is wrong, the nearest one.
    """
    document = _read(path)
    raw = _plain(document)
    profiles = raw.pop("profiles", None) or {}
    if profile is not None:
        if profile not in profiles:
            raise SettingsError(f"{path}: no profile `{profile}`{nearest(profile, profiles)}")
        raw = merge(raw, profiles[profile])
    for override in overrides:
        raw = merge(raw, _parse_override(override))
    raw = _inherit_training(raw)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(_first_line(error, path, document, profile)) from error
    return settings if only is None else _select(settings, only)


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
            teachers = (step.settings.get("teacher") for step in kept[name])
            waiting += [t for t in teachers if t in settings.recipes]
    ordered = {name: steps for name, steps in settings.recipes.items() if name in kept}
    return settings.model_copy(update={"recipes": ordered})


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
    except YAMLError as error:
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
    except YAMLError as error:
        raise SettingsError(f"-S {text}: the value is not valid YAML") from error
    nested: Any = parsed
    for part in reversed(parts):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def _inherit_training(raw: dict[str, Any]) -> dict[str, Any]:
    """Lay the baseline's own training settings over the general ones."""
    general, baseline = raw.get("training"), raw.get("baseline")
    if isinstance(general, Mapping) and isinstance(baseline, Mapping):
        own = baseline.get("training") or {}
        return {**raw, "baseline": {**baseline, "training": merge(general, own)}}
    return raw


def _first_line(error: ValidationError, path: Path, document: Any, profile: str | None) -> str:
    """Return the first problem as `file:line: setting: what is wrong; the nearest name`."""
    problems = error.errors(include_url=False)
    first = first_problem(error)
    location = [part for part in first["loc"] if part != "[key]"]
    line = _line_of(document, location)
    if line is None and profile is not None:
        line = _line_of(document, ["profiles", profile, *location])
    place = f"{path}:{line}" if line is not None else f"{path} (with -S)"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {explain(first, Settings)}{more}"


def first_problem(error: ValidationError) -> Any:
    """Return the problem to tell: an unknown name before what is missing because of it."""
    problems = error.errors(include_url=False)
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    return (unknown or problems)[0]


def explain(problem: Any, model: type[BaseModel]) -> str:
    """Return one pydantic problem as `setting.path: message`, with the nearest valid name."""
    location = [str(part) for part in problem["loc"] if part != "[key]"]
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
    given = problem["input"]
    shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"`{name}`: {message}{shown}" if name else message


def _line_of(document: Any, location: Sequence[Any]) -> int | None:
    """Return the line (from 1) of the setting, or of the nearest one around it."""
    node, line = document, None
    for part in location:
        lc = getattr(node, "lc", None)
        if lc is None or lc.data is None:
            break
        if part not in lc.data:
            # a short-form step hides one level: `- technique: {…}`
            if isinstance(node, Mapping) and len(node) == 1:
                node = next(iter(node.values()))
            continue
        line = lc.data[part][0] + 1
        node = node[part]
    if line is None and location and isinstance(document, Mapping) and location[0] not in document:
        return None
    return line if line is not None else 1


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
