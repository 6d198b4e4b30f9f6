"""Fuses an exported graph into ONNX Runtime's own operators, whatever was cut from the model."""

import contextlib
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from tasks import model_parts
from tasks.errors import ExportError, TechniqueError
from tasks.replacements import FactorizedEmbedding

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
_WITH_EMBEDDING = ("bert", "electra", "distilbert")
"""Types whose embeddings, too, are known to fuse; RoBERTa's count positions from the mask."""
_MUST_FUSE = (*_WITH_EMBEDDING, "roberta", "xlm-roberta", "camembert")
"""Types whose layers are known to fuse whole. Others are fused as far as it goes."""


@dataclass(frozen=True)
class Form:
    """How far a graph is fused: some forms of quantization must see a matrix by itself."""

    embedding: bool = True
    """The embedding tables, their sum and its norm are one operator."""
    projections: bool = True
    """Query, key and value are multiplied inside the attention operator, as one matrix."""


WHOLE = Form()


def fuse(model: Any, source: Path, target: Path, form: Form = WHOLE) -> dict[str, int]:
    """Write `source` fused as `target`; return the fused operators and how many of each.

    Raises ExportError where the optimizer fails, or where a BERT or one of its kin was not fused
    in every layer.
    """
    try:
        graph = _optimized(model, source, target, form)
    except Exception as error:  # the optimizer's own errors have no base but this
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(
            f"ONNX Runtime's optimizer fails on a model of type `{model.config.model_type}`: {line}"
        ) from error
    counts = Counter(node.op_type for node in graph.graph.node)
    fused = {name: counts[name] for name in _FUSED if counts[name]}
    _require(model, fused, form)
    return fused


def _optimized(model: Any, source: Path, target: Path, form: Form) -> onnx.ModelProto:
    """Write `source` fused as `target`, and return it."""
    kind = _TYPES.get(model.config.model_type, "bert")
    heads = getattr(model.config, "num_attention_heads", 0)  # an LSTM has none
    with quiet_tools():
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        _hush(Path(optimizer.__file__).parent)
        options = FusionOptions(kind)
        options.enable_embed_layer_norm = form.embedding
        options.use_multi_head_attention = not form.projections
        optimized = optimizer.optimize_model(
            str(source),
            model_type=kind,
            num_heads=heads,
            hidden_size=_attention_width(model) if heads else 0,
            optimization_options=options,
            opt_level=0,
        )
        graph = optimized.model
        _set_heads(graph, model)
        _share_equal(graph.graph)
        optimized.save_model_to_file(str(target))
    return graph


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """Keep ONNX Runtime's Python tools from changing this process.

    They warn on the root logger, whose first use gives the process a handler on stderr, and put
    a folder on `sys.path` that holds modules called `models`, `metrics` and `constants`.
    """
    root, path = logging.getLogger(), list(sys.path)
    silent = logging.NullHandler()
    root.addHandler(silent)
    root.addFilter(_not_of_tools)
    try:
        yield
    finally:
        root.removeFilter(_not_of_tools)
        root.removeHandler(silent)
        sys.path[:] = [folder for folder in sys.path if folder in path]


def _not_of_tools(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "onnxruntime" not in record.pathname


def _hush(folder: Path) -> None:
    """Let the tools in `folder`, which log under bare module names, report errors alone."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            logging.getLogger(name).setLevel(logging.ERROR)


def _attention_width(model: Any) -> int:
    """Return heads × head size as the model was built, which is what the optimizer means.

    It takes `hidden_size` for that alone: an attention whose reshape leaves the number of heads
    open is fused only where `num_heads` × its head size is `hidden_size`. What the attention reads
    (a stream of any width) it takes from the weights, and heads that were cut from `_set_heads`.
    """
    try:
        head_size = model_parts.layers(model)[0].head_size
    except TechniqueError:
        return int(model.config.hidden_size)
    return int(model.config.num_attention_heads) * head_size


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


def _share_equal(graph: onnx.GraphProto) -> None:
    """Keep equal matrices once: those that layers share are copied by tracing and fusing."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if len(tensor.dims) >= 2:
            held = numpy_helper.to_array(tensor).tobytes()
            content = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(held).digest())
            renamed[tensor.name] = first.setdefault(content, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    kept = [t for t in graph.initializer if renamed.get(t.name, t.name) == t.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _require(model: Any, fused: dict[str, int], form: Form) -> None:
    kind, num_layers = model.config.model_type, model.config.num_hidden_layers
    if kind not in _MUST_FUSE:
        return
    attentions = sum(fused.get(name, 0) for name in _ATTENTION)
    norms = fused.get("SkipLayerNormalization", 0)
    lacking = []
    if attentions != num_layers:
        lacking.append(f"{attentions} of {num_layers} attention layers")
    if norms != 2 * num_layers:
        lacking.append(f"{norms} of {2 * num_layers} layer norms")
    # the fused operator looks rows up and adds them: a product in between is beyond it
    factorized = isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    wanted = form.embedding and kind in _WITH_EMBEDDING and not factorized
    if wanted and not fused.get("EmbedLayerNormalization"):
        lacking.append("no embedding layer")
    if lacking:
        raise ExportError(
            f"ONNX Runtime's optimizer fused only {', '.join(lacking)} of this {kind}, which would "
            "run too slow: check that transformers and onnxruntime are as in requirements.lock"
        )
