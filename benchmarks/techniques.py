"""Presses recipes on the embedded data in one night, and makes the table of techniques from it.

    python -m benchmarks.techniques                      # a night of every recipe of params.yaml
    python -m benchmarks.techniques --recipes int8,short # of these
    python -m benchmarks.techniques --from .             # the last night of a workspace
    python -m benchmarks.techniques --from night.json    # any night's own file

Writes `benchmarks/results/techniques-<date>.json` and, from it, `docs/techniques.md`. Exits with 1
where a technique of the code is in no recipe that proves its effect, and names it. What is
measured, and how, stands in `benchmarks/README.md`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks import provenance, settings, technique, technique_docs, technique_results
from tasks.errors import EXIT_VARIANTS_FAILED, NightpressError, StoreError
from tasks.registry import telling
from tasks.registry.night_facts import Figures, Interval, NightFacts, VariantRow, from_json
from tasks.technique_results import Measured, Ratio, RecipeResult, Results, Step
from tasks.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
PARAMS = "params.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = _parsed(arguments)
    try:
        if given.origin is None:
            facts = _pressed(given.root, given.recipes)
            command = f"nightpress run --recipes {given.recipes}"
            revision = provenance.code(given.root)["revision"]
        else:
            facts, revision = _told(given.origin, given.night), ""
            command = f"python -m benchmarks.techniques --from {given.origin.name or '.'}"
        results = of_night(facts, command, revision)
        print(technique_results.write(results, given.root / technique_results.FOLDER))
        print(technique_docs.write(given.root))
    except NightpressError as error:
        print(f"benchmarks.techniques: {error}", file=sys.stderr)
        return error.exit_code
    lacking = unproven(results)
    for line in lacking:
        print(f"benchmarks.techniques: {line}", file=sys.stderr)
    return 1 if lacking else 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.techniques", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--recipes", default="all", help="which to press, as `nightpress run` does")
    parser.add_argument(
        "--from", dest="origin", type=Path, help="a night.json, or a workspace: press nothing"
    )
    parser.add_argument("--night", help="which night of that workspace; the last one by default")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that it works in")
    return parser.parse_args(arguments)


def _pressed(root: Path, recipes: str) -> NightFacts:
    """Run a night in the checkout `root` by the real command, and return its facts.

    A variant that fails is a result; raises NightpressError where the night itself failed.
    """
    command = [sys.executable, "-m", "flows.cli", "run", "--recipes", recipes, "--json"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, EXIT_VARIANTS_FAILED):
        raise NightpressError(f"the night ended with exit code {done.returncode}; see above")
    return from_json(json.loads(done.stdout))


def _told(origin: Path, night: str | None) -> NightFacts:
    """Return the facts of a night that is over: in a file, or told in a workspace.

    Raises StoreError where there are none.
    """
    if origin.is_dir():
        workspace = Workspace.find(origin)
        return telling.past(workspace, settings.load(workspace.root / PARAMS).name, night)
    try:
        return from_json(json.loads(origin.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"{origin} is no night.json that can be read: {error}") from error


def of_night(facts: NightFacts, command: str, revision: str) -> Results:
    """Return the results of all variants of a night.

    Latencies may have been taken by an earlier night of the same models: the date is theirs.
    """
    measured = next((row.measured_run for row in facts.variants if row.measured_run), facts.night)
    return Results(
        date=measured[:10],
        night=facts.night,
        command=command,
        data=facts.data_name,
        num_texts=facts.rows.get("test", 0),
        machine=dict(facts.machine),
        fingerprint=facts.fingerprint,
        versions=dict(facts.versions),
        revision=revision,
        pytorch=_measured(facts.eager),
        fp32=_measured(facts.fp32),
        recipes=tuple(_result(row, facts) for row in facts.variants),
    )


def _result(row: VariantRow, facts: NightFacts) -> RecipeResult:
    shrink = None
    if row.figures is not None and facts.fp32 is not None:
        shrink = facts.fp32.size_bytes / row.figures.size_bytes
    return RecipeResult(
        recipe=row.recipe,
        steps=_steps(row, facts),
        verdict=row.verdict,
        reasons=row.reasons,
        proof=row.proof,
        proven=bool(row.proof) and row.proof not in row.reasons,
        measured=_measured(row.figures),
        loss_points=row.loss_points,
        loss_bound_points=row.loss_bound_points,
        speedup_pytorch=_ratio(row.speedup_eager),
        speedup_fp32=_ratio(row.speedup_fp32),
        shrink=shrink,
    )


def _steps(row: VariantRow, facts: NightFacts) -> tuple[Step, ...]:
    """Return the techniques from the baseline down, with the settings that the tree tells."""
    nodes = {node.key: node for node in facts.nodes}
    steps: list[Step] = []
    node = nodes.get(row.node_key)
    while node is not None and node.parent is not None:
        steps.insert(0, Step(node.technique, node.settings))
        node = nodes.get(node.parent)
    return tuple(steps) or tuple(Step(name, "") for name in row.steps)


def _measured(figures: Figures | None) -> Measured | None:
    if figures is None:
        return None
    return Measured(
        accuracy=figures.accuracy,
        p50_ms=figures.p50_ms,
        p95_ms=figures.p95_ms,
        throughput=figures.throughput,
        size_bytes=figures.size_bytes,
    )


def _ratio(interval: Interval | None) -> Ratio | None:
    return None if interval is None else Ratio(interval.value, interval.lower, interval.upper)


def unproven(results: Results) -> list[str]:
    """Return a line for every technique of the code that no recipe shows to have an effect."""
    lines = []
    for name in technique.names():
        found = results.of(name)
        if not found:
            lines.append(f"{name} is in no recipe of this night")
        elif not any(one.proven for one in found):
            lines.append(f"{name} is proven by no recipe of this night: {_why(found[0])}")
    return lines


def _why(one: RecipeResult) -> str:
    if one.verdict == "failed":
        return f"{one.recipe} failed: {'; '.join(one.reasons)}"
    return one.proof or f"the proof of {one.recipe} was not recorded"


if __name__ == "__main__":
    sys.exit(main())
