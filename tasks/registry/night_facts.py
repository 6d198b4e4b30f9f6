"""All that is told of one night, and its JSON form."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from tasks.errors import StoreError
from tasks.evaluation.explained import Changed, Undoing

FORMAT = 1


@dataclass(frozen=True)
class Figures:
    """What was measured of one model on test data."""

    accuracy: float
    """Share of texts, 0 to 1."""
    p50_ms: float
    """Batch 1."""
    p95_ms: float
    throughput: float
    """Texts per second at batch 32."""
    size_bytes: int
    memory_mb: float | None = None
    macro_f1: float | None = None
    noise: float | None = None
    """Half the spread of the middle half of the rounds' medians, as a share of their median."""


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95% interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class VariantRow:
    """One recipe's result."""

    recipe: str
    node_key: str
    steps: tuple[str, ...]
    """Techniques from the baseline down."""
    verdict: Literal["passed", "rejected", "failed"]
    reasons: tuple[str, ...] = ()
    """Which gates failed and by how much, or the error."""
    figures: Figures | None = None
    loss_points: float | None = None
    """Accuracy lost against the baseline, in points; negative is a gain."""
    loss_bound_points: float | None = None
    """One-sided 95% bound of that loss."""
    agreement: float | None = None
    """Share of texts that get the baseline's label."""
    distance: float | None = None
    """Mean total-variation distance of its probabilities from the baseline's, 0 to 1."""
    mcnemar_p: float | None = None
    """Exact two-sided McNemar test of its accuracy against the baseline's."""
    speedup_eager: Interval | None = None
    """p50 of the PyTorch baseline divided by this one's."""
    speedup_fp32: Interval | None = None
    """p50 of the fp32 baseline in the same runtime divided by this one's."""
    recall_change: Mapping[str, float] = field(default_factory=dict)
    """Label → change of its recall on test data against the baseline, in points."""
    lost_elsewhere: Mapping[str, float] = field(default_factory=dict)
    """Other domain, or change of the test texts → points lost there against the baseline's own."""
    changed: tuple[Changed, ...] = ()
    """Test texts that only the baseline gets right, the worst first."""
    undoing: Undoing | None = None
    """What is regained by undoing one part at a time, where too much is lost."""
    proof: str = ""
    """What its effect is proven by, or why it is not."""
    on_front: bool = False
    """No other variant that passes is both more accurate and faster."""
    cached: bool = False
    version: int | None = None
    """Of `NAME-candidates`."""
    measured_run: str = ""
    """The night that measured the figures, where it was not this one."""


@dataclass(frozen=True)
class NodeRow:
    """One node of the derivation tree."""

    key: str
    parent: str | None
    technique: str
    settings: str
    """A few words: what differs from the defaults, say."""
    status: Literal["pressed", "cached", "failed", "skipped"]
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class CheckRow:
    """One expectation of the validation gate."""

    name: str
    split: str
    passed: bool
    observed: str = ""


@dataclass(frozen=True)
class ValidationFacts:
    """What the validation gate said."""

    passed: bool
    checks: tuple[CheckRow, ...] = ()
    docs: str = ""
    """Address of the Data Docs: a path beside the report, or a URL."""


@dataclass(frozen=True)
class Standing:
    """A version that an alias points at."""

    recipe: str
    node_key: str
    version: int


@dataclass(frozen=True)
class Phase:
    """A part of the night's wall time."""

    name: str
    seconds: float
    kind: Literal["work", "overhead"]
    """`overhead`: orchestration, tracking, validation."""


@dataclass(frozen=True)
class NightFacts:
    """One night. Times are UTC seconds since the epoch."""

    night: str
    name: str
    started: float
    seconds: float
    """Wall time, start to report."""
    data_name: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Split → rows."""
    pointers: Mapping[str, str] = field(default_factory=dict)
    """What → DVC hash or address with its hash."""
    labels: tuple[str, ...] = ()
    validation: ValidationFacts | None = None
    nodes: tuple[NodeRow, ...] = ()
    eager: Figures | None = None
    """The baseline in PyTorch."""
    fp32: Figures | None = None
    """The baseline exported to the runtime of the variants."""
    variants: tuple[VariantRow, ...] = ()
    champion_before: Standing | None = None
    champion_after: Standing | None = None
    challenger_before: Standing | None = None
    challenger_after: Standing | None = None
    phases: tuple[Phase, ...] = ()
    fingerprint: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    max_loss_points: float | None = None
    """The gate on accuracy, drawn in the plot."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Title → address, of MLflow's page say."""
    note: str = ""
    """Why the night ended early, or what else a reader must know."""

    @property
    def failed(self) -> tuple[VariantRow, ...]:
        """Variants that could not be pressed, exported or measured."""
        return tuple(v for v in self.variants if v.verdict == "failed")

    @property
    def champion(self) -> VariantRow | None:
        """Tonight's row of the champion; None where it is not among tonight's recipes."""
        node = self.champion_after.node_key if self.champion_after else None
        return next((v for v in self.variants if v.node_key == node), None)

    @property
    def overhead_share(self) -> float:
        """Share of the wall time that was not work, 0 to 1."""
        overhead = sum(p.seconds for p in self.phases if p.kind == "overhead")
        return overhead / self.seconds if self.seconds else 0.0

    @property
    def ranked(self) -> tuple[VariantRow, ...]:
        """Variants: the champion, then those that passed, fastest first, then the others."""
        champion = self.champion

        def rank(row: VariantRow) -> tuple[Any, ...]:
            order = ("passed", "rejected", "failed").index(row.verdict)
            return (row is not champion, order, row.figures.p50_ms if row.figures else 0.0)

        return tuple(sorted(self.variants, key=rank))

    @property
    def when(self) -> str:
        """The start, to the minute, in UTC."""
        return datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M UTC")


def to_json(facts: NightFacts) -> dict[str, Any]:
    """Return what `from_json` reads: plain values for `json.dump`."""
    return {"format": FORMAT, **dataclasses.asdict(facts)}


def from_json(value: Mapping[str, Any]) -> NightFacts:
    """Return the facts of a past night. Raises StoreError where they are not a night's."""
    given = dict(value)
    found = given.pop("format", None)
    if found != FORMAT:
        raise StoreError(
            f"night.json is of format {found!r}, not {FORMAT}; show it with the Nightpress that "
            "wrote it"
        )
    try:
        return TypeAdapter(NightFacts).validate_python(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise StoreError(f"night.json cannot be read: {place}: {problem['msg']}") from error
