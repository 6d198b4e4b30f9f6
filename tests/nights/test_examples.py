"""Every file in examples/ runs a whole night, on small data of its form and a tiny model."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

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
    return root


def run(root: Path, example: str, **values: object) -> dict[str, object]:
    """Run the example with what a test must change of it: sizes, and where things lie."""
    given = {
        "validation.min_rows": 20,
        "validation.max_split_imbalance": 0.2,
        "training.epochs": 2,
        "training.freeze_embeddings": False,
        "training.learning_rate": 3e-3,
        "evaluation.rounds": 3,
        "evaluation.texts_per_round": 4,
        "evaluation.resamples": 200,
        **values,
    }
    overrides = [part for key, value in given.items() for part in ("-S", f"{key}={value}")]
    done = workspaces.nightpress(root, "run", "-c", f"examples/{example}", "--json", *overrides)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def verdicts(told: dict[str, object]) -> set[str]:
    return {row["verdict"] for row in told["variants"]}  # type: ignore[attr-defined]


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
            "recipes.short-int8": '[{structure.layer_drop: {keep: 2}}, quantization.dynamic]',
        },
    )  # fmt: skip
    assert verdicts(told) <= {"passed", "rejected"}
    assert sum(told["rows"].values()) > 500  # type: ignore[attr-defined]


def test_own_csv(checkout: Path) -> None:
    told = run(checkout, "own-csv.yaml", **{"baseline.model": "./base", "baseline.max_length": 16})
    assert verdicts(told) <= {"passed", "rejected"}


def test_a_model_that_is_fine_tuned_already(checkout: Path) -> None:
    model = tiny.tiny_bert(seed=4)
    model.model.save_pretrained(checkout / "my-model")
    model.tokenizer.save_pretrained(checkout / "my-model")
    told = run(
        checkout, "fine-tuned.yaml",
        **{
            "baseline.max_length": 16,
            "recipes.short-int8": '[{structure.layer_drop: {keep: 2}}, quantization.dynamic]',
        },
    )  # fmt: skip
    assert verdicts(told) <= {"passed", "rejected"}
    baseline = next(node for node in told["nodes"] if node["technique"] == "baseline")  # type: ignore[attr-defined]
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
