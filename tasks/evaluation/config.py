"""Settings of measuring and of the gates."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.frozen import Frozen

Share = Annotated[float, Field(ge=0, le=1)]


class EvaluationConfig(Frozen):
    """How quality and speed are measured."""

    rounds: int = Field(default=12, ge=3)
    """Interleaved rounds; every model is timed in every round."""
    texts_per_round: int = Field(default=24, ge=1)
    """Single texts timed per model and round (batch 1)."""
    batches_per_round: int = Field(default=2, ge=1)
    """Batches of 32 timed per model and round."""
    batch_size: int = Field(default=32, ge=1)
    warmup: int = Field(default=8, ge=1)
    """Untimed calls per model before the first round."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of every runtime alike; None: the machine's physical share."""
    max_slice_texts: int = Field(default=500, ge=0)
    """Labelled texts of each other domain that models are asked."""
    max_robustness_texts: int = Field(default=250, ge=0)
    """Test texts that models are asked again with typing errors, in capitals, and so on."""
    max_undoing_texts: int = Field(default=256, ge=0)
    """Validation texts that a variant which loses too much is asked with one layer undone at a
    time; 0: none is."""
    resamples: int = Field(default=5000, ge=200)
    """Bootstrap resamples."""
    seed: int = 13


class GatesConfig(Frozen):
    """What a variant must show, on test data, to be worth having. Points are per cent of texts."""

    max_loss_points: float = 1.0
    """Accuracy lost against the baseline."""
    max_loss_bound_points: float = 2.0
    """One-sided 95% paired-bootstrap bound of that loss."""
    min_accuracy: Share = 0.5
    """Absolute floor."""
    max_recall_drop_points: float = Field(default=10.0, ge=0)
    """Largest fall of one class's recall."""
    max_slice_drop_points: float = Field(default=10.0, ge=0)
    """Largest fall of accuracy on the labelled texts of one other domain."""
    max_calibration_rise: float = Field(default=0.1, ge=0)
    """Largest rise of the expected calibration error, which lies between 0 and 1."""
    min_speedup: float = Field(default=1.1, ge=1)
    """p50 at batch 1 against the fp32 baseline exported to the same runtime: the lower 95% bound
    must reach this, or the size must."""
    min_shrink: float = Field(default=1.5, ge=1)
    """Bytes of the exported fp32 baseline divided by the variant's."""


class RegistryConfig(Frozen):
    """What becomes of a variant that passes."""

    objective: Literal["latency", "throughput", "size", "accuracy"] = "latency"
    """Which end of the Pareto front becomes challenger; ranked on validation accuracy."""
    promotion: Literal["auto", "approve", "manual"] = "approve"
    """How a challenger replaces the champion. `auto`: by itself, where it passes the gates beside
    the champion and is better by the objective; `approve`: when a person approves the evidence;
    `manual`: when a person promotes it. The first model that passes becomes champion by itself,
    but for `manual`."""
