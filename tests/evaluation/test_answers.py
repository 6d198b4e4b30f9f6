"""What a model's stored answers are worth, beside the baseline's."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import predictions, trial

LABELS = ("no", "yes")


def stored(path: Path, seed: int, right: float) -> pd.DataFrame:
    """Store answers to 40 validation, 60 test and 2 x 20 slice texts, `right` of them right."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "split": ["validation"] * 40 + ["test"] * 60 + [predictions.SLICES] * 40,
            "domain": [""] * 100 + ["cups"] * 20 + ["tea"] * 20,
            "id": [f"id{number}" for number in range(140)],
            "label": [LABELS[number % 2] for number in range(140)],
        }
    )
    truth = np.arange(140) % 2
    said = np.where(random.random(140) < right, truth, 1 - truth)
    table["p_1"] = np.where(said == 1, 0.8, 0.3)
    table["p_0"] = 1 - table["p_1"]
    table.to_parquet(path, index=False)
    return table.assign(said=said, right=said == truth)


def test_answers_are_judged_by_split_and_each_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = stored(tmp_path / "own.parquet", 1, 0.8)
    base = stored(tmp_path / "base.parquet", 2, 0.9)
    reads, real = [], pd.read_parquet

    def watch(path: Path, **settings: Any) -> pd.DataFrame:
        reads.append(path.stem)
        return real(path, **settings)

    monkeypatch.setattr(pd, "read_parquet", watch)
    texts = [f"text {number}" for number in range(int((own["split"] == "test").sum()))]
    found = trial.answers(tmp_path / "own.parquet", tmp_path / "base.parquet", LABELS, texts)
    assert sorted(reads) == ["base", "own"]
    test = own["split"] == "test"
    assert found.test.accuracy == pytest.approx(own[test]["right"].mean())
    assert found.correct.tolist() == own[test]["right"].tolist()
    validation = own[own["split"] == "validation"]
    assert found.validation.accuracy == pytest.approx(validation["right"].mean())
    assert set(found.slices) == {"cups", "tea"}
    for domain, quality in found.slices.items():
        assert quality.accuracy == pytest.approx(own[own["domain"] == domain]["right"].mean())
    equal = (own[test]["said"] == base[test]["said"]).mean()
    assert found.agreement.labels == pytest.approx(equal)
