"""The residual stream: cutting it equals masking it, where norms run over what is kept."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import ElectraConfig

from tasks import bundle as bundles
from tasks import model_parts, stream_importance
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.importance import gated
from tasks.runtime import fusion
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.stream import stream
from tests import tiny

TEXTS = tiny.examples(8, seed=3).texts
KINDS = ("bert", "gpt2", "distilbert", "electra", "roberta", "mpnet")


def _subset(size: int, least: int = 2) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(0, size - 1), min_size=least).map(sorted)


def _gate(kept: Sequence[int], size: int) -> torch.Tensor:
    gate = torch.zeros(1, size)
    gate[0, list(kept)] = 1
    return gate


EVERY = ([[0, 1, 2, 3]] * 3, [list(range(32))] * 3)
"""Heads and neurons of a whole model."""


def masked(
    bundle: Bundle,
    kept: list[int],
    pooled: list[int],
    heads: Sequence[list[int]],
    neurons: Sequence[list[int]],
) -> np.ndarray:
    """The whole model's answers with everything else at nothing."""
    reference = bundle.copy()
    model = reference.model

    def over_kept(norm: nn.LayerNorm, inputs: tuple[torch.Tensor], output: torch.Tensor):
        result = torch.zeros_like(output)
        values = F.layer_norm(
            inputs[0][..., kept], (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps
        )
        result[..., kept] = values
        return result

    projection = getattr(model.base_model, "embeddings_project", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and (projection is None or "embeddings" not in name):
            module.register_forward_hook(over_kept)
    others = [i for i in range(16) if i not in kept]
    last = model.get_submodule("score" if hasattr(model, "score") else "classifier")
    with torch.no_grad():
        if projection is not None:
            projection.weight[others] = 0
            projection.bias[others] = 0
        if not hasattr(model, "score"):
            last = getattr(last, "out_proj", last)
            last.weight[:, [i for i in range(16) if i not in pooled]] = 0
    parts = model_parts.layers(model)
    with gated(parts, [_gate(h, 4) for h in heads], [_gate(n, 32) for n in neurons]):
        return tiny.answers(reference, TEXTS)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    kept=_subset(16),
    pooled=_subset(16),
    heads=st.tuples(*[_subset(4, 1)] * 3),
    neurons=st.tuples(*[_subset(32, 1)] * 3),
)
def test_a_narrow_model_answers_like_the_masked_one(kind, kept, pooled, heads, neurons):
    bundle = tiny.tiny(kind)
    if kind == "mpnet":
        heads = EVERY[0]
    expected = masked(bundle, kept, pooled, heads, neurons)
    shrunken = bundle.copy()
    found = stream(shrunken.model)
    found.keep(kept, pooled if found.pooler is not None else None)
    for part, some, others in zip(found.parts, heads, neurons, strict=True):
        if len(some) < 4:
            part.keep_heads(some)
        part.keep_neurons(others)
    assert np.abs(tiny.answers(shrunken, TEXTS) - expected).max() < 1e-5
    assert found.width == len(kept)
    assert found.pooled == (None if kind == "gpt2" else len(pooled))
    assert shrunken.num_parameters() <= bundle.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_gates_at_zero_are_the_removal(kind):
    bundle = tiny.tiny(kind)
    kept, pooled = [0, 3, 4, 9, 10, 15], [1, 2, 3, 7, 8]
    expected = masked(bundle, kept, pooled, *EVERY)
    gates = (torch.ones(1, 3), _gate(kept, 16), _gate(pooled, 16))
    with stream_importance.gated(bundle.model, *gates):
        assert np.abs(tiny.answers(bundle, TEXTS) - expected).max() < 1e-5
    with stream_importance.gated(
        bundle.model, torch.tensor([[1.0, 0, 1]]), torch.ones(1, 16), torch.ones(1, 16)
    ):
        skipped = tiny.answers(bundle, TEXTS)
    model_parts.keep_layers(bundle.model, [0, 2])
    assert np.abs(tiny.answers(bundle, TEXTS) - skipped).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_model_reloads_and_is_cut_again(kind, tmp_path):
    bundle = tiny.tiny(kind)
    found = stream(bundle.model)
    found.keep([0, 1, 5, 7, 8, 9, 11], None if found.pooler is None else [0, 2, 9])
    if kind != "mpnet":
        found.parts[1].keep_heads([1, 3])
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(bundle, TEXTS))
    other = stream(again.model)
    assert (other.width, other.pooled) == (found.width, found.pooled)
    other.keep([0, 6])
    assert stream(again.model).width == 2
    assert tiny.answers(again, TEXTS).shape == (len(TEXTS), 2)


