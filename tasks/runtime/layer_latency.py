"""How long a Transformer layer takes by its width, measured on this machine, as it is served.

Small models of the architecture (a few layers, random weights, a toy vocabulary) are cut to a few
numbers of heads and of neurons, exported and fused as any model is, and timed in turn, one text at
a time.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tasks import model_parts
from tasks.bundle import Bundle, ExportPlan
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.stream import stream
from tasks.training.progress import Progress

_LAYERS = 3
"""Of the probes: enough for the layers to outweigh the rest."""
_SHARES = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)
"""Of the whole width of each kind, what is measured: closer where a layer is mostly overhead."""
_ROUNDS = 40
_WARMUP = 5
_WORDS = [f"w{number}" for number in range(60)]


@dataclass(frozen=True)
class LayerLatency:
    """Milliseconds of one layer, without embeddings and classifier."""

    whole: float
    """With all its heads and neurons."""
    heads: Mapping[int, float]
    """Number of heads → with these and all neurons."""
    neurons: Mapping[int, float]
    """Number of neurons → with these and all heads."""


def measure(
    bundle: Bundle,
    length: int,
    threads: int,
    progress: Progress,
    plan: ExportPlan = ExportPlan(),  # noqa: B008 - frozen
) -> LayerLatency:
    """Time one layer of the model in ONNX Runtime, at batch 1 and `length` tokens.

    `plan` is what the layers are exported with: nothing, or a quantization that needs no data.

    Raises ExportError where this architecture cannot be exported, TechniqueError where its parts
    are unknown.
    """
    parts = model_parts.layers(bundle.model)
    most = max(p.num_heads for p in parts), max(p.num_neurons for p in parts)
    few = widths(most[0]) if model_parts.cuts_heads(bundle.model) else [most[0]]
    shapes = {(_LAYERS, heads, most[1]) for heads in few}
    shapes |= {(_LAYERS, most[0], neurons) for neurons in widths(most[1])}
    shapes |= {(1, *most)}
    sessions = {}
    progress.start("measuring layers", len(shapes))
    try:
        with tempfile.TemporaryDirectory() as folder:
            for shape in sorted(shapes):
                path = Path(folder) / "-".join(map(str, shape))
                export(replace(_probe(bundle, length, *shape), export=plan), path)
                sessions[shape] = Session(path, threads)
                progress.advance(1)
            return table(_times(sessions, length), most)
    finally:
        progress.stop()


def widths(most: int) -> list[int]:
    """Return a few ascending numbers of parts, `most` the last."""
    return sorted({max(1, round(most * share)) for share in _SHARES})


def table(times: Mapping[tuple[int, int, int], float], most: tuple[int, int]) -> LayerLatency:
    """Return the cost of one layer, given (layers, heads, neurons) → time of a probe."""
    alone, whole = times[1, *most], times[_LAYERS, *most]
    layer = (whole - alone) / (_LAYERS - 1)
    rest = alone - layer
    each = {shape[1:]: (time - rest) / _LAYERS for shape, time in times.items() if shape[0] > 1}
    return LayerLatency(
        whole=layer,
        heads={heads: ms for (heads, neurons), ms in each.items() if neurons == most[1]},
        neurons={neurons: ms for (heads, neurons), ms in each.items() if heads == most[0]},
    )


def _probe(bundle: Bundle, length: int, num_layers: int, heads: int, neurons: int) -> Bundle:
    """Return a random model of the bundle's architecture and width of stream."""
    tokenizer = _toy_tokenizer()
    config = copy.deepcopy(bundle.model.config)
    config.num_hidden_layers = num_layers
    config.vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    for special in ("bos_token_id", "eos_token_id"):
        setattr(config, special, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    width, found = stream(bundle.model).width, stream(model)
    if width < found.width:
        found.keep(range(width))
    for part in found.parts:
        if heads < part.num_heads:
            part.keep_heads(range(heads))
        if neurons < part.num_neurons:
            part.keep_neurons(range(neurons))
    return Bundle(model, tokenizer, bundle.labels, length)


def _toy_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
    )


def _times(
    sessions: Mapping[tuple[int, int, int], Session], length: int
) -> dict[tuple[int, int, int], float]:
    """Return each session's median milliseconds for one text, the sessions taking turns."""
    text = [" ".join(_WORDS[i % len(_WORDS)] for i in range(length))]
    times: dict[tuple[int, int, int], list[float]] = {shape: [] for shape in sessions}
    for number in range(_WARMUP + _ROUNDS):
        for shape, session in sessions.items():
            milliseconds = _time(session, text)
            if number >= _WARMUP:
                times[shape].append(milliseconds)
    return {shape: statistics.median(found) for shape, found in times.items()}


def _time(session: Session, text: Sequence[str]) -> float:
    begin = time.perf_counter()
    session.probabilities(text)
    return (time.perf_counter() - begin) * 1000
