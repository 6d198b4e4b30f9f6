"""Movement pruning: scores worked by hand, an independent loop, the straight-through gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from transformers import AlbertConfig
from transformers.pytorch_utils import Conv1D

from tasks import masks
from tasks.errors import TechniqueError
from tasks.pruning import magnitude, movement
from tasks.pruning.movement import Config, Scores, StraightThrough
from tasks.training.batches import Encoded, unlabelled
from tasks.training.config import TrainingConfig
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, same_weights, zeros
from tests.training.test_lstm import tiny_lstm


def _prove(before, after, config):
    names = masks.prunable(before.model, embeddings=False, head=config.head)
    assert set(names) == set(after.sparse)
    assert zeros(before, names)[0] == 0
    found, total = zeros(after, names)
    assert after.notes["pruning.movement"] == f"{found / total:.1%} of the weights went"
    assert set(after.model.state_dict()) == set(before.model.state_dict())
    if config.form == "soft":
        assert 0.02 < found / total < 0.98
    elif config.scope == "global":
        assert found == round(config.sparsity * total)
    else:
        for name in names:
            found, total = zeros(after, [name])
            assert found == round(config.sparsity * total)


CONTRACT = Contract(
    good=(
        {"sparsity": 0.5, "interval": 2, "training": SHORT},
        {"sparsity": 0.8, "scope": "layer", "head": True, "interval": 3, "training": SHORT},
        {"sparsity": 0.3, "delay": 0, "ramp": 1, "training": SHORT},
        {
            "form": "soft", "threshold": 0.4, "score_rate": 0.2, "regularization": 20,
            "interval": 1, "training": SHORT,
        },
    ),
    bad=(
        ({}, "`form: hard` needs a `sparsity`"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.5, "form": "medium"}, "'hard' or 'soft'"),
        ({"sparsity": 0.5, "form": "soft"}, "`sparsity` goes with `form: hard` alone"),
        ({"sparsity": 0.5, "threshold": 0.2}, "`threshold` is no setting of `form: hard`"),
        ({"sparsity": 0.5, "regularization": 3}, "`regularization` is no setting of `form: hard`"),
        ({"form": "soft", "scope": "layer"}, "`scope` is no setting of `form: soft`"),
        ({"form": "soft", "threshold": 0.5}, "less than 0.5"),
        ({"form": "soft", "regularization": 0}, "greater than 0"),
        ({"sparsity": 0.5, "delay": 0.5, "ramp": 0.6}, "more than 1 together"),
        ({"sparsity": 0.5, "ramp": 0}, "greater than 0"),
        ({"sparsity": 0.5, "interval": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "score_rate": 0}, "greater than 0"),
    ),
    refuses={"lstm": "no linear layers"},
    prove=_prove,
)  # fmt: skip


class _TwoLayers(nn.Module):
    """z = B·relu(A·h), with h, A and B given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
            self.b.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(inputs).relu())


def _attached(model: nn.Module, **settings: Any) -> Scores:
    names = tuple(n for n, p in model.named_parameters() if p.dim() == 2)
    return Scores(model, names, Config(**settings), 0.0)


