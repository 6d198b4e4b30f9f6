"""The rows of a table as texts and labels, those that are one text taken together."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tasks.data import normalize, tables
from tasks.data.config import PrepareConfig, SourceConfig, TableConfig
from tasks.data.fetch import wanted
from tasks.errors import SourceError

MAX_LABELS = 500
RATING_LABELS = ("negative", "positive")


@dataclass
class Group:
    """All rows that are one text after normalization."""

    text: str
    labels: set[str] = field(default_factory=set)
    num_rows: int = 0


Groups = dict[bytes, Group]
"""By the text's hash."""


def texts(
    table: tables.Table, config: TableConfig, dropped: Counter[str], domain: str
) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, text as shown to models, label or rating), without the empty texts."""
    for line, cells in tables.rows(table, wanted(config)):
        text = normalize.shown(cells[0] or "")
        if text:
            yield line, text, cells[1] if len(cells) > 1 else None
        else:
            dropped[f"{domain}empty text"] += 1


def label(
    table: tables.Table,
    config: TableConfig,
    source: SourceConfig,
    line: int,
    target: str | None,
    dropped: Counter[str],
    domain: str,
) -> str | None:
    """Return the row's label; None, counted, where it has none."""
    target = (target or "").strip()
    if not target:
        dropped[f"{domain}no label"] += 1
        return None
    if config.rating is None:
        return source.label_map.get(target, target)
    try:
        rating = float(target)
    except ValueError:
        raise SourceError(
            f"{table.shown}:{line}: `{config.rating}` holds {target[:40]!r}, not a number"
        ) from None
    if math.isnan(rating):
        dropped[f"{domain}no label"] += 1
        return None
    if rating == 0 or abs(rating) < config.threshold:
        dropped[f"{domain}rating below threshold"] += 1
        return None
    return (source.labels or RATING_LABELS)[rating > 0]


def add(groups: Groups, identity: bytes, text: str, label: str | None) -> None:
    """Put one row to the rows of the same text."""
    group = groups.setdefault(identity, Group(text))
    group.text = min(group.text, text)  # whichever stands first in the file
    group.num_rows += 1
    if label is not None:
        group.labels.add(label)


def unanimous(groups: Groups, dropped: Counter[str], domain: str) -> Groups:
    """Return the texts whose rows agree on the label; count the others and the repetitions."""
    kept = {}
    for identity, group in groups.items():
        if len(group.labels) > 1:
            dropped[f"{domain}same text, different labels"] += group.num_rows
        else:
            dropped[f"{domain}duplicate text"] += group.num_rows - 1
            kept[identity] = group
    return kept


def limited(groups: Groups, config: PrepareConfig, dropped: Counter[str], domain: str) -> Groups:
    """Return the `max_rows` texts of smallest hash.

    By its second 8 bytes: the first decide the split, which must keep its shares.
    """
    if config.max_rows is None or len(groups) <= config.max_rows:
        return groups
    dropped[f"{domain}beyond max_rows"] += len(groups) - config.max_rows
    chosen = sorted(groups, key=lambda identity: identity[8:16])[: config.max_rows]
    return {identity: groups[identity] for identity in chosen}


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels sorted: as numbers where all are numbers."""
    found = sorted(labels)
    try:
        return sorted(found, key=float)
    except ValueError:
        return found
