"""What is different about a model only while it trains: dropout, and what stands still."""

import contextlib
from collections.abc import Iterator

from torch import nn

from tasks.training.config import TrainingConfig


@contextlib.contextmanager
def regime(model: nn.Module, config: TrainingConfig) -> Iterator[None]:
    """Set dropout layers and frozen embedding tables as `config` says; undo it at the end."""
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    probabilities = [layer.p for layer in layers]
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    moving = [p for table in tables for p in table.parameters() if p.requires_grad]
    try:
        if config.dropout is not None:
            for layer in layers:
                layer.p = config.dropout
        if config.freeze_embeddings:
            for parameter in moving:
                parameter.requires_grad_(False)
        yield
    finally:
        for layer, probability in zip(layers, probabilities, strict=True):
            layer.p = probability
        for parameter in moving:
            parameter.requires_grad_(True)
