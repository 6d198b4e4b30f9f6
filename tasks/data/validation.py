"""The gate before training: what is wrong with prepared data, and in which rows.

Great Expectations judges; what compares frames (splits with each other, tonight with an accepted
night) is worked out first and then expected of the outcome, so that it stands in the same Data
Docs. Its import takes seconds, so it happens only when data is really looked at.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data import accepted as nights
from tasks.data import drift, prepared
from tasks.data.accepted import Accepted
from tasks.data.config import ValidationConfig
from tasks.errors import StoreError
from tasks.workspace import quiet_libraries

if TYPE_CHECKING:
    import pandas as pd

    from tasks.data.expectations import Rule, Suite

MAX_ROWS = 20
_SHOWN_ROWS = 3
_MAX_SHOWN = 80
_MAX_CELL = 300


@dataclass(frozen=True)
class Check:
    """One expectation, kept or not."""

    name: str
    expectation: str
    split: str
    """A split, two of them ("train, test"), or "all"."""
    passed: bool
    observed: str


@dataclass(frozen=True)
class Failure:
    """One expectation that was not kept."""

    name: str
    expectation: str
    split: str
    message: str
    """One line: where, what, how many, the first rows."""
    count: int
    """Offending rows; 1 where the expectation is about a whole split."""
    rows: tuple[dict[str, Any], ...]
    """Up to `MAX_ROWS` of them, long texts cut."""


@dataclass(frozen=True)
class Validation:
    """What the gate found."""

    passed: bool
    failures: tuple[Failure, ...]
    checks: tuple[Check, ...]
    docs: Path
    """The first page of the Data Docs."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {**asdict(self), "docs": str(self.docs)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Validation":
        """Return what `to_dict` was made from."""
        return cls(
            passed=value["passed"],
            failures=tuple(
                Failure(**{**failure, "rows": tuple(failure["rows"])})
                for failure in value["failures"]
            ),
            checks=tuple(Check(**check) for check in value["checks"]),
            docs=Path(value["docs"]),
            seconds=value["seconds"],
        )


def validate(
    folder: Path, config: ValidationConfig, accepted: Path | None, docs: Path
) -> Validation:
    """Hold the prepared data in `folder` against the gate and write the folder `docs`.

    `accepted` is what `tasks.data.accepted` recorded of an earlier night; None: there was none.
    Raises StoreError where a file of either is missing or broken.
    """
    start = time.monotonic()
    frames = {split: _read(folder / f"{split}.parquet") for split in prepared.COLUMNS}
    labels = prepared.facts(folder)["labels"]
    night = nights.read(accepted) if accepted is not None else None
    quiet_libraries()
    from tasks.data import data_docs, expectations
    from tasks.data.suites import examine

    suites = [
        expectations.Suite(split, frame, tuple(expectations.schema(split, frame)))
        for split, frame in frames.items()
    ]
    results = [] if _plain(frames) else examine(suites)
    if all(result.success for result in results):  # what follows needs the columns
        suites = _suites(frames, labels, config, night)
        results = examine(suites)
    checks, failures = _told(suites, results)
    found = Validation(
        passed=not failures,
        failures=failures,
        checks=checks,
        docs=docs / data_docs.INDEX,
        seconds=0.0,
    )
    data_docs.write(found, suites, results, docs)
    return replace(found, seconds=time.monotonic() - start)


def _read(path: Path) -> "pd.DataFrame":
    """Return all columns: `prepared.read` takes the expected ones only."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise StoreError(
            f"{path} cannot be read; delete {path.parent}, and it is restored from DVC"
        ) from error


def _plain(frames: Mapping[str, "pd.DataFrame"]) -> bool:
    """Return whether columns and types are beyond doubt."""
    return all(
        tuple(frame.columns) == prepared.COLUMNS[split]
        and all(str(kind) == "str" for kind in frame.dtypes)
        for split, frame in frames.items()
    )


def _suites(
    frames: Mapping[str, "pd.DataFrame"],
    labels: Sequence[str],
    config: ValidationConfig,
    night: Accepted | None,
) -> list["Suite"]:
    from tasks.data import expectations

    suites = [
        expectations.Suite(
            split,
            frame,
            (
                *expectations.schema(split, frame),
                *expectations.single_rows(split, labels, config),
            ),
        )
        for split, frame in frames.items()
    ]
    together = expectations.between_splits(frames)
    suites.append(together)
    measures = drift.measures(frames, labels, config, night)
    if measures:
        suites.append(expectations.figures(measures))
    if night is not None:
        suites.append(expectations.since_accepted(together.frame, night, config))
    return suites


def _told(
    suites: Sequence["Suite"], results: Sequence[Any]
) -> tuple[tuple[Check, ...], tuple[Failure, ...]]:
    from tasks.data.suites import RULE

    checks, failures = [], []
    for suite, result in zip(suites, results, strict=True):
        numbered = {one.expectation_config.meta[RULE]: one for one in result.results}
        for number, rule in enumerate(suite.rules):
            one = numbered[number]
            kind = one.expectation_config.type
            observed = _observed(rule, one)
            checks.append(Check(rule.name, kind, rule.split, bool(one.success), observed))
            if not one.success:
                failures.append(_failure(suite, rule, one, observed))
    return tuple(checks), tuple(failures)


def _observed(rule: "Rule", one: Any) -> str:
    """Return in words what Great Expectations found."""
    found = one.result
    if "unexpected_count" in found:
        total = found["element_count"]
        return f"{found['unexpected_count']:,} of {total:,} rows"
    if "partial_missing_list" in found:
        # a set's order is another in every process
        return ", ".join(sorted(map(str, found["partial_missing_list"]))) or "all"
    value = found.get("observed_value")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _failure(suite: "Suite", rule: "Rule", one: Any, observed: str) -> Failure:
    kind = one.expectation_config.type
    broken = [info for info in _exceptions(one.exception_info) if info.get("raised_exception")]
    assert not broken, f"{kind} on {suite.name}: {broken}"
    complaint = rule.complaint.replace("{observed}", observed)
    count, rows = 1, rule.rows[:MAX_ROWS]
    if "unexpected_count" in one.result:
        count = one.result["unexpected_count"]
        complaint += f" in {observed}"
        rows = _rows(suite.frame.loc[one.result["partial_unexpected_index_list"][:MAX_ROWS]])
    named = f"{kind}, validation.{rule.setting}" if rule.setting else kind
    shown = "; ".join(_line(row) for row in rows[:_SHOWN_ROWS])
    message = f"{rule.split}: {complaint} ({named})" + (f"; first rows: {shown}" if shown else "")
    return Failure(rule.name, kind, rule.split, message, count, rows)


def _exceptions(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return one entry per metric; Great Expectations nests them only where one failed."""
    return [info] if "raised_exception" in info else list(info.values())


def _rows(frame: "pd.DataFrame") -> tuple[dict[str, Any], ...]:
    """Return rows as what JSON can hold; null is None."""
    return tuple(
        {
            str(name): None if value is None or value != value else str(value)[:_MAX_CELL]
            for name, value in row.items()
        }
        for row in frame.to_dict("records")
    )


def _line(row: Mapping[str, Any]) -> str:
    """Return a row in one line, what is long cut."""
    cells = []
    for name, value in row.items():
        shown = repr(value) if isinstance(value, str) else str(value)
        cells.append(f"{name} {shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '…'}")
    return ", ".join(cells)
