"""What a recipe did must be found in the model that is served."""

from dataclasses import replace

import torch
from torch import nn

from tasks import model_parts
from tasks.evaluation.proof import Substance, prove, substance
from tasks.packed import PackedLinear
from tests import tiny

BASE = Substance(num_parameters=1000, num_zeros=10, size_bytes=4000, num_quantized=0)


def test_substance_counts_what_is_there() -> None:
    bundle = tiny.tiny_bert()
    whole = substance(bundle.model, 100, 0)
    assert whole.num_parameters == bundle.num_parameters()
    model_parts.layers(bundle.model)[0].keep_heads([0])
    with torch.no_grad():
        zeros_before = substance(bundle.model, 100, 0).num_zeros
        bundle.model.classifier.weight[0] = 0
    cut = substance(bundle.model, 90, 7)
    assert cut.num_parameters == whole.num_parameters - 3 * (12 * 16 + 12) - 16 * 12
    assert cut.num_zeros == zeros_before + 16
    assert (cut.size_bytes, cut.num_quantized) == (90, 7)


def test_each_effect_is_proven_by_its_own_mark() -> None:
    fewer = Substance(700, 7, 2800, 0)
    sparse = Substance(1000, 500, 4000, 0)
    integer = Substance(1000, 10, 1000, 20)
    packed = Substance(1000, 10, 1000, 0, num_packed=12)
    own = {"parameters": fewer, "zeros": sparse, "quantized": integer, "packed": packed}
    for effect, variant in own.items():
        assert prove(BASE, variant, {"family.step": (effect,)}).changed
        for other in own.values():
            if other is not variant:
                proof = prove(BASE, other, {"family.step": (effect,)})
                assert not proof.changed
                assert "family.step changed nothing" in proof.message


def test_a_chain_is_proven_when_every_effect_of_it_is() -> None:
    variant = Substance(700, 350, 700, 20)
    effects = {"structure.layer_drop": ("parameters",), "quantization.dynamic": ("quantized",)}
    proof = prove(BASE, variant, effects)
    assert proof.changed
    assert "30% fewer parameters" in proof.message
    assert "20 operators in int8" in proof.message
    silent = prove(BASE, Substance(700, 350, 2800, 0), effects)
    assert not silent.changed
    assert silent.message.startswith("quantization.dynamic changed nothing")


def test_steps_of_one_effect_are_proven_together() -> None:
    effects = {"structure.layer_drop": ("parameters",), "pruning.structured": ("parameters",)}
    assert prove(BASE, Substance(700, 7, 2800, 0), effects).message == "30% fewer parameters"
    silent = prove(BASE, BASE, effects)
    assert silent.message.startswith("structure.layer_drop, pruning.structured changed nothing")


def test_packed_weights_are_said_to_bring_size_and_no_speed() -> None:
    variant = Substance(1000, 10, 1000, 0, num_packed=12)
    proof = prove(BASE, variant, {"quantization.affine": ("packed",)})
    assert "12 matrices stored in few bits (smaller, hardly faster)" in proof.message


def test_zeros_are_said_to_bring_no_speed() -> None:
    proof = prove(BASE, Substance(1000, 500, 4000, 0), {"pruning.magnitude": ("zeros",)})
    assert "50% zeros (which speed nothing up in this runtime)" in proof.message


def test_what_grew_or_shrank_is_told_step_by_step() -> None:
    effects = {"structure.layer_drop": ("parameters",), "structure.grow": ("grown",)}
    sizes = {"structure.layer_drop": [0.5], "structure.grow": [1.6]}
    assert prove(BASE, replace(BASE, num_parameters=800), effects, sizes).changed
    assert not prove(BASE, replace(BASE, num_parameters=800), effects).changed
    twice = {"structure.layer_drop": [0.5, 1.0], "structure.grow": [1.6]}
    silent = prove(BASE, replace(BASE, num_parameters=800), effects, twice)
    assert silent.message.startswith("structure.layer_drop changed nothing")
    alone = prove(BASE, replace(BASE, num_parameters=1200), {"structure.grow": ("grown",)})
    assert alone.message == "20% more parameters"
    assert not prove(BASE, BASE, {"structure.grow": ("grown",)}).changed


def test_activation_and_length_are_proven_by_what_is_served() -> None:
    base = replace(BASE, num_gelus=6, max_length=128)
    for effect, good, bad in (
        ("activation", replace(base, num_gelus=0), replace(base, num_gelus=1)),
        ("length", replace(base, max_length=64), base),
    ):
        assert prove(base, good, {"structure.step": (effect,)}).changed
        assert not prove(base, bad, {"structure.step": (effect,)}).changed
    counted = substance(tiny.tiny_bert().model, 100, 0, {"BiasGelu": 3, "Gelu": 1, "Tanh": 1}, 16)
    assert (counted.num_gelus, counted.max_length) == (4, 16)


def test_a_technique_of_several_effects_must_show_them_all() -> None:
    effects = {"joint.compression": ("parameters", "quantized")}
    both = prove(BASE, Substance(500, 5, 1000, 20), effects)
    assert (both.changed, both.message) == (True, "50% fewer parameters, 20 operators in int8")
    for half in (Substance(1000, 10, 1000, 20), Substance(500, 5, 1000, 0)):
        assert prove(BASE, half, effects).message.startswith("joint.compression changed nothing")


def test_zeros_that_were_packed_are_zeros() -> None:
    part = PackedLinear(2, 8, bits=2, group=8, offset=1.0, bias=False)
    codes = torch.tensor([[1, 0, 1, 2, 1, 2, 0, 1], [0, 0, 2, 2, 0, 2, 0, 1]])  # 1 stands for zero
    part.fill(codes, torch.full((2, 1), 0.5))
    counted = substance(nn.ModuleList([part, nn.Linear(3, 1, bias=False)]), 100, 0)
    assert (counted.num_zeros, counted.num_parameters) == (5, 19)
