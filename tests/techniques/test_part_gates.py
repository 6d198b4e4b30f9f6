"""Gates in training: what they let through, what they learn, that they leave nothing behind."""

import pytest
import torch
import torch.nn.functional as F

from tasks import model_parts
from tasks.importance import gate_gradients, gated
from tasks.mask_search import Kept
from tasks.part_gates import PartGates
from tasks.training.batches import Encoded
from tests import tiny

KEPT = Kept([[0, 2], [1], [0, 1, 2, 3]], [[3, 5, 8], list(range(32)), [0]])


def _batch(bundle, count=8):
    encoded = Encoded(tiny.examples(count), bundle.tokenizer, bundle.max_length)
    return encoded.batch(torch.arange(count).numpy())


def _loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"])


def _gates_of(kept):
    heads, neurons = [torch.zeros(1, 4) for _ in range(3)], [torch.zeros(1, 32) for _ in range(3)]
    for gates, layers in ((heads, kept.heads), (neurons, kept.neurons)):
        for gate, stays in zip(gates, layers, strict=True):
            gate[0, stays] = 1
    return heads, neurons


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_closed_gates_and_cut_parts_are_the_same_model(kind):
    bundle = tiny.tiny(kind)
    batch = _batch(bundle)
    parts = model_parts.layers(bundle.model)
    with torch.no_grad():
        whole = _loss(bundle.model, batch)
        with PartGates(bundle.model, parts, 0.9) as gates:
            assert torch.equal(_loss(bundle.model, batch), whole)
            gates.open(KEPT)
            assert gates.kept() == KEPT
            closed = _loss(bundle.model, batch)
        with gated(parts, *_gates_of(KEPT)):
            assert _loss(bundle.model, batch) == pytest.approx(float(closed), abs=1e-6)
        assert torch.equal(_loss(bundle.model, batch), whole)  # nothing is left of them
        KEPT.cut(parts)
        assert _loss(bundle.model, batch) == pytest.approx(float(closed), abs=1e-5)
    assert closed != whole


def test_what_gates_learn_is_the_fisher_diagonal_of_each_example_by_itself():
    bundle = tiny.tiny_bert()
    batch = _batch(bundle)
    parts = model_parts.layers(bundle.model)
    heads, neurons = gate_gradients(bundle.model, parts, batch)
    bundle.model.train()
    for module in bundle.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with PartGates(bundle.model, parts, 0.75) as gates:
        for _ in range(2):
            _loss(bundle.model, batch).backward()
    # 0.25·F, then 0.75·0.25·F + 0.25·F
    for found, gradients in (
        *zip(gates.scores("heads"), heads, strict=True),
        *zip(gates.scores("neurons"), neurons, strict=True),
    ):
        expected = (0.4375 * gradients.square().sum(0)).tolist()
        assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_closed_gates_learn_too_and_their_parts_stand_still():
    bundle = tiny.tiny_bert()
    parts = model_parts.layers(bundle.model)
    bundle.model.train()
    with PartGates(bundle.model, parts, 0.0) as gates:
        gates.open(Kept([[0]] * 3, [[0]] * 3))
        _loss(bundle.model, _batch(bundle)).backward()
        assert all((score > 0).all() for score in gates.scores("heads"))
        assert all((score > 0).any() for score in gates.scores("neurons"))
    gradient = parts[0].ffn_input.weight.grad
    assert gradient is not None
    assert (gradient[1:] == 0).all()
    assert (gradient[0] != 0).any()


def test_a_gradient_that_is_no_number_teaches_nothing():
    bundle = tiny.tiny_bert()
    bundle.model.train()
    with PartGates(bundle.model, model_parts.layers(bundle.model), 0.5) as gates:
        (_loss(bundle.model, _batch(bundle)) * float("inf")).backward()
    assert all((score == 0).all() for score in gates.scores("heads"))


def test_gates_travel_with_the_weights_of_an_interrupted_training():
    bundle = tiny.tiny_bert()
    parts = model_parts.layers(bundle.model)
    before = bundle.model.state_dict().keys()
    with PartGates(bundle.model, parts, 0.5) as gates:
        gates.open(KEPT)
        saved = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    assert bundle.model.state_dict().keys() == before
    again = tiny.tiny_bert()
    with PartGates(again.model, model_parts.layers(again.model), 0.5) as fresh:
        again.model.load_state_dict(saved)
        assert fresh.kept() == KEPT
