"""The shortest length that keeps a share of the texts whole."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import files
from tasks.errors import TechniqueError
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.structure import sequence_length
from tasks.training.batches import unlabelled
from tests import tiny
from tests.techniques.contract import Contract, same_weights


def _whole(bundle, context):
    found = bundle.tokenizer(list(context.train.texts))["input_ids"]
    return np.array([len(ids) for ids in found])


def _prove(before, after, config):
    assert 4 <= after.max_length < before.max_length
    assert same_weights(before, after)


CONTRACT = Contract(
    good=({"share": 0.5}, {"share": 0.25}),
    bad=(
        ({"share": 0}, "greater than 0"),
        ({"share": 1.1}, "less than or equal to 1"),
        ({"share": "most"}, "valid number"),
    ),
    prove=_prove,
)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_no_shorter_length_keeps_the_share_whole(share, tmp_path):
    context = tiny.context(tmp_path)
    before = tiny.tiny_bert()
    after = sequence_length.apply(before, sequence_length.Config(share=share), context)
    lengths = _whole(before, context)
    assert (lengths <= after.max_length).mean() >= share
    assert (lengths <= after.max_length - 1).mean() < share
    whole = f"{after.max_length} tokens keep {(lengths <= after.max_length).mean():.1%} of the"
    assert after.notes[sequence_length.NOTE].startswith(whole)
    # of each side a text: as before if it is whole, otherwise if it is cut
    texts = np.array(context.train.texts)
    same = np.isclose(tiny.answers(after, texts), tiny.answers(before, texts), atol=1e-6).all(1)
    assert same[lengths <= after.max_length].all()
    assert not same[lengths > after.max_length].any()


@given(
    lengths=st.lists(st.integers(0, 600), min_size=1, max_size=50).map(np.array),
    share=st.floats(0.001, 1),
)
def test_the_length_is_the_smallest_that_keeps_the_share(lengths, share):
    found = sequence_length.length_for(lengths, share)
    assert (lengths <= found).mean() >= share - 1e-9
    assert (lengths <= found - 1).mean() < share


def test_what_is_served_is_cut_alike(tmp_path):
    context = tiny.context(tmp_path)
    after = sequence_length.apply(tiny.tiny_bert(), sequence_length.Config(share=0.5), context)
    export(after, tmp_path / "short")
    session = Session(tmp_path / "short", 1)
    assert session.max_length == after.max_length
    texts = list(context.train.texts)
    expected = tiny.answers(after, texts)
    expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    assert np.abs(session.probabilities(texts) - expected).max() < 1e-5
    export(tiny.tiny_bert(), tmp_path / "long")
    both = [files.sha256(tmp_path / name / "model.onnx") for name in ("short", "long")]
    assert both[0] == both[1]


def test_a_length_that_is_no_shorter_is_refused(tmp_path):
    context = tiny.context(tmp_path)
    bundle = replace(tiny.tiny_bert(), max_length=5)
    with pytest.raises(TechniqueError, match=r"keep 99.0% .* takes 12 tokens, .* reads 5 already"):
        sequence_length.apply(bundle, sequence_length.Config(), context)
    empty = replace(context, train=unlabelled([]))
    with pytest.raises(TechniqueError, match="no training texts"):
        sequence_length.apply(bundle, sequence_length.Config(), empty)


def test_texts_are_never_cut_to_nothing(tmp_path):
    context = replace(tiny.context(tmp_path), train=unlabelled(["", "", "fine"]))
    after = sequence_length.apply(tiny.tiny_bert(), sequence_length.Config(share=0.5), context)
    assert after.max_length == 4
