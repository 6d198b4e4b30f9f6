"""Direct integers: the rounded weights, the packed file, its answers."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers import BertConfig

from tasks.errors import ExportError, TechniqueError
from tasks.model_parts import is_linear
from tasks.quantization import affine, dynamic
from tasks.runtime import quantizing
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import Contract

TEXTS = tiny.examples(24, seed=3).texts


def textbook(weight, axis, settings):
    """q = clamp(round(w / scale) + zero_point), in numpy, in float64."""
    low, high = (-128, 127) if settings.weight_type == "int8" else (0, 255)
    least = np.minimum(weight.min(axis, keepdims=True), 0)
    most = np.maximum(weight.max(axis, keepdims=True), 0)
    if settings.symmetric:
        low += 1
        most = np.maximum(-least, most)
        least = -most
    scale = (most - least) / (high - low)
    scale[scale == 0] = 1
    zero_point = np.round(low - least / scale)
    return scale * (np.clip(np.round(weight / scale) + zero_point, low, high) - zero_point), scale


def _prove(before, after, config):
    (step,) = after.export.steps
    assert step == ("quantize_weights", config.model_dump())
    modules = dict(before.model.named_modules())
    for name, module in after.model.named_modules():
        if not (is_linear(module) or isinstance(module, nn.Embedding)):
            continue
        old = modules[name].weight.detach().double().numpy()
        new = module.weight.detach().double().numpy()
        if isinstance(module, nn.Embedding) and not config.embeddings:
            assert np.array_equal(new, old)
            continue
        inputs = 1 if isinstance(module, nn.Linear) else 0
        expected, scale = textbook(old, inputs if config.per_channel else None, config)
        # a half may fall on either side in float32; everything else is where the formula puts it
        assert np.abs(new - old).max() <= scale.max() * 0.5001
        away = np.abs(new - expected) > 1e-4 * scale
        assert away.mean() < 0.01
        assert (np.abs(new - expected) <= scale * 1.001).all()
        assert not np.array_equal(new, old)


CONTRACT = Contract(
    good=(
        {},
        {"weight_type": "uint8", "symmetric": False},
        {"weight_type": "uint8", "per_channel": False},
        {"symmetric": False, "per_channel": False, "embeddings": False},
    ),
    bad=(
        ({"weight_type": "int4"}, "'int8' or 'uint8'"),
        ({"symmetric": "sometimes"}, "valid boolean"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


def read_as_it_stands(folder, bundle):
    """Logits of the exported model on TEXTS by ONNX's own rules, with nothing replaced."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    batch = bundle.tokenizer(TEXTS, padding=True, return_tensors="np")
    inputs = {k: batch[k].astype(np.int64) for k in ("input_ids", "attention_mask")}
    return session.run(None, inputs)[0]


