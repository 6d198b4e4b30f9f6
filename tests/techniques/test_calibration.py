"""Calibration: which layers share an input, padding left out; the simulation of int8."""

import numpy as np
import pytest
import torch

from tasks.affine import from_range, grid, of
from tasks.calibration import ACTIVATIONS, Simulation, calibrate
from tasks.errors import TechniqueError
from tasks.observers import MinMax
from tests import tiny

WEIGHTS = grid("int8", symmetric=True)
EXAMPLES = tiny.examples(24)


def seen(bundle, batch_size=32):
    return calibrate(bundle, EXAMPLES, MinMax, tiny.Silent(), batch_size)


@pytest.mark.parametrize(
    ("bundle", "first", "names", "units"),
    [
        (tiny.tiny_bert, "bert.encoder.layer.1.attention.self", ("query", "key", "value"), 14),
        (
            lambda: tiny.tiny("distilbert"),
            "distilbert.transformer.layer.1.attention",
            ("q_lin", "k_lin", "v_lin"),
            14,
        ),
        (lambda: tiny.tiny("mpnet"), "mpnet.encoder.layer.1.attention.attn", ("q", "k", "v"), 14),
        (tiny.tiny_gpt2, "transformer.h.1.attn", ("c_attn",), 13),
        (
            tiny.tiny_albert,
            "albert.encoder.albert_layer_groups.0.albert_layers.0.attention",
            ("query", "key", "value"),
            7,
        ),
    ],
)
def test_layers_that_share_an_input_are_one_unit(bundle, first, names, units):
    found = seen(bundle())
    layers = tuple(f"{first}.{name}" for name in names)
    assert found.units[layers[0]] == layers
    assert len(found.units) == units
    assert sorted(name for unit in found.units.values() for name in unit) == sorted(found.ranges)
    assert len({found.ranges[name] for name in layers}) == 1


def test_ranges_are_those_of_real_tokens_whatever_the_batches():
    bundle = tiny.tiny_bert()
    with torch.no_grad():  # padding would widen every range, and comes only in batches
        bundle.model.bert.embeddings.word_embeddings.weight[0] = 50.0
    alone, together = seen(bundle, batch_size=1), seen(bundle, batch_size=24)
    for name, limits in alone.ranges.items():
        assert together.ranges[name] == pytest.approx(limits, abs=1e-4)


def test_the_range_of_a_layers_input_is_what_a_hook_sees():
    bundle = tiny.tiny_gpt2()
    name = "transformer.h.1.mlp.c_proj"
    inputs = []
    hook = bundle.model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: inputs.append(given[0].detach())
    )
    for text in EXAMPLES.texts:
        tiny.answers(bundle, [text])
    hook.remove()
    values = torch.cat([given.flatten() for given in inputs])
    expected = (float(values.min()), float(values.max()))
    assert seen(bundle).ranges[name] == pytest.approx(expected, abs=1e-5)


def test_the_simulation_rounds_inputs_and_weights_and_puts_all_back():
    bundle = tiny.tiny_bert()
    found = seen(bundle)
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    expected = tiny.answers(bundle, EXAMPLES.texts)
    name = "bert.pooler.dense"
    simulation = Simulation(bundle.model, found.ranges, WEIGHTS, per_channel=True)
    given = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 2
    layer = bundle.model.get_submodule(name)
    with simulation.on([name]), torch.no_grad():
        rounded = layer(given)
        assert not np.array_equal(tiny.answers(bundle, EXAMPLES.texts), expected)
    # the integers' own sum: scale_x · scale_w · Σ (q_x − zero_x) · q_w
    inputs = from_range(*found.ranges[name], ACTIVATIONS)
    weights = of(layer.weight, WEIGHTS, axis=0)
    sums = (inputs.quantize(given).long() - inputs.zero_point) @ weights.quantize(
        layer.weight
    ).T.long()
    by_hand = inputs.scale * weights.scale * sums + layer.bias
    assert torch.allclose(rounded, by_hand, atol=1e-5)
    after = bundle.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert np.array_equal(tiny.answers(bundle, EXAMPLES.texts), expected)


def test_a_weight_of_two_layers_comes_back_too():
    bundle = tiny.tiny_bert()
    layers = bundle.model.bert.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    before = layers[0].output.dense.weight.detach().clone()
    found = seen(bundle)
    simulation = Simulation(bundle.model, found.ranges, WEIGHTS, per_channel=False)
    with simulation.on([f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]):
        assert not torch.equal(layers[1].output.dense.weight, before)
    assert torch.equal(layers[1].output.dense.weight, before)


def test_an_input_that_is_not_finite_is_refused_by_name():
    bundle = tiny.tiny_bert()
    with torch.no_grad():
        bundle.model.bert.encoder.layer[1].intermediate.dense.bias[3] = float("inf")
    with pytest.raises(TechniqueError, match=r"layer `bert\.encoder\.layer\.1\.output\.dense` is"):
        seen(bundle)
