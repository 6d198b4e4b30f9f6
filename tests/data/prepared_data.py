"""Small prepared data sets of plausible sentences, and the faults put into them."""

import json
from pathlib import Path

import pandas as pd

from tasks.data import normalize, prepare, prepared
from tasks.data.config import PrepareConfig

LABELS = ["negative", "positive"]
_WHO = ["The lead", "Its director", "A tired cast", "The young crew", "This sequel", "The script"]
_DOES = ["delivers", "wastes", "finds", "misses", "carries", "ruins", "saves"]
_WHAT = ["a long story", "every joke", "the quiet scenes", "a loud finale", "its own idea"]
_HOW = ["with care", "in a hurry", "for two hours", "and then some more", "without a plan", "well"]
_KINDS = len(_WHO) * len(_DOES) * len(_WHAT) * len(_HOW)
_STRIDE = 541  # has no divisor in common with _KINDS: visits all of them, well mixed


def sentences(count: int, start: int = 0) -> list[str]:
    """Return distinct sentences of one vocabulary; another start gives others."""
    made = []
    for number in range(start, start + count):
        rest, who = divmod(number % _KINDS * _STRIDE % _KINDS, len(_WHO))
        rest, does = divmod(rest, len(_DOES))
        rest, what = divmod(rest, len(_WHAT))
        how, again = rest, ["again"] * (number // _KINDS)
        made.append(" ".join([_WHO[who], _DOES[does], _WHAT[what], _HOW[how], *again]))
    return made


def write(folder: Path, texts: list[str], others: list[str]) -> Path:
    """Write `texts` as main data of two labels in turn and `others` as another domain."""
    rows: dict[str, list[tuple[str, ...]]] = {split: [] for split in prepared.COLUMNS}
    for text in texts:
        identity = normalize.digest(text)
        split = prepare.split_of(normalize.share(identity), PrepareConfig())
        # in turn within each split, so that all are balanced
        rows[split].append((identity[:8].hex(), text, LABELS[len(rows[split]) % 2]))
    for number, text in enumerate(others):
        identity = normalize.digest(text)
        if normalize.share(identity) < 0.6:
            rows["transfer"].append((identity[:8].hex(), text, "news"))
        else:
            rows["slices"].append((identity[:8].hex(), text, LABELS[number % 2], "news"))
    folder.mkdir(parents=True)
    for split, columns in prepared.COLUMNS.items():
        put(folder, split, pd.DataFrame(rows[split], columns=list(columns), dtype="str"))
    (folder / prepared.FACTS).write_text(json.dumps({"labels": LABELS}), encoding="utf-8")
    return folder


def put(folder: Path, split: str, frame: pd.DataFrame) -> None:
    """Replace one split."""
    frame.to_parquet(folder / f"{split}.parquet", index=False)


def good(folder: Path) -> Path:
    """Write 300 main sentences and 60 of another domain."""
    made = sentences(360)
    return write(folder, made[:300], made[300:])
