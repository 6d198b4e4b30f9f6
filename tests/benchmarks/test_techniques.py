"""A night becomes a table of techniques, whether it is run for it or is over."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import techniques
from tasks import technique, technique_results
from tasks.registry.night_facts import NodeRow, VariantRow, to_json
from tests import workspaces
from tests.registry import samples

ROOT = Path(__file__).parents[2]
NODES = (
    NodeRow(samples.BASELINE, None, "baseline", "3 epochs", "cached", 300.0),
    NodeRow("n1", samples.BASELINE, "pruning.structured", "heads 0.75", "pressed", 61.0),
    NodeRow("n2", "n1", "quantization.dynamic", "", "pressed", 0.9),
)


def row(recipe: str, node: str, steps: tuple[str, ...], **more: object) -> VariantRow:
    return dataclasses.replace(
        samples.row(recipe, 1.0, 0.853),
        node_key=node,
        steps=steps,
        **more,  # type: ignore[arg-type]
    )


CHAIN = row(
    "both", "n2", ("pruning.structured", "quantization.dynamic"), proof="20% fewer parameters"
)
SILENT = row(
    "none", "n1", ("pruning.structured",), verdict="rejected", proof="changed nothing",
    reasons=("changed nothing",),
)  # fmt: skip
FAILED = VariantRow("bad", "gone", ("pruning.magnitude",), "failed", ("loss is nan",))
FACTS = samples.night(nodes=NODES, variants=(CHAIN, SILENT, FAILED))


def test_a_night_is_told_recipe_by_recipe() -> None:
    found = techniques.of_night(FACTS, "a command", "abc")
    both, none, bad = found.recipes
    assert [(step.technique, step.settings) for step in both.steps] == [
        ("pruning.structured", "heads 0.75"),
        ("quantization.dynamic", ""),
    ]
    assert (both.proof, both.proven, none.proven) == ("20% fewer parameters", True, False)
    assert both.measured is not None
    assert both.measured.accuracy == 0.853
    assert both.shrink == pytest.approx(91_000_000 / 20_000_000)
    assert both.speedup_fp32 is not None
    assert both.speedup_fp32.value == pytest.approx(3.4)
    assert (bad.verdict, bad.measured, bad.reasons) == ("failed", None, ("loss is nan",))
    assert [step.technique for step in bad.steps] == ["pruning.magnitude"]
    assert (found.date, found.command, found.revision) == ("2026-01-02", "a command", "abc")
    assert (found.num_texts, found.fingerprint) == (2517, "cafe")
    assert found.pytorch is not None
    assert found.pytorch.p50_ms == 6.8


def test_the_date_is_when_the_latencies_were_taken() -> None:
    earlier = dataclasses.replace(CHAIN, measured_run="2025-12-31T020000")
    found = techniques.of_night(dataclasses.replace(FACTS, variants=(earlier,)), "", "")
    assert (found.date, found.night) == ("2025-12-31", "2026-01-02")


def test_techniques_that_nothing_proves_are_named() -> None:
    told = techniques.unproven(techniques.of_night(FACTS, "", ""))
    assert "pruning.magnitude is proven by no recipe of this night: bad failed: loss is nan" in told
    assert "structure.grow is in no recipe of this night" in told
    assert not any(line.startswith(("pruning.structured", "quantization.dynamic")) for line in told)
    alone = techniques.of_night(dataclasses.replace(FACTS, variants=(SILENT,)), "", "")
    why = "pruning.structured is proven by no recipe of this night: changed nothing"
    assert why in techniques.unproven(alone)


def test_a_nights_file_makes_the_table_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "night.json"
    origin.write_text(json.dumps(to_json(FACTS)))
    root = tmp_path / "checkout"
    assert techniques.main(["--from", str(origin), "--root", str(root)]) == 1
    assert "structure.grow is in no recipe" in capsys.readouterr().err
    _, found = technique_results.latest(root / technique_results.FOLDER) or (None, None)
    assert found == techniques.of_night(
        FACTS, "python -m benchmarks.techniques --from night.json", ""
    )
    assert "20% fewer parameters" in (root / "docs/techniques.md").read_text()


def test_all_proven_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(technique, "names", lambda: ("quantization.dynamic",))
    origin = tmp_path / "night.json"
    origin.write_text(json.dumps(to_json(FACTS)))
    assert techniques.main(["--from", str(origin), "--root", str(tmp_path)]) == 0


def test_what_is_no_night_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = tmp_path / "night.json"
    for text in ("{", "3", '{"format": 99}'):
        origin.write_text(text)
        assert techniques.main(["--from", str(origin), "--root", str(tmp_path)]) == 6
        assert len(capsys.readouterr().err.splitlines()) == 1


def benchmark(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.techniques", *arguments, "--root", str(root)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=workspaces.environment(PYTHONPATH=path),
    )  # fmt: skip


@pytest.mark.slow
def test_a_real_night_makes_the_same_table_run_or_over(tmp_path: Path) -> None:
    root = workspaces.make(tmp_path / "checkout", 300)
    run = benchmark(root, "--recipes", "int8")
    assert run.returncode == 1, run.stderr  # one recipe does not prove all techniques
    _, first = technique_results.latest(root / technique_results.FOLDER) or (None, None)
    assert first is not None
    (int8,) = first.recipes
    assert (int8.recipe, int8.proven) == ("int8", True)
    assert "operators in int8" in int8.proof
    assert first.command == "nightpress run --recipes int8"
    over = benchmark(root, "--from", str(root))
    assert over.returncode == 1, over.stderr
    _, second = technique_results.latest(root / technique_results.FOLDER) or (None, None)
    assert second is not None
    assert second.recipes == first.recipes
    assert "`nightpress run --recipes int8`" in (root / "docs/techniques.md").read_text()
