"""A smaller vocabulary: texts of the data as before, every other text still spelt out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertTokenizer, GPT2Tokenizer, MPNetConfig, MPNetTokenizer

from tasks import bundle as bundles
from tasks.bundle import Bundle, whole_texts
from tasks.errors import TechniqueError
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tasks.structure import factorized_embedding, vocabulary
from tests import tiny
from tests.techniques.contract import Contract
from tests.training.test_lstm import tiny_lstm

SPECIAL = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
WORDS = (*tiny.GOOD, *tiny.BAD, *tiny.NEUTRAL)
NEVER = ("giraffe", "gir", "##affe", "##ab", "zebra", "quick")


def _prove(before, after, config):
    assert after.num_parameters() < before.num_parameters()
    assert after.model.get_input_embeddings().num_embeddings == len(after.tokenizer)
    assert after.model.config.vocab_size == len(after.tokenizer)
    assert after.notes[vocabulary.NOTE] == "23 of 32 tokens stay"


CONTRACT = Contract(
    good=({}, {"transfer": False}),
    bad=(({"transfer": "some"}, "valid boolean"),),
    prove=_prove,
    changes_answers=False,
)


def rich(config: type = BertConfig) -> Bundle:
    """A model with a word-piece vocabulary that has every letter, words and useless pieces."""
    letters = [*ALPHABET, *(f"##{letter}" for letter in ALPHABET)]
    words = dict.fromkeys([*SPECIAL, *NEVER, *letters, *WORDS])
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    widths = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 32, "max_position_embeddings": 32,
    }  # fmt: skip
    made = tiny.bundle_of(config(vocab_size=len(words) + 3, **widths))
    return replace(made, tokenizer=tokenizer)


def pieces(bundle: Bundle, text: str) -> list[str]:
    found: list[str] = whole_texts(bundle.tokenizer).encode(text).tokens
    return found


def press(bundle: Bundle, folder: Path) -> Bundle:
    return vocabulary.apply(bundle, vocabulary.Config(), tiny.context(folder))


def test_texts_of_the_data_keep_pieces_and_logits(tmp_path):
    before = rich()
    after = press(before, tmp_path)
    context = tiny.context(tmp_path)
    texts = [*context.train.texts, *context.transfer.texts]
    assert [pieces(after, text) for text in texts] == [pieces(before, text) for text in texts]
    assert np.array_equal(tiny.answers(after, texts), tiny.answers(before, texts))
    gone = set(before.tokenizer.get_vocab()) - set(after.tokenizer.get_vocab())
    assert gone == set(NEVER)
    assert len(after.tokenizer) == len(before.tokenizer) - len(gone)


def test_unseen_words_fall_back_to_pieces_and_are_answered(tmp_path):
    before = rich()
    after = press(before, tmp_path)
    assert pieces(before, "giraffe") == ["[CLS]", "giraffe", "[SEP]"]
    assert pieces(after, "giraffe") == [
        "[CLS]", "g", "##i", "##r", "##a", "##f", "##f", "##e", "[SEP]"
    ]  # fmt: skip
    assert np.isfinite(tiny.answers(after, ["a giraffe", "zebra?", "ÿ", ""])).all()


def test_saved_exported_and_served_it_answers_alike(tmp_path):
    after = press(rich(), tmp_path)
    texts = [*tiny.examples(8, seed=4).texts, "the quick giraffe", "ÿ"]
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert again.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    assert np.array_equal(tiny.answers(again, texts), tiny.answers(after, texts))
    export(after, tmp_path / "export")
    served = np.log(Session(tmp_path / "export", 1).probabilities(texts))
    expected = tiny.answers(after, texts)
    expected = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
    assert np.abs(served - expected).max() < 1e-4
    whole = Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
    assert whole.get_vocab() == after.tokenizer.get_vocab()


@settings(max_examples=60, deadline=None)
@given(
    words=st.sets(st.text("abcd", min_size=2, max_size=5), max_size=12),
    inner=st.sets(st.text("abcd", min_size=2, max_size=4), max_size=12),
    data=st.lists(st.text("abcd ", max_size=15), max_size=4),
    unseen=st.lists(st.text("abcd", min_size=1, max_size=12), min_size=1, max_size=5),
)
def test_whatever_the_vocabulary_no_word_becomes_unknown(words, inner, data, unseen):
    vocab = [*SPECIAL, *sorted(words), *(f"##{piece}" for piece in sorted(inner))]
    vocab += [*"abcd", *(f"##{letter}" for letter in "abcd")]
    old = BertTokenizer(vocab={word: number for number, word in enumerate(vocab)})
    new, kept = vocabulary.shrunken(old, data)
    before, after = whole_texts(old), whole_texts(new)
    assert [vocab[number] for number in kept] == [after.id_to_token(i) for i in range(len(kept))]
    for text in data:
        assert after.encode(text).tokens == before.encode(text).tokens
    for word in unseen:
        found = after.encode(word).tokens[1:-1]
        assert "[UNK]" not in found
        assert "".join(piece.removeprefix("##") for piece in found) == word


def test_a_token_whose_characters_stand_nowhere_alone_stays():
    vocab = [*SPECIAL, "ab", "##cd", "a", "##b", "##bc", "c", "##c"]
    old = BertTokenizer(vocab={word: number for number, word in enumerate(vocab)})
    new, _ = vocabulary.shrunken(old, [])
    # `##bc` can be spelt ##b ##c; `##d` is not there to spell ##cd
    assert set(vocab) - set(new.get_vocab()) == {"ab", "##bc"}


def test_a_vocabulary_that_would_cut_the_data_otherwise_is_refused():
    # abd is unknown: after `abc`… no `##d` follows; without `ab` it is a, then ##bd
    vocab = [*SPECIAL, "ab", "a", "##b", "##bd"]
    old = BertTokenizer(vocab={word: number for number, word in enumerate(vocab)})
    with pytest.raises(TechniqueError, match="the text `abd` would be cut into other pieces"):
        vocabulary.shrunken(old, ["abd"])


def test_the_padding_token_keeps_its_number_and_the_others_are_renumbered(tmp_path):
    words = ["<s>", "dead", "<pad>", "gone", "</s>", "[UNK]", "<mask>", "a", "##a", *WORDS]
    tokenizer = MPNetTokenizer(vocab={w: i for i, w in enumerate(dict.fromkeys(words))})
    assert tokenizer.pad_token_id == 2
    config = MPNetConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=40,
    )  # fmt: skip
    config.eos_token_id = tokenizer.eos_token_id
    before = replace(tiny.bundle_of(config), tokenizer=tokenizer)
    before.model.config.pad_token_id = 2
    after = press(before, tmp_path)
    assert after.tokenizer.pad_token_id == after.model.config.pad_token_id == 2
    assert after.tokenizer.convert_ids_to_tokens([1, 2, 3]) == ["dead", "<pad>", "gone"]
    texts = tiny.examples(8, seed=3).texts
    assert np.array_equal(tiny.answers(after, texts), tiny.answers(before, texts))


@pytest.mark.parametrize("order", ["factorized first", "vocabulary first"])
def test_it_goes_with_a_factorized_table(order, tmp_path):
    steps = [
        lambda b: factorized_embedding.apply(
            b, factorized_embedding.Config(rank=4), tiny.context(tmp_path)
        ),
        lambda b: press(b, tmp_path),
    ]
    bundle = rich()
    for step in steps if order == "factorized first" else reversed(steps):
        bundle = step(bundle)
    embeddings = bundle.model.get_input_embeddings()
    assert embeddings.table.weight.shape == (len(bundle.tokenizer), 4)
    bundles.save(bundle, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    texts = tiny.examples(8, seed=3).texts
    assert np.array_equal(tiny.answers(again, texts), tiny.answers(bundle, texts))


def test_an_lstm_has_its_table_shrunk_too(tmp_path):
    bundle = tiny_lstm()
    after = press(replace(bundle, tokenizer=rich().tokenizer, model=_wide_lstm()), tmp_path)
    assert after.model.embeddings.num_embeddings == len(after.tokenizer)
    assert np.isfinite(tiny.answers(after, ["giraffe"])).all()


def _wide_lstm():
    from tasks import lstm

    return lstm.build(
        embedding=8, hidden=4, layers=1, dropout=0.0, vocab_size=100, pad_id=0, num_labels=2
    ).eval()


def test_tokens_that_pruning_zeroed_stay_zero(tmp_path):
    before = rich()
    name = "bert.embeddings.word_embeddings.weight"
    weight = before.model.get_parameter(name)
    weight.data[:, 3] = 0
    before.sparse = (name,)
    after = press(before, tmp_path)
    assert after.sparse == (name,)
    assert (after.model.get_parameter(name)[:, 3] == 0).all()


def test_byte_pairs_are_refused(tmp_path):
    vocab = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=[("a", "b")])
    tokenizer.pad_token = tokenizer.eos_token
    bundle = replace(tiny.tiny_gpt2(), tokenizer=tokenizer)
    with pytest.raises(TechniqueError, match="of the kind BPE, whose pieces depend on one another"):
        press(bundle, tmp_path)
    assert isinstance(tokenizer.backend_tokenizer.model, models.BPE)


def test_a_vocabulary_that_is_all_needed_is_refused(tmp_path):
    once = press(rich(), tmp_path)
    with pytest.raises(TechniqueError, match="need all 75 tokens"):
        press(once, tmp_path)
