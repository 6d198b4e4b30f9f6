"""Answers are kept for exactly who gave them, to what, and where; else they are asked anew."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import predictions
from tasks.runtime.export import export
from tasks.runtime.fingerprint import machine
from tasks.runtime.session import Session
from tasks.workspace import Workspace
from tests import tiny

SESSION = "tasks.runtime.session"


def rows(count: int = 12) -> pd.DataFrame:
    """Test rows, then the rows of two other domains."""
    examples = tiny.examples(count)
    return pd.DataFrame(
        {
            "split": ["test"] * (count - 4) + [predictions.SLICES] * 4,
            "domain": [""] * (count - 4) + ["tea", "tea", "cups", "cups"],
            "id": [f"id{number}" for number in range(count)],
            "text": examples.texts,
            "label": [tiny.LABELS[number] for number in examples.labels],
        }
    )


class Asked:
    """A model that answers by a rule, and counts how often it was loaded."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.loads = workspace, 0

    def load(self) -> predictions.Probabilities:
        self.loads += 1
        return self.answer

    @staticmethod
    def answer(texts: Sequence[str]) -> np.ndarray:
        logits = tiny.WiseTeacher.answers(texts)
        return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)

    def __call__(self, **changes: Any) -> Path:
        given = {
            "model": "m" * 64, "answerer": SESSION, "rows": rows(), "labels": tiny.LABELS, **changes
        }  # fmt: skip
        return predictions.answered(self.workspace, load=self.load, **given)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(Workspace(tmp_path))


def test_answers_come_back_split_by_split(asked: Asked) -> None:
    table = pd.read_parquet(asked())
    assert predictions.domains(table, "slices") == ("cups", "tea")
    given = rows()
    for split, domain in (("test", ""), (predictions.SLICES, "tea"), (predictions.SLICES, "cups")):
        part = given[(given["split"] == split) & (given["domain"] == domain)]
        probabilities, numbers = predictions.of_split(table, tiny.LABELS, split, domain)
        np.testing.assert_array_equal(probabilities, Asked.answer(part["text"].tolist()))
        assert [tiny.LABELS[n] for n in numbers] == part["label"].tolist()
        assert (probabilities.dtype, numbers.dtype) == (np.float32, np.int64)


def test_the_same_question_is_asked_once(asked: Asked) -> None:
    assert asked() == asked()
    assert asked.loads == 1


def changed(column: str, value: str) -> pd.DataFrame:
    other = rows()
    other.loc[3, column] = value
    return other


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"model": "n" * 64}, id="another model"),
        pytest.param({"answerer": "tasks.runtime.eager"}, id="another runtime"),
        pytest.param({"rows": changed("text", "a dull film")}, id="another text"),
        pytest.param({"rows": changed("label", "negative")}, id="another label"),
        pytest.param({"rows": changed("id", "id99")}, id="another id"),
        pytest.param({"labels": ("positive", "negative")}, id="labels in another order"),
    ],
)
def test_another_question_is_asked_anew(asked: Asked, change: dict[str, Any]) -> None:
    assert asked() != asked(**change)
    assert asked.loads == 2


@pytest.mark.parametrize(
    "change", [{"flags": ["avx512_vnni"]}, {"versions": {"onnxruntime": "0.0.1"}}]
)
def test_another_machine_is_asked_anew(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    before = asked()
    monkeypatch.setattr(predictions, "machine", lambda: {**machine(), **change})
    assert asked() != before
    assert asked.loads == 2


def test_a_shorter_limit_of_tokens_gives_its_own_answers(tmp_path: Path) -> None:
    workspace, found = Workspace(tmp_path), []
    given = rows()
    given["text"] = "a film " * 4 + given["text"]
    for max_length in (16, 9):
        bundle = dataclasses.replace(tiny.tiny_bert(), max_length=max_length)
        facts = export(bundle, tmp_path / f"export{max_length}")
        session = Session(tmp_path / f"export{max_length}", 1)
        path = predictions.answered(
            workspace, facts.sha256, SESSION, given, tiny.LABELS,
            lambda session=session: session.probabilities,
        )  # fmt: skip
        table = pd.read_parquet(path)
        np.testing.assert_allclose(
            table[["p_0", "p_1"]], session.probabilities(given["text"].tolist()), atol=1e-6
        )
        found.append(table["p_0"].tolist())
    assert found[0] != found[1]
