"""Recipes → one derivation tree, and the key of every node in it.

A key hashes all that can change a node's result and is known beforehand. Equal key, no work.
"""

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError

from tasks import chains, files, technique
from tasks.code_hash import code_hash
from tasks.errors import SettingsError
from tasks.frozen import Frozen
from tasks.settings import BASELINE, Settings, Step, explain, first_problem, merge
from tasks.suggest import nearest
from tasks.training.config import WITHOUT_EFFECT, BaselineConfig

COMPUTING_PACKAGES = ("accelerate", "numpy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Inputs:
    """What tonight's tree grows from."""

    data_md5: str
    base_model_sha256: str
    device: str
    """`cpu` or `cuda`."""


@dataclass(frozen=True)
class Node:
    """One model of the tree: its parent with one technique applied."""

    key: str
    technique: str
    """`family.name`, or `baseline` for the root."""
    settings: Mapping[str, Any]
    """Resolved: every default written out."""
    parent: str | None
    teachers: Mapping[str, str]
    """The settings' name of a teacher → its key."""
    seed: int
    code: str
    """Hash of the code that presses it, as it was when the plan was made."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that must be pressed before."""
        own = () if self.parent is None else (self.parent,)
        return tuple(dict.fromkeys((*own, *self.teachers.values())))


@dataclass(frozen=True)
class Plan:
    """A night's tree: nodes in an order in which they can be pressed."""

    nodes: Mapping[str, Node]
    leaves: Mapping[str, str]
    """Recipe → key of its last node."""
    baseline: str
    recipes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Recipe → keys of all its nodes, the baseline first."""

    def chain(self, key: str) -> list[Node]:
        """Return the nodes from the baseline down to `key`."""
        nodes = [self.nodes[key]]
        while nodes[0].parent is not None:
            nodes.insert(0, self.nodes[nodes[0].parent])
        return nodes

    def recipes_of(self, key: str) -> tuple[str, ...]:
        """Return the names of the recipes that end in the node `key`."""
        return tuple(name for name, leaf in self.leaves.items() if leaf == key)


def resolve_device(setting: str) -> str:
    """Return `cpu` or `cuda` for the setting, `auto` being the GPU where there is one.

    Raises SettingsError where a GPU is asked for and none is there.
    """
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise SettingsError("`device: cuda`, but no GPU is visible here; use `auto` or `cpu`")
    return "cuda" if available and setting != "cpu" else "cpu"


def default_threads(workers: int | str, device: str) -> int:
    """Return the CPU threads of one worker: the machine's cores, shared among the workers."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // workers) if isinstance(workers, int) and device == "cpu" else cores


def device_class(device: str) -> str:
    """Return what of the device can change a result: `cpu`, or the GPU's compute capability."""
    if device == "cpu":
        return "cpu"
    major, minor = torch.cuda.get_device_capability()
    return f"cuda-{major}.{minor}"


def make(settings: Settings, inputs: Inputs) -> Plan:
    """Merge the recipes into one tree.

    Raises SettingsError for an unknown technique or teacher, settings that a technique refuses,
    steps that cannot follow one another, and recipes that teach each other in a circle.
    """
    return _Planner(settings, inputs).plan()


def check(settings: Settings) -> None:
    """Raise the SettingsError that `make` would, before there are data or a model.

    From here on, keys are of the code as it stands now.
    """
    code_hash("tasks.steps")  # all that a night runs: most of it is imported next
    make(settings, Inputs("", "", resolve_device(settings.device)))


def node_code(name: str, *, taught: bool) -> str:
    """Return the hash of the code that presses a node of the technique `name`, or the baseline."""
    modules = ["tasks.training.baseline" if name == BASELINE else f"tasks.{name}", "tasks.context"]
    return code_hash(*modules, *(["tasks.training.teacher"] if taught else []))


class _Planner:
    """Resolves recipes depth first, teachers before students."""

    def __init__(self, settings: Settings, inputs: Inputs) -> None:
        self.settings = settings
        self.inputs = inputs
        self.device_class = device_class(inputs.device)
        self.nodes: dict[str, Node] = {}
        self.chains: dict[str, tuple[str, ...]] = {}
        recurrent = {chains.RECURRENT: None} if settings.baseline.lstm is not None else {}
        self.states = {BASELINE: chains.State(recurrent)}
        self.open: list[str] = []

    def plan(self) -> Plan:
        baseline = self._add(BASELINE, self.settings.baseline, None, {}, reads_data=True)
        for name in self.settings.recipes:
            self._recipe(name, baseline)
        return Plan(
            nodes=self.nodes,
            leaves={name: chain[-1] for name, chain in self.chains.items()},
            baseline=baseline,
            recipes=self.chains,
        )

    def _recipe(self, name: str, baseline: str) -> str:
        if name in self.chains:
            return self.chains[name][-1]
        if name in self.open:
            circle = " → ".join([*self.open[self.open.index(name) :], name])
            raise SettingsError(f"recipes teach each other in a circle: {circle}")
        self.open.append(name)
        chain, state = [baseline], self.states[BASELINE]
        for index, step in enumerate(self.settings.recipes[name]):
            place = f"recipes.{name}[{index}] {step.technique}"
            module = _located(place, step)
            config = self._configure(place, step)
            teachers = {t: self._teacher(place, t, baseline) for t in _teachers(config)}
            link = chains.link(place, step.technique, module, config)
            state = chains.follow(state, link, {t: self.states[t] for t in teachers})
            reads_data = technique.reads_data(module, config)
            chain.append(
                self._add(step.technique, config, chain[-1], teachers, reads_data=reads_data)
            )
        self.open.pop()
        self.chains[name], self.states[name] = tuple(chain), state
        return chain[-1]

    def _teacher(self, place: str, name: str, baseline: str) -> str:
        if name == BASELINE:
            return baseline
        if name not in self.settings.recipes:
            options = [BASELINE, *self.settings.recipes]
            raise SettingsError(
                f"{place}: no recipe `{name}` to learn from{nearest(name, options)}"
            )
        return self._recipe(name, baseline)

    def _configure(self, place: str, step: Step) -> Frozen:
        """Return the step's settings, the general training settings beneath its own."""
        config_class = technique.config_class(step.technique)
        given = dict(step.settings)
        if "training" in config_class.model_fields:
            general = self.settings.training.model_dump(mode="json")
            given["training"] = merge(general, given.get("training") or {})
        try:
            return config_class.model_validate(given)
        except ValidationError as error:
            problem = explain(first_problem(error), config_class, given)
            raise SettingsError(f"{place}: {problem}") from error

    def _add(
        self,
        name: str,
        config: Frozen,
        parent: str | None,
        teachers: Mapping[str, str],
        *,
        reads_data: bool,
    ) -> str:
        code = node_code(name, taught=bool(teachers))
        key = files.key(
            {
                "parent": parent if parent is not None else self.inputs.base_model_sha256,
                "teachers": list(teachers.values()),  # several have weights in their order
                "technique": name,
                "settings": _effective(config),
                "data": self.inputs.data_md5 if reads_data else None,
                "seed": self.settings.seed if reads_data else None,
                "device": self.device_class if reads_data else None,
                "versions": {p: importlib.metadata.version(p) for p in COMPUTING_PACKAGES},
                "code": code,
            }
        )
        settings = config.model_dump(mode="json", exclude={"model"} if parent is None else None)
        self.nodes.setdefault(
            key, Node(key, name, settings, parent, dict(teachers), self.settings.seed, code)
        )
        return key


def _teachers(config: Frozen) -> tuple[str, ...]:
    """Return the names of the recipes that a step learns from: its `teacher`, or its `teachers`."""
    named = getattr(config, "teacher", None)
    several: tuple[str, ...] = getattr(config, "teachers", ())
    return several if named is None else (named,)


def _effective(config: Frozen) -> dict[str, Any]:
    """Return the settings that can change a result.

    How often a training is saved cannot, nor whether it computes its layers twice, nor what a
    recipe is called; a base model and a teacher count by what they are.
    """
    without: dict[str, Any] = {
        "teacher": True, "teachers": True, "training": WITHOUT_EFFECT,
    }  # fmt: skip
    if isinstance(config, BaselineConfig):
        without = {"model": True, "training": without["training"] if config.train else True}
    return config.model_dump(mode="json", exclude=without)


def _located(place: str, step: Step) -> Any:
    try:
        return technique.load(step.technique)
    except SettingsError as error:
        raise SettingsError(f"{place}: {error}") from error
