"""Static quantization: its plan, its export, what each layer costs, and who stays in float."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tasks import affine
from tasks.calibration import ACTIVATIONS, Simulation, calibrate
from tasks.errors import TechniqueError
from tasks.model_parts import is_linear
from tasks.observers import MinMax
from tasks.quantization import dynamic, static
from tasks.runtime import export as exporting
from tasks.runtime import fusion, quantizing
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.training.batches import UNLABELLED, Examples, unlabelled
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tests import tiny
from tests.techniques.contract import LONG, Contract, same_weights

TEXTS = tiny.examples(24, seed=3).texts
ANY = {"budget": 0.9, "calibration_examples": 16, "sensitivity_examples": 8}
"""Settings under which a random model, whose accuracy is chance, keeps every layer in int8."""


def linear(bundle):
    return [n for n, m in bundle.model.named_modules() if is_linear(m)]


def tables(bundle):
    return [n for n, m in bundle.model.named_modules() if isinstance(m, nn.Embedding)]


def plan(bundle):
    ((name, settings),) = bundle.export.steps
    assert name == "quantize_static"
    return settings


def _prove(before, after, config):
    settings = plan(after)
    assert same_weights(before, after)
    assert sorted(settings["ranges"]) == sorted(linear(after))
    assert all(lower < upper for lower, upper in settings["ranges"].values())
    costs = settings["sensitivity"]
    assert all(cost > 0 for cost in costs.values())
    assert set(tables(after)) <= set(costs) or not config.embeddings
    assert settings["fallback"] == []
    assert after.notes[static.NOTE].endswith("for accuracy: none")
    for key in ("embeddings", "per_channel", "reduce_range"):
        assert settings[key] == getattr(config, key)


CONTRACT = Contract(
    good=(
        ANY,
        {**ANY, "observer": "minmax", "per_channel": False, "embeddings": False},
        {**ANY, "observer": "percentile", "percentile": 99, "reduce_range": True},
        {**ANY, "observer": "entropy"},
    ),
    bad=(
        ({"observer": "median"}, "'minmax', 'percentile', 'entropy' or 'mse'"),
        ({"percentile": 100.5}, "less than or equal to 100"),
        ({"percentile": 20}, "greater than 50"),
        ({"calibration_examples": 0}, "greater than or equal to 1"),
        ({"sensitivity_examples": 0}, "greater than or equal to 1"),
        ({"validation_examples": 0}, "greater than or equal to 1"),
        ({"budget": -0.1}, "greater than or equal to 0"),
        ({"budget": 1}, "less than 1"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
    changes_answers=False,
)


def centred_logits(folder, texts):
    values = np.log(Session(folder, 1).probabilities(texts).astype(np.float64))
    return values - values.mean(axis=1, keepdims=True)


def imitated(bundle, texts):
    """Centred logits of PyTorch on rounded inputs and weights, as the bundle's plan says."""
    settings = plan(bundle)
    ranges = {name: tuple(limits) for name, limits in settings["ranges"].items()}
    grid = affine.grid("int8", symmetric=True, reduce_range=settings["reduce_range"])
    simulation = Simulation(bundle.model, ranges, grid, per_channel=settings["per_channel"])
    names = [*ranges, *(tables(bundle) if settings["embeddings"] else ())]
    with simulation.on([n for n in names if n not in settings["fallback"]]):
        values = tiny.answers(bundle, texts).astype(np.float64)
    return values - values.mean(axis=1, keepdims=True)


def assert_as_simulated(folder, bundle):
    """Texts are answered alike, but for the few in which a half fell on its other side."""
    distance = np.abs(centred_logits(folder, TEXTS) - imitated(bundle, TEXTS)).max(1)
    assert (distance < 1e-4).mean() >= 0.9
    assert distance.max() < 0.05


@pytest.mark.parametrize(
    ("bundle", "settings", "products"),
    [
        *((tiny.tiny_bert, settings, 3 * 6 + 2) for settings in CONTRACT.good[:3]),
        (tiny.tiny_gpt2, ANY, 3 * 4 + 1),
        (tiny.tiny_albert, {**ANY, "reduce_range": True}, 3 * 6 + 3),
        (lambda: tiny.tiny("distilbert"), ANY, 3 * 6 + 2),
        (lambda: tiny.tiny("mpnet"), {**ANY, "per_channel": False}, 3 * 6 + 2),
    ],
)
def test_the_export_computes_every_layer_in_int8_as_simulated(bundle, settings, products, tmp_path):
    after = static.apply(bundle(), static.Config(**settings), tiny.context(tmp_path))
    facts = export(after, tmp_path / "export")
    assert_as_simulated(tmp_path / "export", after)
    running = quantizing.running(tmp_path / "export" / "model.onnx").graph
    operators = [node.op_type for node in running.node]
    integer = {"QAttention": 3, "MatMulIntegerToFloat": 1, "QGemm": 1}
    assert sum(integer.get(operator, 0) for operator in operators) == products
    assert facts.quantized == sum(operator in integer for operator in operators)
    floats = [t.name for t in running.initializer if t.data_type == 1 and len(t.dims) == 2]
    assert len(floats) == (0 if plan(after)["embeddings"] else len(tables(after)))
    assert facts.fused["SkipLayerNormalization"] >= 6
    pairs = facts.operators["QuantizeLinear"], facts.operators["DequantizeLinear"]
    assert min(pairs) > 0


