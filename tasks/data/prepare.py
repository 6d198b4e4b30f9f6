"""The stage `prepare`: raw tables → clean, de-duplicated splits in `data/prepared`, as Parquet.

Which split a text is in hangs on the hash of its key form alone, so it never changes sides when
data is added. The same input gives the same bytes.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import files
from tasks.data import groups, normalize, prepared, stage, tables
from tasks.data.config import PrepareConfig, SourceConfig, TableConfig
from tasks.data.fetch import SOURCES
from tasks.errors import SourceError
from tasks.suggest import nearest


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
    labelled: groups.Groups = {}
    num_rows = 0
    for line, text, target in groups.texts(table, source, result.dropped, ""):
        num_rows += 1
        identity = normalize.digest(text)
        texts.add(identity)
        label = groups.label(table, source, source, line, target, result.dropped, "")
        if label is not None:
            _check_declared(table, source, line, label)
            groups.add(labelled, identity, text, label)
    if not num_rows:
        raise SourceError(f"{table.shown} holds no text: every row's `{source.text}` is empty")
    labels = _labels(table, source, labelled)
    agreed = groups.unanimous(labelled, result.dropped, "")
    kept = groups.limited(agreed, config, result.dropped, "")
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


def _check_declared(table: tables.Table, source: SourceConfig, line: int, label: str) -> None:
    if source.labels is not None and label not in source.labels:
        raise SourceError(
            f"{table.shown}:{line}: label `{label}` is not in `source.labels`"
            f"{nearest(label, source.labels)}; add it there or map it in `source.label_map`"
        )


def _labels(
    table: tables.Table, source: SourceConfig, found_texts: groups.Groups
) -> tuple[str, ...]:
    """Return the label set in order; raises SourceError where it cannot be learnt."""
    target = source.label or source.rating
    found = {label for group in found_texts.values() for label in group.labels}
    if not found:
        raise SourceError(f"{table.shown}: no row has a usable `{target}`; nothing is left")
    if len(found) == 1:
        raise SourceError(
            f"{table.shown}: all rows have one label, `{found.pop()}`; at least two are needed"
        )
    if len(found) > groups.MAX_LABELS:
        raise SourceError(
            f"{table.shown}: `{target}` holds {len(found):,} different values; is it the column "
            "of labels?"
        )
    if source.labels is not None:
        return source.labels
    return groups.RATING_LABELS if source.rating else tuple(groups.in_order(found))


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
        domain, dropped = f"{name}: ", result.dropped
        own = _other_texts(table, other, source, labels, taken, dropped, domain)
        kept = groups.limited(groups.unanimous(own, dropped, domain), config, dropped, domain)
        taken |= own.keys()
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
) -> groups.Groups:
    """Return the domain's own texts; a label that the main data has not is no label."""
    own: groups.Groups = {}
    unknown: Counter[str] = Counter()
    for line, text, target in groups.texts(table, other, dropped, domain):
        identity = normalize.digest(text)
        if identity in taken:
            dropped[f"{domain}text of the main data or of another domain"] += 1
            continue
        label = None
        if other.label is not None or other.rating is not None:
            label = groups.label(table, other, source, line, target, Counter(), domain)
        if label is not None and label not in labels:
            unknown[label] += 1
            label = None
        groups.add(own, identity, text, label)
    if unknown and not any(group.labels for group in own.values()):
        label = unknown.most_common(1)[0][0]
        raise SourceError(
            f"{table.shown}: label `{label}` and all others here are not labels of the main data"
            f"{nearest(label, labels)}; map them in `source.label_map`"
        )
    if unknown:
        dropped[f"{domain}label that the main data has not"] += sum(unknown.values())
    return own


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
