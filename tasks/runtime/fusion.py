"""Fuses an exported graph into ONNX Runtime's own operators, whatever was cut from the model."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from tasks import model_parts
from tasks.errors import ExportError, TechniqueError

_TYPES = {"gpt2": "gpt2"}
"""Model types that the optimizer has rules of their own for; the others are taken as BERT."""
_ATTENTION = ("Attention", "MultiHeadAttention")
_FUSED = (
    *_ATTENTION,
    "EmbedLayerNormalization",
    "SkipLayerNormalization",
    "BiasGelu",
    "FastGelu",
    "Gelu",
)
_MUST_FUSE = ("bert",)


def fuse(model: Any, source: Path, target: Path) -> dict[str, int]:
    """Write `source` fused as `target`; return the fused operators and how many of each.

    Raises ExportError where a BERT's attention was not fused in every layer.
    """
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    kind = _TYPES.get(model.config.model_type, "bert")
    with quiet_logging():
        optimized = optimizer.optimize_model(
            str(source),
            model_type=kind,
            num_heads=model.config.num_attention_heads,
            hidden_size=model.config.hidden_size,
            optimization_options=FusionOptions(kind),
            opt_level=0,
        )
        graph = optimized.model
        _set_heads(graph, model)
        optimized.save_model_to_file(str(target))
    counts = Counter(node.op_type for node in graph.graph.node)
    fused = {name: counts[name] for name in _FUSED if counts[name]}
    _require(model, fused)
    return fused


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Hush what ONNX Runtime's tools say on loggers of several names; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _set_heads(graph: onnx.ModelProto, model: Any) -> None:
    """Give every fused attention its own layer's number of heads: cut layers have fewer."""
    nodes = [node for node in graph.graph.node if node.op_type in _ATTENTION]
    try:
        heads = [layer.num_heads for layer in model_parts.layers(model)]
    except TechniqueError:  # an architecture that is never cut: the configuration's number holds
        return
    if len(nodes) != len(heads):
        return
    for node, num_heads in zip(nodes, heads, strict=True):
        kept = [a for a in node.attribute if a.name != "num_heads"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("num_heads", num_heads)])


def _require(model: Any, fused: dict[str, int]) -> None:
    if model.config.model_type not in _MUST_FUSE:
        return
    num_layers = model.config.num_hidden_layers
    attentions = sum(fused.get(name, 0) for name in _ATTENTION)
    missing = [
        f"{attentions} of {num_layers} attention layers" if attentions != num_layers else "",
        "no embedding layer" if not fused.get("EmbedLayerNormalization") else "",
    ]
    wrong = [part for part in missing if part]
    if wrong:
        raise ExportError(f"ONNX Runtime's optimizer fused {' and '.join(wrong)} of this model")
