"""Pictures as SVG text: small, sharp, and with no plotting library to import."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import escape

_WIDTH, _HEIGHT = 860, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 22, 54
_LETTER = 6.7  # pixels, about, of the label's font
_CONFUSION_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c2333}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e9f2}}"
)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One model in the plot."""

    label: str
    latency_ms: float
    accuracy: float
    """Share, 0 to 1."""
    size_bytes: int
    kind: Literal["eager", "fp32", "passed", "rejected", "champion"]
    tip: str


def pareto(points: Sequence[Point], front: Sequence[Point] = (), floor: float | None = None) -> str:
    """Return the plot: latency (log scale) against accuracy, a marker's area being its bytes.

    `front` is joined by a line; `floor` is the least accuracy that a gate lets pass. Classes are
    coloured by the page that holds it.
    """
    if not points:
        return ""
    x, y = _Axis.log([p.latency_ms for p in points]), _accuracy_axis(points, floor)
    parts = [
        f'<svg class="pareto" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-labelledby="pareto-title pareto-desc">',
        '<title id="pareto-title">Accuracy against latency</title>',
        f'<desc id="pareto-desc">{escape("; ".join(p.tip for p in points))}</desc>',
        *_grid(x, y),
    ]
    taken: list[Box] = []
    if floor is not None:
        at, right = y(floor), _WIDTH - _RIGHT
        taken.append((right - 210, at + 3, right, at + 19))
        parts.append(
            f'<line class="floor" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="floor-label" x="{right - 4}" y="{at + 15:.1f}" text-anchor="end">'
            "least accuracy the gates accept</text>"
        )
    if len(front) > 1:
        ordered = sorted(front, key=lambda p: p.latency_ms)
        path = " ".join(f"{x(p.latency_ms):.1f},{y(p.accuracy):.1f}" for p in ordered)
        parts.append(f'<polyline class="front" points="{path}"/>')
    biggest = max(p.size_bytes for p in points)
    placed = [(p, x(p.latency_ms), y(p.accuracy), _radius(p, biggest)) for p in points]
    # large ones first, so that a small one is never hidden
    for point, cx, cy, r in sorted(placed, key=lambda row: -row[3]):
        parts.append(_marker(point, cx, cy, r))
    parts += _labels(placed, taken)
    return "\n".join([*parts, "</svg>"])


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> str:
    """Return the confusion matrix (rows: true label, columns: answer), shaded by row share."""
    cell, size = max(34, min(92, 640 // max(1, len(labels)))), len(labels)
    left = 24 + round(_LETTER * 1.15 * min(24, max(map(len, labels), default=0)))
    width, height = left + cell * size + 24, 92 + cell * size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title><style>{_CONFUSION_STYLE}</style>",
        f'<text x="12" y="24" font-weight="600">{escape(title)}</text>',
        '<text x="12" y="46" opacity=".7">rows: true label, columns: answer</text>',
    ]
    for i, row in enumerate(counts):
        middle = 62 + cell * i + cell / 2
        parts.append(
            f'<text x="{left - 8}" y="{middle + 4:.0f}" text-anchor="end">'
            f"{escape(_short(labels[i]))}</text>"
        )
        parts += [_cell(left + cell * j, 62 + cell * i, cell, n, row) for j, n in enumerate(row)]
    for j, label in enumerate(labels):
        parts.append(
            f'<text x="{left + cell * j + cell / 2:.0f}" y="{80 + cell * size}" '
            f'text-anchor="middle">{escape(_short(label, max(4, cell // 8)))}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _cell(x: float, y: float, size: int, count: int, row: Sequence[int]) -> str:
    share = count / max(1, sum(row))
    ink = "#ffffff" if share > 0.55 else "currentColor"
    return (
        f'<rect x="{x}" y="{y}" width="{size - 3}" height="{size - 3}" rx="4" fill="#3d5afe" '
        f'fill-opacity="{0.06 + 0.9 * share:.2f}"/>'
        f'<text x="{x + size / 2 - 1:.0f}" y="{y + size / 2 + 4:.0f}" text-anchor="middle" '
        f'style="fill:{ink}">{count:,}</text>'
    )


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-9))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    @classmethod
    def log(cls, values: Sequence[float]) -> "_Axis":
        low, high = max(min(values), 1e-6) / 1.35, max(max(values), 1e-6) * 1.35
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        nice = [m * 10.0**e for e in exponents for m in (1, 2, 3, 5, 7)]
        ticks = tuple(t for t in nice if low <= t <= high)
        return cls(low, high, _LEFT, _WIDTH - _RIGHT, ticks, logarithmic=True)


