"""The exporter finds every matrix, and says what was left in float."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.errors import ExportError
from tasks.runtime import export as exporting
from tasks.runtime import fusion, quantizing, rewriting, sites
from tasks.runtime.export import ExportFacts, export
from tests import tiny

SETTINGS = {"embeddings": True, "per_channel": True, "reduce_range": False}


def planned(bundle: Bundle, **settings: object) -> Bundle:
    """The bundle with a static step whose ranges are all alike."""
    names = [n for n, m in bundle.model.named_modules() if model_parts.is_linear(m)]
    step = {
        "ranges": {name: [-4.0, 4.0] for name in names},
        "sensitivity": {},
        "fallback": [],
        **SETTINGS,
        **settings,
    }
    bundle.export = bundle.export.then("quantize_static", **step)
    return bundle


def attention(layer: int) -> list[str]:
    return [f"bert.encoder.layer.{layer}.attention.self.{n}" for n in ("query", "key", "value")]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2"])
def test_forms_of_fusion_answer_as_pytorch(tmp_path: Path, kind: str) -> None:
    bundle = tiny.tiny(kind)
    parts = model_parts.layers(bundle.model)
    parts[0].keep_heads([2])  # unequal heads
    model = exporting._traced(bundle, tmp_path / "raw.onnx")
    forms = [fusion.WHOLE, *quantizing.FORMS.values()]
    for number, form in enumerate(forms):
        path = tmp_path / f"{number}.onnx"
        fused = fusion.fuse(model, tmp_path / "raw.onnx", path, form)
        exporting._compare(bundle, model, path)
        assert fused["SkipLayerNormalization"] == 6
        if kind != "gpt2":
            assert fused["Attention" if form.projections else "MultiHeadAttention"] == 3
        if kind in ("bert", "distilbert"):
            assert ("EmbedLayerNormalization" in fused) == form.embedding


def test_declared_layers_stay_in_float_and_the_others_do_not(tmp_path: Path) -> None:
    fallback = [*attention(1), "bert.encoder.layer.0.output.dense", "classifier"]
    fallback.append("bert.embeddings.word_embeddings")
    facts = export(planned(tiny.tiny_bert(), fallback=fallback), tmp_path / "export")
    model = quantizing.running(tmp_path / "export" / "model.onnx").graph
    operators = [node.op_type for node in model.node]
    assert operators.count("QAttention") == 2
    assert operators.count("Attention") == 1
    assert operators.count("MatMulIntegerToFloat") == 8
    assert operators.count("MatMul") == 1
    assert (operators.count("QGemm"), operators.count("Gemm")) == (1, 1)
    assert facts.quantized == 2 + 8 + 1
    floats = [t.dims for t in model.initializer if t.data_type == 1 and len(t.dims) == 2]
    assert len(floats) == 4


def test_one_projection_alone_cannot_stay_in_float(tmp_path: Path) -> None:
    bundle = planned(tiny.tiny_bert(), fallback=attention(1)[:1])
    with pytest.raises(ExportError, match=r"0 of 1 uses of layer `\S+attention\.self\.key`"):
        export(bundle, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_the_runtime_leaves_in_float_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(node: Any, values: str, matrix: str, kind: str | None = None) -> list[Any]:
        renewed = onnx.NodeProto()
        renewed.CopyFrom(node)
        renewed.input[0], renewed.input[1] = values, matrix
        return [renewed]

    # the runtime takes no Gemm whose bias is in float
    monkeypatch.setattr(rewriting, "_renewed", forgetful)
    left = r"computes 18 of 20 .* not declared: `/model/bert/pooler/dense/Gemm`, `/model/classif"
    with pytest.raises(ExportError, match=left):
        export(planned(tiny.tiny_bert()), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"fallback": ["bert.no_such_layer"]}, "leaves `bert.no_such_layer` in float, which"),
        ({"ranges": {}}, "has no range for layer `bert.encoder.layer.0.attention.self.query`"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_an_error(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        export(planned(tiny.tiny_bert(), **settings), tmp_path / "export")


def test_unequal_heads_are_quantized_too(tmp_path: Path) -> None:
    bundle = tiny.tiny_bert()
    parts = model_parts.layers(bundle.model)
    parts[0].keep_heads([2])
    parts[1].keep_heads([0, 1, 3])
    parts[1].keep_neurons(list(range(8)))
    facts = export(planned(bundle), tmp_path / "export")
    assert facts.operators["QAttention"] == 3
    assert facts.quantized == 3 + 9 + 2


def test_layers_that_share_a_matrix_store_it_once(tmp_path: Path) -> None:
    bundle = tiny.tiny_bert()
    layers = bundle.model.bert.encoder.layer
    layers[2].output.dense.weight = layers[0].output.dense.weight
    facts = export(planned(bundle), tmp_path / "export")
    assert facts.quantized == 3 + 9 + 2
    apart = export(planned(tiny.tiny_bert()), tmp_path / "apart")
    assert facts.packed == apart.packed - 1


def test_layers_that_share_a_matrix_keep_their_own_ranges(tmp_path: Path) -> None:
    bundle = tiny.tiny_gpt2()  # whose nodes the optimizer renames
    layers = bundle.model.transformer.h
    layers[2].mlp.c_fc.weight = layers[0].mlp.c_fc.weight
    planned(bundle)
    ranges = bundle.export.steps[0][1]["ranges"]
    ranges["transformer.h.2.mlp.c_fc"] = [-1.0, 3.0]
    facts = export(bundle, tmp_path / "export")
    assert facts.quantized == 3 * 4 + 1
    graph = onnx.load(str(tmp_path / "export" / "model.onnx")).graph
    assert any("_-1_3_quantized" in node.name for node in graph.node)


def test_weights_of_another_model_are_found_out(tmp_path: Path) -> None:
    model = exporting._traced(tiny.tiny_bert(), tmp_path / "raw.onnx")
    fusion.fuse(model, tmp_path / "raw.onnx", tmp_path / "fused.onnx")
    graph = onnx.load(str(tmp_path / "fused.onnx")).graph
    found = sites.find(graph, sites.matrices(model))
    assert sum(len(site.modules) for site in found if site.is_product) == 3 * 6 + 2
    with torch.no_grad():
        model.classifier.weight[0, 0] += 1
    with pytest.raises(ExportError, match="`/model/classifier/Gemm` does not hold the weights of"):
        sites.find(graph, sites.matrices(model))


def test_facts_tell_integers_computed_from_integers_stored(tmp_path: Path) -> None:
    whole = export(tiny.tiny_bert(), tmp_path / "float")
    assert (whole.quantized, whole.packed) == (0, 0)
    both = export(planned(tiny.tiny_bert()), tmp_path / "static")
    assert (both.quantized, both.packed) == (14, 17)
    assert ExportFacts.from_dict(both.to_dict()) == both
    assert np.isfinite(both.seconds)
