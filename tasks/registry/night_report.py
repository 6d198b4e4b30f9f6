"""The night's report: a table in the terminal, a page, Markdown; from facts that outlive it."""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from tasks.registry import plots, table, words
from tasks.registry.night_facts import NightFacts, NodeRow, VariantRow, from_json, to_json

__all__ = ["NightFacts", "from_json", "html", "markdown", "terminal_table", "to_json", "write_html"]

_SPECIAL = "\\`*_{}[]<>()#+!|~"


def terminal_table(facts: NightFacts, console: Console) -> None:
    """Print the night's result; colours and bold only where the console is a terminal."""
    table.show(facts, console)


def write_html(facts: NightFacts, path: Path) -> None:
    """Write the page beside `path` and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html(facts))
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def html(facts: NightFacts) -> str:
    """Return one self-contained page: no server, no outside request, names escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, safe_link=safe_link)
    return environment.get_template("report.html.j2").render(
        facts=facts,
        plot=Markup(_plot(facts)),  # noqa: S704 - every text in it is escaped by plots
        tree=list(tree(facts.nodes)),
        ends=_ends(facts),
        total=sum(p.seconds for p in facts.phases) or 1.0,
    )


def markdown(facts: NightFacts) -> str:
    """Return the result for a Prefect artifact."""
    lines = [
        f"# {_plain(facts.name)}, night {_plain(facts.night)}",
        f"{facts.when} · {words.duration(facts.seconds)}",
        "",
        _plain(table._standing(facts).plain),
        "",
        "| model | accuracy % | lost [bound] | p50 ms | texts/s | MB | vs PyTorch | vs fp32 "
        "| verdict |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, figures in (("baseline, PyTorch", facts.eager), ("baseline, fp32", facts.fp32)):
        if figures:
            lines.append(f"| {name} | {' | '.join(_measured(figures, ''))} | | | |")
    for row in facts.ranked:
        cells = _measured(row.figures, _plain(words.lost(row)))
        ratios = [words.times(row.speedup_eager), words.times(row.speedup_fp32)]
        reasons = "; ".join(_plain(reason) for reason in row.reasons)
        verdict = f"{row.verdict}: {reasons}" if reasons else row.verdict
        lines.append(f"| {' | '.join([_plain(row.recipe), *cells, *ratios, verdict])} |")
    links = [
        f"[{_plain(title)}](<{address}>)"
        for title, address in facts.links.items()
        if safe_link(address) and not set(address) & set("<>\n")
    ]
    return "\n".join([*lines, "", " · ".join(links), ""])


def safe_link(address: str) -> str:
    """Return the address where it is a path or a plain web address, else nothing."""
    scheme = urlsplit(address.strip()).scheme.lower()
    return address.strip() if scheme in ("", "file", "http", "https") else ""


def tree(nodes: tuple[NodeRow, ...]) -> Iterator[tuple[int, NodeRow]]:
    """Yield (depth, node), parents before children; a node of an unknown parent is a root."""
    known = {node.key for node in nodes}
    children: dict[str | None, list[NodeRow]] = {}
    for node in nodes:
        children.setdefault(node.parent if node.parent in known else None, []).append(node)
    waiting = [(0, node) for node in reversed(children.get(None, []))]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        waiting += [(depth + 1, child) for child in reversed(children.get(node.key, []))]


def _ends(facts: NightFacts) -> dict[str, list[VariantRow]]:
    """Return node key → the recipes that end in it."""
    ends: dict[str, list[VariantRow]] = {}
    for row in facts.variants:
        ends.setdefault(row.node_key, []).append(row)
    return ends


def _plot(facts: NightFacts) -> str:
    points, front = [], []
    baselines = (
        ("eager", "baseline, PyTorch", facts.eager),
        ("fp32", "baseline, fp32", facts.fp32),
    )
    rows: list[tuple[Any, ...]] = [(k, name, f, False) for k, name, f in baselines if f]
    champion = facts.champion
    for row in facts.ranked:
        if row.figures and row.verdict != "failed":
            kind = "champion" if row is champion else row.verdict
            rows.append((kind, row.recipe, row.figures, row.on_front))
    for kind, name, figures, on_front in rows:
        if not (figures.p50_ms > 0 and math.isfinite(figures.p50_ms * figures.accuracy)):
            continue
        tip = (
            f"{name}: {words.percent(figures.accuracy)}% accuracy, "
            f"{words.milliseconds(figures.p50_ms)} ms, {words.megabytes(figures.size_bytes)} MB"
        )
        points.append(
            plots.Point(name, figures.p50_ms, figures.accuracy, figures.size_bytes, kind, tip)
        )
        front += [points[-1]] if on_front else []
    reference = facts.fp32 or facts.eager
    floor = None
    if reference and facts.max_loss_points is not None:
        floor = reference.accuracy - facts.max_loss_points / 100
    return plots.pareto(points, front, floor)


def _measured(figures: Any, lost: str) -> list[str]:
    if figures is None:
        return [words.NONE] * 5
    return [
        words.percent(figures.accuracy),
        lost,
        words.milliseconds(figures.p50_ms),
        words.number(figures.throughput, 0),
        words.megabytes(figures.size_bytes),
    ]


def _plain(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line."""
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in table.clean(text))
