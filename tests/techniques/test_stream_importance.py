"""Scores of layers and dimensions: against finite differences, and against what they remove."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tasks import importance, model_parts, stream_importance
from tasks.stream import stream
from tasks.training.batches import Encoded
from tests import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra"])
def test_gate_gradients_agree_with_finite_differences(kind):
    bundle = tiny.tiny(kind)
    model = bundle.model.double()
    batch = Encoded(tiny.examples(4), bundle.tokenizer, 16).batch(np.arange(4))
    sizes = (3, 16, stream(model).pooled or 0)

    def losses(which: int, place: int, step: float) -> torch.Tensor:
        gates = [torch.ones(1, size, dtype=torch.float64) for size in sizes]
        gates[which][0, place] += step
        with torch.no_grad(), stream_importance.gated(model, *gates):
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(output.logits, batch["labels"], reduction="none")

    found = stream_importance.gate_gradients(model, batch)
    assert [tuple(g.shape) for g in found] == [(4, size) for size in sizes]
    step = 1e-4
    for which, places in enumerate(((0, 1, 2), (0, 7, 15), (3, 8))):
        for place in places[: sizes[which]]:
            expected = (losses(which, place, step) - losses(which, place, -step)) / (2 * step)
            assert found[which][:, place].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_the_model_does_not_need_scores_nothing(kind):
    bundle = tiny.tiny(kind)
    found = stream(bundle.model)
    _, modules = model_parts.layer_list(bundle.model)
    with torch.no_grad():
        if kind == "gpt2":  # a layer that adds nothing
            for writer in (found.parts[1].attention_output, found.parts[1].ffn_output):
                writer.weight.zero_()
                writer.bias.zero_()
        if found.pooler is not None:
            found.classifier.weight[:, [2, 5]] = 0
    scores = stream_importance.score(bundle, tiny.examples(16), CPU, "first_order")
    assert scores.layers.shape == (len(modules),)
    assert scores.dimensions.shape == (16,)
    assert (scores.dimensions > 0).all()
    if kind == "gpt2":
        assert scores.layers[1] < 1e-5 < scores.layers[[0, 2]].min()
        assert len(scores.pooled) == 0
    else:
        assert scores.pooled.argsort()[:2].sort().values.tolist() == [2, 5]


@pytest.mark.parametrize("criterion", ["first_order", "fisher"])
def test_scores_are_summed_over_examples(criterion):
    bundle = tiny.tiny_bert()
    examples = tiny.examples(5)
    batch = Encoded(examples, bundle.tokenizer, 16).batch(np.arange(5))
    power = {"first_order": 1, "fisher": 2}[criterion]
    expected = [
        g.abs().pow(power).sum(0) for g in stream_importance.gate_gradients(bundle.model, batch)
    ]
    found = stream_importance.score(bundle, examples, CPU, criterion)
    for one, other in zip((found.layers, found.dimensions, found.pooled), expected, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-4)
    heads, neurons = importance.gate_gradients(
        bundle.model, model_parts.layers(bundle.model), batch
    )
    parts = importance.score(bundle, examples, CPU, criterion)
    for one, other in zip(parts.heads + parts.neurons, [*heads, *neurons], strict=True):
        assert one.tolist() == pytest.approx(other.abs().pow(power).sum(0).tolist(), rel=1e-3)
    assert all(p.requires_grad for p in bundle.model.parameters())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "mpnet"])
def test_magnitude_is_the_norm_of_what_is_removed(kind):
    """Σ w² of a part is what the whole model loses in Σ w² when that part is cut."""
    bundle = tiny.tiny(kind)

    def squares(model) -> float:
        return sum(float(p.detach().double().square().sum()) for p in model.parameters())

    parts = importance.score(bundle, tiny.examples(4), CPU, "magnitude")
    whole = stream_importance.score(bundle, tiny.examples(4), CPU, "magnitude")
    others = [i for i in range(32) if i != 6]
    cuts = [
        (parts.neurons[1][6], lambda m: model_parts.layers(m)[1].keep_neurons(others)),
        (whole.dimensions[6], lambda m: stream(m).keep(others[:15])),
        (whole.layers[1], lambda m: model_parts.keep_layers(m, [0, 2])),
    ]
    if kind != "mpnet":
        cuts.append((parts.heads[2][1], lambda m: model_parts.layers(m)[2].keep_heads([0, 2, 3])))
    if kind != "gpt2":
        cuts.append((whole.pooled[6], lambda m: stream(m).keep(range(16), others[:15])))
    for expected, cut in cuts:
        other = bundle.copy()
        cut(other.model)
        lost = squares(bundle.model) - squares(other.model)
        assert float(expected) ** 2 == pytest.approx(lost, rel=1e-4)
