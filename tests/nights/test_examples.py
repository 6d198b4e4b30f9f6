"""Every file in examples/ runs a whole night, on small data of its form and a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from tasks.bundle import Bundle
from tests import tiny, workspaces

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = workspaces.make(tmp_path / "checkout")
    (root / "params.yaml").unlink()
    frame = pd.read_csv(root / "reviews.csv").rename(columns={"text": "body", "label": "stars"})
    frame.to_csv(root / "reviews.csv", index=False)
    shutil.copytree(EXAMPLES, root / "examples")
    save(tiny_model(), root / "base")
    return root


def tiny_model(seed: int = 0) -> Bundle:
    """A model with more layers than the recipes keep."""
    config = tiny.tiny_bert().model.config
    config.num_hidden_layers = 4
    return tiny.bundle_of(config, seed)


def save(bundle: Bundle, folder: Path) -> None:
    bundle.model.save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)


def run(root: Path, example: str, **values: object) -> dict[str, Any]:
    """Run the example with what a test must change of it: sizes, and where things lie.

    Its recipes must be pressed as they are written, and judged.
    """
    given = {
        "validation.min_rows": 20,
        "validation.max_split_imbalance": 0.2,
        "training.epochs": 2,
        "evaluation.rounds": 3,
        "evaluation.texts_per_round": 4,
        "evaluation.resamples": 200,
        **values,
    }
    overrides = [part for key, value in given.items() for part in ("-S", f"{key}={value}")]
    done = workspaces.nightpress(root, "run", "-c", f"examples/{example}", "--json", *overrides)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert {row["recipe"]: row["steps"] for row in told["variants"]} == written(example)
    assert {row["verdict"] for row in told["variants"]} <= {"passed", "rejected"}
    return told


def written(example: str) -> dict[str, list[str]]:
    """Recipe → techniques, as the example has them."""
    recipes = YAML(typ="safe").load(EXAMPLES / example)["recipes"]
    assert recipes
    return {
        name: [step if isinstance(step, str) else next(iter(step)) for step in steps]
        for name, steps in recipes.items()
    }


def test_every_example_is_tested_here() -> None:
    tested = {"imdb.yaml", "own-csv.yaml", "fine-tuned.yaml"}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == tested


def test_imdb_from_a_local_folder_in_hub_form(checkout: Path) -> None:
    folder = checkout / "imdb"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    examples = tiny.examples(900, seed=3)
    # as long as film reviews: the words that decide stand first, 300 neutral ones follow
    texts = [f"{t} {' '.join(tiny.NEUTRAL * 30)}" for t in examples.texts]
    for split, chosen in {"train": slice(0, 600), "test": slice(600, 900)}.items():
        pd.DataFrame(
            {
                "text": [f"{t} {i}" for i, t in enumerate(texts)][chosen],
                "label": [tiny.LABELS[label] for label in examples.labels[chosen]],
            }
        ).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    told = run(
        checkout, "imdb.yaml",
        **{
            "source.address": "hf://./imdb",
            "baseline.model": "./base",
            "baseline.max_length": 24,
        },
    )  # fmt: skip
    assert sum(told["rows"].values()) > 500


def test_own_csv(checkout: Path) -> None:
    run(checkout, "own-csv.yaml", **{"baseline.model": "./base", "baseline.max_length": 16})


def test_a_model_that_is_fine_tuned_already(checkout: Path) -> None:
    save(tiny_model(seed=4), checkout / "my-model")
    told = run(checkout, "fine-tuned.yaml", **{"baseline.max_length": 16})
    baseline = next(node for node in told["nodes"] if node["technique"] == "baseline")
    assert baseline["seconds"] < 30


def test_init_then_run_with_no_file_edited(checkout: Path) -> None:
    reviews = tiny.examples(900, seed=5)
    rows = {"the review;": reviews.texts, "Stars (1-4)": [i % 4 + 1 for i in range(900)]}
    pd.DataFrame(rows).drop_duplicates("the review;").to_csv(checkout / "odd.csv", index=False)
    done = workspaces.nightpress(
        checkout, "init", "odd.csv", "--text", "the review;", "--label", "Stars (1-4)",
        "--model", "./base",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nightpress run" in done.stdout
    ran = workspaces.nightpress(checkout, "run", "--json")
    # labels that no word explains: no variant need pass, and none may fail
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["labels"] == ["1", "2", "3", "4"]
