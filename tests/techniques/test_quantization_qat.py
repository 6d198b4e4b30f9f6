"""Quantization-aware training: it learns in int8, and its export is what it learned in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks import bundle as bundles
from tasks.affine import grid
from tasks.calibration import Calibration
from tasks.errors import TechniqueError
from tasks.fake_quantization import FakeQuantization
from tasks.imitation import imitation
from tasks.quantization import dynamic, qat
from tasks.runtime.export import export
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, same_weights
from tests.techniques.test_quantization_static import (
    TEXTS,
    centred_logits,
    linear,
    plan,
)


def _prove(before, after, config):
    settings = plan(after)
    assert sorted(settings["ranges"]) == sorted(linear(after))
    assert settings["fallback"] == []
    assert not same_weights(before, after)
    assert sorted(after.scales) == (sorted(linear(after)) if config.ranges == "learned" else [])
    for steps in after.scales.values():
        assert (steps > 0).all()
        assert steps.dim() == (1 if config.per_channel else 0)


CONTRACT = Contract(
    good=(
        {"training": SHORT},
        {"training": SHORT, "ranges": "observed", "observer": "minmax", "per_channel": False},
        {"training": SHORT, "teacher": "baseline", "embeddings": False, "reduce_range": True},
    ),
    bad=(
        ({"ranges": "guessed"}, "'learned' or 'observed'"),
        ({"observer": "median"}, "'minmax', 'percentile', 'entropy' or 'mse'"),
        ({"step_rate": 0}, "greater than 0"),
        ({"calibration_examples": 0}, "greater than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
    ),
    refuses={"lstm": "recurrent layer"},
    prove=_prove,
)


def _context(tmp_path, **others):
    return tiny.context(tmp_path, tiny.WiseTeacher(), **others)


def imitated(bundle, texts):
    """Centred logits of PyTorch that rounds by the bundle's own plan and steps."""
    settings = plan(bundle)
    ranges = {name: tuple(limits) for name, limits in settings["ranges"].items()}
    fake = FakeQuantization(
        bundle.model,
        Calibration(ranges, {name: (name,) for name in ranges}),
        grid("int8", symmetric=True, reduce_range=settings["reduce_range"]),
        learned=True,
        per_channel=settings["per_channel"],
        embeddings=settings["embeddings"],
    )
    with torch.no_grad():
        for name, steps in bundle.scales.items():
            fake.weight_steps[name.replace(".", "/")].copy_(steps.log())
    with fake.on():
        values = tiny.answers(bundle, texts).astype(np.float64)
    return values - values.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        *((tiny.tiny_bert, settings) for settings in CONTRACT.good),
        (tiny.tiny_gpt2, CONTRACT.good[0]),
        (tiny.tiny_albert, CONTRACT.good[0]),
        (lambda: tiny.tiny("distilbert"), CONTRACT.good[0]),
    ],
)
def test_the_export_answers_as_the_model_did_in_training(make, settings, tmp_path):
    after = qat.apply(make(), qat.Config(**settings), _context(tmp_path))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert again.scales.keys() == after.scales.keys()
    assert all(torch.equal(again.scales[n], after.scales[n]) for n in after.scales)
    facts = export(again, tmp_path / "export")
    assert facts.quantized > 0
    distance = np.abs(centred_logits(tmp_path / "export", TEXTS) - imitated(again, TEXTS)).max(1)
    assert (distance < 1e-4).mean() >= 0.9  # the others have a half that fell on its other side
    assert distance.max() < 0.05


def test_learned_steps_are_imitated_layer_by_layer(tmp_path):
    after = qat.apply(tiny.tiny_bert(), qat.Config(**CONTRACT.good[0]), _context(tmp_path))
    expected = imitated(after, TEXTS)
    found, _ = imitation(after)
    with found.on(found.names):
        values = tiny.answers(after, TEXTS).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    assert np.median(np.abs(values - expected).max(1)) < 1e-4


def test_learned_steps_are_what_is_served(tmp_path):
    settings = {**CONTRACT.good[0], "step_rate": 0.1}  # far from where they began
    after = qat.apply(tiny.tiny_bert(), qat.Config(**settings), _context(tmp_path))
    export(after, tmp_path / "export")
    served = centred_logits(tmp_path / "export", TEXTS)
    assert np.median(np.abs(served - imitated(after, TEXTS)).max(1)) < 1e-4
    after.scales = {}
    assert np.median(np.abs(served - imitated(after, TEXTS)).max(1)) > 1e-3


def test_a_model_learns_in_rounded_values_and_is_served_so(tmp_path):
    assert accuracy(tiny.tiny_bert()) < 0.6  # it knows nothing yet
    after = qat.apply(tiny.tiny_bert(), qat.Config(training=LONG), _context(tmp_path))
    export(after, tmp_path / "export")
    held_out = tiny.examples(128, seed=11)
    served = centred_logits(tmp_path / "export", held_out.texts).argmax(1)
    assert (served == held_out.labels).mean() > 0.8


def test_a_killed_training_goes_on_with_its_steps(tmp_path):
    training = {**SHORT, "checkpoint_seconds": 1e-9}
    config = qat.Config(training=training, step_rate=0.05)
    whole = qat.apply(tiny.tiny_bert(), config, _context(tmp_path / "whole"))
    context = replace(_context(tmp_path / "killed"), progress=tiny.Killer(6))
    with pytest.raises(KeyboardInterrupt):
        qat.apply(tiny.tiny_bert(), config, context)
    again = qat.apply(tiny.tiny_bert(), config, _context(tmp_path / "killed"))
    assert same_weights(whole, again)
    assert all(torch.equal(whole.scales[n], again.scales[n]) for n in whole.scales)
    assert plan(whole) == plan(again)


def test_pruned_zeros_stay(tmp_path):
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.1.output.dense.weight"
    with torch.no_grad():
        bundle.model.get_parameter(name)[:, ::2] = 0
    bundle.sparse = (name,)
    after = qat.apply(bundle, qat.Config(training=SHORT), _context(tmp_path))
    weight = after.model.get_parameter(name)
    assert not weight[:, ::2].any()
    assert weight[:, 1::2].all()


@pytest.mark.parametrize(
    ("make", "change", "reason"),
    [
        (
            tiny.tiny_lstm,
            {},
            "recurrent layer .* use `quantization.dynamic`",
        ),
        (tiny.tiny_bert, {"train": tiny.examples(0)}, "no training texts to calibrate on"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(make, change, reason, tmp_path):
    context = replace(_context(tmp_path), **change)
    with pytest.raises(TechniqueError, match=reason):
        qat.apply(make(), qat.Config(training=SHORT), context)


def test_a_quantized_model_is_not_quantized_again(tmp_path):
    context = _context(tmp_path)
    quantized = dynamic.apply(tiny.tiny_bert(), dynamic.Config(), context)
    with pytest.raises(TechniqueError, match="quantized already"):
        qat.apply(quantized, qat.Config(training=SHORT), context)


def test_a_teacher_with_other_labels_is_refused(tmp_path):
    context = tiny.context(tmp_path, tiny.WiseTeacher(("bad", "good")))
    with pytest.raises(TechniqueError, match="knows the labels bad, good"):
        qat.apply(tiny.tiny_bert(), qat.Config(training=SHORT, teacher="baseline"), context)
