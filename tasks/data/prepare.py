"""The stage `prepare`: raw tables → clean, de-duplicated splits in `data/prepared`, as Parquet.

Which split a text is in hangs on the hash of its key form alone, so it never changes sides when
data is added. The same input gives the same bytes.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import files
from tasks.data import normalize, prepared, stage, tables
from tasks.data.config import PrepareConfig, SourceConfig, TableConfig
from tasks.data.fetch import SOURCES, wanted
from tasks.errors import SourceError
from tasks.suggest import nearest

MAX_LABELS = 500
_RATING_LABELS = ("negative", "positive")


@dataclass
class Group:
    """All rows that are one text after normalization."""

    text: str
    labels: set[str] = field(default_factory=set)
    num_rows: int = 0


Groups = dict[bytes, Group]
"""By the text's hash."""


class Prepared:
    """What is prepared so far, and why rows were left out."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.rows: dict[str, list[tuple[str, ...]]] = {name: [] for name in prepared.COLUMNS}

    def write(self, folder: Path) -> None:
        """Write one Parquet file a split, rows in the order of their ids."""
        import pyarrow
        from pyarrow import parquet

        for name, columns in prepared.COLUMNS.items():
            rows = sorted(self.rows[name])
            values = list(zip(*rows, strict=True)) or [()] * len(columns)
            schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
            arrays = [pyarrow.array(value, pyarrow.string()) for value in values]
            table = pyarrow.Table.from_arrays(arrays, schema=schema)
            parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")


def prepare(root: Path, source: SourceConfig, config: PrepareConfig) -> None:
    """Write the folder `prepared` of the pipeline in the current folder; whole, or not at all.

    Raises SourceError where a table is broken, or nothing can be trained on what it holds.
    """
    home = stage.home(root)
    raw = home / "raw"
    sources = json.loads((raw / SOURCES).read_text(encoding="utf-8"))
    result = Prepared()
    main_table = _table(raw, sources["main"], source, config)
    labels, main_texts = _prepare_main(main_table, source, config, result)
    _prepare_others(raw, sources["others"], source, config, labels, main_texts, result)
    stage.sweep(home, ".prepared")
    with files.staged(home, ".prepared") as staging:
        made = staging / "prepared"
        made.mkdir()
        result.write(made)
        facts = _facts(labels, sources, result)
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (made / prepared.FACTS).write_text(text, encoding="utf-8")
        stage.replace(made, home / "prepared")


def _table(
    folder: Path, facts: Mapping[str, Any], config: TableConfig, prepare: PrepareConfig
) -> tables.Table:
    return tables.Table(
        folder / facts["file"],
        facts["format"],
        config.address.partition("#sha256=")[0],
        config.columns,
        prepare.max_line_bytes,
    )


def _prepare_main(
    table: tables.Table, source: SourceConfig, config: PrepareConfig, result: Prepared
) -> tuple[tuple[str, ...], set[bytes]]:
    """Fill train, validation and test; return the labels and the hashes of all main texts."""
    texts: set[bytes] = set()
    labelled: Groups = {}
    num_rows = 0
    for line, text, target in _texts(table, source, result.dropped, ""):
        num_rows += 1
        identity = normalize.digest(text)
        texts.add(identity)
        label = _label(table, source, source, line, target, result.dropped, "")
        if label is not None:
            _check_declared(table, source, line, label)
            _add(labelled, identity, text, label)
    if not num_rows:
        raise SourceError(f"{table.shown} holds no text: every row's `{source.text}` is empty")
    labels = _labels(table, source, labelled)
    kept = _limited(_unanimous(labelled, result.dropped, ""), config, result.dropped, "")
    for identity, group in kept.items():
        (label,) = group.labels
        split = split_of(normalize.share(identity), config)
        result.rows[split].append((_id(identity), group.text, label))
    _check_splits(table, labels, result)
    return labels, texts


def split_of(share: float, config: PrepareConfig) -> str:
    """Return the split of a text whose hash lies at `share` between 0 and 1."""
    if share < config.train:
        return "train"
    return "validation" if share < config.train + config.validation else "test"


def _id(identity: bytes) -> str:
    return identity[:8].hex()


def _texts(
    table: tables.Table, config: TableConfig, dropped: Counter[str], domain: str
) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, text as shown to models, label or rating), without the empty texts."""
    for line, cells in tables.rows(table, wanted(config)):
        text = normalize.shown(cells[0] or "")
        if text:
            yield line, text, cells[1] if len(cells) > 1 else None
        else:
            dropped[f"{domain}empty text"] += 1