def _accuracy_axis(points: Sequence[Point], floor: float | None) -> _Axis:
    values = [p.accuracy for p in points] + ([] if floor is None else [floor])
    pad = max(0.004, 0.14 * (max(values) - min(values)))
    low, high = min(values) - pad, max(values) + pad
    step = next(s for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0) if (high - low) / s <= 7)
    first = math.ceil(low / step)
    ticks = tuple(step * i for i in range(first, math.floor(high / step) + 1))
    return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, ticks)


def _grid(x: _Axis, y: _Axis) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = ['<g class="grid" aria-hidden="true">']
    for tick in y.ticks:
        at = y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 10}" y="{at + 4:.1f}" text-anchor="end">{100 * tick:.4g}%</text>'
        )
    for tick in x.ticks:
        at = x(tick)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="axis" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        "← faster · p50 latency of one text, ms (log scale)</text>"
    )
    return [*parts, "</g>"]


def _radius(point: Point, biggest: int) -> float:
    return max(5.0, 21.0 * math.sqrt(point.size_bytes / max(1, biggest)))


def _marker(point: Point, cx: float, cy: float, r: float) -> str:
    ring = ""
    if point.kind == "champion":
        ring = f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="{r + 5:.1f}"/>'
    return (
        f'<g class="point {point.kind}"><title>{escape(point.tip)}</title>{ring}'
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{r:.1f}"/></g>'
    )


def _labels(
    placed: Sequence[tuple[Point, float, float, float]], reserved: Sequence[Box]
) -> list[str]:
    """Put each label beside its marker, where it covers least; the champion chooses first."""
    taken = [*reserved, *((cx - r, cy - r, cx + r, cy + r) for _, cx, cy, r in placed)]
    parts = []
    for point, cx, cy, r in sorted(placed, key=lambda row: row[0].kind != "champion"):
        text = _short(point.label, 26)
        width, gap = _LETTER * len(text), r + (9 if point.kind == "champion" else 4)
        diagonal = gap * 0.72
        spots = [
            (cx + gap, cy + 4), (cx - gap - width, cy + 4),
            (cx - width / 2, cy - gap - 3), (cx - width / 2, cy + gap + 12),
            (cx + diagonal, cy - diagonal), (cx + diagonal, cy + diagonal + 9),
            (cx - diagonal - width, cy - diagonal), (cx - diagonal - width, cy + diagonal + 9),
        ]  # fmt: skip
        boxes = [(sx, sy - 11, sx + width, sy + 3) for sx, sy in spots]
        best = min(range(len(spots)), key=lambda i: (_cost(boxes[i], taken), i))
        taken.append(boxes[best])
        parts.append(
            f'<text class="name {point.kind}" x="{spots[best][0]:.1f}" y="{spots[best][1]:.1f}" '
            f'aria-hidden="true">{escape(text)}</text>'
        )
    return parts


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Return the pixels of `box` that lie on others or outside."""
    covered = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    outside = max(0.0, _LEFT - box[0]) + max(0.0, box[2] - _WIDTH + 4)
    outside += max(0.0, _TOP - box[1]) + max(0.0, box[3] - _HEIGHT + _BOTTOM)
    return covered + 20 * outside
