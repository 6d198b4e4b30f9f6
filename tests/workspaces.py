"""Small whole checkouts for tests: a table, a tiny base model, settings, and the real command."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny

QUICK = {
    "name": "tiny-reviews",
    "source": {"address": "reviews.csv", "text": "text", "label": "label"},
    "validation": {"min_rows": 20, "max_split_imbalance": 0.2},
    "baseline": {"model": "base", "max_length": 16, "training": {"epochs": 4}},
    "training": {"epochs": 3, "learning_rate": 3e-3},
    "recipes": {
        "int8": [{"quantization.dynamic": {}}],
        "short": [{"structure.layer_drop": {"keep": 2}}, {"distillation.logits": {}}],
        "short-int8": [
            {"structure.layer_drop": {"keep": 2}},
            {"distillation.logits": {}},
            {"quantization.dynamic": {}},
        ],
    },
    # a tiny model proves nothing of accuracy or speed: here, being smaller alone decides
    "gates": {
        "max_loss_points": 100,
        "max_loss_bound_points": 100,
        "max_recall_drop_points": 100,
        "max_slice_drop_points": 100,
        "max_calibration_rise": 1,
        "min_accuracy": 0,
        "min_speedup": 1000,
        "min_shrink": 1.1,
    },
    # so that a node comes out the same, bit by bit, however many are pressed side by side
    "threads": 1,
    "evaluation": {"rounds": 3, "texts_per_round": 4, "batches_per_round": 1, "resamples": 200},
}


def make(root: Path, count: int = 600, settings: dict[str, Any] | None = None) -> Path:
    """Return `root` as a checkout with `count` labelled sentences and a tiny random BERT."""
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"],
        cwd=root, check=True, env=environment(),
    )  # fmt: skip
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_reviews(root / "reviews.csv", count)
    base = tiny.tiny_bert()
    base.model.save_pretrained(root / "base")
    base.tokenizer.save_pretrained(root / "base")
    (root / "params.yaml").write_text(json.dumps(settings or QUICK))  # JSON is YAML
    return root


def write_reviews(path: Path, count: int, seed: int = 0) -> None:
    """Write a CSV of distinct sentences whose label can be learned from their words."""
    examples = tiny.examples(count * 2, seed)
    seen: dict[str, int] = {}
    for text, label in zip(examples.texts, examples.labels, strict=True):
        seen.setdefault(text, int(label))
    rows = [f"{text},{tiny.LABELS[label]}" for text, label in list(seen.items())[:count]]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command of its own: one thread, no telemetry, no servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "COLUMNS": "200", **more}


def nightpress(
    root: Path, *arguments: str, timeout: float = 300, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command in `root` and return how it ended."""
    return subprocess.run(
        command(*arguments), cwd=root, capture_output=True, text=True, timeout=timeout,
        env=environment(**more), check=False,
    )  # fmt: skip


def command(*arguments: str) -> Sequence[str]:
    """Return the command line of the installed command."""
    return [str(Path(sys.executable).with_name("nightpress")), *arguments]