def test_scores_of_a_two_layer_example_worked_by_hand():
    # h = (1, 2): A·h = (3, 2) = relu = r; L = −z0 + z1, so ∂L/∂z = (−1, 1).
    # With B's 0.5 masked, B' = [[1, 0], [0, 2]] and ∂L/∂r = B'ᵀ·(−1, 1) = (−1, 2).
    # ∂L/∂B' = (−1, 1)ᵀ·r = [[−3, −2], [3, 2]]: the masked weight has its gradient too.
    # ∂L/∂S_B = ∂L/∂B' ⊙ B = [[−3, −1], [0, 4]]: a step down the gradient raises the scores of
    # the weights it would make larger, 1 → 4 and the masked 0.5 → 2.5, and lowers that of 2 → 0.
    # ∂L/∂B = ∂L/∂B' ⊙ M = [[−3, 0], [3, 2]].
    # ∂L/∂A' = (−1, 2)ᵀ·h = [[−1, −2], [2, 4]], ∂L/∂S_A = ∂L/∂A' ⊙ A = [[−1, −2], [0, 4]].
    model = _TwoLayers()
    scores = _attached(model, sparsity=0.5)
    model.b.movement_mask[0, 1] = False
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    output = model(torch.tensor([[1.0, 2.0]]))
    assert output.tolist() == [[3.0, 4.0]]
    (output[0, 1] - output[0, 0]).backward()
    assert model.b.movement_scores.grad.tolist() == [-3, -1, 0, 4]
    assert model.b.weight.grad.tolist() == [[-3, 0], [3, 2]]
    assert model.a.movement_scores.grad.tolist() == [-1, -2, 0, 4]
    assert model.a.weight.grad.tolist() == [[-1, -2], [2, 4]]
    optimizer.step()
    assert model.b.movement_scores.tolist() == [3, 1, 0, -4]
    assert model.b.weight.tolist() == [[4, 0.5], [-3, 0]]
    # a half of all eight go, the lowest: A's −4 and 0, B's −4 and 0; the masked 0.5 is back
    scores.mask(1.0)
    assert model.b.movement_mask.tolist() == [[True, True], [False, False]]
    assert model.a.movement_mask.tolist() == [[True, True], [False, False]]
    scores.settle()
    assert model.b.weight.tolist() == [[4, 0.5], [0, 0]]
    assert dict(model.named_parameters()).keys() == {"a.weight", "b.weight"}
    assert not list(model.buffers())
    assert model(torch.tensor([[1.0, 2.0]])).tolist() == [[32.0, 0.0]]  # A = [[2, 3], [0, 0]]


