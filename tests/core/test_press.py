"""A node that diverges ends with its step and its cure, and leaves its last good checkpoint."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tasks import plan, settings, store
from tasks.errors import TechniqueError
from tasks.plan import Inputs, Node
from tasks.press import Ground, press
from tasks.training import baseline, loop
from tasks.training.losses import cross_entropy
from tasks.training.progress import Silent
from tasks.workspace import Workspace
from tests import workspaces
from tests.data import prepared_data

STEPS = 12


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(workspaces.make(tmp_path / "checkout", count=20))


@pytest.fixture
def ground(workspace: Workspace) -> Ground:
    data = prepared_data.write(workspace.root / "prepared", prepared_data.sentences(300), [])
    return Ground(
        name="tiny", data_folder=data, data_pointers={}, labels=tuple(prepared_data.LABELS),
        base_model=workspace.root / "base",
        base_model_facts={"address": "base", "sha256": "b" * 64},
        device="cpu", threads=1, time_limit_minutes=5,
    )  # fmt: skip


def root(workspace: Workspace, **training: Any) -> Node:
    """The baseline's node."""
    path = workspace.root / "params.yaml"
    given = {"epochs": 2, "batch_size": 32, "checkpoint_seconds": 1e-9, **training}
    base = {"model": "base", "max_length": 16, "training": given}
    changed = {**workspaces.QUICK, "baseline": base}
    path.write_text(json.dumps(changed))
    made = plan.make(settings.load(path), Inputs("d" * 32, "b" * 64, "cpu"))
    return made.nodes[made.baseline]


def breaking(at: int) -> Callable[..., Any]:
    """The training loop with a loss that is no number at the step `at`, whoever calls it."""
    step = 0

    def move(done: int, total: int) -> None:
        nonlocal step
        step = done + 1

    def loss(output: Any, batch: Any) -> torch.Tensor:
        return cross_entropy(output, batch) * (float("nan") if step == at else 1)

    return partial(loop.fit, loss=loss, before_step=move)


def test_a_node_that_diverges_leaves_its_last_good_checkpoint(
    workspace: Workspace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = root(workspace)
    monkeypatch.setattr(baseline, "fit", breaking(STEPS // 2))
    scratch = workspace.state / "scratch" / node.key
    for again in ("", ", as this one did"):
        words = (
            rf"^baseline: the loss is no longer a number at step {STEPS // 2} of {STEPS}: lower "
            rf"`learning_rate`; the checkpoint of step {STEPS // 2 - 1} is kept, .*{again} "
            rf"\({scratch}/training-.*\.safetensors\)$"
        )
        with pytest.raises(TechniqueError, match=words):
            press(workspace, node, ground, Silent())
        (kept,) = scratch.glob("*.safetensors")
        tensors = safetensors.torch.load_file(kept)
        assert all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
        assert store.manifest(workspace, node.key) is None
    monkeypatch.setattr(baseline, "fit", loop.fit)
    _, fresh = press(workspace, node, ground, Silent())
    assert fresh
    assert not scratch.exists()
    assert store.manifest(workspace, node.key) is not None


def test_weights_that_came_out_as_no_numbers_are_not_published(
    workspace: Workspace, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    press(workspace, root(workspace), ground, Silent())
    document = {
        **json.loads((workspace.root / "params.yaml").read_text()),
        "recipes": {"few": [{"structure.layer_drop": {"keep": 2}}]},
    }
    (workspace.root / "params.yaml").write_text(json.dumps(document))
    loaded = settings.load(workspace.root / "params.yaml")
    made = plan.make(loaded, Inputs("d" * 32, "b" * 64, "cpu"))
    real = store.load

    def spoilt(where: Workspace, key: str) -> Any:
        bundle = real(where, key)
        bundle.model.get_parameter("classifier.bias").data[0] = float("inf")
        return bundle

    monkeypatch.setattr(store, "load", spoilt)
    words = r"^structure.layer_drop: the weights of `classifier.bias` came out as no numbers: lower"
    with pytest.raises(TechniqueError, match=words):
        press(workspace, made.nodes[made.leaves["few"]], ground, Silent())
    assert store.manifest(workspace, made.leaves["few"]) is None
