"""`nightpress report`: a past night's table and page, made again from its facts."""

import json
import sys
from pathlib import Path

from rich.console import Console

from flows.console import for_results
from tasks.registry import telling
from tasks.registry.night_facts import to_json
from tasks.registry.night_report import terminal_table, write_html
from tasks.workspace import Workspace


def show_report(
    workspace: Workspace, name: str, night: str | None, output: Path, *, as_json: bool
) -> None:
    """Print the night's table, or its facts as JSON, and write its page as `output`."""
    facts = telling.past(workspace, name, night)
    write_html(facts, output)
    if as_json:
        json.dump(to_json(facts), sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    terminal_table(facts, for_results())
    Console(stderr=True).print(f"written: {output}", style="dim", highlight=False)
