"""Which steps can follow one another, told from what their techniques declare, before any work.

`tasks/technique.py` says what a technique may declare. Only what is sure to fail is refused here:
what depends on the model's widths or on the data is refused by the technique itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType

from tasks import technique
from tasks.errors import SettingsError
from tasks.frozen import Frozen

RECURRENT = "recurrent layers"
"""What an LSTM has."""


@dataclass(frozen=True)
class Link:
    """A step of a recipe, and what its technique declares under its settings."""

    place: str
    """As in `recipes.short[1] structure.layer_drop`."""
    technique: str
    last: bool
    leaves: tuple[str, ...]
    refuses: tuple[str, ...]
    refuses_teacher: tuple[str, ...]
    matches: tuple[str, ...]
    keeps: tuple[str, ...] | None
    cuts: str | None
    """The teacher that its model is cut from."""


@dataclass(frozen=True)
class State:
    """What a model is like after the steps so far."""

    left: Mapping[str, Link | None] = field(default_factory=dict)
    """What was left in it → the step that left it; None: it was there from the start."""
    last: Link | None = None
    """The step that nothing can follow."""


def link(place: str, name: str, module: ModuleType, config: Frozen) -> Link:
    """Return what the technique `name` declares under the settings `config`."""
    keeps = getattr(module, "KEEPS", None)
    cuts = getattr(module, "CUTS", None)
    return Link(
        place=place,
        technique=name,
        last=getattr(module, "LAST", False),
        leaves=technique.declared(module, "LEAVES", config),
        refuses=technique.declared(module, "REFUSES", config),
        refuses_teacher=technique.declared(module, "REFUSES_TEACHER", config),
        matches=technique.declared(module, "MATCHES", config),
        keeps=None if keeps is None else keeps(config),
        cuts=None if cuts is None else cuts(config),
    )


def follow(
    before: State, step: Link, teachers: Mapping[str, State] = MappingProxyType({})
) -> State:
    """Return what the model is like after one more step.

    Raises SettingsError, with both steps and the cure, where the step cannot follow those before
    it, or cannot learn from one of its teachers.
    """
    if before.last is not None:
        raise SettingsError(
            f"{step.place}: nothing can follow `{before.last.technique}`, the last step there is: "
            f"{_cure(before.last, step)}"
        )
    if step.cuts is None:
        _check_before(before, step)
        kept = {
            what: by for what, by in before.left.items() if step.keeps is None or what in step.keeps
        }
    else:
        kept = dict(teachers[step.cuts].left)
        _check_teacher(step, step.cuts, teachers[step.cuts], step.refuses, "be cut from")
    for name, teacher in teachers.items():
        refused = tuple(what for what in step.refuses_teacher if what not in kept)
        _check_teacher(step, name, teacher, refused, "learn from")
        _check_match(step, kept, name, teacher)
    return State({**kept, **dict.fromkeys(step.leaves, step)}, step if step.last else None)


def _check_before(before: State, step: Link) -> None:
    for what in step.refuses:
        by = before.left.get(what)
        if by is not None:
            raise SettingsError(
                f"{step.place}: it cannot follow `{by.technique}`, which leaves {what}: "
                f"{_cure(by, step)}"
            )
        if what in before.left:
            raise SettingsError(
                f"{step.place}: the baseline has {what}, which it cannot treat: leave the step out"
            )


def _check_teacher(
    step: Link, name: str, teacher: State, refused: tuple[str, ...], verb: str
) -> None:
    for what in refused:
        if what in teacher.left:
            raise SettingsError(
                f"{step.place}: it cannot {verb} its teacher `{name}`, which has {what}"
                f"{_by(teacher.left[what])}: name another teacher"
            )


def _check_match(step: Link, left: Mapping[str, Link | None], name: str, teacher: State) -> None:
    for what in step.matches:
        if (what in left) == (what in teacher.left):
            continue
        has, lacks = ("the model", f"its teacher `{name}`") if what in left else (
            f"its teacher `{name}`", "the model",
        )  # fmt: skip
        by = left[what] if what in left else teacher.left[what]
        raise SettingsError(
            f"{step.place}: {has} has {what}{_by(by)} and {lacks} has not, and they are compared "
            "token by token: name a teacher that agrees, or leave one of the steps out"
        )


def _by(step: Link | None) -> str:
    return "" if step is None else f" from `{step.place}`"


def _cure(first: Link, then: Link) -> str:
    """Return what to do with two steps of which `then` cannot follow `first`."""
    turned = not then.last and not set(then.leaves) & set(first.refuses)
    order = "put it before that step, or " if turned and first.technique != then.technique else ""
    return f"{order}leave one of them out"
