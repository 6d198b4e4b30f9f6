"""The page of techniques is the code's, and the committed one is not stale."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from tasks import technique, technique_docs, technique_results
from tasks.errors import StoreError
from tasks.technique_results import Measured, Ratio, RecipeResult, Results, Step

ROOT = Path(__file__).parents[2]
PLAIN = Measured(0.86, 6.8, 9.0, 370.0, 90_000_000)
GOOD = RecipeResult(
    recipe="small",
    steps=(Step("structure.layer_drop", "keep 3"), Step("quantization.dynamic", "")),
    verdict="passed", reasons=(), proof="25% fewer parameters, 15 operators in int8", proven=True,
    measured=Measured(0.85, 2.0, 3.0, 900.0, 20_000_000), loss_points=1.0, loss_bound_points=1.9,
    speedup_pytorch=Ratio(3.4, 3.3, 3.5), speedup_fp32=Ratio(1.7, 1.6, 1.8), shrink=4.5,
)  # fmt: skip
BROKEN = RecipeResult(
    recipe="broken", steps=(Step("quantization.dynamic", ""),), verdict="failed",
    reasons=("loss is nan",), proof="", proven=False,
)  # fmt: skip
RESULTS = Results(
    date="2026-01-02", night="2026-01-02T020000", command="nightpress run --recipes all",
    data="pypi://reviews", num_texts=2495, machine={"cores": "2", "processor": "a processor"},
    fingerprint="cafe", versions={"torch": "2.13.0"}, revision="abc", pytorch=PLAIN, fp32=PLAIN,
    recipes=(BROKEN, GOOD),
)  # fmt: skip


def section(page: str, name: str) -> str:
    return page.split(f"\n### `{name}`\n")[1].split("\n## ")[0].split("\n### ")[0]


def test_the_committed_page_is_what_the_code_says_now() -> None:
    committed = (ROOT / technique_docs.PAGE).read_text(encoding="utf-8")
    assert committed == technique_docs.page(ROOT), "docs/techniques.md is stale: run `make docs`"


def test_every_technique_has_its_text_its_settings_and_its_proof(tmp_path: Path) -> None:
    page = technique_docs.page(tmp_path)
    overview = page.split("\n## ")[0]
    for name in technique.names():
        module, text = technique.load(name), section(page, name)
        anchor = re.sub(r"[^\w-]", "", f"### `{name}`".lower())
        assert f"[`{name}`](#{anchor})" in overview
        for paragraph in (module.__doc__ or "").strip().split("\n\n"):
            assert paragraph.strip("\n").replace("Applies to ", "**Applies to** ", 1) in text
        for setting in technique.config_class(name).model_fields:
            assert f"\n| `{setting}` | " in text
        assert f"**Proof of effect:** {technique_docs.effect(module)}." in text
        assert "No recipe of the last results holds it." in text
        assert ("it ends a recipe" in text) == getattr(module, "LAST", False)
    assert "All results" not in page


def test_results_are_shown_with_command_machine_and_date(tmp_path: Path) -> None:
    technique_results.write(RESULTS, tmp_path / technique_results.FOLDER)
    page = technique_docs.page(tmp_path)
    text = section(page, "structure.layer_drop")
    assert "On the embedded data, 2026-01-02, on 2 cores of a processor (machine `cafe`):" in text
    row = "| `small` | 85.00 | 1.00 (1.90) | 2.00 | 3.40× (3.30 to 3.50) | 1.70× (1.60 to 1.80) "
    assert f"{row}| 900 | 20.0 | passed |" in text
    steps = "structure.layer_drop (keep 3) → quantization.dynamic"
    assert f"* `nightpress run --recipes small`: {steps}. Proof: 25% fewer parameters, 15" in text
    assert "broken" not in text
    shorter_first = section(page, "quantization.dynamic")
    assert shorter_first.index("`broken`") < shorter_first.index("`small`")
    assert "Proof: not recorded; failed: loss is nan." in shorter_first
    everything = page.split("\n## All results\n")[1]
    assert "on 2,495 test texts, by `nightpress run --recipes all`" in everything
    assert "| baseline, ONNX Runtime fp32 | 86.00 |  | 6.80 |  |  | 370 | 90.0 |  |" in everything
    assert everything.index("`small`") < everything.index("`broken`")


def test_the_newest_results_count(tmp_path: Path) -> None:
    folder = tmp_path / technique_results.FOLDER
    for date in ("2026-02-01", "2026-01-02"):
        technique_results.write(dataclasses.replace(RESULTS, date=date), folder)
    path, found = technique_results.latest(folder) or (None, None)
    assert path == folder / "techniques-2026-02-01.json"
    assert found == dataclasses.replace(RESULTS, date="2026-02-01")
    assert technique_results.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 7}', '{"format": 1}'])
def test_what_are_no_results_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "techniques-2026-01-02.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=re.escape(path.name)) as caught:
        technique_results.read(path)
    assert "\n" not in str(caught.value)


def test_a_removed_technique_leaves_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tuple(name for name in technique.names() if name != "pruning.magnitude")
    monkeypatch.setattr(technique, "names", lambda: left)
    page = technique_docs.page(tmp_path)
    assert "### `pruning.magnitude`" not in page
    assert "### `pruning.weighted`" in page


def test_the_page_is_written_into_the_checkout(tmp_path: Path) -> None:
    shutil.copytree(ROOT / technique_results.FOLDER, tmp_path / technique_results.FOLDER)
    assert technique_docs.write(tmp_path) == tmp_path / "docs" / "techniques.md"
    committed = (ROOT / technique_docs.PAGE).read_bytes()
    assert (tmp_path / "docs" / "techniques.md").read_bytes() == committed
