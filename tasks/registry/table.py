"""The night's result in a terminal, a hundred columns wide."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.registry import words
from tasks.registry.night_facts import Figures, NightFacts, VariantRow

_STYLES = {"passed": "green", "rejected": "yellow", "failed": "red"}
_NAME_LENGTH = 22
CHAMPION_MARK = "★"
CHALLENGER_MARK = "☆"


def show(facts: NightFacts, console: Console) -> None:
    """Print heading, table, why variants were rejected, who is champion, and what it cost."""
    line = f"{facts.name} · {facts.when} · {words.duration(facts.seconds)}"
    console.print(Text(f"Night {clean(facts.night)}", style="bold"), Text(clean(line)), sep="  ")
    console.print(_table(facts))
    if any(row.reasons for row in facts.variants):
        console.print(_reasons(facts))
    for text in _endings(facts):
        console.print(text)


def clean(text: str) -> str:
    """Return the text on one line, with no control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def _table(facts: NightFacts) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold", collapse_padding=True)
    table.add_column("")
    table.add_column("model", no_wrap=True, max_width=_NAME_LENGTH)
    for name in (
        "acc %", "lost [bound]", "p50 ms", "p95", "texts/s", "MB", "vs\nPyTorch", "vs\nfp32",
    ):  # fmt: skip
        # as Text: rich would take [bound] for markup
        table.add_column(Text(name), justify="right", no_wrap=True, vertical="bottom")
    table.add_column("verdict", no_wrap=True)
    _baseline(table, "baseline, PyTorch", facts.eager, facts)
    _baseline(table, "baseline, fp32 runtime", facts.fp32, facts)
    for row in facts.ranked:
        table.add_row(*_cells(row, facts))
    return table


def _baseline(table: Table, name: str, figures: Figures | None, facts: NightFacts) -> None:
    if figures is None:
        return
    ratios = [
        words.NONE if other is None or other is figures else f"{other.p50_ms / figures.p50_ms:.2f}×"
        for other in (facts.eager, facts.fp32)
    ]
    cells = ["", name, words.percent(figures.accuracy), "", *_speeds(figures), *ratios, ""]
    table.add_row(*(Text(cell, style="dim") for cell in cells), end_section=name.endswith("time"))


def _cells(row: VariantRow, facts: NightFacts) -> list[Text]:
    mark = _mark(row, facts)
    style = "bold" if mark == CHAMPION_MARK else ""
    accuracy = words.percent(row.figures.accuracy if row.figures else None)
    speeds = _speeds(row.figures) if row.figures else [words.NONE] * 4
    cells = [
        mark, clean(row.recipe), accuracy, words.lost(row), *speeds,
        words.times(row.speedup_eager), words.times(row.speedup_fp32),
    ]  # fmt: skip
    verdict = Text(row.verdict + (", cached" if row.cached else ""), style=_STYLES[row.verdict])
    return [*(Text(cell, style=style, overflow="ellipsis") for cell in cells), verdict]


def _reasons(facts: NightFacts) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=3)
    grid.add_column(no_wrap=True, max_width=_NAME_LENGTH)
    grid.add_column()
    for row in facts.ranked:
        for index, reason in enumerate(row.reasons):
            name = Text(clean(row.recipe) if index == 0 else "", style=_STYLES[row.verdict])
            grid.add_row("", name, Text(clean(reason)))
    return grid


def _speeds(figures: Figures) -> list[str]:
    return [
        words.milliseconds(figures.p50_ms),
        words.milliseconds(figures.p95_ms),
        words.number(figures.throughput, 0),
        words.megabytes(figures.size_bytes),
    ]


def _mark(row: VariantRow, facts: NightFacts) -> str:
    if facts.champion_after and row.node_key == facts.champion_after.node_key:
        return CHAMPION_MARK
    if facts.challenger_after and row.node_key == facts.challenger_after.node_key:
        return CHALLENGER_MARK
    return ""


def _endings(facts: NightFacts) -> list[Text]:
    lines = []
    if facts.variants:
        lines.append(Text("vs: p50 of that baseline divided by the model's", style="dim"))
    if facts.note:
        lines.append(Text(clean(facts.note), style="red"))
    lines.append(_standing(facts))
    if facts.phases:
        share = f"{100 * facts.overhead_share:.1f}%"
        costs = ", ".join(f"{p.name} {words.duration(p.seconds)}" for p in facts.phases)
        lines.append(Text(clean(f"Costs: {costs}; overhead {share}."), style="dim"))
    return lines


def _standing(facts: NightFacts) -> Text:
    after, before = facts.champion_after, facts.champion_before
    if after is None:
        return Text("No champion yet: no variant has passed the gates.", style="yellow")
    text = f"{CHAMPION_MARK} champion: {clean(after.recipe)}, version {after.version}"
    if before is None:
        text += " (the first)"
    elif before.node_key != after.node_key:
        text += f" (before: {clean(before.recipe)}, version {before.version})"
    else:
        text += " (unchanged)"
    waiting = facts.challenger_after
    if waiting and waiting.node_key != after.node_key:
        text += f"   {CHALLENGER_MARK} challenger: {clean(waiting.recipe)}"
    return Text(text, style="bold")
