"""Magnitude pruning: the schedules, N:M patterns, zeros that stay."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tasks import masks
from tasks.errors import TechniqueError
from tasks.pruning import magnitude
from tasks.training.progress import Silent
from tests import tiny
from tests.techniques.contract import SHORT, Contract, same_weights, zeros
from tests.training.test_lstm import tiny_lstm


def _groups(bundle, name, size):
    """The weight's neighbours along its inputs, (groups, size)."""
    weight = bundle.model.get_parameter(name).detach()
    return (weight.T if "c_" in name else weight).reshape(-1, size)  # GPT-2's lie transposed


def _prove(before, after, config):
    names = masks.prunable(before.model, embeddings=config.embeddings, head=config.head)
    assert set(names) == set(after.sparse)
    assert zeros(before, names)[0] == 0
    if config.scope == "global":
        found, total = zeros(after, names)
        assert found == round(config.target * total)
    else:
        for name in names:
            found, total = zeros(after, [name])
            assert found == round(config.target * total)
    if config.pattern is not None:
        keep, size = (int(n) for n in config.pattern.split(":"))
        for name in names:
            assert ((_groups(after, name, size) != 0).sum(1) == keep).all()


CONTRACT = Contract(
    good=(
        {"sparsity": 0.5, "interval": 2, "training": SHORT},
        {"sparsity": 0.75, "scope": "layer", "schedule": "one_shot", "training": SHORT},
        {"sparsity": 0.3, "embeddings": True, "head": True, "ramp": 1, "training": SHORT},
        {"sparsity": 0.6, "schedule": "iterative", "rounds": 2, "training": SHORT},
        {"pattern": "2:4", "schedule": "one_shot", "training": SHORT},
        {"pattern": "1:4", "interval": 2, "embeddings": True, "head": True, "training": SHORT},
    ),
    bad=(
        ({}, "either `sparsity` or `pattern`"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either `sparsity` or `pattern`"),
        ({"pattern": "4:2"}, "0 < N < M, as in 2:4; not 4:2"),
        ({"pattern": 124}, "valid string"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.0}, "greater than 0"),
        ({"sparsity": "much"}, "valid number"),
        ({"sparsity": 0.5, "scope": "matrix"}, "'global' or 'layer'"),
        ({"sparsity": 0.5, "schedule": "cubic"}, "'gradual', 'one_shot' or 'iterative'"),
        ({"sparsity": 0.5, "ramp": 0}, "greater than 0"),
        ({"sparsity": 0.5, "ramp": 1.5}, "less than or equal to 1"),
        ({"sparsity": 0.5, "interval": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "rounds": 5}, "`rounds` goes with `schedule: iterative` alone"),
        ({"sparsity": 0.5, "schedule": "one_shot", "ramp": 0.2}, "`ramp` goes with `schedule: gr"),
        ({"sparsity": 0.5, "schedule": "iterative", "rounds": 1}, "greater than or equal to 2"),
    ),
    prove=_prove,
)


def test_the_schedule_is_cubic():
    # s_f·(1 − (1 − t/T)³) from 0 to 0.8 over T = 10: a half of the way is 7/8 of the rise
    assert magnitude.scheduled(0, 10, 0.0, 0.8) == 0
    assert magnitude.scheduled(5, 10, 0.0, 0.8) == pytest.approx(0.7)
    assert magnitude.scheduled(5, 10, 0.4, 0.8) == pytest.approx(0.75)
    assert magnitude.scheduled(10, 10, 0.4, 0.8) == 0.8
    assert magnitude.scheduled(15, 10, 0.4, 0.8) == 0.8


class _Watch(Silent):
    """Sees the zeros of a model after each step, and what each training begins with."""

    def __init__(self, monkeypatch):
        self.zeros: list[set[int]] = []
        self.begun: list[float] = []
        inner = magnitude.fit

        def fit(bundle, *args, after_step=None, **more):
            self.begun.append(masks.sparsity(bundle.model, bundle.sparse))

            def watched(model, step, total):
                if after_step is not None:
                    after_step(model, step, total)
                weights = torch.cat([model.get_parameter(n).flatten() for n in bundle.sparse])
                self.zeros.append(set(torch.nonzero(weights == 0).flatten().tolist()))
                self.size = len(weights)

            return inner(bundle, *args, after_step=watched, **more)

        monkeypatch.setattr(magnitude, "fit", fit)

    def shares(self):
        return [len(found) / self.size for found in self.zeros]


