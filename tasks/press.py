"""Presses one node: claim it, load its parent, apply its technique, publish the result."""

import contextlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks import claims, context, provenance, store, technique
from tasks.bundle import Bundle
from tasks.errors import NightpressError, TechniqueError
from tasks.plan import COMPUTING_PACKAGES, Node, node_code
from tasks.runtime.fingerprint import machine
from tasks.settings import BASELINE
from tasks.store import Manifest
from tasks.technique import Context
from tasks.training import baseline
from tasks.training.config import BaselineConfig
from tasks.training.progress import Progress
from tasks.training.seeding import seed_everything
from tasks.training.teacher import CachedTeacher
from tasks.workspace import Workspace

GPU_VARIABLE = "NIGHTPRESS_GPU"
"""Which of the visible GPUs this process computes on; the first where it is not set."""
NOT_PRESSED = "not pressed"
"""How the reason begins why a node was not even tried."""
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Ground:
    """What all nodes of a night share."""

    name: str
    data_folder: Path
    data_pointers: Mapping[str, Any]
    labels: tuple[str, ...]
    base_model: Path
    base_model_facts: Mapping[str, str]
    """Address and sha256."""
    device: str
    threads: int
    time_limit_minutes: float


@dataclass
class Pressed:
    """What became of a night's nodes."""

    manifests: dict[str, Manifest]
    fresh: set[str]
    """Pressed tonight; the others were cached."""
    failed: dict[str, str]
    """Key → why; a node whose parent or teacher failed says that."""


class Deadline:
    """Passes progress on, and stops work that takes longer than its limit."""

    def __init__(self, inner: Progress, minutes: float) -> None:
        self.inner = inner
        self.minutes = minutes
        self.end = time.monotonic() + minutes * 60

    def say(self, line: str) -> None:
        """Tell."""
        self.inner.say(line)

    def start(self, description: str, total: int) -> None:
        """Begin a bar."""
        self.inner.start(description, total)

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        """Move on; raises TechniqueError past the limit."""
        if time.monotonic() > self.end:
            raise TechniqueError(
                f"stopped after {self.minutes:g} minutes; raise `time_limit_minutes` or train less"
            )
        self.inner.advance(steps, loss=loss, rate=rate)

    def stop(self) -> None:
        """End the bar."""
        self.inner.stop()


def press(
    workspace: Workspace, node: Node, ground: Ground, progress: Progress
) -> tuple[Manifest, bool]:
    """Return the node's manifest, and whether it was pressed here and now.

    Waits while another worker presses it. Raises NightpressError with the technique's name.
    """
    while True:
        standing = store.manifest(workspace, node.key)
        if standing is not None:
            return standing, False
        claim = claims.take(workspace, node.key)
        if claim is None:
            time.sleep(_WAIT_SECONDS)
            continue
        with claims.held(workspace, claim):
            # it may have been published between the look and the claim
            if store.manifest(workspace, node.key) is None:
                return _press_claimed(workspace, node, ground, progress, claim), True


def _press_claimed(
    workspace: Workspace, node: Node, ground: Ground, progress: Progress, claim: claims.Claim
) -> Manifest:
    if node_code(node.technique, taught=bool(node.teachers)) != node.code:
        raise TechniqueError(
            f"the code of {node.technique} was changed while this night runs; start it again"
        )
    store.note(workspace, node.key, "started", node.technique)
    scratch = workspace.state / "scratch" / node.key
    scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(ground.threads)
    seed_everything(node.seed)
    began = time.monotonic()
    try:
        made = _apply(workspace, node, ground, _context(workspace, node, ground, scratch, progress))
    except NightpressError as error:
        store.note(workspace, node.key, "failed", str(error))
        raise type(error)(f"{node.technique}: {error}") from error
    seconds = time.monotonic() - began
    published = store.publish(workspace, claim, made, _describe(workspace, node, ground, seconds))
    # only now: one who dies before goes on from the last training checkpoint
    shutil.rmtree(scratch, ignore_errors=True)
    return published


def _apply(workspace: Workspace, node: Node, ground: Ground, given: Context) -> Bundle:
    if node.technique == BASELINE:
        address = ground.base_model_facts["address"]
        config = BaselineConfig(model=address, **node.settings)
        base = baseline.load_base(ground.base_model, ground.labels, config)
        return baseline.train(base, given, config)[0] if config.train else base
    assert node.parent is not None
    parent = store.load(workspace, node.parent)
    config_class = technique.config_class(node.technique)
    module = technique.load(node.technique)
    made: Bundle = module.apply(parent, config_class.model_validate(node.settings), given)
    _require_numbers(made)
    return made


def _require_numbers(bundle: Bundle) -> None:
    """Raise TechniqueError where what came out holds weights that are no numbers."""
    for name, tensor in bundle.model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TechniqueError(
                f"the weights of `{name}` came out as no numbers: lower `learning_rate`, or leave "
                "the step out"
            )


def _context(
    workspace: Workspace, node: Node, ground: Ground, scratch: Path, progress: Progress
) -> Context:
    teachers = {
        name: CachedTeacher(
            key, _loader(workspace, key), ground.labels, workspace.cache, _device(ground)
        )
        for name, key in node.teachers.items()
    }
    return context.build(
        ground.data_folder,
        ground.labels,
        teachers=teachers,
        seed=node.seed,
        device=_device(ground),
        scratch=scratch,
        progress=Deadline(progress, ground.time_limit_minutes),
    )


def _device(ground: Ground) -> torch.device:
    index = int(os.environ.get(GPU_VARIABLE, "0"))
    return torch.device("cpu") if ground.device == "cpu" else torch.device(ground.device, index)


def _loader(workspace: Workspace, key: str) -> Callable[[], Bundle]:
    return lambda: store.load(workspace, key)


def _describe(
    workspace: Workspace, node: Node, ground: Ground, seconds: float
) -> Callable[..., Manifest]:
    parent = store.manifest(workspace, node.parent) if node.parent else None

    def describe(**measured: Any) -> Manifest:
        return Manifest(
            key=node.key,
            technique=node.technique,
            settings=dict(node.settings),
            parent=node.parent,
            parent_content=parent.content if parent else None,
            teachers=dict(node.teachers),
            data=dict(ground.data_pointers),
            base_model=dict(ground.base_model_facts),
            code={**provenance.code(workspace.root), "hash": node.code},
            versions={p: importlib.metadata.version(p) for p in COMPUTING_PACKAGES},
            machine=machine(),
            seed=node.seed,
            seconds=seconds,
            created=time.time(),
            **measured,
        )

    return describe


def failed_line(error: BaseException) -> str:
    """Return an error as one line for the report."""
    with contextlib.suppress(IndexError):
        return str(error).splitlines()[0]
    return type(error).__name__
