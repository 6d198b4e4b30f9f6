"""Hidden width: what is left computes the same as the whole model with the rest switched off."""

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks import bundle as bundles
from tasks import model_parts, residual
from tasks.runtime.export import export
from tests import tiny

TEXTS = tiny.examples(8, seed=3).texts
KINDS = ("bert", "gpt2", "distilbert", "electra", "roberta", "mpnet")
_NO_NORM = ("embeddings_project", "pooler.dense", "pre_classifier", "classifier.dense")
"""What writes hidden units with no norm behind it."""


@contextmanager
def _switched_off(model, units):
    """Norms over `units` alone that give nothing elsewhere; no other units without norms."""
    index = torch.tensor(units)

    def over_kept(module, inputs, output):
        kept = F.layer_norm(
            inputs[0][..., index], (len(units),), module.weight[index], module.bias[index],
            module.eps,
        )  # fmt: skip
        return torch.zeros_like(output).index_copy(-1, index, kept)

    def only_kept(module, inputs, output):
        return torch.zeros_like(output).index_copy(-1, index, output[..., index])

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (16,):
                hooks.callback(module.register_forward_hook(over_kept).remove)
            elif name.endswith(_NO_NORM):
                hooks.callback(module.register_forward_hook(only_kept).remove)
        yield


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), units=st.sets(st.integers(0, 15), min_size=2).map(sorted))
def test_a_narrower_model_answers_like_the_masked_one(kind, units):
    bundle = tiny.tiny(kind)
    with _switched_off(bundle.model, units):
        masked = tiny.answers(bundle, TEXTS)
    before = bundle.num_parameters()
    residual.keep(bundle.model, units)
    assert np.abs(tiny.answers(bundle, TEXTS) - masked).max() < 1e-5
    assert residual.width(bundle.model) == len(units)
    assert (bundle.num_parameters() < before) == (len(units) < 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_model_is_saved_cut_again_and_has_no_wide_matrix_left(kind, tmp_path):
    bundle = tiny.tiny(kind)
    residual.keep(bundle.model, range(12))
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(bundle, TEXTS))
    residual.keep(again.model, [0, 3, 5, 6, 7, 8, 9, 10])
    assert residual.width(again.model) == 8
    widths = {d for p in again.model.parameters() for d in p.shape}
    heads = [m for n, m in again.model.named_modules() if n.endswith(("c_attn", "query", "q_lin"))]
    assert all(model_parts.num_inputs(m) == 8 for m in heads)
    assert 12 not in widths
    assert np.isfinite(tiny.answers(again, TEXTS)).all()
    embeddings = again.model.get_input_embeddings()
    # ELECTRA's have a width of their own
    assert embeddings.weight.shape[1] == (128 if kind == "electra" else 8)


def test_as_many_labels_as_hidden_units_are_all_kept():
    bundle = tiny.tiny_bert(labels=tuple("abcdefghijklmnop"))
    residual.keep(bundle.model, range(8))
    assert tiny.answers(bundle, TEXTS).shape == (8, 16)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_importance_is_the_derivative_of_the_loss_by_a_gate(kind):
    bundle, examples = tiny.tiny(kind), tiny.examples(6)
    found = residual.importance(bundle, examples, torch.device("cpu"), batch_size=4)
    model, step = bundle.model.double(), 1e-5
    expected = np.zeros(16)
    for text, label in zip(examples.texts, examples.labels, strict=True):
        ids = torch.tensor([bundle.tokenizer(text)["input_ids"]])
        for unit in range(16):
            losses = []
            for change in (step, -step):
                gate = torch.ones(1, 16, dtype=torch.float64)
                gate[0, unit] += change
                with residual.gated(model, gate), torch.no_grad():
                    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                losses.append(float(F.cross_entropy(logits, torch.tensor([label]))))
            expected[unit] += abs(losses[0] - losses[1]) / (2 * step)
    assert np.allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert"])
def test_a_narrower_model_exports_whole(kind, tmp_path):
    bundle = tiny.tiny(kind)
    residual.keep(bundle.model, [0, 1, 4, 5, 7, 8, 9, 11, 12, 13, 14, 15])
    facts = export(bundle, tmp_path / "export")  # compares with PyTorch, counts fused layers
    if kind != "gpt2":
        assert facts.fused["Attention"] == 3
