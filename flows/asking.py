"""`nightpress predict`: ask a registered model about texts."""

import json
import sys

from rich.console import Console
from rich.table import Table

from tasks.registry import versions
from tasks.registry.store import open_store
from tasks.workspace import Workspace


def ask(workspace: Workspace, name: str, texts: list[str], *, version: str, as_json: bool) -> None:
    """Print label and probability of each text, as the model `name` at `version` answers.

    Raises ServiceError where the registry has no such version.
    """
    client = open_store(workspace)
    model = versions.load_model(client, name, version)
    answers = model.predict(texts)
    rows = [
        {"text": text, "label": str(answer.label), "probability": float(answer.probability)}
        for text, answer in zip(texts, answers.itertuples(), strict=True)
    ]
    if as_json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return
    table = Table("label", "probability", "text", box=None)
    for row in rows:
        table.add_row(row["label"], f"{row['probability']:.3f}", row["text"])
    Console().print(table, markup=False)