@pytest.mark.parametrize("inputs_first", [False, True])
def test_gradients_agree_with_finite_differences(inputs_first):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    shape = (5, 4) if inputs_first else (4, 5)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(shape) < 0.5
    scores = torch.zeros(20, dtype=torch.float64, requires_grad=True)

    def masked(inputs, weight):
        return StraightThrough.apply(inputs, weight, scores, mask, inputs_first)

    assert torch.autograd.gradcheck(masked, (inputs, weight))

    # straight-through: what the loss would change by if a mask of 0 or 1 moved between them
    def loss(gate):
        full = weight * gate
        return (inputs @ (full if inputs_first else full.t())).sin().sum()

    masked(inputs, weight).sin().sum().backward()
    step, gate = 1e-6, mask.double()
    for place in range(20):
        change = torch.zeros(20, dtype=torch.float64)
        change[place] = step
        change = change.view(shape)
        slope = (loss(gate + change) - loss(gate - change)) / (2 * step)
        assert scores.grad[place].item() == pytest.approx(slope.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_masked_layer_is_the_layer_with_zeros(kind, bias):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=bias) if kind == "linear" else Conv1D(4, 5)
    model = nn.Sequential(layer)
    _attached(model, sparsity=0.5)
    layer.movement_mask.copy_(torch.rand(layer.weight.shape) < 0.5)
    inputs = torch.randn(3, 5)
    with torch.no_grad():
        found = model(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(inputs)
        weight = layer.weight * layer.movement_mask
        expected = inputs @ (weight if kind == "conv1d" else weight.t())
        if layer.bias is not None:
            expected = expected + layer.bias
    torch.testing.assert_close(found, expected)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def _plain_loop(bundle, context, config, names):
    """The same training written anew: W ⊙ (M + S − S), torch's AdamW, top-v by sorting."""
    model, training = bundle.model.eval(), config.training  # no dropout
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    scores = {name: torch.zeros_like(weights[name]).requires_grad_() for name in names}
    kept = {name: torch.ones_like(weights[name]) for name in names}
    matrices = [w for w in weights.values() if w.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay, "rate": training.learning_rate},
        {
            "params": [w for w in weights.values() if w.dim() == 1],
            "weight_decay": 0, "rate": training.learning_rate,
        },
        {"params": list(scores.values()), "weight_decay": 0, "rate": config.score_rate},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, foreach=False)
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    encoded = Encoded(context.train, bundle.tokenizer, bundle.max_length)
    total = 8
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * (1 if step < 1 else (total - step) / (total - 1))
        batch = encoded.batch(encoded.shuffled(16, context.seed, step // 4)[step % 4])
        effective = dict(weights)
        for name in names:
            soft = scores[name] - scores[name].detach()
            effective[name] = weights[name] * (kept[name] + soft)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        loss = F.cross_entropy(
            functional_call(model, effective, (), inputs).logits, batch["labels"]
        )
        if config.form == "soft":
            part = 1 - (1 - min(step / total / config.ramp, 1)) ** 3
            flat = torch.cat([s.flatten() for s in scores.values()])
            loss = loss + config.regularization * part * torch.sigmoid(flat).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, training.clip)
        optimizer.step()
        optimizer.zero_grad()
        part = 1 - (1 - min((step + 1) / total / config.ramp, 1)) ** 3
        for name in names:
            value = scores[name].detach()
            if config.form == "soft":
                kept[name] = (torch.sigmoid(value) > config.threshold * part).float()
            else:
                count = round(config.sparsity * part * value.numel())
                kept[name] = torch.ones(value.numel())
                kept[name][value.flatten().argsort(stable=True)[:count]] = 0
                kept[name] = kept[name].view_as(value)
    return {n: w * kept[n] if n in kept else w for n, w in weights.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.6, "scope": "layer"},
        {"form": "soft", "threshold": 0.45, "regularization": 5, "score_rate": 0.05},
    ],
)
def test_weights_are_those_of_a_plain_loop(settings, tmp_path):
    training = TrainingConfig.model_validate({**SHORT, "dropout": 0, "learning_rate": 1e-3})
    config = Config(**settings, delay=0, ramp=0.75, interval=1, training=training)
    context = tiny.context(tmp_path)
    pressed = movement.apply(tiny.tiny_bert(), config, context)
    names = masks.prunable(pressed.model, embeddings=False, head=False)
    expected = _plain_loop(tiny.tiny_bert(), context, config, names)
    different = 0
    for name, found in pressed.model.named_parameters():
        zero, wanted = found == 0, expected[name] == 0
        if name in names:
            different += int((zero != wanted).sum())
        both = ~zero & ~wanted
        # Adam blows float noise up where a gradient is all noise: of keys' biases
        if "key.bias" not in name:
            torch.testing.assert_close(found[both], expected[name][both], atol=2e-4, rtol=1e-3)
    total = sum(expected[name].numel() for name in names)
    assert different <= total / 500  # of scores that are equal but for float noise


def test_the_sparsity_waits_rises_and_rests():
    config = Config(sparsity=0.5, delay=0.2, ramp=0.5)
    found = [movement.progress(config, step, 10) for step in range(11)]
    assert found[:3] == [0, 0, 0]
    # t = 0.2, 0.4, 0.6, 0.8 of the ramp: 1 − (1 − t)³
    assert found[3:7] == pytest.approx([0.488, 0.784, 0.936, 0.992])
    assert found[7:] == [1, 1, 1, 1]


@given(delay=st.floats(0, 0.99), total=st.integers(1, 40))
def test_the_way_is_whole_at_the_end(delay, total):
    config = Config(sparsity=0.5, delay=delay, ramp=1 - delay)
    found = [movement.progress(config, step, total) for step in range(total + 1)]
    assert found == sorted(found)
    assert found[-1] == 1
    assert min(found) >= 0


def test_it_is_movement_that_is_kept_and_not_size(tmp_path):
    training = {**LONG, "dropout": 0}
    context = tiny.context(tmp_path)
    moved = movement.apply(
        tiny.tiny_bert(), Config(sparsity=0.5, interval=1, training=training), context
    )
    large = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.5, interval=1, training=training), context
    )
    start = dict(tiny.tiny_bert().model.named_parameters())
    size = {}
    for who, bundle in (("moved", moved), ("large", large)):
        kept = [start[n][bundle.model.get_parameter(n) != 0].abs() for n in bundle.sparse]
        size[who] = torch.cat(kept).mean().item()
    assert size["moved"] < 0.8 * size["large"]


