"""What a technique is: a module at `tasks/<family>/<name>.py` with `Config` and `apply`.

Its path is its name (`pruning.magnitude`); no registry lists it. `apply(bundle, config, context)`
returns a new bundle and leaves the one given unchanged. The module also says by what its effect is
proven in the model that is served: `EFFECT`, one of `parameters` (fewer), `grown` (more of them),
`zeros` (more), `quantized` (operators in int8), `packed` (matrices stored in few bits),
`activation` (no GELU is left), `length` (shorter texts), `answers` (trained: no mark but its
answers); or several of them, or a function of its settings that returns one. It may define

* `READS_DATA = False` when its result does not depend on the data (the node's key then ignores it),
  or a function of its settings that tells whether it does,
* `LAST = True` when no other step can follow it,
* `LEAVES`, what it leaves in a model that another step may not cope with (`shared matrices`), and
  `REFUSES`, what of that it does not cope with: a recipe with both, in this order, is refused
  before any work. Each is a tuple of words, or a function of the settings that returns one,
* where it learns from a teacher, `REFUSES_TEACHER`, what it does not cope with in a teacher's
  model unless its own has it too, and `MATCHES`, what both models have or neither; tuples or
  functions too,
* where its model may be another than that of the node before, two functions of the settings:
  `KEEPS`, what of all that was left there is in the new model too (None: all), and `CUTS`, the name
  of the teacher that the model is cut from (None: it is not), which then has whatever that one has.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from tasks.bundle import Bundle
from tasks.errors import SettingsError
from tasks.frozen import Frozen
from tasks.suggest import nearest
from tasks.training.batches import Examples
from tasks.training.progress import Progress

FAMILIES = ("pruning", "quantization", "distillation", "structure", "joint")


class Teacher(Protocol):
    """A node whose answers others learn from."""

    key: str
    labels: tuple[str, ...]

    def logits(self, examples: Examples) -> np.ndarray:
        """Return float32 logits (examples, labels); computed once per teacher and texts."""
        ...

    def load(self) -> Bundle:
        """Return the teacher itself, not to be changed: for its hidden states, or to be cut."""
        ...


@dataclass(frozen=True)
class Context:
    """What a technique may use besides the bundle and its settings."""

    train: Examples
    validation: Examples
    transfer: Examples
    """Unlabelled texts of other domains; may be empty."""
    teachers: Mapping[str, Teacher]
    """By the name that the settings give them."""
    seed: int
    device: torch.device
    scratch: Path
    """A folder that survives a kill: resumable checkpoints of the training loop lie here."""
    progress: Progress


@cache
def names() -> tuple[str, ...]:
    """Return the names of all techniques found, sorted."""
    found = []
    for family in FAMILIES:
        package = importlib.import_module(f"tasks.{family}")
        found += [
            f"{family}.{module.name}"
            for module in pkgutil.iter_modules(package.__path__)
            if not module.name.startswith("_")
        ]
    return tuple(sorted(found))


def load(name: str) -> ModuleType:
    """Import the technique `name`.

    Raises SettingsError, with the nearest name, where there is none.
    """
    if name not in names():
        raise SettingsError(f"unknown technique `{name}`{nearest(name, names())}")
    return importlib.import_module(f"tasks.{name}")


def config_class(name: str) -> type[Frozen]:
    """Return the settings class of the technique `name`."""
    config: type[Frozen] = load(name).Config
    return config


def effects(name: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return by what the technique `name` with these settings is proven."""
    module = load(name)
    declared = module.EFFECT
    if callable(declared):
        declared = declared(module.Config.model_validate(settings))
    return (declared,) if isinstance(declared, str) else tuple(declared)


def declared(module: ModuleType, name: str, config: Frozen) -> tuple[str, ...]:
    """Return what the technique in `module`, with these settings, declares as `LEAVES` or alike."""
    found = getattr(module, name, ())
    return tuple(found(config) if callable(found) else found)


def reads_data(module: ModuleType, config: Frozen) -> bool:
    """Tell whether the technique in `module`, with these settings, depends on the data."""
    declared = getattr(module, "READS_DATA", True)
    return bool(declared(config) if callable(declared) else declared)
