"""Figures about whole splits: their balance, and how far they are from an accepted night's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tasks.data import accepted
from tasks.data.accepted import Accepted
from tasks.data.config import ValidationConfig
from tasks.data.prepared import SPLITS

if TYPE_CHECKING:
    import pandas as pd

_STANDARD_ERRORS = 3
_CHANCE = 0.001
"""How often chance alone may exceed what is allowed for it in a distance of lengths."""


@dataclass(frozen=True)
class Measure:
    """One figure and the bound that it must keep."""

    name: str
    split: str
    value: float
    limit: float
    rows: tuple[dict[str, Any], ...]
    """What the figure is made of, worst first."""
    setting: str
    """The setting that bounds it."""
    at_least: bool = False
    """Whether `limit` is the least value instead of the largest."""


def measures(
    frames: Mapping[str, "pd.DataFrame"],
    labels: Sequence[str],
    config: ValidationConfig,
    night: Accepted | None,
) -> list[Measure]:
    """Return all figures of tonight's labelled splits; an empty split has none.

    Rows without a text or a label are left out: other rules tell of them.
    """
    whole = {split: frames[split].dropna(subset=["text", "label"]) for split in SPLITS}
    filled = {split: frame for split, frame in whole.items() if len(frame)}
    counts = {split: _counts(frame, labels) for split, frame in filled.items()}
    found = []
    if "train" in counts:
        found.append(_rarest_label(counts["train"], config))
    for first, second in combinations(counts, 2):
        name = "balance between splits"
        pair = f"{first}, {second}"
        found.append(
            _balance(name, pair, counts[first], counts[second], config, "max_split_imbalance")
        )
    if night is not None:
        for split, frame in filled.items():
            before = night.rows[night.rows["split"] == split]
            if len(before):
                found += _drift(split, frame, counts[split], before, night, config)
    return found


def ks_distance(first: "pd.Series", second: "pd.Series") -> float:
    """Return the two-sample Kolmogorov-Smirnov distance, 0 to 1.

    D = sup over x of |F1(x) - F2(x)|, F1 and F2 being the empirical distribution functions
    (Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of
    Mathematical Statistics 19(2), 1948).
    """
    import numpy as np

    values = np.concatenate([first, second])
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_by_chance(num_first: int, num_second: int) -> float:
    """Return the distance that two samples of one distribution exceed 1 time in 1,000.

    c(a) * sqrt((n + m) / (n * m)) with c(a) = sqrt(-ln(a / 2) / 2), Smirnov's asymptotic form
    (Knuth, The Art of Computer Programming, volume 2, section 3.3.1).
    """
    factor = math.sqrt(-math.log(_CHANCE / 2) / 2)
    return factor * math.sqrt((num_first + num_second) / (num_first * num_second))


def share_by_chance(share: float, num_first: int, num_second: int) -> float:
    """Return three standard errors of the difference of two binomial shares."""
    variance = share * (1 - share) * (1 / num_first + 1 / num_second)
    return _STANDARD_ERRORS * math.sqrt(variance)


def _counts(frame: "pd.DataFrame", labels: Sequence[str]) -> dict[str, int]:
    found = frame["label"].value_counts()
    return {label: int(found.get(label, 0)) for label in labels}


def _rarest_label(counts: Mapping[str, int], config: ValidationConfig) -> Measure:
    total = sum(counts.values()) or 1
    rows = tuple(
        {"label": label, "rows": count, "share": round(count / total, 4)}
        for label, count in sorted(counts.items(), key=lambda item: item[1])
    )
    name = "share of the rarest label"
    least = min(counts.values()) / total
    limit = config.min_class_share
    return Measure(name, "train", least, limit, rows, "min_class_share", at_least=True)


def _balance(
    name: str,
    split: str,
    first: Mapping[str, int],
    second: Mapping[str, int],
    config: ValidationConfig,
    setting: str,
) -> Measure:
    """Compare the shares of labels; the figure is of the label that is furthest out of bounds."""
    num_first, num_second = sum(first.values()) or 1, sum(second.values()) or 1
    rows = []
    for label in first:
        share, other = first[label] / num_first, second.get(label, 0) / num_second
        pooled = (first[label] + second.get(label, 0)) / (num_first + num_second)
        chance = share_by_chance(pooled, num_first, num_second)
        allowed = getattr(config, setting) + chance
        rows.append({"label": label, "share": share, "other": other, "allowed": allowed})
    rows.sort(key=lambda row: row["allowed"] - abs(row["share"] - row["other"]))
    worst = rows[0]
    difference = abs(worst["share"] - worst["other"])
    shown = tuple({**row, **{k: round(row[k], 4) for k in row if k != "label"}} for row in rows)
    return Measure(name, split, difference, worst["allowed"], shown, setting)


def _drift(
    split: str,
    frame: "pd.DataFrame",
    counts: Mapping[str, int],
    before: "pd.DataFrame",
    night: Accepted,
    config: ValidationConfig,
) -> list[Measure]:
    """Return how far one split is from the same split of the accepted night."""
    labels = [*counts, *sorted(set(before["label"]) - set(counts))]
    lengths, known = accepted.lengths(frame), before["characters"]
    found = accepted.words(frame["text"])
    unknown = [(word, n) for word, n in found.most_common() if word not in night.vocabulary]
    middle = {"median tonight": float(lengths.median()), "median before": float(known.median())}
    return [
        _balance(
            "drift of balance",
            split,
            {label: counts.get(label, 0) for label in labels},
            _counts(before, labels),
            config,
            "max_balance_drift",
        ),
        Measure(
            "drift of lengths",
            split,
            ks_distance(lengths, known),
            config.max_length_drift + ks_by_chance(len(lengths), len(known)),
            (middle,),
            "max_length_drift",
        ),
        Measure(
            "drift of words",
            split,
            accepted.unknown_share(found, night.vocabulary),
            min(1.0, night.unknown_share + config.max_oov_drift),
            tuple({"word": word, "times": times} for word, times in unknown[:20]),
            "max_oov_drift",
        ),
    ]