def _label(
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
    return (source.labels or _RATING_LABELS)[rating > 0]


def _check_declared(table: tables.Table, source: SourceConfig, line: int, label: str) -> None:
    if source.labels is not None and label not in source.labels:
        raise SourceError(
            f"{table.shown}:{line}: label `{label}` is not in `source.labels`"
            f"{nearest(label, source.labels)}; add it there or map it in `source.label_map`"
        )


def _add(groups: Groups, identity: bytes, text: str, label: str | None) -> None:
    group = groups.setdefault(identity, Group(text))
    group.text = min(group.text, text)  # whichever stands first in the file
    group.num_rows += 1
    if label is not None:
        group.labels.add(label)


def _unanimous(groups: Groups, dropped: Counter[str], domain: str) -> Groups:
    """Return the texts whose rows agree on the label; count the others and the repetitions."""
    kept = {}
    for identity, group in groups.items():
        if len(group.labels) > 1:
            dropped[f"{domain}same text, different labels"] += group.num_rows
        else:
            dropped[f"{domain}duplicate text"] += group.num_rows - 1
            kept[identity] = group
    return kept


def _limited(groups: Groups, config: PrepareConfig, dropped: Counter[str], domain: str) -> Groups:
    """Return the `max_rows` texts of smallest hash.

    By its second 8 bytes: the first decide the split, which must keep its shares.
    """
    if config.max_rows is None or len(groups) <= config.max_rows:
        return groups
    dropped[f"{domain}beyond max_rows"] += len(groups) - config.max_rows
    chosen = sorted(groups, key=lambda identity: identity[8:16])[: config.max_rows]
    return {identity: groups[identity] for identity in chosen}


def _labels(table: tables.Table, source: SourceConfig, groups: Groups) -> tuple[str, ...]:
    """Return the label set in order; raises SourceError where it cannot be learnt."""
    target = source.label or source.rating
    found = {label for group in groups.values() for label in group.labels}
    if not found:
        raise SourceError(f"{table.shown}: no row has a usable `{target}`; nothing is left")
    if len(found) == 1:
        raise SourceError(
            f"{table.shown}: all rows have one label, `{found.pop()}`; at least two are needed"
        )
    if len(found) > MAX_LABELS:
        raise SourceError(
            f"{table.shown}: `{target}` holds {len(found):,} different values; is it the column "
            "of labels?"
        )
    if source.labels is not None:
        return source.labels
    return _RATING_LABELS if source.rating else tuple(in_order(found))


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels sorted: as numbers where all are numbers."""
    found = sorted(labels)
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def _check_splits(table: tables.Table, labels: tuple[str, ...], result: Prepared) -> None:
    trained = {row[2] for row in result.rows["train"]}
    for split in ("validation", "test"):
        for label in labels:
            if label not in trained and any(row[2] == label for row in result.rows[split]):
                raise SourceError(
                    f"{table.shown}: label `{label}` occurs in the {split} split and not in "
                    "training; add rows of it, or merge it with another in `source.label_map`"
                )
    for label in labels:
        if label not in trained:
            raise SourceError(
                f"{table.shown}: label `{label}` of `source.labels` has no row in training; add "
                "rows of it, or take it out of `source.labels`"
            )
    for split in prepared.SPLITS:
        if not result.rows[split]:
            total = sum(len(result.rows[name]) for name in prepared.SPLITS)
            raise SourceError(
                f"{table.shown}: only {total} usable rows, so that the {split} split is empty; "
                "more data is needed"
            )


def _prepare_others(
    raw: Path,
    sources: Mapping[str, Any],
    source: SourceConfig,
    config: PrepareConfig,
    labels: tuple[str, ...],
    main_texts: set[bytes],
    result: Prepared,
) -> None:
    """Fill transfer and slices with texts that no main row and no earlier domain has."""
    taken = set(main_texts)
    for name, other in sorted(source.others.items()):
        table = _table(raw / "others", sources[name], other, config)
        groups = _other_texts(table, other, source, labels, taken, result.dropped, f"{name}: ")
        kept = _limited(
            _unanimous(groups, result.dropped, f"{name}: "), config, result.dropped, f"{name}: "
        )
        taken |= groups.keys()
        labelled = other.label is not None or other.rating is not None
        for identity, group in kept.items():
            row = (_id(identity), group.text)
            if not labelled or normalize.share(identity) < config.transfer:
                result.rows["transfer"].append((*row, name))
            elif group.labels:
                result.rows["slices"].append((*row, *group.labels, name))
            else:
                result.dropped[f"{name}: no usable label"] += group.num_rows


def _other_texts(
    table: tables.Table,
    other: TableConfig,
    source: SourceConfig,
    labels: tuple[str, ...],
    taken: set[bytes],
    dropped: Counter[str],
    domain: str,
) -> Groups:
    """Return the domain's own texts; a label that the main data has not is no label."""
    groups: Groups = {}
    unknown: Counter[str] = Counter()
    for line, text, target in _texts(table, other, dropped, domain):
        identity = normalize.digest(text)
        if identity in taken:
            dropped[f"{domain}text of the main data or of another domain"] += 1
            continue
        label = None
        if other.label is not None or other.rating is not None:
            label = _label(table, other, source, line, target, Counter(), domain)
        if label is not None and label not in labels:
            unknown[label] += 1
            label = None
        _add(groups, identity, text, label)
    if unknown and not any(group.labels for group in groups.values()):
        label = unknown.most_common(1)[0][0]
        raise SourceError(
            f"{table.shown}: label `{label}` and all others here are not labels of the main data"
            f"{nearest(label, labels)}; map them in `source.label_map`"
        )
    if unknown:
        dropped[f"{domain}label that the main data has not"] += sum(unknown.values())
    return groups


def _facts(labels: tuple[str, ...], sources: Mapping[str, Any], result: Prepared) -> dict[str, Any]:
    def origin(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: facts[name] for name in ("address", "sha256", "size_bytes")}

    return {
        "labels": list(labels),
        "rows": {name: len(rows) for name, rows in result.rows.items()},
        "balance": {
            split: dict(sorted(Counter(row[2] for row in result.rows[split]).items()))
            for split in (*prepared.SPLITS, "slices")
        },
        "dropped": {reason: n for reason, n in sorted(result.dropped.items()) if n},
        "sources": {
            "main": origin(sources["main"]),
            **{name: origin(facts) for name, facts in sources["others"].items()},
        },
    }


if __name__ == "__main__":
    sys.exit(stage.main(prepare))
