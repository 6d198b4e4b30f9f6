"""What the techniques came to on a data set: one measured night, kept as a file for the docs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tasks import files
from tasks.errors import StoreError

FOLDER = Path("benchmarks", "results")
FORMAT = 1


@dataclass(frozen=True)
class Ratio:
    """How many times faster, with its 95% interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Step:
    """One technique of a recipe."""

    technique: str
    settings: str
    """Those that differ from the defaults."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one model on test texts."""

    accuracy: float
    """Share of texts, 0 to 1."""
    p50_ms: float
    """Of single texts."""
    p95_ms: float
    throughput: float
    """Texts per second, in batches."""
    size_bytes: int
    """All that is served."""


@dataclass(frozen=True)
class RecipeResult:
    """One recipe's result."""

    recipe: str
    """Its name; of equal recipes, all names."""
    steps: tuple[Step, ...]
    verdict: str
    """`passed`, `rejected` or `failed`."""
    reasons: tuple[str, ...]
    """Why not passed."""
    proof: str
    """What its effect is proven by; empty where nothing recorded it."""
    proven: bool
    measured: Measured | None = None
    """None where it failed."""
    loss_points: float | None = None
    """Accuracy lost against the baseline, in points."""
    loss_bound_points: float | None = None
    """One-sided 95% bound of that."""
    speedup_pytorch: Ratio | None = None
    """p50 of the baseline in PyTorch divided by this one's."""
    speedup_fp32: Ratio | None = None
    """p50 of the fp32 baseline in the same runtime divided by this one's."""
    shrink: float | None = None
    """Bytes of the exported fp32 baseline divided by this one's."""


@dataclass(frozen=True)
class Results:
    """One night's results."""

    date: str
    """On which the latencies were measured, `2026-01-31`."""
    night: str
    command: str
    """That made the table."""
    data: str
    """Address of the data."""
    num_texts: int
    """Test texts that accuracies are of."""
    machine: Mapping[str, str]
    fingerprint: str
    """Equal where latencies may be compared."""
    versions: Mapping[str, str]
    revision: str
    """Of the code; empty where it is not known."""
    pytorch: Measured | None
    """The baseline as PyTorch runs it."""
    fp32: Measured | None
    """The baseline exported to the variants' runtime."""
    recipes: tuple[RecipeResult, ...]

    def of(self, technique: str) -> list[RecipeResult]:
        """Return the recipes that hold `technique`, the shortest first."""
        found = [r for r in self.recipes if technique in {step.technique for step in r.steps}]
        return sorted(found, key=lambda one: len(one.steps))


def write(results: Results, folder: Path) -> Path:
    """Write the results into a file of their date in `folder`, and return it."""
    path = folder / f"techniques-{results.date}.json"
    files.write_json(path, {"format": FORMAT, **asdict(results)})
    path.chmod(0o644)
    return path


def latest(folder: Path) -> tuple[Path, Results] | None:
    """Return the newest results in `folder` and their file; None where there are none."""
    paths = sorted(folder.glob("techniques-*.json"))
    return (paths[-1], read(paths[-1])) if paths else None


def read(path: Path) -> Results:
    """Return the results in `path`. Raises StoreError where they cannot be read."""
    try:
        given: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        found = given.pop("format", None)
        if found != FORMAT:
            raise StoreError(
                f"{path} is of format {found!r}, not {FORMAT}: make it again with "
                "`python -m benchmarks.techniques`"
            )
        return TypeAdapter(Results).validate_python(given)
    except (OSError, TypeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise StoreError(f"{path} does not hold the results of techniques: {line}") from error
