"""How figures are written, alike in the terminal, the page and Markdown."""

import unicodedata
from collections.abc import Mapping

from tasks.registry.night_facts import Figures, Interval, VariantRow

NONE = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with thousands separated, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share of 0 to 1 in per cent, with no sign."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def megabytes(size: int | None) -> str:
    """Return bytes in MB (10⁶)."""
    if size is None:
        return NONE
    return f"{size / 1e6:.1f}" if size >= 1e5 else f"{size / 1e6:.3f}"


def milliseconds(value: float | None) -> str:
    """Return three significant digits or so."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def times(ratio: Interval | None) -> str:
    """Return `3.21×`."""
    return NONE if ratio is None else f"{ratio.value:.2f}×"


def between(ratio: Interval | None) -> str:
    """Return `3.05 to 3.40`: the interval."""
    return "" if ratio is None else f"{ratio.lower:.2f} to {ratio.upper:.2f}"


def chance(p: float | None) -> str:
    """Return a p-value; what is less than a thousandth as that."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, 3)


def shrink(baseline: Figures | None, row: VariantRow) -> str:
    """Return how many times smaller than the baseline the variant's files are."""
    if baseline is None or row.figures is None or not row.figures.size_bytes:
        return NONE
    return f"{baseline.size_bytes / row.figures.size_bytes:.1f}×"


def lost(row: VariantRow) -> str:
    """Return points lost and, in brackets, their bound."""
    if row.loss_points is None:
        return NONE
    bound = "" if row.loss_bound_points is None else f" [{row.loss_bound_points:.2f}]"
    # a loss of -0.001 would read "-0.00"
    return f"{row.loss_points + 0.0 if abs(row.loss_points) >= 0.005 else 0.0:.2f}{bound}"


def signed(value: float, digits: int = 2) -> str:
    """Return a change with its sign; one that would round to zero has none."""
    return f"{value:+.{digits}f}" if abs(value) >= 0.5 * 10**-digits else f"{0:.{digits}f}"


def duration(seconds: float) -> str:
    """Return `12.3 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rows(counts: Mapping[str, int]) -> str:
    """Return `train 6,042 · test 2,517`."""
    return " · ".join(f"{split} {count:,}" for split, count in counts.items())


def plain(text: str) -> str:
    """Return text of other people's as it can be shown in a terminal: in one line, with no control
    characters and none that turn the direction of writing."""
    return "".join(
        character if unicodedata.category(character)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for character in " ".join(text.split())
    )
