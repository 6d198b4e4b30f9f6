"""Presses two models under several seeds, and tells what the second loses against the first.

    python -m benchmarks.seeds int8 qat-int8
    python -m benchmarks.seeds "baseline baseline.lstm.hidden=128" lstm --seeds 1,2,3,4

A model is a recipe of params.yaml, or `baseline`; settings behind it hold for it alone. What is
pressed already is not pressed again. Writes a file `seeds-<first>-<second>-<date>.json` into
`benchmarks/results/`. What is measured, and how, stands in `benchmarks/README.md`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.techniques import PARAMS, ROOT
from flows.console import Narrator
from tasks import exports, files, predictions, provenance, settings, technique_results, trial
from tasks import night as nights
from tasks import press as pressing
from tasks.data import pipeline
from tasks.data.model import fetch_model
from tasks.errors import NightpressError, SettingsError
from tasks.evaluation import paired
from tasks.runtime.fingerprint import fingerprint, machine
from tasks.settings import BASELINE
from tasks.training.progress import Progress
from tasks.workspace import Workspace

SEEDS = (13, 14, 15)
RESAMPLES = 10_000


@dataclass(frozen=True)
class Arm:
    """One of the two models."""

    model: str
    """A recipe's name, or `baseline`."""
    overrides: tuple[str, ...] = ()
    """Settings of its own, as `-S` of `nightpress run` takes them."""


@dataclass(frozen=True)
class SeedResult:
    """One seed's."""

    seed: int
    first: float
    second: float
    """Share of test texts that the model answers right."""
    loss: paired.PairedLoss
    """What the second loses against the first."""


@dataclass(frozen=True)
class Comparison:
    """All seeds' together."""

    first: Arm
    second: Arm
    seeds: tuple[SeedResult, ...]
    mean: paired.MeanLoss
    num_texts: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = _parsed(arguments)
    progress = Narrator(Console(stderr=True))
    try:
        first, second = (_arm(text) for text in (given.first, given.second))
        compared = compare(Workspace(given.root), first, second, _seeds(given.seeds), progress)
        print(write(compared, given.root))
    except NightpressError as error:
        print(f"benchmarks.seeds: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        progress.stop()
    print("\n".join(told(compared)))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("first", help="a recipe or `baseline`, and settings for it alone")
    parser.add_argument("second", help="the same of the model that is compared with the first")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="%(default)s unless set")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that it works in")
    return parser.parse_args(arguments)


def _arm(text: str) -> Arm:
    model, *overrides = shlex.split(text) or [""]
    return Arm(model, tuple(overrides))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"--seeds {text}: give whole numbers, as in 13,14,15") from None
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seeds {text}: one stands there twice")
    return seeds


def compare(
    workspace: Workspace, first: Arm, second: Arm, seeds: Sequence[int], progress: Progress
) -> Comparison:
    """Press both models under every seed, export and ask them, and return what came of it.

    Raises NightpressError where one of them cannot be pressed.
    """
    results, rows = [], []
    for seed in seeds:
        ours, theirs = (answered_right(workspace, arm, seed, progress) for arm in (first, second))
        rows.append((ours, theirs))
        results.append(
            SeedResult(
                seed, float(ours.mean()), float(theirs.mean()),
                paired.loss(ours, theirs, RESAMPLES, seed),
            )
        )  # fmt: skip
    stacked = np.array(rows)  # (seeds, models, texts)
    mean = paired.mean_loss(stacked[:, 0], stacked[:, 1], RESAMPLES, seed=0)
    return Comparison(first, second, tuple(results), mean, stacked.shape[2])


def answered_right(workspace: Workspace, arm: Arm, seed: int, progress: Progress) -> np.ndarray:
    """Return which test texts the model, as it would be served, answers right: bool (texts,)."""
    told = settings.load(
        workspace.root / PARAMS,
        overrides=[f"seed={seed}", *arm.overrides],
        only=[] if arm.model == BASELINE else [arm.model],
    )
    data = pipeline.reproduce(workspace, told.name, told.source, told.prepare)
    model = fetch_model(told.baseline.model, workspace.models)
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    night = nights.begin(workspace, told, name, data, model)
    for node in night.plan.nodes.values():
        progress.say(f"seed {seed}: {node.technique}")
        pressing.press(workspace, node, night.ground, progress)
    key = night.plan.baseline if arm.model == BASELINE else night.plan.leaves[arm.model]
    manifest, _ = pressing.press(workspace, night.plan.nodes[key], night.ground, progress)
    table = pd.read_parquet(trial.ask(night, exports.exported(workspace, manifest)))
    probabilities, numbers = predictions.of_split(table, data.labels, "test")
    return np.asarray(probabilities.argmax(axis=1) == numbers)


def write(compared: Comparison, root: Path) -> Path:
    """Write the comparison into its file, with machine and versions, and return it."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    names = f"{compared.first.model}-{compared.second.model}"
    path = root / technique_results.FOLDER / f"seeds-{names}-{today}.json"
    here = machine()
    content: dict[str, Any] = {
        "date": today,
        **asdict(compared),
        "machine": here,
        "fingerprint": fingerprint(here),
        "revision": provenance.code(root)["revision"],
    }
    files.write_json(path, content)
    path.chmod(0o644)
    return path


def told(compared: Comparison) -> list[str]:
    """Return the comparison as lines for people."""
    first, second = compared.first.model, compared.second.model
    lines = [
        f"seed {one.seed}: {first} {one.first:.2%}, {second} {one.second:.2%}, "
        f"lost {one.loss.points:+.2f} points"
        for one in compared.seeds
    ]
    mean = compared.mean
    return [
        *lines,
        f"{second} loses {mean.points:+.2f} points against {first}, mean of {len(lines)} seeds on "
        f"{compared.num_texts} texts; one-sided 95% bounds {mean.lower:+.2f} and {mean.upper:+.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
