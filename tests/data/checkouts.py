"""Small checkouts with a DVC repository of their own, and data to put there."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tasks.workspace import Workspace

WORDS = ("plot", "acting", "music", "camera", "ending", "dialogue", "pace", "cast", "story", "tone")


def make(root: Path) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("")
    (root / "dvc.yaml").write_text("stages: {}\n")
    return Workspace(root)


def sentences(count: int, tag: str = "") -> list[tuple[str, str]]:
    """Return distinct (text, label), labels in turn."""
    return [
        (f"the {WORDS[n % 10]} of film {n} {tag}", "good" if n % 2 else "bad") for n in range(count)
    ]


def write_csv(path: Path, rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def python(root: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python code with the checkout as current folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
