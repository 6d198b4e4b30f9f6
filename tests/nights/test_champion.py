"""What a standing champion is held against before it is replaced."""

import json
import shutil
from pathlib import Path

import pytest

from tests import workspaces

pytestmark = pytest.mark.slow


def test_the_best_of_a_poor_night_does_not_replace_a_good_champion(
    night: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(night, root)
    done = workspaces.nightpress(
        root, "run", "--json", "--recipes", "poor",
        # a baseline that has learned nothing is easily reached, by a model that is faster too
        "-S", "baseline.training.learning_rate=1e-7",
        "-S", "recipes.poor=[{structure.layer_drop: {keep: 1}}]",
        "-S", "gates.max_loss_points=5", "-S", "gates.max_loss_bound_points=15",
        "-S", "registry.promotion=auto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (poor,) = told["variants"]
    assert poor["verdict"] == "passed"
    assert told["challenger_after"]["recipe"] == "poor"
    assert told["champion_before"] is not None
    assert told["champion_after"] == told["champion_before"]
