"""Pruning by gradients: rounds, why they end, which one is taken, what a kill costs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig

from tasks import bundle as bundles
from tasks import masks
from tasks.errors import TechniqueError
from tasks.pruning import gradient
from tasks.training.batches import unlabelled
from tasks.training.losses import measured
from tasks.training.predict import logits
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, same_weights, zeros


def _prove(before, after, config):
    names = masks.prunable(before.model, embeddings=config.embeddings, head=config.head)
    assert set(names) == set(after.sparse)
    assert zeros(before, names)[0] == 0
    share = min(config.sparsity, 1 - (1 - config.step) ** config.rounds)
    for group in [names] if config.scope == "global" else [[name] for name in names]:
        found, total = zeros(after, group)
        assert found == round(share * total)
    reason = "target" if share == config.sparsity else "rounds"
    assert after.notes[gradient.NOTE].startswith(f"stopped by `{reason}` after round ")


CONTRACT = Contract(
    good=(
        {"sparsity": 0.5, "step": 0.3, "importance_examples": 16, "training": SHORT},
        {
            "sparsity": 0.9, "rounds": 2, "scope": "layer", "head": True, "embeddings": True,
            "importance_batch_size": 4, "accuracy_floor": 0.1, "training": SHORT,
        },
    ),
    bad=(
        ({}, "sparsity"),
        ({"sparsity": 1}, "less than 1"),
        ({"sparsity": 0}, "greater than 0"),
        ({"sparsity": 0.5, "step": 0}, "greater than or equal to 0.001"),
        ({"sparsity": 0.5, "step": 1}, "less than 1"),
        ({"sparsity": 0.5, "rounds": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "accuracy_floor": 85}, "less than or equal to 1"),
        ({"sparsity": 0.5, "max_loss_points": -1}, "greater than or equal to 0"),
        ({"sparsity": 0.5, "minutes": 0}, "greater than 0"),
        ({"sparsity": 0.5, "scope": "matrix"}, "'global' or 'layer'"),
        ({"sparsity": 0.5, "importance_examples": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "importance_batch_size": 0}, "greater than or equal to 1"),
    ),
    prove=_prove,
)  # fmt: skip


@pytest.fixture
def fitted(monkeypatch):
    """Let trainings end with the accuracies and seconds given; return what they began with."""

    inner = gradient.fit

    def plan(accuracies, seconds=0.0):
        begun = []

        def fit(bundle, *args, **more):
            begun.append(masks.sparsity(bundle.model, bundle.sparse))
            result = inner(bundle, *args, **more)
            accuracy = accuracies[len(begun) - 1] if accuracies else result.best_validation_accuracy
            return replace(result, best_validation_accuracy=accuracy, seconds=seconds)

        monkeypatch.setattr(gradient, "fit", fit)
        return begun

    return plan


def _apply(tmp_path, bundle=None, **settings):
    config = gradient.Config(**{"sparsity": 0.9, "step": 0.2, "training": SHORT, **settings})
    return gradient.apply(bundle or tiny.tiny_bert(), config, tiny.context(tmp_path))


def test_rounds_go_on_to_the_target_and_end_there_exactly(fitted, tmp_path):
    begun = fitted([0.5, 0.6, 0.75])
    after = _apply(tmp_path, sparsity=0.45)
    assert begun == pytest.approx([0.2, 0.36, 0.45], abs=1e-3)
    assert after.notes[gradient.NOTE] == (
        "stopped by `target` after round 3 (45.0% zeros are reached); round 3 is taken: "
        "45.0% zeros, validation accuracy 0.7500"
    )


def test_a_round_that_meets_the_target_but_for_rounding_is_the_last(fitted, tmp_path):
    begun = fitted([0.5, 0.6])
    assert 1 - 0.8 * 0.8 != 0.36  # in floating point
    assert "`target` after round 2" in _apply(tmp_path, sparsity=0.36).notes[gradient.NOTE]
    assert begun == pytest.approx([0.2, 0.36], abs=1e-3)


def test_below_the_floor_the_round_before_is_taken(fitted, tmp_path):
    begun = fitted([0.9, 0.84, 0.83, 0.9])
    after = _apply(tmp_path / "floor", accuracy_floor=0.84)
    assert begun == pytest.approx([0.2, 0.36, 0.488], abs=1e-3)
    assert after.notes[gradient.NOTE] == (
        "stopped by `floor` after round 3 (validation accuracy 0.8300 at 48.8% zeros is below "
        "the floor of 0.8400); round 2 is taken: 36.0% zeros, validation accuracy 0.8400"
    )
    found, total = zeros(after, after.sparse)
    assert found == round(0.36 * total)
    fitted([])
    two = _apply(tmp_path / "two", rounds=2)
    assert "stopped by `rounds` after round 2 (2 are done)" in two.notes[gradient.NOTE]
    assert same_weights(after, two)


def test_the_floor_may_hang_on_the_model_before(fitted, tmp_path):
    before = tiny.tiny_bert()
    validation = tiny.context(tmp_path).validation
    own = measured(logits(before, validation), validation.labels)[1]
    fitted([own - 0.0499, own - 0.0501])
    note = _apply(tmp_path / "own", max_loss_points=5).notes[gradient.NOTE]
    assert f"is below the floor of {own - 0.05:.4f}); round 1 is taken" in note
    fitted([own, own - 0.02])
    note = _apply(tmp_path / "both", max_loss_points=5, accuracy_floor=own - 0.01).notes
    assert f"is below the floor of {own - 0.01:.4f}); round 1 is taken" in note[gradient.NOTE]


def test_where_no_round_holds_the_floor_the_step_fails(fitted, tmp_path):
    begun = fitted([0.8])
    with pytest.raises(TechniqueError, match=r"first round, at 20\.0% zeros, .* 0\.8000, below .*"):
        _apply(tmp_path, accuracy_floor=0.84)
    assert len(begun) == 1


def test_no_round_begins_after_the_minutes(fitted, tmp_path):
    begun = fitted([0.5] * 5, seconds=40)
    note = _apply(tmp_path, minutes=1.5).notes[gradient.NOTE]
    assert len(begun) == 3
    assert note.startswith("stopped by `minutes` after round 3 (1.5 are over); round 3 is taken")


def test_a_model_that_learned_is_pruned_as_far_as_it_may_be(tmp_path):
    train = {**LONG, "epochs": 4}
    after = _apply(tmp_path, step=0.6, sparsity=0.99, max_loss_points=0, training=train)
    validation = tiny.context(tmp_path).validation
    taken = float(after.notes[gradient.NOTE].rpartition(" ")[2])
    accuracy = measured(logits(after, validation), validation.labels)[1]
    before = measured(logits(tiny.tiny_bert(), validation), validation.labels)[1]
    assert accuracy == pytest.approx(taken, abs=1e-4)
    assert accuracy >= before
    assert masks.sparsity(after.model, after.sparse) >= 0.6 - 1e-3


def test_weights_that_the_loss_does_not_depend_on_go_first(fitted, tmp_path):
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    with torch.no_grad():  # large weights into neurons that nothing reads
        bundle.model.get_parameter(name)[:4].mul_(50)
        bundle.model.get_parameter("bert.encoder.layer.1.output.dense.weight")[:, :4] = 0
    fitted([])
    after = _apply(tmp_path, bundle, step=0.05, rounds=1)
    assert (after.model.get_parameter(name)[:4] == 0).all()
    assert (after.model.get_parameter(name)[4:] != 0).any()


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_run_goes_on_in_its_round(at, monkeypatch, tmp_path):
    settings = {"rounds": 3, "training": {**SHORT, "checkpoint_seconds": 1e-6}}
    whole = _apply(tmp_path / "whole", **settings)
    inner, trained, steps = gradient.fit, [], []

    class Killer(type(tiny.context(tmp_path).progress)):
        def advance(self, count, *, loss=None, rate=None):
            steps.append(count)
            if len(trained) == at and loss is not None and len(steps) % 9 == 5:
                raise _Killed

    def fit(*args, seed, progress, **more):
        trained.append(seed)
        steps.clear()
        return inner(*args, seed=seed, progress=Killer() if killing else progress, **more)

    monkeypatch.setattr(gradient, "fit", fit)
    killing = True
    with pytest.raises(_Killed):
        _apply(tmp_path / "killed", **settings)
    killing = False
    again = _apply(tmp_path / "killed", **settings)
    assert trained == [*range(7, 7 + at), *range(6 + at, 10)]  # the rounds before are kept
    assert same_weights(whole, again)
    assert whole.notes == again.notes
    trained.clear()
    assert same_weights(whole, _apply(tmp_path / "killed", **settings))
    assert trained == []  # one who died before he saved the result trains nothing twice


def test_one_checkpoint_is_left_whatever_the_rounds(tmp_path):
    _apply(tmp_path, rounds=3)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_the_note_travels_and_a_checkpoint_without_notes_is_read(fitted, tmp_path):
    fitted([0.5])
    after = _apply(tmp_path / "scratch", replace(tiny.tiny_bert(), notes={"a": "b"}), rounds=1)
    bundles.save(after, tmp_path / "saved")
    loaded = bundles.load(tmp_path / "saved")
    assert loaded.copy().notes == after.notes
    assert set(after.notes) == {"a", gradient.NOTE}
    facts = json.loads((tmp_path / "saved" / "bundle.json").read_text())
    del facts["notes"]
    (tmp_path / "saved" / "bundle.json").write_text(json.dumps(facts))
    assert bundles.load(tmp_path / "saved").notes == {}


def test_what_cannot_be_done_is_refused_before_work(fitted, tmp_path):
    begun = fitted([0.5])
    pruned = _apply(tmp_path / "first", rounds=1, sparsity=0.2)
    with pytest.raises(TechniqueError, match=r"20\.0% zeros already"):
        _apply(tmp_path / "second", pruned, sparsity=0.2)
    context = replace(tiny.context(tmp_path / "second"), validation=unlabelled(["the film"]))
    with pytest.raises(TechniqueError, match="no validation text has a label"):
        gradient.apply(tiny.tiny_bert(), gradient.Config(sparsity=0.5), context)
    assert len(begun) == 1
    assert not (tmp_path / "second").exists()


def test_a_second_pruning_begins_where_the_first_ended(fitted, tmp_path):
    fitted([0.5, 0.5, 0.5])
    first = _apply(tmp_path / "first", rounds=1)
    second = _apply(tmp_path / "second", first, rounds=2)
    found, total = zeros(second, second.sparse)
    assert found == pytest.approx((1 - 0.8**3) * total, abs=1)
    for name in second.sparse:
        assert (second.model.get_parameter(name)[first.model.get_parameter(name) == 0] == 0).all()


@pytest.mark.parametrize("kind", ["distilbert", "albert"])
def test_other_models_are_pruned_too(kind, tmp_path):
    if kind == "albert":
        config = AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )  # fmt: skip
        bundle = tiny.bundle_of(config)
    else:
        bundle = tiny.tiny(kind)
    after = _apply(tmp_path, bundle, rounds=2)
    found, total = zeros(after, after.sparse)
    assert found == round(0.36 * total)
    assert np.isfinite(tiny.answers(after, tiny.examples(4).texts)).all()
