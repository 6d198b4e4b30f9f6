"""What the registry is told of one variant."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataFacts:
    """The prepared data that a variant was judged on."""

    name: str
    md5: str
    """Its DVC hash, with `.dir` for a folder: at most 36 characters."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Split → number of rows."""


@dataclass(frozen=True)
class VariantFacts:
    """One pressed, exported, measured and judged node."""

    node_key: str
    recipe: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    """(technique, resolved settings) from the baseline's child down to this node."""
    ancestors: tuple[str, ...]
    """Keys of the nodes above, nearest first; the baseline's is last."""
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Flat names: `test.accuracy`, `test.recall.<label>`, `latency.p50_ms`, `size_bytes`, …"""
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Row: true label, column: answer; counts, in the order of `labels`."""
    export_folder: Path
    """What is served: `model.onnx`, `tokenizer.json`, `serving.json`."""
    predictions: Path
    """Per-example test predictions (Parquet)."""
    data: DataFacts
    passed: bool
    reasons: tuple[str, ...]
    """One line per gate that failed; empty where all passed."""
    fingerprint: str
    """Machine on which the latencies were measured."""
    seconds: float
    """Wall time that this node's pressing took, its ancestors' not counted."""
    measured_run: str = ""
    """Night that measured the figures."""
