"""Regularized pruning: proximal steps against closed forms and a minimizer, groups that are cut."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize, minimize_scalar
from transformers import AlbertConfig

from tasks import masks, model_parts, technique
from tasks.errors import TechniqueError
from tasks.pruning import magnitude, regularized
from tasks.pruning.regularized import Config, Proximal, shrink, shrink_groups
from tasks.training.batches import Encoded
from tasks.training.config import TrainingConfig
from tests import tiny
from tests.techniques.contract import SHORT, Contract, same_weights, zeros
from tests.training.test_lstm import tiny_lstm

STRONG = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-2, "dropout": 0}


def _widths(bundle):
    parts = model_parts.layers(bundle.model)
    return sum(p.num_heads for p in parts), sum(p.num_neurons for p in parts)


def _prove(before, after, config):
    told = after.notes["pruning.regularized"]
    if config.penalty == "group":
        assert after.num_parameters() < before.num_parameters()
        (heads, neurons), (old_heads, old_neurons) = _widths(after), _widths(before)
        if config.heads is not None:
            assert heads == round(config.heads * old_heads)
        if config.neurons is not None:
            assert neurons == config.multiple * round(
                config.neurons * old_neurons / config.multiple
            )
        if config.heads != 1:
            assert f"{old_heads - heads} heads" in told
        assert f"{old_neurons - neurons} neurons went" in told
        return
    names = masks.prunable(before.model, embeddings=config.embeddings, head=config.head)
    assert set(names) == set(after.sparse)
    assert zeros(before, names)[0] == 0
    found, total = zeros(after, names)
    assert told == f"{found / total:.1%} of the weights went"
    if config.sparsity is None:
        assert 0.05 < found / total < 0.95
    for group in [names] if config.scope == "global" else [[name] for name in names]:
        found, total = zeros(after, group)
        assert config.sparsity is None or found == round(config.sparsity * total)


CONTRACT = Contract(
    good=(
        {"strength": 1, "sparsity": 0.5, "training": SHORT},
        {"strength": 2, "head": True, "embeddings": True, "recovery": 1, "training": STRONG},
        {
            "penalty": "l2", "strength": 20, "sparsity": 0.4, "scope": "layer", "recovery": 0,
            "training": SHORT,
        },
        {"penalty": "l2", "strength": 20, "threshold": 0.05, "training": SHORT},
        {
            "penalty": "group", "strength": 2, "heads": 0.5, "neurons": 0.5, "multiple": 4,
            "training": SHORT,
        },
        {"penalty": "group", "strength": 3, "heads": 1, "multiple": 8, "training": STRONG},
        {"penalty": "group", "strength": 0.5, "threshold": 0.18, "multiple": 1, "training": SHORT},
    ),
    bad=(
        ({}, "strength"),
        ({"strength": 0}, "greater than 0"),
        ({"strength": 1, "penalty": "elastic"}, "'l1', 'l2' or 'group'"),
        ({"strength": 1, "sparsity": 1}, "less than 1"),
        ({"strength": 1, "threshold": -1}, "greater than or equal to 0"),
        ({"strength": 1, "sparsity": 0.5, "threshold": 0.1}, "either shares or a `threshold`"),
        ({"strength": 1, "penalty": "l2"}, "l2 brings no weight to zero by itself"),
        ({"strength": 1, "penalty": "l2", "threshold": 0}, "l2 brings no weight to zero by itself"),
        ({"strength": 1, "heads": 0.5}, "`heads` is no setting of `penalty: l1`"),
        ({"strength": 1, "penalty": "l2", "multiple": 2}, "`multiple` is no setting of `penal"),
        ({"strength": 1, "penalty": "group", "sparsity": 0.5}, "`sparsity` is no setting of `pe"),
        ({"strength": 1, "penalty": "group", "heads": 1, "neurons": 1}, "nothing would be removed"),
        (
            {"strength": 1, "penalty": "group", "heads": 1, "neurons": 0.5, "threshold": 0.1},
            "either shares or a `threshold`",
        ),
        ({"strength": 1, "recovery": -1}, "greater than or equal to 0"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)  # fmt: skip

NUMBERS = st.floats(-5, 5, width=32)
REACHES = st.floats(0, 3)


@settings(deadline=None)
@given(value=NUMBERS, reach=REACHES, penalty=st.sampled_from(["l1", "l2"]))
def test_a_proximal_step_minimizes_distance_and_penalty(value, reach, penalty):
    weight = torch.tensor([[value]])
    shrink(weight, reach, Config(strength=1, penalty=penalty, sparsity=0.5))
    found = weight.item()
    closed = {
        "l1": math.copysign(max(abs(value) - reach, 0), value),
        "l2": value / (1 + reach),
    }
    assert found == pytest.approx(closed[penalty], abs=1e-6)

    def cost(v):
        return (v - value) ** 2 / 2 + reach * (abs(v) if penalty == "l1" else v * v / 2)

    best = minimize_scalar(cost, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.x, abs=1e-4)


@settings(deadline=None)
@given(
    groups=arrays.arrays(np.float32, (3, 4), elements=NUMBERS),
    reach=REACHES,
    split=st.integers(1, 3),
)
def test_a_group_is_shrunken_as_one(groups, reach, split):
    whole = torch.from_numpy(groups.copy())
    # in two views of other shapes, as the parameters of a head are
    views = [whole[:, :split], whole[:, split:].unsqueeze(2)]
    shrink_groups(views, reach)
    for before, after in zip(groups.astype(np.float64), whole.double().numpy(), strict=True):
        norm = np.linalg.norm(before)
        closed = before * max(1 - reach * 2 / norm, 0) if norm > 0 else before  # √4 weights
        np.testing.assert_allclose(after, closed, atol=1e-5)


def test_a_groups_step_minimizes_distance_and_penalty():
    value = np.array([1.0, -2.0, 0.5, 1.5])
    for reach in (0.1, 0.5, 1.0, 1.5):
        group = torch.from_numpy(value.copy())[None]
        shrink_groups([group], reach)

        def cost(v, reach=reach):
            return ((v - value) ** 2).sum() / 2 + reach * 2 * np.linalg.norm(v)

        best = minimize(cost, value, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
        np.testing.assert_allclose(group[0].numpy(), best.x, atol=1e-4)
    assert (group == 0).all()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_a_group_holds_what_removing_it_takes_away(kind):
    bundle = tiny.tiny(kind)
    texts = tiny.examples(8, seed=3).texts
    other = bundle.copy()
    part, cut = (model_parts.layers(b.model)[1] for b in (bundle, other))
    cut.keep_heads([0, 2])
    cut.keep_neurons([0, 1, 5, 30])
    heads, neurons = part.head_weights(), part.neuron_weights()
    sizes = [sum(view[0].numel() for view in views) for views in (heads, neurons)]
    assert [view.shape[0] for view in heads] == [4] * len(heads)
    assert 2 * sizes[0] + 28 * sizes[1] == bundle.num_parameters() - other.num_parameters()
    gone = sorted(set(range(32)) - {0, 1, 5, 30})
    for view in heads:
        view[[1, 3]] = 0  # into the parameters themselves
    for view in neurons:
        view[gone] = 0
    np.testing.assert_allclose(tiny.answers(bundle, texts), tiny.answers(other, texts), atol=1e-5)


def _heads_and_neurons(layer):
    """Index tuples into BERT's parameters of each head (4 wide) and neuron, written out anew."""
    groups = []
    for head in range(4):
        rows = slice(4 * head, 4 * head + 4)
        group = [(f"{layer}.attention.output.dense.weight", (slice(None), rows))]
        for name in ("query", "key", "value"):
            for leaf in ("weight", "bias"):
                group.append((f"{layer}.attention.self.{name}.{leaf}", (rows,)))
        groups.append(group)
    for neuron in range(32):
        groups.append([
            (f"{layer}.intermediate.dense.weight", (neuron,)),
            (f"{layer}.intermediate.dense.bias", (neuron,)),
            (f"{layer}.output.dense.weight", (slice(None), neuron)),
        ])  # fmt: skip
    return groups