@pytest.mark.parametrize("kind", ["mpnet", "distilbert", "albert"])
def test_other_encoders_are_pruned_to_one_weight(kind, tmp_path):
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3,
    )  # fmt: skip
    bundle = tiny.bundle_of(config) if kind == "albert" else tiny.tiny(kind)
    settings = Config(sparsity=0.5, training=SHORT)
    _prove(bundle, movement.apply(bundle, settings, tiny.context(tmp_path)), settings)


def test_a_matrix_of_two_layers_has_one_set_of_scores():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    scores = Scores(model, ("0.weight",), Config(sparsity=0.5), 0.0)
    model(torch.randn(4, 3)).square().sum().backward()
    assert model[0].movement_scores is model[1].movement_scores
    expected = (model[0].weight.grad * model[0].weight).detach()
    torch.testing.assert_close(model[0].movement_scores.grad.view(3, 3), expected)
    scores.mask(1.0)
    scores.settle()
    assert (model[1].weight == 0).sum() == 4
    assert len(list(model.parameters())) == 3


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True, "schedule": "cosine"}])
def test_a_killed_pruning_resumes_to_the_same_weights(number, more, tmp_path):
    settings = {**CONTRACT.good[number], "interval": 3}
    settings["training"] = {**SHORT, "checkpoint_seconds": 1e-6, **more}
    config = Config.model_validate(settings)
    whole = movement.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        movement.apply(tiny.tiny_bert(), config, replace(context, progress=tiny.Killer(6)))
    resumed = tiny.Killer(9)
    again = movement.apply(tiny.tiny_bert(), config, replace(context, progress=resumed))
    assert resumed.done == [5, 1, 1, 1]
    assert same_weights(whole, again)


def test_pruned_weights_stay_pruned(tmp_path):
    first = magnitude.apply(
        tiny.tiny_bert(), magnitude.Config(sparsity=0.4, training=SHORT), tiny.context(tmp_path)
    )
    config = Config(sparsity=0.6, interval=2, training=SHORT)
    second = movement.apply(first, config, tiny.context(tmp_path / "second"))
    found, total = zeros(second, second.sparse)
    assert found == round(0.6 * total)
    for name in first.sparse:
        assert (second.model.get_parameter(name)[first.model.get_parameter(name) == 0] == 0).all()
    assert second.sparse == first.sparse


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (tiny_lstm, {"sparsity": 0.5}, "no linear layers .* take `pruning.magnitude`"),
        (
            tiny.tiny_bert,
            {"form": "soft"},
            r"in 8 steps scores can fall by 0\.05, and must by 2\.2 to reach `threshold` 0\.1",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(make, settings, reason, tmp_path):
    config = Config(**settings, training=SHORT)
    with pytest.raises(TechniqueError, match=reason):
        movement.apply(make(), config, tiny.context(tmp_path / "scratch"))
    assert not (tmp_path / "scratch").exists()


def test_a_sparsity_that_is_there_already_is_refused(tmp_path):
    bundle = tiny.tiny_bert()
    masks.zero_lowest(bundle.model, masks.prunable(bundle.model, embeddings=False, head=False), 0.5)
    with pytest.raises(TechniqueError, match=r"50.0% zeros already: `sparsity` must be above"):
        movement.apply(bundle, Config(sparsity=0.5), tiny.context(tmp_path))


def test_scores_that_never_fall_are_told(tmp_path):
    config = Config(form="soft", threshold=0.1, score_rate=0.5, regularization=1e-6, training=SHORT)
    # without labels and with hardly a penalty, scores have no reason to move
    context = replace(tiny.context(tmp_path), train=unlabelled(tiny.examples(64).texts))
    with pytest.raises(TechniqueError, match=r"no score fell to `threshold` 0.1.*raise `regul"):
        movement.apply(tiny.tiny_bert(), config, context)
