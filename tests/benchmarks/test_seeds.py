"""Two models under several seeds: each pressed for itself, compared text by text."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import seeds
from tasks import technique_results
from tasks.workspace import Workspace
from tests import workspaces


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspaces.make(tmp_path_factory.mktemp("seeds") / "checkout", 300)


def run(root: Path, *arguments: str) -> int:
    return seeds.main([*arguments, "--root", str(root)])


def test_a_recipe_and_a_baseline_of_its_own_are_compared(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "baseline baseline.lstm.embedding=8 baseline.lstm.hidden=8"
    assert run(root, first, "short", "--seeds", "1,2") == 0
    path, *lines = capsys.readouterr().out.splitlines()
    found = json.loads(Path(path).read_text())
    assert Path(path).parent == root / technique_results.FOLDER
    assert found["first"]["overrides"] == first.split()[1:]
    one, two = found["seeds"]
    assert [one["seed"], two["seed"]] == [1, 2]
    for seed in (one, two):
        lost = (seed["first"] - seed["second"]) * 100
        assert seed["loss"]["points"] == pytest.approx(lost)
    mean = found["mean"]
    assert mean["points"] == pytest.approx(np.mean([s["loss"]["points"] for s in (one, two)]))
    assert mean["lower"] <= mean["points"] <= mean["upper"]
    assert len(lines) == 3
    assert f"{mean['points']:+.2f} points against baseline" in lines[-1]
    # of each seed an LSTM, the baseline that teaches, and the two steps of `short`
    assert len(list(Workspace(root).manifests.glob("*.json"))) == 2 * (1 + 1 + 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("int8", "shrot"), "no recipe `shrot`; did you mean `short`?"),
        (("int8", "short", "--seeds", "1,x"), "--seeds 1,x: give whole numbers"),
        (("int8", "short", "--seeds", "1,1"), "--seeds 1,1: one stands there twice"),
        (("int8 sede=3", "short"), "unknown setting `sede`; did you mean `seed`?"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert run(root, *arguments) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
