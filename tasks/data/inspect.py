"""Looks at a data set that nobody has described yet: columns, labels, lengths."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data import address as addresses
from tasks.data import fetch, normalize, tables
from tasks.data.address import HubAddress, HubFolder, LocalPath
from tasks.data.config import TableConfig
from tasks.data.groups import MAX_LABELS, in_order
from tasks.errors import SourceError

_TOKENS_PER_WORD = 1.4
"""English words in WordPiece and BPE vocabularies of 30,000 to 50,000 tokens, rounded up."""
_MAX_TOKENS = 512
_SAMPLE_ROWS = 5_000
_MAX_GUESSED_LABELS = 50


@dataclass(frozen=True)
class Found:
    """What a data set holds, as far as its settings need it."""

    format: tables.Format | None
    """None for a hub's data set, which tells its own."""
    text: str
    label: str
    label_counts: dict[str, int]
    """In the order of the labels; rows with no label are not counted."""
    num_rows: int
    num_duplicates: int
    """Rows whose text occurred before, after normalization."""
    words_p50: int
    words_p95: int
    max_length: int
    """Tokens that 95% of the texts should fit in: an estimate from their words."""


def inspect(
    address: str, text: str | None = None, label: str | None = None, root: Path | None = None
) -> Found:
    """Read the whole data set at `address` and say what it holds.

    Columns that are not named are guessed: the text is the column of longest cells, the label one
    of few different values. `root` is where relative paths start (None: here).

    Raises SourceError where it cannot be read, has no header, or holds no two labels.
    """
    start = root or Path.cwd()
    parsed = addresses.parse(address, start)
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        if isinstance(parsed, LocalPath):
            path = fetch.local_file(parsed.path)
            table = tables.Table(path, tables.format_of(path.name), parsed.path.name)
        else:
            config = TableConfig(address=address)
            facts = fetch.fetch_table(config, Path(folder), "table", start, all_columns=True)
            shown = address.partition("#sha256=")[0]
            table = tables.Table(Path(folder) / facts["file"], facts["format"], shown)
        names = tables.columns(table)
        text, label = _guess(table, names, text, label)
        hub = isinstance(parsed, HubAddress | HubFolder)
        return _measure(table, text, label, None if hub else table.format)


def _guess(
    table: tables.Table, names: Sequence[str], text: str | None, label: str | None
) -> tuple[str, str]:
    """Return the columns of text and label; those named are checked when they are read."""
    if text is not None and label is not None:
        return text, label
    _check_names(table, (name for name in names if _is_number(name)))
    if len(names) < 2:
        raise SourceError(f"{table.shown} has one column; a text and a label are needed")
    sample = _sample(table, names)
    if text is None:
        others = [name for name in sample if name != label]
        text = max(others, key=lambda name: sum(map(len, sample[name])))
    if label is None:
        candidates = {n: len(set(cells) - {""}) for n, cells in sample.items() if n != text}
        few = [
            name
            for name, distinct in candidates.items()
            if 2 <= distinct <= min(_MAX_GUESSED_LABELS, max(2, len(sample[name]) // 2))
        ]
        if not few:
            raise SourceError(
                f"{table.shown}: no column looks like labels (2 to {_MAX_GUESSED_LABELS} different "
                f"values); name it with --label: {', '.join(names)}"
            )
        label = min(few, key=lambda name: (not _named_like_label(name), candidates[name]))
        _check_names(table, [label] if label in sample[label] else [])
    return text, label


def _check_names(table: tables.Table, strange: Iterable[str]) -> None:
    """Refuse a table with names of columns that look like cells: it has no header."""
    found = next(iter(strange), None)
    if found is not None and table.format in ("csv", "tsv"):
        raise SourceError(
            f"{table.shown}: the first line looks like a row, not like names of columns (it holds "
            f"`{found}`); put a line of names before it, or, if they are names, give --text and "
            "--label"
        )


def _named_like_label(name: str) -> bool:
    words = ("label", "class", "category", "sentiment", "target", "stars", "rating", "topic")
    return any(word in name.lower() for word in words)


def _sample(table: tables.Table, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of the first rows, column by column."""
    usable = [name for name in names if names.count(name) == 1]
    columns: dict[str, list[str]] = {name: [] for name in usable}
    for number, (_, cells) in enumerate(tables.rows(table, usable)):
        if number == _SAMPLE_ROWS:
            break
        for name, cell in zip(usable, cells, strict=True):
            columns[name].append(cell or "")
    return columns


def _measure(table: tables.Table, text: str, label: str, form: tables.Format | None) -> Found:
    counts: Counter[str] = Counter()
    words: list[int] = []
    seen: set[bytes] = set()
    for _, (cell, target) in tables.rows(table, (text, label)):
        shown = normalize.shown(cell or "")
        counts[(target or "").strip()] += 1
        words.append(len(shown.split()))
        seen.add(normalize.digest(shown))
    if not words:
        raise SourceError(f"{table.shown} has a header and no rows")
    del counts[""]
    _check_labels(table, label, counts)
    words.sort()
    p95 = _quantile(words, 0.95)
    return Found(
        format=form,
        text=text,
        label=label,
        label_counts={name: counts[name] for name in in_order(counts)},
        num_rows=len(words),
        num_duplicates=len(words) - len(seen),
        words_p50=_quantile(words, 0.5),
        words_p95=p95,
        max_length=_tokens(p95),
    )


def _check_labels(table: tables.Table, label: str, counts: Counter[str]) -> None:
    if len(counts) < 2:
        only = f"one value, `{next(iter(counts))}`" if counts else "no values"
        raise SourceError(
            f"{table.shown}: column `{label}` holds {only}; at least two labels are needed"
        )
    if len(counts) > MAX_LABELS:
        raise SourceError(
            f"{table.shown}: column `{label}` holds {len(counts):,} different values; is it the "
            "column of labels?"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quantile(ordered: Sequence[int], share: float) -> int:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _tokens(words: int) -> int:
    """Return a length in tokens, a multiple of 16, that a text of so many words should fit in."""
    wanted = math.ceil(words * _TOKENS_PER_WORD) + 2  # the tokens that open and close a text
    return min(_MAX_TOKENS, 16 * math.ceil(wanted / 16))
