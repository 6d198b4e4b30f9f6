"""A variant and a night, as the flow would tell them."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from tasks.evaluation.explained import Changed, Undoing, Undone
from tasks.registry.facts import DataFacts, VariantFacts
from tasks.registry.night_facts import (
    CheckRow,
    Figures,
    Interval,
    NightFacts,
    NodeRow,
    Phase,
    Standing,
    ValidationFacts,
    VariantRow,
)

BASELINE = "b" * 64


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def variant(export_folder: Path, recipe: str = "int8", **changes: Any) -> VariantFacts:
    predictions = export_folder.parent / "predictions.parquet"
    predictions.write_bytes(b"PAR1")
    facts = VariantFacts(
        node_key=key(recipe),
        recipe=recipe,
        steps=(
            ("pruning.magnitude", {"sparsity": 0.5, "training": {"epochs": 2}}),
            ("quantization.dynamic", {"per_channel": True}),
        ),
        ancestors=(key("above"), BASELINE),
        manifest={"key": key(recipe), "seed": 13},
        metrics={"test.accuracy": 0.86, "test.recall.5★ & up": 0.8, "latency.p50_ms": 1.25},
        labels=("negative", "positive"),
        confusion=((40, 8), (6, 46)),
        export_folder=export_folder,
        predictions=predictions,
        data=DataFacts("reviews", "0123456789abcdef0123456789abcdef.dir", {"test": 100}),
        passed=False,
        reasons=("too slow: 1.02×, 1.10× is asked",),
        fingerprint="cafe",
        seconds=12.5,
        measured_run="2026-01-02",
    )
    return dataclasses.replace(facts, **changes)


def row(
    recipe: str, p50: float, accuracy: float, verdict: str = "passed", **more: Any
) -> VariantRow:
    figures = Figures(
        accuracy, p50, 1.8 * p50, 1200.0 / p50, int(2e7 * p50), 120.0, accuracy, noise=0.0234
    )
    given = {
        "figures": figures,
        "loss_points": 100 * (0.86 - accuracy),
        "loss_bound_points": 100 * (0.86 - accuracy) + 0.8,
        "agreement": 0.95,
        "distance": 0.0317,
        "mcnemar_p": 0.0412 if verdict == "passed" else 1e-9,
        "speedup_eager": Interval(6.8 / p50, 6.5 / p50, 7.1 / p50),
        "speedup_fp32": Interval(3.4 / p50, 3.3 / p50, 3.5 / p50),
        "on_front": verdict == "passed",
    }
    return VariantRow(recipe, key(recipe), ("quantization.dynamic",), verdict, **{**given, **more})


def night(**changes: Any) -> NightFacts:
    variants = (
        row("int8", 2.0, 0.858, version=1, cached=True, measured_run="2026-01-01"),
        row("slim-int8", 1.0, 0.853, version=2),
        row(
            "third",
            0.7,
            0.80,
            "rejected",
            reasons=("accuracy lost: 6.00 points, at most 1.00",),
            recall_change={"negative": -8.0, "positive": 1.5},
            lost_elsewhere={"news": 3.25},
            undoing=Undoing(
                256,
                5.5,
                0.1234,
                (Undone("layer 1", "float", 4.5, 0.1), Undone("pooler", "baseline", -1.0, -0.02)),
                ("not put back: layer 0 (<i>why</i>)",),
            ),
            proof="50% zeros",
            changed=(Changed("good <i>film</i>", "positive", "negative", 0.91, 0.12),),
        ),
        VariantRow("broken", key("broken"), ("pruning.magnitude",), "failed", ("loss is nan",)),
    )
    nodes = (
        NodeRow(key("slim-int8"), key("slim"), "quantization.dynamic", "int8", "pressed", 0.9),
        NodeRow(key("slim"), BASELINE, "pruning.structured", "8 heads", "pressed", 61.0),
        NodeRow(BASELINE, None, "baseline", "3 epochs", "cached", 300.0),
        NodeRow(key("int8"), BASELINE, "quantization.dynamic", "int8", "cached", 0.8),
    )
    facts = NightFacts(
        night="2026-01-02",
        name="reviews",
        started=1767312000.0,
        seconds=1000.0,
        data_name="reviews",
        rows={"train": 6042, "test": 2517},
        pointers={"prepared": "0123456789abcdef0123456789abcdef.dir"},
        labels=("negative", "positive"),
        validation=ValidationFacts(True, (CheckRow("no null", "train", True, "0"),), "docs/i.html"),
        nodes=nodes,
        eager=Figures(0.86, 6.8, 12.0, 370.0, 90_900_000, 410.0, noise=0.0456),
        fp32=Figures(0.86, 3.4, 6.1, 372.0, 91_000_000, 222.0),
        variants=variants,
        champion_before=Standing("int8", key("int8"), 1),
        champion_after=Standing("slim-int8", key("slim-int8"), 2),
        phases=(Phase("pressing", 950.0, "work"), Phase("registry", 50.0, "overhead")),
        fingerprint="cafe",
        machine={"cpu": "two cores"},
        versions={"torch": "2.13.0"},
        max_loss_points=1.0,
        links={"MLflow": "http://127.0.0.1:5000/"},
    )
    return dataclasses.replace(facts, **changes)