@pytest.mark.parametrize(
    ("bundle", "settings"),
    [
        *((tiny.tiny_bert, settings) for settings in CONTRACT.good),
        (tiny.tiny_gpt2, {"weight_type": "uint8"}),
        (tiny.tiny_albert, {"per_channel": False}),
        (lambda: tiny.tiny("distilbert"), {"symmetric": False}),
    ],
)
def test_the_export_holds_integers_and_answers_as_pytorch(bundle, settings, tmp_path):
    config = affine.Config(**settings)
    after = affine.apply(bundle(), config, tiny.context(tmp_path))
    facts = export(after, tmp_path / "export")
    found = read_as_it_stands(tmp_path / "export", after)
    expected = tiny.answers(after, TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # as it is served, the runtime rounds activations too
    served = np.log(Session(tmp_path / "export", 1).probabilities(TEXTS))
    log_softmax = torch.log_softmax(torch.from_numpy(expected), dim=1).numpy()
    np.testing.assert_allclose(served, log_softmax, atol=0.05)
    graph = onnx.load(str(tmp_path / "export" / "model.onnx")).graph
    stored = [t for t in graph.initializer if len(t.dims) == 2]
    tables = sum(isinstance(m, nn.Embedding) for m in after.model.modules())
    whole = [t for t in stored if t.data_type == onnx.TensorProto.FLOAT]
    assert len(whole) == (0 if config.embeddings else tables)
    assert facts.packed == len(stored) - len(whole)
    kinds = {numpy_helper.to_array(t).dtype.name for t in stored if t not in whole}
    assert kinds == {config.weight_type}
    assert facts.operators["DequantizeLinear"] >= facts.packed
    assert facts.quantized == 0


def test_a_wide_model_is_a_quarter_as_large_and_stays_so_in_memory(tmp_path):
    config = BertConfig(
        vocab_size=32, max_position_embeddings=32, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=512,
    )  # fmt: skip
    bundle = tiny.bundle_of(config)
    packed = affine.apply(bundle, affine.Config(), tiny.context(tmp_path))
    whole, small = export(bundle, tmp_path / "float"), export(packed, tmp_path / "int8")
    assert whole.size_bytes / small.size_bytes > 3
    assert (whole.packed, small.packed) == (0, 2 * 6 + 2 + 3)
    assert small.fused["MultiHeadAttention"] == 2
    running = quantizing.running(tmp_path / "int8" / "model.onnx").graph
    operators = [node.op_type for node in running.node]
    assert operators.count("MatMulNBits") == 2 * 6 + 2
    assert "MatMul" not in operators
    assert operators.count("DequantizeLinear") == 3  # of rows that were looked up
    floats = [t for t in running.initializer if t.data_type == 1 and len(t.dims) == 2]
    assert sum(np.prod(t.dims) for t in floats) < 0.05 * bundle.num_parameters()


def test_pruned_weights_stay_zero(tmp_path):
    bundle = tiny.tiny_bert()
    names = [n for n, p in bundle.model.named_parameters() if p.dim() == 2]
    with torch.no_grad():
        for name in names:
            weight = bundle.model.get_parameter(name)
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    bundle.sparse = tuple(names)
    for settings in CONTRACT.good:
        after = affine.apply(bundle, affine.Config(**settings), tiny.context(tmp_path))
        assert after.sparse == bundle.sparse
        for name in names:
            zeros = bundle.model.get_parameter(name) == 0
            assert (after.model.get_parameter(name)[zeros] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"weight_type": "uint8", "symmetric": False}])
def test_a_second_rounding_moves_nothing(settings, tmp_path):
    config, context = affine.Config(**settings), tiny.context(tmp_path)
    once = affine.apply(tiny.tiny_bert(), config, context)
    again = affine.apply(replace(once, export=tiny.tiny_bert().export), config, context)
    for name, weight in once.model.named_parameters():
        assert torch.allclose(again.model.get_parameter(name), weight, rtol=1e-6, atol=1e-7)


def _broken():
    bundle = tiny.tiny_bert()
    with torch.no_grad():
        bundle.model.bert.pooler.dense.weight[0, 0] = float("nan")
    return bundle


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        (_broken, r"weights of `bert\.pooler\.dense` are not all finite"),
        (tiny.tiny_lstm, r"recurrent layer `forwards\.0`.*use `quantization\.dynamic`"),
    ],
)
def test_what_cannot_be_rounded_is_refused(bundle, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        affine.apply(bundle(), affine.Config(), tiny.context(tmp_path))


def test_what_is_quantized_is_not_quantized_again(tmp_path):
    context = tiny.context(tmp_path)
    for first, second in ((affine, dynamic), (dynamic, affine), (affine, affine)):
        once = first.apply(tiny.tiny_bert(), first.Config(), context)
        with pytest.raises(TechniqueError, match="quantized already"):
            second.apply(once, second.Config(), context)


def test_weights_that_were_not_rounded_are_found_out_by_the_exporter(tmp_path):
    bundle = affine.apply(tiny.tiny_bert(), affine.Config(), tiny.context(tmp_path))
    bundle.model = tiny.tiny_bert().model
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(bundle, tmp_path / "export")


def test_it_reads_no_data_and_ends_a_recipe():
    assert affine.READS_DATA is False
    assert affine.LAST is True
