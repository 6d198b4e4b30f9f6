"""The steps of a recipe, each proven by what it left in its own node."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import bundle as bundles
from tasks import exports, files, trial
from tasks.bundle import Bundle
from tasks.night import Night
from tasks.plan import Node, Plan
from tasks.store import Manifest
from tasks.structure import grow, layer_drop, sequence_length
from tasks.workspace import Workspace
from tests import tiny
from tests.techniques.contract import SHORT


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "checkout")


def publish(workspace: Workspace, key: str, bundle: Bundle) -> Manifest:
    folder = workspace.checkpoints / key
    bundles.save(bundle, folder)
    manifest = Manifest(
        key=key, technique="baseline", settings={}, parent=None, parent_content=None, teachers={},
        data={}, base_model={}, code={}, versions={}, machine={}, seed=7, seconds=1.0,
        files=files.content(folder), pointer={}, num_parameters=bundle.num_parameters(),
        created=0.0,
    )  # fmt: skip
    files.write_json(workspace.manifests / f"{key}.json", manifest.model_dump(mode="json"))
    return manifest


def proven(workspace: Workspace, steps: list[tuple[str, Bundle]]) -> Any:
    """What the trial says of a recipe, given technique and result of every step."""
    nodes: dict[str, Node] = {}
    made, parent = {}, None
    for number, (technique, bundle) in enumerate([("baseline", tiny.tiny_bert()), *steps]):
        key = f"{number}" * 64
        nodes[key] = Node(key, technique, {}, parent, {}, 7, "")
        made[key] = exports.exported(workspace, publish(workspace, key, bundle))
        parent = key
    assert parent is not None
    plan = Plan(nodes=nodes, leaves={"recipe": parent}, baseline="0" * 64)
    unused: Any = None
    night = Night("night", workspace, settings=unused, data=unused, plan=plan, ground=unused)
    return trial._proof(night, made, parent)


def test_a_model_that_is_cut_and_then_grown_is_proven_in_both(
    workspace: Workspace, tmp_path: Path
) -> None:
    context = tiny.context(tmp_path)
    cut = layer_drop.apply(tiny.tiny_bert(), layer_drop.Config(keep=1), context)
    grown = grow.apply(cut, grow.Config(ffn=64, training=SHORT), context)
    proof = proven(workspace, [("structure.layer_drop", cut), ("structure.grow", grown)])
    assert proof.changed
    assert "fewer parameters" in proof.message


def test_a_step_that_did_nothing_is_not_hidden_by_another(
    workspace: Workspace, tmp_path: Path
) -> None:
    cut = layer_drop.apply(tiny.tiny_bert(), layer_drop.Config(keep=1), tiny.context(tmp_path))
    same = cut.copy()
    proof = proven(workspace, [("structure.layer_drop", cut), ("structure.grow", same)])
    assert proof.message.startswith("structure.grow changed nothing")
    assert not proof.changed


def test_a_shorter_length_is_proven(workspace: Workspace, tmp_path: Path) -> None:
    config = sequence_length.Config(share=0.5)
    short = sequence_length.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    proof = proven(workspace, [("structure.sequence_length", short)])
    assert proof.message == f"{short.max_length} tokens a text"


def test_an_equal_length_is_not_proven(workspace: Workspace) -> None:
    proof = proven(workspace, [("structure.sequence_length", tiny.tiny_bert())])
    assert not proof.changed


def test_what_an_earlier_version_counted_is_counted_anew(
    workspace: Workspace, tmp_path: Path
) -> None:
    whole = tiny.tiny_bert()
    export = exports.exported(workspace, publish(workspace, "a" * 64, whole))
    path = export.folder.with_suffix(".substance.json")
    files.write_json(
        path, {"num_parameters": 1, "num_zeros": 0, "size_bytes": 1, "num_quantized": 0}
    )
    counted = trial._substance(workspace, export)
    assert counted.num_parameters == whole.num_parameters()
    assert (counted.max_length, counted.num_gelus) == (16, 3)
    assert trial._substance(workspace, replace(export, node="gone")) == counted
