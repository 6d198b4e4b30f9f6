"""First-order scores of weights, against an example worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.saliency import taylor
from tasks.training.batches import Examples
from tests import tiny

CPU = torch.device("cpu")


class _TwoLayers(nn.Module):
    """logits = second · relu(first · x), x = (1, 2) for every text."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.unused = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, -1.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, -3.0], [2.0, -6.0]]))

    def forward(self, input_ids, attention_mask):
        x = torch.tensor([1.0, 2.0]).expand(len(input_ids), 2)
        return SimpleNamespace(logits=self.second(F.relu(self.first(x))))


NAMES = ("first.weight", "second.weight", "unused.weight")


def _scores(labels, batch_size):
    bundle = Bundle(_TwoLayers(), tiny.tokenizer(), tiny.LABELS, tiny.MAX_LENGTH)
    examples = Examples(["the film"] * len(labels), np.array(labels, dtype=np.int64))
    return [s.tolist() for s in taylor(bundle, NAMES, examples, CPU, batch_size).values()]


def test_two_layers_worked_by_hand():
    # h = relu(first·x) = (3, 1); logits second·h = (0, 0), so p = (½, ½); label 0:
    #   δ_z = p − (1, 0) = (−½, ½)
    #   ∂L/∂second = δ_z hᵀ = [[−1.5, −0.5], [1.5, 0.5]],  × second = [[−1.5, 1.5], [3, −3]]
    #   δ_h = secondᵀ δ_z = (0.5, −1.5)
    #   ∂L/∂first = δ_h xᵀ = [[0.5, 1], [−1.5, −3]],       × first = [[0.5, 1], [−4.5, 3]]
    first, second, unused = _scores([0], 1)
    assert first == [[0.5, 1.0], [4.5, 3.0]]
    assert second == [[1.5, 1.5], [3.0, 3.0]]
    assert unused == [[0.0, 0.0], [0.0, 0.0]]


def test_scores_add_up_over_batches_and_gradients_within_one():
    # the label 1 gives the negative gradient of the label 0: in one batch they cancel
    alone = _scores([0], 1)
    assert _scores([0, 1], 2)[:2] == [[[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    for examples, batch_size, times in (([0, 1], 1, 2), ([0, 0], 2, 2), ([0, 0, 0], 2, 3)):
        expected = [[[times * x for x in row] for row in layer] for layer in alone]
        assert _scores(examples, batch_size) == expected


def test_texts_without_a_label_count_for_nothing():
    assert _scores([0, -100], 2) == _scores([0], 1)
    with pytest.raises(TechniqueError, match="no training text has a label"):
        _scores([-100], 1)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_scores_are_the_change_of_the_loss_by_finite_differences(kind):
    bundle = tiny.tiny(kind)
    bundle.model.double()
    sentence = tiny.examples(1)
    name = next(n for n, p in bundle.model.named_parameters() if ".2." in n and p.dim() == 2)
    score = taylor(bundle, (name,), sentence, CPU, 1)[name]
    weight = bundle.model.get_parameter(name)
    batch = bundle.tokenizer(list(sentence.texts), return_tensors="pt")
    label = torch.from_numpy(sentence.labels)

    def loss():
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        return F.cross_entropy(bundle.model(**inputs).logits, label).item()

    for row, column in ((0, 0), (3, 5), (7, 2)):
        old, small = weight[row, column].item(), 1e-4
        with torch.no_grad():  # a step of −ε·w, which is ε of the way to zero
            weight[row, column] = old * (1 - small)
            less = loss()
            weight[row, column] = old * (1 + small)
            more = loss()
            weight[row, column] = old
        assert score[row, column].item() == pytest.approx(abs(more - less) / (2 * small), rel=1e-4)


def test_the_model_is_left_as_it_was():
    bundle = tiny.tiny_bert()
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    name = "bert.encoder.layer.0.output.dense.weight"
    score = taylor(bundle, (name,), tiny.examples(8), CPU)[name]
    assert score.shape == before[name].shape
    assert not score.requires_grad
    assert all(torch.equal(before[k], v) for k, v in bundle.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in bundle.model.parameters())


def test_a_model_that_went_wrong_is_refused():
    bundle = tiny.tiny_bert()
    name = "bert.encoder.layer.0.output.dense.weight"
    with torch.no_grad():
        bundle.model.get_parameter(name)[0, 0] = float("nan")
    with pytest.raises(TechniqueError, match="gradients are not numbers"):
        taylor(bundle, (name,), tiny.examples(8), CPU)
