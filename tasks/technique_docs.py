"""`docs/techniques.md`, from the code: docstrings, settings, marks, and the last results.

`python -m tasks.technique_docs` writes it; nothing in it is written by hand.
"""

import inspect
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType

from tasks import settings_docs, students, technique, technique_results
from tasks.settings_docs import Linked
from tasks.students import StudentConfig
from tasks.technique_results import Measured, RecipeResult, Results
from tasks.training.config import TrainingConfig

PAGE = Path("docs", "techniques.md")
_ROOT = Path(__file__).resolve().parent.parent
_EFFECTS = {
    "parameters": "fewer parameters",
    "grown": "more parameters",
    "zeros": "a larger share of weights that are exactly zero",
    "quantized": "operators of the exported graph that compute in int8",
    "packed": "matrices of the exported file that are stored in few bits",
    "activation": "no GELU in the exported graph",
    "length": "fewer tokens that a text is cut to",
    "answers": "its answers alone: it trains, and leaves no other mark",
}
"""Mark → what is counted in the model that is served, and how it must differ."""
_LINKED: Linked = {
    TrainingConfig: "[training settings](#training)",
    StudentConfig: "[a student](#students) or null",
}
_SHOWN = 3
"""Recipes shown of one technique, at most."""
_NONE = "–"


def page(root: Path = _ROOT) -> str:
    """Return the page for the techniques of this code and the results in the checkout `root`."""
    found = technique_results.latest(root / technique_results.FOLDER)
    results = found[1] if found else None
    lines = [
        "# Techniques",
        "",
        "<!-- made by `make docs` from the code: edit the docstrings, not this page -->",
        "",
        "A recipe in `params.yaml` is a list of these, applied in order to the baseline. Each is "
        "one file; what it does, its settings and what it is proven by stand there, and here.",
        "",
        *_overview(),
    ]
    for family, names in groupby(technique.names(), lambda name: name.partition(".")[0]):
        lines += ["", f"## {family.capitalize()}"]
        for name in names:
            lines += ["", *_section(name, technique.load(name), results)]
    lines += ["", *_shared()]
    if found is not None:
        lines += ["", *_all_results(found[0].relative_to(root), found[1])]
    return "\n".join(lines) + "\n"


def write(root: Path = _ROOT) -> Path:
    """Write the page into the checkout `root` and return its path."""
    path = root / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(root), encoding="utf-8")
    return path


def effect(module: ModuleType) -> str:
    """Return in words what proves the effect of the technique in `module`."""
    declared = module.EFFECT
    if callable(declared):
        return "what its settings ask for"
    marks = (declared,) if isinstance(declared, str) else tuple(declared)
    return ", and ".join(_EFFECTS.get(mark, mark) for mark in marks)


def _overview() -> Iterator[str]:
    yield "| technique | what it does | proven by |"
    yield "|---|---|---|"
    for name in technique.names():
        module = technique.load(name)
        summary = " ".join(_paragraphs(module)[0].split()).rstrip(":.")
        yield f"| [`{name}`](#{_anchor(name)}) | {_cell(summary)} | {effect(module)} |"


def _section(name: str, module: ModuleType, results: Results | None) -> Iterator[str]:
    yield f"### `{name}`"
    for paragraph in _paragraphs(module):
        yield ""
        yield paragraph.replace("Applies to ", "**Applies to** ", 1)
    yield ""
    yield f"* **Proof of effect:** {effect(module)}."
    yield f"* **What can follow:** {_followers(module)}."
    yield f"* **Reads the data:** {_reads_data(module)}."
    path = f"tasks/{name.replace('.', '/')}.py"
    yield f"* **Code:** [`{path}`](../{path})"
    yield ""
    yield from settings_docs.table(technique.config_class(name), _LINKED)
    yield ""
    yield from _results_of(name, results)


def _paragraphs(module: ModuleType) -> list[str]:
    """Return the paragraphs of the module's docstring; formulas are indented, as in Markdown."""
    text = inspect.getdoc(module)
    assert text is not None
    return text.split("\n\n")


def _followers(module: ModuleType) -> str:
    return "nothing; it ends a recipe" if getattr(module, "LAST", False) else "other steps"


def _reads_data(module: ModuleType) -> str:
    declared = getattr(module, "READS_DATA", True)
    if callable(declared):
        return "by its settings"
    return "yes" if declared else "no; its result is the same for any"


