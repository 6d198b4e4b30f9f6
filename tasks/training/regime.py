"""What is different about a model only while it trains.

Dropout, what stands still, and what is computed again for the gradients instead of being kept
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tasks.training.config import TrainingConfig
from tasks.training.depth import stacks


@contextlib.contextmanager
def regime(model: PreTrainedModel, config: TrainingConfig) -> Iterator[None]:
    """Train `model` as `config` says while the context lasts; all is as before at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_uncached(model))
        if config.dropout is not None:
            stack.enter_context(_dropout(model, config.dropout))
        if config.freeze_embeddings:
            stack.enter_context(_frozen_tables(model))
        if config.gradient_checkpointing:
            stack.enter_context(_recomputed_layers(model))
        yield


@contextlib.contextmanager
def _uncached(model: PreTrainedModel) -> Iterator[None]:
    """Let a decoder keep nothing for a next token; computed again, it would keep it twice."""
    cached = getattr(model.config, "use_cache", False)
    try:
        if cached:
            model.config.use_cache = False
        yield
    finally:
        if cached:
            model.config.use_cache = True


@contextlib.contextmanager
def _dropout(model: nn.Module, probability: float) -> Iterator[None]:
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = probability
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.p = old


@contextlib.contextmanager
def _frozen_tables(model: nn.Module) -> Iterator[None]:
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    moving = [p for table in tables for p in table.parameters() if p.requires_grad]
    try:
        for parameter in moving:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep of every layer its input alone.

    Not by transformers' own switch, which knows but some architectures (no MPNet, ALBERT or LSTM).
    """
    layers = {layer for members in stacks(model).values() for layer in members}
    try:
        for layer in layers:
            layer.forward = partial(_recomputed, layer.forward)
        yield
    finally:
        for layer in layers:
            del layer.forward  # the one of its class is seen again


def _recomputed(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)
