"""Exports answer as PyTorch does, are fused and quantized whole, and are the same every time."""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tasks import files, model_parts
from tasks.bundle import Bundle
from tasks.errors import ExportError
from tasks.runtime import fusion, quantizing
from tasks.runtime.export import ExportFacts, export
from tasks.runtime.session import Session
from tests import tiny

TEXTS = tiny.examples(40).texts
INT8 = {"per_channel": True, "weight_type": "int8", "reduce_range": False}


def quantized(bundle: Bundle, **settings: object) -> Bundle:
    """The bundle with int8 in its export plan."""
    bundle.export = bundle.export.then("quantize_dynamic", **{**INT8, **settings})
    return bundle


def cut(bundle: Bundle) -> Bundle:
    """Layers with 1, 3 and 4 heads, 32, 8 and 32 neurons; then without the last."""
    parts = model_parts.layers(bundle.model)
    parts[0].keep_heads([2])
    parts[1].keep_heads([0, 1, 3])
    parts[1].keep_neurons(list(range(8)))
    model_parts.keep_layers(bundle.model, [0, 1])
    return bundle


def logits(folder: Path, texts: list[str]) -> np.ndarray:
    """Centred logits of the exported model: what its probabilities tell of them."""
    return centred(np.log(Session(folder, 1).probabilities(texts).astype(np.float64)))


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "mpnet", "gpt2"])
def test_float_export_answers_as_pytorch(tmp_path: Path, kind: str) -> None:
    bundle = tiny.tiny(kind)
    facts = export(bundle, tmp_path / "export")
    expected = centred(tiny.answers(bundle, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    if kind not in ("mpnet", "gpt2"):
        assert facts.fused["Attention"] == 3
    assert facts.fused["SkipLayerNormalization"] >= 6
    assert facts.quantized == 0


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2"])
def test_cut_models_keep_their_answers_and_their_fusion(tmp_path: Path, kind: str) -> None:
    bundle = cut(tiny.tiny(kind))
    facts = export(bundle, tmp_path / "export")
    expected = centred(tiny.answers(bundle, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    if kind != "gpt2":
        model = onnx.load(str(tmp_path / "export" / "model.onnx"))
        nodes = [node for node in model.graph.node if node.op_type == "Attention"]
        heads = [next(a.i for a in node.attribute if a.name == "num_heads") for node in nodes]
        assert heads == [1, 3]
        assert facts.fused["BiasGelu"] == 2


@pytest.mark.parametrize(
    ("kind", "products"), [("bert", 3 * 6 + 2), ("roberta", 3 * 6 + 2), ("gpt2", 3 * 4 + 1)]
)
def test_quantization_reaches_every_linear_layer(tmp_path: Path, kind: str, products: int) -> None:
    bundle = tiny.tiny(kind)
    facts = export(quantized(bundle), tmp_path / "export")
    attentions = facts.operators.get("QAttention", 0)
    assert attentions * 3 + facts.operators["MatMulInteger"] == products
    model = onnx.load(str(tmp_path / "export" / "model.onnx"))
    floats = [t.name for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 1]
    assert floats == []
    close = logits(tmp_path / "export", TEXTS)
    expected = centred(tiny.answers(bundle, TEXTS))
    assert 0 < np.abs(close - expected).max() < 0.5
    # coarse at a width of 16, but of the same opinion
    assert np.corrcoef(close[:, 0], expected[:, 0])[0, 1] > 0.8


def test_a_wide_model_is_smaller_in_int8(tmp_path: Path) -> None:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=32, max_position_embeddings=32, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=512,
    )  # fmt: skip
    bundle = tiny.bundle_of(config)
    whole = export(bundle, tmp_path / "float")
    small = export(quantized(bundle), tmp_path / "int8")
    assert whole.size_bytes / small.size_bytes > 3
    on_disk = sum(path.stat().st_size for path in (tmp_path / "int8").iterdir())
    assert small.size_bytes == on_disk


@pytest.mark.parametrize(
    "settings", [{"per_channel": False}, {"weight_type": "uint8"}, {"reduce_range": True}]
)
def test_settings_of_quantization_reach_the_file(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    default = export(quantized(tiny.tiny_bert()), tmp_path / "default")
    other = export(quantized(tiny.tiny_bert(), **settings), tmp_path / "other")
    assert other.sha256 != default.sha256
    assert other.quantized == default.quantized


def test_the_same_model_gives_the_same_files_in_any_process(tmp_path: Path) -> None:
    export(quantized(cut(tiny.tiny_bert())), tmp_path / "here")
    script = (
        "import sys; from pathlib import Path; from tests import tiny; "
        "from tests.runtime.test_export import cut, quantized; "
        "from tasks.runtime.export import export; "
        "bundle = quantized(cut(tiny.tiny_bert())); "
        "bundle.tokenizer(['superb'], padding='max_length', max_length=12, truncation=True); "
        "export(bundle, Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there")],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert files.content(tmp_path / "there") == files.content(tmp_path / "here")
    assert (done.stdout, done.stderr) == ("", "")


def test_exporting_leaves_model_and_process_as_they_were(tmp_path: Path) -> None:
    bundle = quantized(tiny.tiny_bert())
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    path, handlers = list(sys.path), list(logging.root.handlers)
    export(bundle, tmp_path / "export")
    assert sys.path == path
    assert logging.root.handlers == handlers
    assert logging.root.filters == []
    assert bundle.model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, before[n]) for n, value in bundle.model.state_dict().items())


def test_facts_come_back_from_json(tmp_path: Path) -> None:
    facts = export(tiny.tiny_bert(), tmp_path / "export")
    assert ExportFacts.from_dict(facts.to_dict()) == facts
    assert facts.sha256 == files.combined(files.content(tmp_path / "export"))


def test_the_hash_covers_all_that_is_served(tmp_path: Path) -> None:
    longer, shorter = tiny.tiny_bert(), tiny.tiny_bert()
    shorter.max_length -= 4
    facts = [export(b, tmp_path / str(b.max_length)) for b in (longer, shorter)]
    assert files.sha256(tmp_path / "16" / "model.onnx") == files.sha256(
        tmp_path / "12" / "model.onnx"
    )
    assert facts[0].sha256 != facts[1].sha256


def test_an_unknown_step_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    bundle = tiny.tiny_bert()
    bundle.export = bundle.export.then("quantise_statically")
    with pytest.raises(ExportError, match="no step `quantise_statically`"):
        export(bundle, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_overflowed_are_refused(tmp_path: Path) -> None:
    bundle = tiny.tiny_bert()
    with torch.no_grad():
        bundle.model.classifier.weight.fill_(float("inf"))
    with pytest.raises(ExportError):
        export(bundle, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_attention_that_cannot_be_fused_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    # the exporter then keeps the form that the optimizer does not recognize
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda *_: None)
    with pytest.raises(ExportError, match="fused only 0 of 3 attention layers"):
        export(tiny.tiny_bert(), tmp_path / "export")


def test_a_layer_left_out_of_quantization_is_an_error(tmp_path: Path) -> None:
    export(tiny.tiny_bert(), tmp_path / "export")
    path = tmp_path / "export" / "model.onnx"
    with pytest.raises(ExportError, match="reached 20 of the model's 21 linear layers"):
        quantizing.quantize_dynamic(path, num_products=21, **INT8)  # type: ignore[arg-type]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "model.onnx", "serving.json", "tokenizer.json"
    ]  # fmt: skip


def test_a_matrix_left_in_float_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime import quantization

    real = quantization.quantize_dynamic

    def forgetful(source: str, target: str, **settings: object) -> None:
        real(source, target, **{**settings, "op_types_to_quantize": ["MatMul"]})

    monkeypatch.setattr(quantization, "quantize_dynamic", forgetful)
    with pytest.raises(ExportError, match=r"left 4 matrices in float \(Attention, Embed"):
        export(quantized(tiny.tiny_bert()), tmp_path / "export")


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_whatever_the_optimizer_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"optimizer fails on a model of type `bert`: .+"):
        fusion.fuse(tiny.tiny_bert().model, tmp_path / "raw.onnx", tmp_path / "fused.onnx")
    gc.collect()  # of the folder that the optimizer then leaves to the collector


def test_heads_set_wrong_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "_set_heads", lambda *_: None)
    with pytest.raises(ExportError):
        export(cut(tiny.tiny_bert()), tmp_path / "export")