def _logits(bundle: Bundle, folder) -> tuple[np.ndarray, np.ndarray]:
    """Centred logits: of PyTorch, and of the exported model."""
    values = tiny.answers(bundle, TEXTS), np.log(Session(folder, 1).probabilities(TEXTS))
    return tuple(v - v.mean(axis=1, keepdims=True) for v in values)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "gpt2"])
def test_a_width_that_is_no_multiple_of_the_heads_is_fused(kind, tmp_path):
    bundle = tiny.tiny(kind)
    found = stream(bundle.model)
    found.keep([0, 1, 5, 7, 8, 9, 11], None if found.pooler is None else [0, 2, 9, 10, 12])
    found.parts[0].keep_heads([2])
    found.parts[1].keep_heads([0, 1, 3])
    found.parts[2].keep_neurons([3, 5, 8])
    facts = export(bundle, tmp_path / "float")
    expected, answers = _logits(bundle, tmp_path / "float")
    np.testing.assert_allclose(answers, expected, atol=1e-4)
    if kind != "gpt2":  # the optimizer's rule for GPT-2 does not know this form, cut or whole
        graph = onnx.load(str(tmp_path / "float" / "model.onnx")).graph
        nodes = [node for node in graph.node if node.op_type == "Attention"]
        assert [a.i for n in nodes for a in n.attribute if a.name == "num_heads"] == [1, 3, 4]
        assert facts.fused["BiasGelu"] == 3


def test_a_width_that_is_no_multiple_of_the_heads_is_quantized(tmp_path):
    bundle = tiny.tiny_bert()
    found = stream(bundle.model)
    found.keep([0, 1, 5, 7, 8, 9, 11], [0, 2, 9, 10, 12])
    found.parts[1].keep_heads([0, 1, 3])
    bundle.export = bundle.export.then(
        "quantize_dynamic", per_channel=True, weight_type="int8", reduce_range=False
    )
    facts = export(bundle, tmp_path / "int8")
    assert facts.operators["QAttention"] == 3
    assert facts.operators["QAttention"] * 3 + facts.operators["MatMulInteger"] == 3 * 6 + 2
    expected, answers = _logits(bundle, tmp_path / "int8")
    assert np.corrcoef(answers[:, 0], expected[:, 0])[0, 1] > 0.8


def test_the_optimizer_is_told_heads_times_head_size_whatever_the_stream(tmp_path):
    bundle = tiny.tiny_bert()
    stream(bundle.model).keep(list(range(7)))
    bundle.model.config.hidden_size = 7  # as if the configuration told the real width
    assert fusion._attention_width(bundle.model) == 16
    assert export(bundle, tmp_path / "export").fused["Attention"] == 3


def test_embeddings_as_wide_as_the_stream_are_its_beginning():
    config = ElectraConfig(
        vocab_size=32, max_position_embeddings=32, embedding_size=16, hidden_size=16,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
    )  # fmt: skip
    bundle = tiny.bundle_of(config)
    kept = [0, 2, 3, 9]
    expected = masked(bundle, kept, list(range(16)), *EVERY)
    found = stream(bundle.model)
    assert found.projection is None
    found.keep(kept)
    assert np.abs(tiny.answers(bundle, TEXTS) - expected).max() < 1e-5


def test_shared_layers_are_refused():
    from transformers import AlbertConfig

    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3,
    )  # fmt: skip
    with pytest.raises(TechniqueError, match=r"albert.*share one set of weights"):
        stream(tiny.bundle_of(config).model)