def _plain_loop(bundle, context, config):
    """The training under the penalty written anew, with torch's AdamW and plain arithmetic."""
    model, training, total = bundle.model.eval(), config.training, 8  # no dropout
    parameters = dict(model.named_parameters())
    names = masks.prunable(model, embeddings=False, head=False)

    def layer_of(name):
        return int(name.split("layer.")[1][0]) if "layer." in name else None

    decays = {n: 0.5 ** (3 - layer_of(n)) if layer_of(n) is not None else
              0.5**4 if "embeddings" in n else 1.0 for n in parameters}  # fmt: skip
    optimizer = torch.optim.AdamW([
        {"params": [p], "weight_decay": training.weight_decay * (p.dim() > 1), "name": n}
        for n, p in parameters.items()
    ], foreach=False)  # fmt: skip
    encoded = Encoded(context.train, bundle.tokenizer, bundle.max_length)
    for step in range(total):
        factor = 1 if step < 1 else (1 + math.cos(math.pi * (step - 1) / (total - 1))) / 2
        rates = {n: training.learning_rate * factor * decays[n] for n in parameters}
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        batch = encoded.batch(encoded.shuffled(16, context.seed, step // 4)[step % 4])
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        F.cross_entropy(output.logits, batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if config.penalty == "l1":
                for name in names:
                    w, reach = parameters[name], rates[name] * config.strength
                    w.copy_(
                        torch.where(w > reach, w - reach, torch.where(w < -reach, w + reach, 0))
                    )
            for layer in range(3) if config.penalty == "group" else ():
                reach = rates[f"bert.encoder.layer.{layer}.output.dense.weight"] * config.strength
                for group in _heads_and_neurons(f"bert.encoder.layer.{layer}"):
                    flat = torch.cat([parameters[n][index].flatten() for n, index in group])
                    factor = max(1 - reach * math.sqrt(len(flat)) / float(flat.norm()), 0)
                    for name, index in group:
                        parameters[name][index] *= factor
    return parameters


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_weights_are_those_of_a_plain_loop(penalty, tmp_path):
    training = TrainingConfig.model_validate(
        {**SHORT, "dropout": 0, "learning_rate": 5e-3, "schedule": "cosine", "layer_decay": 0.5}
    )
    config = Config(strength=2.5, penalty=penalty, training=training)
    context = tiny.context(tmp_path)
    pressed = tiny.tiny_bert()
    names = masks.prunable(pressed.model, embeddings=False, head=False)
    proximal = Proximal(tiny.tiny_bert(), pressed, names if penalty == "l1" else (), config)
    regularized._train(pressed, training, context, after_update=proximal, keep="last")
    for name, wanted in _plain_loop(tiny.tiny_bert(), context, config).items():
        found = pressed.model.get_parameter(name)
        # Adam blows float noise up where a gradient is all noise: of keys' biases
        if "key.bias" not in name:
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    if penalty == "l1":
        assert 0.01 < masks.sparsity(pressed.model, names) < 0.5


def test_weights_that_the_penalty_holds_at_zero_may_come_back(tmp_path, monkeypatch):
    bundle, seen = tiny.tiny_bert(), []
    # matrices that were pruned before, too: of them only the zeros of before are held
    bundle.sparse = masks.prunable(bundle.model, embeddings=False, head=False)

    class Watched(Proximal):
        def __call__(self, model, rates):
            super().__call__(model, rates)
            weights = [model.get_parameter(n).detach().flatten() for n in self.names]
            seen.append(torch.cat(weights) == 0)

    monkeypatch.setattr(regularized, "Proximal", Watched)
    training = TrainingConfig.model_validate(STRONG)
    config = Config(strength=0.5, recovery=0, training=training)
    pressed = regularized.apply(bundle, config, tiny.context(tmp_path))
    last = torch.cat([pressed.model.get_parameter(n).flatten() == 0 for n in bundle.sparse])
    assert len(seen) == 8
    assert torch.equal(seen[-1], last)
    assert any((early & ~last).any() for early in seen)


@pytest.mark.parametrize("number", [0, 4])
def test_pruned_weights_stay_pruned(number, tmp_path):
    first = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.3, training=SHORT), tiny.context(tmp_path)
    )
    given = {**CONTRACT.good[number], "recovery": 1}
    second = regularized.apply(first, Config.model_validate(given), tiny.context(tmp_path / "2"))
    assert second.sparse == first.sparse
    assert second.notes.keys() >= first.notes.keys()
    if number == 0:
        found, total = zeros(second, second.sparse)
        assert found == round(0.5 * total)
        for name in first.sparse:
            zero = first.model.get_parameter(name) == 0
            assert (second.model.get_parameter(name)[zero] == 0).all()
    else:
        found, total = zeros(second, second.sparse)
        # of a layer's matrices; what is cut may be sparser than what stays
        assert found / total > 0.15


def test_frozen_tables_are_left_alone(tmp_path):
    bundle = tiny.tiny_bert()
    config = Config(
        strength=2, embeddings=True, sparsity=0.2, scope="layer", recovery=0,
        training=TrainingConfig.model_validate({**SHORT, "freeze_embeddings": True}),
    )  # fmt: skip
    pressed = regularized.apply(bundle, config, tiny.context(tmp_path))
    name = "bert.embeddings.word_embeddings.weight"
    before, after = (b.model.get_parameter(name) for b in (bundle, pressed))
    assert torch.equal(after[after != 0], before[after != 0])
    assert (after == 0).sum() == round(0.2 * after.numel())


def test_the_smallest_groups_are_the_ones_removed(tmp_path):
    bundle = tiny.tiny_bert()
    parts = model_parts.layers(bundle.model)
    for view in parts[0].head_weights():
        view[1] *= 0.05
    for view in parts[2].neuron_weights():
        view[8:16] *= 0.05
    config = Config(
        penalty="group", strength=0.5, heads=11 / 12, neurons=11 / 12, multiple=8, recovery=0,
        training=TrainingConfig.model_validate({**SHORT, "learning_rate": 1e-3}),
    )  # fmt: skip
    pressed = regularized.apply(bundle, config, tiny.context(tmp_path))
    found = model_parts.layers(pressed.model)
    assert [p.num_heads for p in found] == [3, 4, 4]
    assert [p.num_neurons for p in found] == [32, 32, 24]
    assert pressed.notes["pruning.regularized"] == "1 heads and 8 neurons went"


def test_a_penalty_alone_empties_groups_whose_removal_changes_nothing(tmp_path):
    config = Config(
        penalty="group", strength=4, multiple=1, training=TrainingConfig.model_validate(STRONG)
    )
    pressed = tiny.tiny_bert()
    proximal = Proximal(tiny.tiny_bert(), pressed, (), config)
    context = tiny.context(tmp_path)
    regularized._train(pressed, config.training, context, after_update=proximal, keep="last")
    texts = tiny.examples(8, seed=3).texts
    before, size = tiny.answers(pressed, texts), pressed.num_parameters()
    told = regularized._cut(pressed, config)
    assert pressed.num_parameters() < size
    assert not told.endswith("and 0 neurons went")
    np.testing.assert_allclose(tiny.answers(pressed, texts), before, atol=1e-5)


def _albert():
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (_albert, 0),
        (tiny_lstm, 0),
        (lambda: tiny.tiny("mpnet"), 5),
        (lambda: tiny.tiny("distilbert"), 4),
    ],
)
def test_other_models_are_pruned(make, number, tmp_path):
    config = Config.model_validate(CONTRACT.good[number])
    bundle = make()
    _prove(bundle, regularized.apply(bundle, config, tiny.context(tmp_path)), config)


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("step", [6, 11])  # eight with the penalty, eight without
def test_a_killed_pruning_resumes_to_the_same_weights(number, step, tmp_path):
    settings: dict[str, Any] = {**CONTRACT.good[number], "recovery": 1}
    settings["training"] = {**SHORT, "checkpoint_seconds": 1e-6}
    config = Config.model_validate(settings)
    whole = regularized.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        regularized.apply(tiny.tiny_bert(), config, replace(context, progress=tiny.Killer(step)))
    resumed = tiny.Killer(99)
    again = regularized.apply(tiny.tiny_bert(), config, replace(context, progress=resumed))
    done_again = {6: [5, 1, 1, 1, 0, *[1] * 8], 11: [8, 2, *[1] * 6]}
    assert resumed.done == done_again[step]
    assert same_weights(whole, again)


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (_albert, {"penalty": "group", "strength": 1}, "share one set of weights"),
        (tiny_lstm, {"penalty": "group", "strength": 1}, "nightpress-lstm` cannot be cut"),
        (
            lambda: tiny.tiny("mpnet"),
            {"penalty": "group", "strength": 1},
            "heads cannot be cut from a model of type `mpnet`: set `heads: 1`",
        ),
        (
            tiny.tiny_bert,
            {"penalty": "group", "strength": 1, "heads": 1, "neurons": 0.9},
            "nothing would be removed: the model is too small",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(make, settings, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        regularized.apply(make(), Config(**settings), tiny.context(tmp_path / "scratch"))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"strength": 1e-3}, "no weight has come down to 0, .*raise `strength`"),
        ({"strength": 1e-3, "threshold": 1e-9}, "no weight has come down to 1e-09"),
        ({"strength": 1e-3, "penalty": "group"}, "no head or neuron has come down to 0, "),
    ],
)
def test_a_penalty_that_is_too_weak_is_told(settings, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        regularized.apply(
            tiny.tiny_bert(), Config(**settings, training=SHORT), tiny.context(tmp_path)
        )


def test_the_effect_is_that_of_the_penalty():
    name = "pruning.regularized"
    for penalty, effect in (("l1", "zeros"), ("l2", "zeros"), ("group", "parameters")):
        given = {"strength": 1, "penalty": penalty, "threshold": 0.1}
        resolved = Config.model_validate(given).model_dump(mode="json")
        assert technique.effects(name, resolved) == (effect,)
    assert technique.effects("pruning.magnitude", {}) == ("zeros",)