@pytest.mark.parametrize("amount", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_the_sparsity_rises_step_by_step_and_zeros_stay(amount, monkeypatch, tmp_path):
    watch = _Watch(monkeypatch)
    config = magnitude.Config(**amount, interval=1, ramp=1, training=SHORT)
    magnitude.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    expected = [config.target * (1 - (1 - step / 8) ** 3) for step in range(1, 9)]
    assert watch.shares() == pytest.approx(expected, abs=1e-3)
    assert all(early <= late for early, late in pairwise(watch.zeros))


@pytest.mark.parametrize(
    ("settings", "begun"),
    [
        ({"schedule": "one_shot", "sparsity": 0.6}, [0.6]),
        # 0.4 ** (1/3) of the weights stay in each round
        ({"schedule": "iterative", "sparsity": 0.6}, [0.2632, 0.4571, 0.6]),
        ({"schedule": "iterative", "sparsity": 0.75, "rounds": 2}, [0.5, 0.75]),
        ({"schedule": "iterative", "pattern": "1:4", "rounds": 2}, [0.5, 0.75]),
    ],
)
def test_other_schedules_prune_before_each_training(settings, begun, monkeypatch, tmp_path):
    watch = _Watch(monkeypatch)
    config = magnitude.Config(**settings, training=SHORT)
    magnitude.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    assert watch.begun == pytest.approx(begun, abs=1e-3)
    assert all(early <= late for early, late in pairwise(watch.zeros))
    for number, share in enumerate(watch.begun):
        assert set(watch.shares()[8 * number : 8 * number + 8]) == {share}


@pytest.mark.parametrize(
    ("settings", "killed_at", "resumed"),
    [
        ({"schedule": "one_shot"}, 5, [4, 1, 1, 1, 1]),
        ({"ramp": 0.75, "interval": 2}, 5, [4, 1, 1, 1, 1]),
        ({"schedule": "iterative", "rounds": 2}, 13, [8, 4, 1, 1, 1, 1]),
    ],
)
def test_a_killed_pruning_resumes_to_the_same_weights(settings, killed_at, resumed, tmp_path):
    training = {**SHORT, "checkpoint_seconds": 1e-6}
    config = magnitude.Config(sparsity=0.6, **settings, training=training)
    whole = magnitude.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        magnitude.apply(tiny.tiny_bert(), config, replace(context, progress=tiny.Killer(killed_at)))
    watch = tiny.Killer(100)
    again = magnitude.apply(tiny.tiny_bert(), config, replace(context, progress=watch))
    assert watch.done == resumed  # what was done is not done again
    assert same_weights(whole, again)


def test_a_second_pruning_starts_where_the_first_ended(tmp_path):
    first = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.5, training=SHORT), tiny.context(tmp_path)
    )
    second = magnitude.apply(
        first, magnitude.Config(sparsity=0.8, training=SHORT), tiny.context(tmp_path / "second")
    )
    _prove(tiny.tiny_bert(), second, magnitude.Config(sparsity=0.8))
    for name in second.sparse:
        assert (second.model.get_parameter(name)[first.model.get_parameter(name) == 0] == 0).all()
    for target in (0.7, 0.8):
        with pytest.raises(TechniqueError, match=r"(79\.9|80\.0)% zeros already"):
            magnitude.apply(second, magnitude.Config(sparsity=target), tiny.context(tmp_path / "x"))


def test_a_pattern_that_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.raises(TechniqueError, match="16 inputs, which do not divide into groups of 5"):
        magnitude.apply(tiny.tiny_bert(), magnitude.Config(pattern="2:5"), tiny.context(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_pattern_may_follow_an_unstructured_pruning(tmp_path):
    first = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.6, training=SHORT), tiny.context(tmp_path)
    )
    config = magnitude.Config(pattern="2:4", schedule="one_shot", training=SHORT)
    second = magnitude.apply(first, config, tiny.context(tmp_path / "second"))
    for name in second.sparse:
        assert ((_groups(second, name, 4) != 0).sum(1) <= 2).all()
        assert (second.model.get_parameter(name)[first.model.get_parameter(name) == 0] == 0).all()
    with pytest.raises(TechniqueError, match="has the pattern 2:4 already"):
        magnitude.apply(second, config, tiny.context(tmp_path / "third"))


def test_an_lstm_is_pruned_too(tmp_path):
    config = magnitude.Config(sparsity=0.5, schedule="one_shot", training=SHORT)
    after = magnitude.apply(tiny_lstm(), config, tiny.context(tmp_path))
    found, total = zeros(after, after.sparse)
    assert (found, total) == (total // 2, 2 * (20 * 6 + 20 * 5) + 2 * (20 * 10 + 20 * 5))