def test_scales_and_weights_are_those_of_onnx_runtimes_own_quantizer(tmp_path, monkeypatch):
    """Its calibration and its pairs of operators, on the same float graph, the same texts."""
    from onnxruntime import quantization

    monkeypatch.setattr("onnxruntime.quantization.calibrate.print", lambda *_: None, raising=False)
    bundle = tiny.tiny_bert()
    exporting._traced(bundle, tmp_path / "raw.onnx")
    texts = tiny.examples(12, seed=5).texts

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = list(texts)

        def get_next(self):
            if not self.left:
                return None
            batch = bundle.tokenizer([self.left.pop()], return_tensors="np")
            return {k: batch[k].astype(np.int64) for k in ("input_ids", "attention_mask")}

    graph = onnx.load(str(tmp_path / "raw.onnx")).graph
    constants = {t.name for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants]
    with fusion.quiet_tools():
        quantization.quantize_static(
            tmp_path / "raw.onnx",
            tmp_path / "theirs.onnx",
            Reader(),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=[n.name for n in nodes],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    theirs = onnx.load(str(tmp_path / "theirs.onnx")).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in theirs.initializer}
    seen = calibrate(bundle, unlabelled(texts), MinMax, tiny.Silent())
    weights = affine.grid("int8", symmetric=True)
    for node in nodes:
        name = node.name.removeprefix("/model/").rpartition("/")[0].replace("/", ".")
        ours = affine.from_range(*seen.ranges[name], ACTIVATIONS)
        assert float(tensors[f"{node.input[0]}_scale"]) == pytest.approx(
            float(ours.scale), rel=1e-5
        )
        assert abs(int(tensors[f"{node.input[0]}_zero_point"]) - int(ours.zero_point)) <= 1
        matrix = bundle.model.get_parameter(f"{name}.weight").detach()
        expected = affine.of(matrix, weights, axis=0)
        np.testing.assert_allclose(
            tensors[f"{node.input[1]}_scale"], expected.scale.numpy(), rtol=1e-6
        )
        integers = expected.quantize(matrix).numpy()
        integers = integers if node.op_type == "Gemm" else integers.T
        found = tensors[f"{node.input[1]}_quantized"].astype(int)
        assert np.abs(found - integers).max() <= 1
        assert (found != integers).mean() < 0.01  # halves


