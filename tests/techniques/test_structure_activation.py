"""No GELU is left: the fit of a quadratic, recovery, reload and fused export."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig, BertConfig

from tasks import bundle as bundles
from tasks import replacements
from tasks.errors import TechniqueError
from tasks.replacements import Quadratic, Relu
from tasks.runtime.export import export
from tasks.structure import activation
from tasks.structure.activation import Config
from tests import tiny
from tests.runtime.test_export import centred, logits, quantized
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, divergence

TEXTS = tiny.examples(16, seed=3).texts


def _prove(before, after, config):
    assert len(activation.gelus(before.model)) == 3
    assert activation.gelus(after.model) == []
    kind = {"relu": Relu, "quadratic": Quadratic}[config.function]
    assert sum(isinstance(m, kind) for m in after.model.modules()) == 3


CONTRACT = Contract(
    good=(
        {"function": "relu", "training": SHORT},
        {"function": "quadratic", "training": SHORT},
        {"function": "quadratic", "fit_examples": 8, "teacher": "baseline", "training": SHORT},
    ),
    bad=(
        ({}, "Field required"),
        ({"function": "gelu"}, "'relu' or 'quadratic'"),
        ({"function": "relu", "fit_examples": 0}, "greater than or equal to 1"),
        ({"function": "relu", "alpha": 2}, "less than or equal to 1"),
    ),
    refuses={"lstm": "has no GELU"},
    prove=_prove,
)


def _albert():
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3, max_position_embeddings=32,
        )
    )  # fmt: skip


def of(kind):
    return _albert() if kind == "albert" else tiny.tiny(kind)


def press(bundle, folder, function, **settings):
    config = Config(function=function, **{"training": SHORT, **settings})
    return activation.apply(bundle, config, tiny.context(folder))


def _values_before(bundle, path, texts):
    """What the module at `path` is given, text by text and so without padding."""
    found = []
    hook = bundle.model.get_submodule(path).register_forward_hook(
        lambda module, inputs, output: found.append(inputs[0].detach().double().numpy().ravel())
    )
    for text in texts:
        tiny.answers(bundle, [text])
    hook.remove()
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "electra"])
def test_the_quadratic_is_numpys_least_squares_fit(kind):
    bundle = tiny.tiny(kind)
    examples = tiny.examples(40, seed=5)
    places = activation.gelus(bundle.model)
    found = activation.fitted(bundle, places, examples, torch.device("cpu"))
    for path in places:
        x = _values_before(bundle, path, examples.texts)
        exact = np.vectorize(math.erf)(x / math.sqrt(2))
        gelu = x * 0.5 * (1 + exact)
        if kind == "gpt2":  # its GELU is the one with tanh
            gelu = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        expected = np.polyfit(x, gelu, 2)
        made = found[path]
        coefficients = [p.item() for p in (made.square, made.slope, made.offset)]
        np.testing.assert_allclose(coefficients, expected, rtol=1e-4, atol=1e-6)


def test_the_functions_compute_their_formulas():
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(Relu()(x), torch.clamp(x, min=0))
    np.testing.assert_allclose(
        Quadratic()(x).detach(), 0.125 * x.numpy() ** 2 + 0.25 * x.numpy() + 0.5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("bert", "relu"),
        ("bert", "quadratic"),
        ("gpt2", "quadratic"),
        ("distilbert", "relu"),
        ("electra", "quadratic"),
        ("roberta", "relu"),
        ("mpnet", "quadratic"),
        ("albert", "relu"),
    ],
)
def test_it_reloads_and_its_export_is_fused_and_answers_as_pytorch(kind, function, tmp_path):
    before = of(kind)
    places = activation.gelus(before.model)
    after = press(before, tmp_path, function)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    assert [path for path, *_ in replacements.found(again.model)] == places
    assert activation.gelus(again.model) == []
    facts = export(after, tmp_path / "export")
    expected = centred(tiny.answers(after, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    assert not {"Gelu", "BiasGelu", "FastGelu", "Erf"} & set(facts.operators)
    if kind not in ("gpt2", "mpnet", "albert"):
        assert facts.fused["Attention"] == 3
        assert facts.fused["SkipLayerNormalization"] == 6


@pytest.mark.parametrize("kind", ["gpt2", "albert"])
def test_before_it_the_export_has_gelus(kind, tmp_path):
    facts = export(of(kind), tmp_path / "export")
    assert sum(facts.operators.get(name, 0) for name in ("Gelu", "BiasGelu", "FastGelu")) >= 3


@pytest.mark.parametrize("function", ["relu", "quadratic"])
def test_a_fresh_model_of_its_configuration_has_the_function_too(function, tmp_path):
    after = press(tiny.tiny_bert(), tmp_path, function)
    assert after.model.config.hidden_act == function
    fresh = type(after.model)(after.model.config)
    assert activation.gelus(fresh) == []


def test_int8_leaves_the_quadratic_in_float(tmp_path):
    after = press(tiny.tiny_bert(), tmp_path, "quadratic")
    export(quantized(after), tmp_path / "export")
    close, exact = logits(tmp_path / "export", TEXTS), centred(tiny.answers(after, TEXTS))
    assert np.corrcoef(close[:, 0], exact[:, 0])[0, 1] > 0.8


@pytest.mark.parametrize("function", ["relu", "quadratic"])
def test_training_brings_it_back_to_the_teacher(function, tmp_path):
    teacher = tiny.WiseTeacher()
    apart = []
    for name, training in (("not trained", {**SHORT, "learning_rate": 1e-9}), ("trained", LONG)):
        config = Config(function=function, teacher="baseline", alpha=1.0, training=training)
        context = tiny.context(tmp_path / name, teacher)
        after = activation.apply(tiny.tiny_bert(), config, context)
        apart.append(divergence(teacher.answers(TEXTS), tiny.answers(after, TEXTS)).mean())
    assert teacher.asked == 4
    assert apart[1] < apart[0] / 4
    assert accuracy(after) > 0.8


@pytest.mark.parametrize(
    ("bundle", "settings", "reason"),
    [
        (
            lambda: tiny.bundle_of(
                BertConfig(
                    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
                    intermediate_size=32, hidden_act="relu",
                )
            ),
            {},
            "of type `bert`, has no GELU",
        ),
        (
            lambda: replace(tiny.tiny_bert(), labels=("no", "yes")),
            {"teacher": "baseline"},
            "knows the labels negative, positive, not no, yes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_training(bundle, settings, reason, tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher())
    with pytest.raises(TechniqueError, match=reason):
        activation.apply(bundle(), Config(function="relu", **settings), context)
    assert not list(tmp_path.iterdir())
