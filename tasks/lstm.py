"""A bidirectional LSTM classifier that goes where a Transformer goes.

Embedding, bidirectional LSTM layers, a linear layer over the last states of both directions
(Hochreiter and Schmidhuber 1997; Graves and Schmidhuber 2005). It is a transformers model of a
type of its own, so that the training loop, bundles, recipes and the exporter take it as they take
a BERT.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

MODEL_TYPE = "nightpress-lstm"


class LstmConfig(PretrainedConfig):  # type: ignore[misc]
    """What `config.json` says of such a model."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 30_522,
        embedding_size: int = 128,
        hidden_size: int = 128,
        num_hidden_layers: int = 1,
        classifier_dropout: float = 0.1,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.classifier_dropout = classifier_dropout
        super().__init__(**more)


class LstmForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Takes input_ids and attention_mask (batch, tokens); gives `.logits` (batch, labels)."""

    config_class = LstmConfig
    base_model_prefix = "body"

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        widths = [config.embedding_size] + [2 * config.hidden_size] * (config.num_hidden_layers - 1)
        self.forwards = nn.ModuleList(_lstm(width, config.hidden_size) for width in widths)
        self.backwards = nn.ModuleList(_lstm(width, config.hidden_size) for width in widths)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave what torch has drawn: its LSTM and linear layers scale with their widths."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Read each text from both ends, its padding never.

        Two plain LSTMs a layer, the second on reversed texts: what torch packs for a bidirectional
        one, its ONNX exporter cannot trace.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = mask.sum(dim=1, keepdim=True).clamp(min=1) - 1
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :]
        # a text's own places from its end to its beginning; padding stays where it is
        mirrored = torch.where(places <= last, last - places, places)
        values = self.embeddings(input_ids)
        for onward, back in zip(self.forwards, self.backwards, strict=True):
            first, _ = onward(values)
            second, _ = back(_at(values, mirrored))
            values = torch.cat([first, _at(second, mirrored)], dim=2)
        # forward at the text's end, backward at its beginning
        half = self.config.hidden_size
        both = torch.cat([_at(values, last)[:, 0, :half], values[:, 0, half:]], dim=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(both)))


def _lstm(width: int, hidden: int) -> nn.LSTM:
    return nn.LSTM(width, hidden, batch_first=True)


def _at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return (batch, places, width) of values (batch, tokens, width) at places (batch, places)."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


def build(
    *,
    embedding: int,
    hidden: int,
    layers: int,
    dropout: float,
    vocab_size: int,
    pad_id: int,
    num_labels: int,
) -> LstmForSequenceClassification:
    """Return a model of these widths, random by torch's generator (seed it first)."""
    config = LstmConfig(
        vocab_size=vocab_size,
        embedding_size=embedding,
        hidden_size=hidden,
        num_hidden_layers=layers,
        classifier_dropout=dropout,
        num_labels=num_labels,
        pad_token_id=pad_id,
    )
    return LstmForSequenceClassification(config)


def register() -> None:
    """Let transformers' Auto classes know this type; repeating it does no harm."""
    AutoConfig.register(MODEL_TYPE, LstmConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        LstmConfig, LstmForSequenceClassification, exist_ok=True
    )
