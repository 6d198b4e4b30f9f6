"""The residual stream of a Transformer classifier: what carries it, and how to make it narrower.

A dimension of the stream lives in the embedding tables, in every norm, in what each layer reads
from the stream and adds to it, and in what the classifier reads: it is cut everywhere at once.
The hidden layer before the classifier (the pooler), where there is one, has a width of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks import model_parts
from tasks.errors import TechniqueError
from tasks.model_parts import Layer, keep_entries, keep_inputs, keep_outputs


@dataclass(frozen=True)
class _Paths:
    """Where an architecture keeps its stream."""

    embeddings: tuple[str, ...]
    """Tables whose rows are added up; relative to the base model, as the two norms' paths."""
    layer_norms: tuple[str, str]
    """Relative to the layer: the attention's norm and the feed-forward network's."""
    first_norm: str | None
    last_norm: str | None
    pooler: str | None
    """A linear module that reads the stream; relative to the whole model, as `classifier`."""
    classifier: str
    projection: str | None = None
    """From narrower embeddings to the stream, where the model has it."""


_TABLES = tuple(
    f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type")
)  # fmt: skip
_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_BERT = _Paths(
    _TABLES, _BERT_NORMS, "embeddings.LayerNorm", None, "bert.pooler.dense", "classifier"
)
_ROBERTA = _Paths(
    _TABLES, _BERT_NORMS, "embeddings.LayerNorm", None, "classifier.dense", "classifier.out_proj"
)
_ELECTRA = _Paths(
    _TABLES, _BERT_NORMS, "embeddings.LayerNorm", None, "classifier.dense", "classifier.out_proj",
    projection="embeddings_project",
)  # fmt: skip
_DISTILBERT = _Paths(
    _TABLES[:2], ("sa_layer_norm", "output_layer_norm"), "embeddings.LayerNorm", None,
    "pre_classifier", "classifier",
)  # fmt: skip
_MPNET = _Paths(
    _TABLES[:2], ("attention.LayerNorm", "output.LayerNorm"), "embeddings.LayerNorm", None,
    "classifier.dense", "classifier.out_proj",
)  # fmt: skip
_GPT2 = _Paths(("wte", "wpe"), ("ln_1", "ln_2"), None, "ln_f", None, "score")
_PATHS = {
    "bert": _BERT,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "electra": _ELECTRA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "gpt2": _GPT2,
}


@dataclass(frozen=True)
class Stream:
    """The modules in which the width of the residual stream lives."""

    tables: tuple[nn.Module, ...]
    """Embeddings that are the stream's beginning; none where a projection is."""
    projection: nn.Module | None
    norms: tuple[nn.LayerNorm, ...]
    """In order, 2·layers + 1: what is put into norm 2·l + 1 is the stream after the attention of
    layer l, into norm 2·l + 2 the one after its feed-forward network (counted from 0)."""
    parts: tuple[Layer, ...]
    pooler: nn.Module | None
    classifier: nn.Module

    @property
    def width(self) -> int:
        """Dimensions of the stream."""
        return model_parts.num_inputs(self.parts[0].ffn_input)

    @property
    def pooled(self) -> int | None:
        """Width of the hidden layer before the classifier; None where there is none."""
        return None if self.pooler is None else model_parts.num_outputs(self.pooler)

    @property
    def own_norms(self) -> tuple[nn.LayerNorm, ...]:
        """The norms over the stream: all, but for that of embeddings which are then projected."""
        return self.norms if self.projection is None else self.norms[1:]

    def require_tables(self) -> None:
        """Raise TechniqueError where the embeddings are factorized: they cannot be narrowed."""
        if not all(isinstance(table, nn.Embedding) for table in self.tables):
            raise TechniqueError(
                "the embeddings are factorized, and cannot be made narrower: put "
                "`structure.factorized_embedding` behind this step"
            )

    def keep(self, dimensions: Sequence[int], pooled: Sequence[int] | None = None) -> None:
        """Remove all dimensions but `dimensions` (ascending), in place.

        `pooled`: what stays of the hidden layer before the classifier; None leaves it as wide.
        The model's `config` keeps the width that it was built with.
        """
        assert dimensions
        index = torch.as_tensor(dimensions)
        self._keep_beginning(index)
        for norm in self.own_norms:
            keep_entries(norm, "weight", index, dim=0)
            keep_entries(norm, "bias", index, dim=0)
            norm.normalized_shape = (len(index),)
        for part in self.parts:
            for reader in (*part.projections, part.ffn_input):
                keep_inputs(reader, index)
            for writer in (part.attention_output, part.ffn_output):
                keep_outputs(writer, index)
        keep_inputs(self.classifier if self.pooler is None else self.pooler, index)
        if pooled is not None:
            assert self.pooler is not None
            keep_outputs(self.pooler, torch.as_tensor(pooled))
            keep_inputs(self.classifier, torch.as_tensor(pooled))

    def _keep_beginning(self, index: torch.Tensor) -> None:
        for table in self.tables:
            keep_entries(table, "weight", index, dim=1)
            table.embedding_dim = len(index)  # type: ignore[assignment]
        if self.projection is not None:
            keep_outputs(self.projection, index)


def stream(model: PreTrainedModel) -> Stream:
    """Return the residual stream of the model.

    Raises TechniqueError where the architecture is unknown or shares one layer's weights.
    """
    path, layers = model_parts.layer_list(model)
    parts = model_parts.layers(model)
    paths = _PATHS[model.config.model_type]
    base = model.get_submodule(model.base_model_prefix)
    names = [f"{model.base_model_prefix}.{paths.first_norm}"] if paths.first_norm else []
    names += [f"{path}.{i}.{norm}" for i in range(len(layers)) for norm in paths.layer_norms]
    names += [f"{model.base_model_prefix}.{paths.last_norm}"] if paths.last_norm else []
    norms = [model.get_submodule(name) for name in names]
    assert all(isinstance(norm, nn.LayerNorm) for norm in norms)
    tables = [base.get_submodule(table) for table in paths.embeddings]
    projected = paths.projection is not None and hasattr(base, paths.projection)
    return Stream(
        tables=() if projected else tuple(tables),
        projection=base.get_submodule(paths.projection or "") if projected else None,
        norms=tuple(norms),
        parts=tuple(parts),
        pooler=None if paths.pooler is None else model.get_submodule(paths.pooler),
        classifier=model.get_submodule(paths.classifier),
    )