def _shared() -> Iterator[str]:
    """Yield what several techniques have among their settings."""
    yield "## Training"
    yield ""
    yield (
        "A step's `training` is laid over the general `training` of the settings file (see "
        "[settings](settings.md#training)), whose defaults these are."
    )
    yield ""
    yield from settings_docs.table(TrainingConfig)
    yield ""
    yield "## Students"
    yield ""
    yield inspect.getdoc(students) or ""
    yield ""
    yield from settings_docs.table(StudentConfig)


def _results_of(name: str, results: Results | None) -> Iterator[str]:
    found = results.of(name)[:_SHOWN] if results else []
    if results is None or not found:
        yield "No recipe of the last results holds it."
        return
    yield f"On the embedded data, {_where(results)}:"
    yield ""
    yield from _table(found)
    yield ""
    for one in found:
        # equal recipes share one line, any of their names presses it
        command = f"`nightpress run --recipes {one.recipe.split(',')[0]}`"
        proof = one.proof or "not recorded"
        why = f"; {one.verdict}: {'; '.join(one.reasons)}" if one.reasons else ""
        yield f"* {command}: {_steps(one)}. Proof: {proof}{why}."


def _all_results(path: Path, results: Results) -> Iterator[str]:
    yield "## All results"
    yield ""
    yield (
        f"{_where(results)}, on {results.num_texts:,} test texts, by `{results.command}` "
        f"([`{path.as_posix()}`](../{path.as_posix()})). *Lost* is in points of accuracy against "
        "the baseline, with its one-sided 95% bound; *vs* is the p50 of that baseline divided by "
        "the model's, with its 95% interval, from the same interleaved rounds."
    )
    yield ""
    yield from _table(_ranked(results), results)


def _where(results: Results) -> str:
    machine = results.machine
    return (
        f"{results.date}, on {machine.get('cores', '?')} cores of "
        f"{machine.get('processor', 'an unknown processor')} (machine `{results.fingerprint}`)"
    )


def _ranked(results: Results) -> list[RecipeResult]:
    """Return those that passed, then the others, the fastest first."""

    def rank(one: RecipeResult) -> tuple[int, float]:
        order = ("passed", "rejected", "failed").index(one.verdict)
        return order, one.measured.p50_ms if one.measured else 0.0

    return sorted(results.recipes, key=rank)


def _table(found: list[RecipeResult], results: Results | None = None) -> Iterator[str]:
    """Yield the lines of a table of recipes, the two baselines first where `results` has them."""
    yield "| recipe | accuracy % | lost (bound) | p50 ms | vs PyTorch | vs fp32 | texts/s | MB | |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|---|"
    if results is not None:
        for title, one in (("PyTorch", results.pytorch), ("ONNX Runtime fp32", results.fp32)):
            if one is not None:
                yield _line(f"baseline, {title}", one, "", "", "", "")
    for row in found:
        lost, bound = row.loss_points, row.loss_bound_points
        yield _line(
            f"`{row.recipe}`",
            row.measured,
            f"{_number(lost)} ({_number(bound)})" if lost is not None else _NONE,
            _times(row.speedup_pytorch),
            _times(row.speedup_fp32),
            row.verdict,
        )


def _line(
    name: str, measured: Measured | None, lost: str, pytorch: str, fp32: str, verdict: str
) -> str:
    accuracy = p50 = rate = size = _NONE
    if measured is not None:
        accuracy, p50 = f"{measured.accuracy * 100:.2f}", f"{measured.p50_ms:.2f}"
        rate, size = f"{measured.throughput:,.0f}", f"{measured.size_bytes / 1e6:.1f}"
    cells = (name, accuracy, lost, p50, pytorch, fp32, rate, size, verdict)
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _times(ratio: technique_results.Ratio | None) -> str:
    if ratio is None:
        return _NONE
    return f"{ratio.value:.2f}× ({ratio.lower:.2f} to {ratio.upper:.2f})"


def _steps(one: RecipeResult) -> str:
    words = (f"{s.technique} ({s.settings})" if s.settings else s.technique for s in one.steps)
    return " → ".join(words)


def _anchor(name: str) -> str:
    """Return the link that a page of Markdown gives the section of a technique."""
    return name.replace(".", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(write())
