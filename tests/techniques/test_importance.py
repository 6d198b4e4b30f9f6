"""First-order importance: against a hand-worked example and finite differences."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks import model_parts
from tasks.importance import (
    choose,
    example_gradients,
    first_order,
    gate_gradients,
    gated,
    normalized,
    score,
)
from tasks.training.batches import Encoded
from tests import tiny


class _TwoLayers(nn.Module):
    """z = B·relu(A·h): two heads of width 1 feed A, two neurons feed B."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = 2
        self.attention_head_size = 1
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
            self.b.weight.copy_(torch.eye(2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        hidden = input_ids.float()[:, None, :]
        return SimpleNamespace(logits=self.b(self.a(hidden).relu())[:, 0])


def test_importance_of_a_two_layer_example_worked_by_hand():
    # h = (1, 2): A·h = (3, 2) = relu = z, and p = softmax(z) = (0.7311, 0.2689).
    # Label 0: ∂L/∂z = (p0 − 1, p1) = (−0.2689, 0.2689). Gates of the neurons: relu · ∂L/∂z =
    # (−0.8068, 0.5379). Gates of the heads: h_j · Σ_k A_kj ∂L/∂z_k = (−0.2689, 2·0 = 0).
    # Label 1: ∂L/∂z = (0.7311, −0.7311): neurons (2.1932, −1.4621), heads (0.7311, 0).
    # Summed magnitudes: neurons 3 and 2, heads 1 and 0; summed with their signs they would be
    # 1.3863, −0.9242, 0.4621 and 0.
    model = _TwoLayers()
    part = model_parts.Layer("toy", model, (), model.a, model.a, model.b, (), model_parts._BERT)
    batch = {
        "input_ids": torch.tensor([[1, 2], [1, 2]]),
        "attention_mask": torch.ones(2, 2),
        "labels": torch.tensor([0, 1]),
    }
    (heads,), (neurons,) = gate_gradients(model, [part], batch)
    assert neurons.tolist()[0] == pytest.approx([-0.8068, 0.5379], abs=1e-4)
    assert heads.tolist()[1] == pytest.approx([0.7311, 0.0], abs=1e-4)
    assert neurons.abs().sum(0).tolist() == pytest.approx([3, 2], abs=1e-5)
    assert heads.abs().sum(0).tolist() == pytest.approx([1, 0], abs=1e-5)
    # Fisher: 0.8068² + 2.1932² and 0.5379² + 1.4621², and 0.2689² + 0.7311² and 0
    assert neurons.square().sum(0).tolist() == pytest.approx([5.4611, 2.4271], abs=1e-3)
    assert heads.square().sum(0).tolist() == pytest.approx([0.6068, 0], abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_gate_gradients_agree_with_finite_differences(kind):
    bundle = tiny.tiny(kind)
    model = bundle.model.double()
    parts = model_parts.layers(model)
    examples = tiny.examples(4)
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    batch = encoded.batch(torch.arange(4).numpy())

    def losses(layer: int, head: float, neuron: float) -> torch.Tensor:
        heads = [torch.ones(1, p.num_heads, dtype=torch.float64) for p in parts]
        neurons = [torch.ones(1, p.num_neurons, dtype=torch.float64) for p in parts]
        heads[layer][0, 1] += head
        neurons[layer][0, 5] += neuron
        with torch.no_grad(), gated(parts, heads, neurons):
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(output.logits, batch["labels"], reduction="none")

    heads, neurons = gate_gradients(model, parts, batch)
    step = 1e-4
    for layer in range(len(parts)):
        by_head = (losses(layer, step, 0) - losses(layer, -step, 0)) / (2 * step)
        by_neuron = (losses(layer, 0, step) - losses(layer, 0, -step)) / (2 * step)
        assert heads[layer][:, 1].tolist() == pytest.approx(by_head.tolist(), abs=1e-5)
        assert neurons[layer][:, 5].tolist() == pytest.approx(by_neuron.tolist(), abs=1e-5)


def test_gradients_of_each_example_are_kept_apart():
    bundle, examples = tiny.tiny_gpt2(), tiny.examples(40)
    found = example_gradients(bundle, examples, torch.device("cpu"))
    assert [g.shape for g in found.heads] == [(40, 4)] * 3
    assert [g.shape for g in found.neurons] == [(40, 32)] * 3
    for criterion, power in (("first_order", 1), ("fisher", 2)):
        expected = score(bundle, examples, torch.device("cpu"), criterion)
        for gradients, scores in zip(
            found.heads + found.neurons, expected.heads + expected.neurons, strict=True
        ):
            summed = gradients.double().abs().pow(power).sum(0)
            assert summed.tolist() == pytest.approx(scores.tolist(), rel=1e-4)


def test_importance_sums_over_examples_whatever_the_batches():
    bundle = tiny.tiny_bert()
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    examples = tiny.examples(10)
    device = torch.device("cpu")
    once = first_order(bundle, examples, device, batch_size=10)
    thrice = first_order(bundle, examples, device, batch_size=4)
    for one, other in zip(once.heads + once.neurons, thrice.heads + thrice.neurons, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-4, abs=1e-6)
        assert (one > 0).any()
    assert all(p.requires_grad and p.grad is None for p in bundle.model.parameters())
    after = bundle.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


_SCORES = st.lists(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), min_size=1, max_size=4
)


@given(scores=_SCORES, keep=st.floats(0.01, 1), multiple=st.integers(1, 5), even=st.booleans())
def test_choose_keeps_the_asked_share_and_the_best_of_each_layer(scores, keep, multiple, even):
    tensors = [torch.tensor(s, dtype=torch.float64) for s in scores]
    kept = choose(tensors, keep, even=even, multiple=multiple)
    groups = [-(-len(s) // multiple) for s in scores]
    sizes = [-(-len(k) // multiple) for k in kept]
    for own, indices in zip(scores, kept, strict=True):
        assert indices == sorted(set(indices))
        assert indices
        assert len(indices) % multiple == 0 or len(indices) == len(own)
        left = [s for i, s in enumerate(own) if i not in indices]
        assert not left or min(own[i] for i in indices) >= max(left)
    if even:
        most = max(sizes)
        assert all(size == min(most, g) for size, g in zip(sizes, groups, strict=True))
    else:
        assert sum(sizes) == max(round(keep * sum(groups)), len(groups))


def test_choose_ranks_layers_together_or_evenly():
    scores = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])]
    assert choose(scores, 0.5, even=False) == [[0, 1, 2], [2]]
    assert choose(scores, 0.5, even=True) == [[0, 1], [2, 3]]
    assert choose(scores, 0.5, even=False, multiple=2) == [[0, 1], [2, 3]]
    assert choose(scores, 0.75, even=False, multiple=2) == [[0, 1, 2, 3], [2, 3]]


def test_normalized_layers_have_norm_one_and_no_score_is_undefined():
    one, zero = normalized([torch.tensor([3.0, 4.0]), torch.zeros(2)])
    assert one.tolist() == pytest.approx([0.6, 0.8])
    assert zero.tolist() == [0, 0]
