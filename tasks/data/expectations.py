"""What is expected of prepared data, as Great Expectations suites.

Importing this module imports Great Expectations, which takes seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from great_expectations import expectations as gxe

from tasks.data.accepted import Accepted
from tasks.data.config import ValidationConfig
from tasks.data.drift import Measure
from tasks.data.prepared import COLUMNS, SPLITS

ALL = "all"
"""The place of what concerns no single split."""
_ID = r"^[0-9a-f]{16}$"
# the engines differ in what \s covers beyond ASCII, so the blanks of Unicode are spelt out
_BLANK = "^[\\s\u0085\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f\u2060\u3000\ufeff]*$"
_REPLACEMENT = "\ufffd"
_MAX_NAMED = 10


@dataclass(frozen=True)
class Rule:
    """One expectation and what it means to a reader."""

    name: str
    expectation: Any
    complaint: str
    """How a failure is told; `{observed}` stands for what was found."""
    split: str = ALL
    rows: tuple[dict[str, Any], ...] = ()
    """What to show of a failure where the expectation is not about single rows."""
    setting: str = ""
    """The setting of `validation` that decides, if any does."""


@dataclass(frozen=True)
class Suite:
    """One frame and what is expected of it; becomes one page of the Data Docs."""

    name: str
    frame: pd.DataFrame
    rules: tuple[Rule, ...]


def schema(split: str, frame: pd.DataFrame) -> list[Rule]:
    """Return the rules of columns and types, on which all others rest."""
    columns = COLUMNS[split]
    named = ", ".join(columns)
    rules = [
        Rule(
            "columns",
            gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(columns)),
            f"the columns are {{observed}} where {named} are expected",
            split,
        )
    ]
    rules += [
        Rule(
            f"type of {column}",
            gxe.ExpectColumnValuesToBeOfType(column=column, type_="str"),
            f"`{column}` holds {{observed}} where text is expected",
            split,
        )
        for column in columns
        if column in frame
    ]
    return rules


def single_rows(split: str, labels: Sequence[str], config: ValidationConfig) -> list[Rule]:
    """Return the rules of one split by itself."""
    rules = [
        Rule(
            f"null {column}",
            gxe.ExpectColumnValuesToNotBeNull(column=column),
            f"`{column}` is missing",
            split,
        )
        for column in COLUMNS[split]
    ]
    rules += _texts(split, config) + _identities(split)
    if "label" in COLUMNS[split]:
        rules += _labels(split, labels)
    if split in SPLITS:
        least = config.min_rows if split == "train" else 1
        rules.append(
            Rule(
                "number of rows",
                gxe.ExpectTableRowCountToBeBetween(min_value=least),
                f"there are {{observed}} rows where at least {least:,} are expected",
                split,
                setting="min_rows" if split == "train" else "",
            )
        )
    return rules


def _texts(split: str, config: ValidationConfig) -> list[Rule]:
    rules = [
        Rule(
            "empty text",
            gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=_BLANK),
            "the text is empty or blank",
            split,
        ),
        Rule(
            "replacement characters",
            gxe.ExpectColumnValuesToNotMatchRegex(
                column="text", regex=_REPLACEMENT, mostly=1 - config.max_replacement_share
            ),
            "the text holds U+FFFD (bytes that did not decode)",
            split,
            setting="max_replacement_share",
        ),
        Rule(
            "long text",
            gxe.ExpectColumnValueLengthsToBeBetween(column="text", max_value=config.max_characters),
            f"the text is longer than {config.max_characters:,} characters",
            split,
            setting="max_characters",
        ),
    ]
    if config.min_characters > 1:  # one character: what "empty text" says already
        rules.append(
            Rule(
                "short text",
                gxe.ExpectColumnValueLengthsToBeBetween(
                    column="text", min_value=config.min_characters
                ),
                f"the text is shorter than {config.min_characters:,} characters",
                split,
                setting="min_characters",
            )
        )
    return rules


def _identities(split: str) -> list[Rule]:
    rules = [
        Rule(
            "form of id",
            gxe.ExpectColumnValuesToMatchRegex(column="id", regex=_ID),
            "the id is not 16 hexadecimal digits",
            split,
        )
    ]
    rules += [
        Rule(
            f"duplicate {column}",
            gxe.ExpectColumnValuesToBeUnique(column=column),
            f"the {column} occurs more than once",
            split,
        )
        for column in ("id", "text")
    ]
    return rules


def _labels(split: str, labels: Sequence[str]) -> list[Rule]:
    named = ", ".join(labels[:_MAX_NAMED]) + (", …" if len(labels) > _MAX_NAMED else "")
    rules = [
        Rule(
            "label set",
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=list(labels)),
            f"the label is none of {named}",
            split,
        )
    ]
    if split == "train":
        rules.append(
            Rule(
                "labels that occur",
                gxe.ExpectColumnDistinctValuesToContainSet(column="label", value_set=list(labels)),
                "no row has the label {observed}",
                split,
            )
        )
    return rules


def between_splits(frames: Mapping[str, pd.DataFrame]) -> Suite:
    """Return what is expected of all splits together."""
    together = pd.concat(
        [frame.assign(split=split) for split, frame in frames.items()], ignore_index=True
    ).reindex(columns=["id", "split", "text", "label"])
    together["also_in"] = _also_in(together)
    rule = Rule(
        "leakage",
        gxe.ExpectColumnValuesToBeNull(column="also_in"),
        "the text lies in more than one split",
    )
    return Suite("between splits", together, (rule,))


def _also_in(together: pd.DataFrame) -> list[str | None]:
    """Return for each row the other splits that hold its id or its text; None for most."""
    found: dict[Any, set[str]] = {}
    for column in ("id", "text"):
        doubled = together[together.duplicated(column, keep=False)]
        for _, group in doubled.groupby(column):
            splits = set(group["split"])
            for row, split in group["split"].items():
                found.setdefault(row, set()).update(splits - {split})
    return [", ".join(sorted(found.get(row, ()))) or None for row in together.index]


def since_accepted(together: pd.DataFrame, night: Accepted, config: ValidationConfig) -> Suite:
    """Return what is expected of texts that the accepted night knew: label and split.

    A text that moves between splits of the main data was learnt from and is judged on, or will be.
    """
    before = night.rows.dropna(subset="label").drop_duplicates("id").set_index("id")
    columns = ["id", "split", "text", "label"]
    known = together[together["id"].isin(before.index) & together["label"].notna()][columns]
    known = known.reset_index(drop=True)
    known["accepted_label"] = known["id"].map(before["label"])
    split = known["id"].map(before["split"])
    known["accepted_split"] = split.where(split.isin(SPLITS) & known["split"].isin(SPLITS))
    changed = Rule(
        "changed labels",
        _unchanged("label", config.max_changed_labels),
        "the label differs from the one accepted before",
        setting="max_changed_labels",
    )
    moved = Rule(
        "moved texts",
        _unchanged("split", config.max_moved_texts),
        "the text was in another split on the accepted night",
        setting="max_moved_texts",
    )
    return Suite("since the accepted night", known, (changed, moved))


def _unchanged(column: str, max_share: float) -> Any:
    return gxe.ExpectColumnPairValuesToBeEqual(
        column_A=column,
        column_B=f"accepted_{column}",
        ignore_row_if="either_value_is_missing",
        mostly=1 - max_share,
    )


def figures(measures: Sequence[Measure]) -> Suite:
    """Return what is expected of whole splits: a frame of one row, a column a figure."""
    columns = {f"{measure.name} ({measure.split})": measure for measure in measures}
    # as objects: the renderer cannot write numpy's numbers
    values = {name: [float(measure.value)] for name, measure in columns.items()}
    frame = pd.DataFrame(values, dtype=object)
    rules = []
    for column, measure in columns.items():
        least = measure.limit if measure.at_least else None
        most = None if measure.at_least else measure.limit
        bound = "least" if measure.at_least else "most"
        rules.append(
            Rule(
                measure.name,
                gxe.ExpectColumnMaxToBeBetween(column=column, min_value=least, max_value=most),
                f"{measure.name} is {{observed}} where at {bound} {measure.limit:.4g} is allowed",
                measure.split,
                measure.rows,
                measure.setting,
            )
        )
    return Suite("figures", frame, tuple(rules))