def trained(folder):
    """A tiny BERT that has learned the rule of the examples."""
    bundle = tiny.tiny_bert()
    context = tiny.context(folder)
    fit(
        bundle,
        tiny.examples(192),
        context.validation,
        TrainingConfig(**LONG),
        seed=1,
        device=context.device,
        scratch=folder / "training",
        progress=context.progress,
    )
    return bundle


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A trained BERT, as good as before, whose pooler's input has one value far from all others.

    In int8 the step is so wide that the others are lost.
    """
    bundle = trained(tmp_path_factory.mktemp("fragile"))
    with torch.no_grad():
        bundle.model.bert.encoder.layer[2].output.LayerNorm.bias[3] = 3000
        bundle.model.bert.pooler.dense.weight[:, 3] = 0
    return bundle


def accuracy(bundle, found=None):
    examples = tiny.examples(32, seed=1)
    answers = tiny.answers(bundle, examples.texts) if found is None else found
    return float((answers.argmax(1) == examples.labels).mean())


def test_the_layer_that_costs_too_much_stays_in_float_and_no_other(fragile, tmp_path):
    assert accuracy(fragile) > 0.9
    config = static.Config(observer="minmax", budget=0.05)
    after = static.apply(fragile, config, tiny.context(tmp_path))
    costs = plan(after)["sensitivity"]
    assert plan(after)["fallback"] == ["bert.pooler.dense"]
    assert after.notes[static.NOTE].endswith("for accuracy: bert.pooler.dense")
    assert max(costs, key=costs.get) == "bert.pooler.dense"
    assert costs["bert.pooler.dense"] > 10 * sorted(costs.values())[-2]
    facts = export(after, tmp_path / "export")
    assert facts.quantized == 3 + 9 + 1
    assert_as_simulated(tmp_path / "export", after)
    examples = tiny.examples(32, seed=1)
    found = Session(tmp_path / "export", 1).probabilities(examples.texts)
    assert accuracy(after, found) >= accuracy(fragile) - 0.05


def test_a_wider_budget_or_a_better_range_leaves_nothing_in_float(fragile, tmp_path):
    wide = static.Config(observer="minmax", budget=0.8)
    assert plan(static.apply(fragile, wide, tiny.context(tmp_path)))["fallback"] == []
    # one of sixteen values is the outlier: 80 % leave it out
    clipping = static.Config(observer="percentile", percentile=80, budget=0.05)
    after = static.apply(fragile, clipping, tiny.context(tmp_path))
    assert "bert.pooler.dense" not in plan(after)["fallback"]
    assert plan(after)["ranges"]["bert.pooler.dense"][1] < 300


def test_a_cost_is_the_divergence_of_the_answers_with_one_layer_in_int8(tmp_path):
    bundle = tiny.tiny_bert()
    config = static.Config(**{**ANY, "sensitivity_examples": 32})
    after = static.apply(bundle, config, tiny.context(tmp_path))
    texts = tiny.context(tmp_path).validation.texts
    unit = "bert.encoder.layer.0.attention.self"
    layers = [f"{unit}.{name}" for name in ("query", "key", "value")]
    ranges = {name: tuple(plan(after)["ranges"][name]) for name in layers}
    simulation = Simulation(
        bundle.model, ranges, affine.grid("int8", symmetric=True), per_channel=True
    )
    logits = [tiny.answers(bundle, texts).astype(np.float64)]
    with simulation.on(layers):
        logits.append(tiny.answers(bundle, texts).astype(np.float64))
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in logits)
    expected = (p * np.log(p / q)).sum(1).mean()
    assert plan(after)["sensitivity"][layers[0]] == pytest.approx(expected, rel=1e-3)


WRONG = {"bert.encoder.layer.1.output.dense": 8, "bert.pooler.dense": 4, "classifier": 2}
"""Layers of known cost: each answers so many texts wrongly in int8."""


def turning(asked):
    """Answers that are right but for what `WRONG` says; notes how many modules were in int8."""

    def logits(_, encoded, names):
        asked.append(len(names))
        labels = encoded.examples.labels
        found = np.where(np.arange(2) == labels[:, None], 1.0, -1.0)
        found[: sum(WRONG.get(name, 0) for name in names)] *= -1
        return found

    return logits


@pytest.mark.parametrize(("budget", "count"), [(14 / 32, 0), (6 / 32, 1), (2 / 32, 2), (0, 3)])
def test_the_search_keeps_as_few_in_float_as_hold_the_budget(budget, count, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(static._Search, "_logits", turning(asked))
    config = static.Config(budget=budget)
    after = static.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    assert plan(after)["fallback"] == list(WRONG)[:count]
    units = len(plan(after)["sensitivity"])
    assert len(asked) - units <= 2 + 1 + np.ceil(np.log2(units))


def test_a_budget_that_leaves_nothing_in_int8_is_an_error(tmp_path, monkeypatch):
    bundle = tiny.tiny_bert()
    monkeypatch.setattr(static._Search, "_logits", turning([]))
    monkeypatch.setattr(f"{__name__}.WRONG", dict.fromkeys(linear(bundle), 1))
    with pytest.raises(TechniqueError, match=r"within `budget: 0` no linear layer can be in int8"):
        static.apply(bundle, static.Config(budget=0), tiny.context(tmp_path))


def _quantized(tmp_path):
    return dynamic.apply(tiny.tiny_bert(), dynamic.Config(), tiny.context(tmp_path))


def test_what_cannot_be_quantized_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "calibrated", lambda *_: pytest.fail("work was done"))
    context = tiny.context(tmp_path)
    silent = Examples(context.validation.texts, np.full(32, UNLABELLED))
    cases = [
        (tiny.tiny_lstm(), context, r"recurrent layer `forwards\.0`"),
        (_quantized(tmp_path), context, "quantized already"),
        (tiny.tiny_bert(), replace(context, train=unlabelled([])), "no training texts to cal"),
        (tiny.tiny_bert(), replace(context, validation=silent), "no validation text has a label"),
    ]
    for bundle, given, reason in cases:
        with pytest.raises(TechniqueError, match=reason):
            static.apply(bundle, static.Config(), given)


def test_it_ends_a_recipe():
    assert static.LAST is True
