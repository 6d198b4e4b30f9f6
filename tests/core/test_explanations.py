"""Layers are undone for the variants that lose too much, once for their content."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks import explanations
from tasks.evaluation.config import EvaluationConfig
from tasks.evaluation.gates import ACCURACY, GateResult, Verdict
from tasks.plan import Node, Plan
from tasks.training.progress import Silent
from tasks.workspace import Workspace
from tests import tiny
from tests.core.test_trial_proof import publish

BASE, VARIANT, OTHER = ("0" * 64, "1" * 64, "2" * 64)


class Tonight:
    """What of a night and its trial is looked at."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root / "checkout")
        texts = tiny.examples(40, seed=3)
        data = root / "data"
        data.mkdir()
        pd.DataFrame(
            {
                "id": [f"{number:03}" for number in range(40)],
                "text": texts.texts,
                "label": [tiny.LABELS[number] for number in texts.labels],
            }
        ).to_parquet(data / "validation.parquet")
        nodes = {
            key: Node(key, "x", {}, None if key == BASE else BASE, {}, 7, "")
            for key in (BASE, VARIANT, OTHER)
        }
        self.plan = Plan(nodes=nodes, leaves={"one": VARIANT, "two": OTHER}, baseline=BASE)
        self.ground = self
        self.settings = self
        self.evaluation = EvaluationConfig(max_undoing_texts=24)
        self.data_folder, self.labels, self.threads = data, tiny.LABELS, 1
        self.data_pointers = {"prepared": {"md5": "data"}}
        for seed, key in enumerate(nodes):
            publish(self.workspace, key, tiny.tiny_bert(seed))


@pytest.fixture
def night(tmp_path: Path) -> Any:
    return Tonight(tmp_path)


def test_a_variant_is_undone_once_for_its_content(
    night: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = explanations.undoing(night, VARIANT, Silent())
    assert first.num_texts == 24
    assert {one.part for one in first.parts} >= {"embeddings", "layer 0", "classifier"}
    monkeypatch.setattr(explanations, "undo", None)  # would fail if it were called again
    assert explanations.undoing(night, VARIANT, Silent()) == first
    publish(night.workspace, VARIANT, tiny.tiny_bert(9))
    with pytest.raises(TypeError):
        explanations.undoing(night, VARIANT, Silent())


def test_what_is_kept_depends_on_the_texts_too(night: Any) -> None:
    path = explanations._path(night, VARIANT)
    assert path == explanations._path(night, VARIANT)
    night.evaluation = EvaluationConfig(max_undoing_texts=25)
    assert explanations._path(night, VARIANT) != path
    assert explanations._path(night, OTHER) != path


@pytest.mark.parametrize("gate", sorted(ACCURACY))
def test_only_who_fails_a_gate_on_accuracy_is_explained(night: Any, gate: str) -> None:
    def verdict(failed: str) -> Verdict:
        return Verdict(tuple(GateResult(n, n != failed, "") for n in (*ACCURACY, "effect", "gain")))

    trial: Any = type("Trial", (), {})()
    trial.verdicts = {VARIANT: verdict(gate), OTHER: verdict("gain"), "9" * 64: verdict(gate)}
    assert explanations.lossy(night, trial) == [VARIANT]
    night.evaluation = EvaluationConfig(max_undoing_texts=0)
    assert explanations.lossy(night, trial) == []
