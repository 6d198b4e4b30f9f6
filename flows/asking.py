"""`nightpress predict`: ask a registered model about texts."""

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.registry import versions
from tasks.registry.store import open_store
from tasks.workspace import Workspace


def ask(workspace: Workspace, name: str, texts: list[str], *, version: str, as_json: bool) -> None:
    """Print label and probability of each text, as the model `name` at `version` answers.

    Raises ServiceError where the registry has no such version.
    """
    client = open_store(workspace)
    standing = versions.named(client, name, version)
    answers = versions.load(client, standing).predict([{"text": text} for text in texts])
    rows = list(zip(answers["label"], answers["probability"], texts, strict=True))
    if as_json:
        told = [{"text": t, "label": la, "probability": float(p)} for la, p, t in rows]
        json.dump(told, sys.stdout)
        sys.stdout.write("\n")
        return
    table = Table("label", "probability", "text", box=None)
    for label, probability, text in rows:
        table.add_row(label, f"{probability:.3f}", Text(text))
    Console().print(table)
