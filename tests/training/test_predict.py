"""Logits come back in the order given, whatever the batches; teachers answer once."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.training.batches import Encoded, Examples, unlabelled
from tasks.training.predict import logits
from tasks.training.teacher import CachedTeacher
from tests import tiny


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_order_and_batches_do_not_matter(kind: str) -> None:
    bundle, examples = tiny.tiny(kind), tiny.examples(50)
    alone = np.concatenate([tiny.answers(bundle, [text]) for text in examples.texts])
    bundle.model.train()
    for batch_size in (1, 7, 64):
        found = logits(bundle, examples, batch_size=batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone, atol=2e-5)
    assert bundle.model.training
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(logits(bundle, examples.take(order)), alone[order], atol=2e-5)


def test_no_texts_and_an_empty_text() -> None:
    assert logits(tiny.tiny_bert(), unlabelled([])).shape == (0, 2)
    bundle = tiny.tiny_gpt2()
    bundle.tokenizer = _Wordless()
    assert np.isfinite(logits(bundle, unlabelled(["", "the film"]))).all()


class _Wordless:
    """Like GPT-2's, gives no tokens at all for an empty text."""

    pad_token_id = 0

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[7] * len(text.split()) for text in texts]}


def test_an_epoch_has_every_example_once_in_like_lengths() -> None:
    encoded = Encoded(tiny.examples(200), tiny.tokenizer(), tiny.MAX_LENGTH)
    batches = encoded.shuffled(16, 3, 0)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all((a == b).all() for a, b in zip(batches, encoded.shuffled(16, 3, 0), strict=True))
    assert [len(b) for b in batches] != [len(b) for b in encoded.shuffled(16, 3, 1)] or any(
        (a != b).any() for a, b in zip(batches, encoded.shuffled(16, 3, 1), strict=True)
    )
    padded = sum(int(encoded.lengths[b].max()) * len(b) for b in batches)
    assert padded < 1.15 * encoded.lengths.sum()


Teach = Callable[[str, float], CachedTeacher]


@pytest.fixture
def teach(tmp_path: Path) -> Teach:
    """A teacher over one cache: (key, what its logits are multiplied by)."""

    def make(key: str, scale: float) -> CachedTeacher:
        def load() -> Bundle:
            bundle = tiny.tiny_bert()
            with torch.no_grad():
                bundle.model.classifier.weight.mul_(scale)
                bundle.model.classifier.bias.mul_(scale)
            return bundle

        return CachedTeacher(key, load, tiny.LABELS, tmp_path)

    return make


def test_a_teacher_answers_once_for_a_key_and_texts(teach: Teach) -> None:
    examples = tiny.examples(20)
    first = teach("one", 1.0).logits(examples)
    np.testing.assert_allclose(first, tiny.answers(tiny.tiny_bert(), examples.texts), atol=2e-5)
    assert (teach("one", 2.0).logits(examples) == first).all(), "asked again"
    np.testing.assert_allclose(teach("two", 2.0).logits(examples), 2 * first, atol=1e-4)
    backwards = examples.take(np.arange(20)[::-1].copy())
    np.testing.assert_allclose(teach("one", 1.0).logits(backwards), first[::-1], atol=2e-5)
    shorter = examples.take(np.arange(19))
    assert len(teach("one", 1.0).logits(shorter)) == 19


@pytest.mark.parametrize("spoil", [b"", b"\x93NUMPY", b"\x80\x04garbage"])
def test_a_spoilt_answer_is_asked_for_again(spoil: bytes, teach: Teach, tmp_path: Path) -> None:
    examples = tiny.examples(20)
    first = teach("one", 1.0).logits(examples)
    (path,) = (tmp_path / "logits").iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil or whole[:-8])
    assert (teach("one", 1.0).logits(examples) == first).all()
    assert path.read_bytes() == whole


def test_a_teacher_whose_answers_are_no_numbers_is_refused(teach: Teach, tmp_path: Path) -> None:
    with pytest.raises(TechniqueError, match="train it again"):
        teach("one", float("nan")).logits(Examples(["the film"], np.array([0])))
    assert not list(tmp_path.rglob("*.npy"))


def test_two_who_ask_at_once_get_what_was_computed_once(tmp_path: Path) -> None:
    examples, loaded = tiny.examples(20), []

    def load() -> Bundle:
        loaded.append(1)
        time.sleep(0.2)
        return tiny.tiny_bert()

    def ask(_: int) -> np.ndarray:
        return CachedTeacher("one", load, tiny.LABELS, tmp_path).logits(examples)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, range(3)))
    assert len(loaded) == 1
    assert all((answers == found[0]).all() for answers in found)
    assert [path.suffix for path in (tmp_path / "logits").iterdir()] == [".npy"]


def test_a_teacher_shows_itself_anew_to_each(teach: Teach) -> None:
    teacher = teach("one", 1.0)
    first, second = teacher.load(), teacher.load()
    assert first.model is not second.model
    texts = tiny.examples(3).texts
    assert (tiny.answers(first, texts) == tiny.answers(tiny.tiny_bert(), texts)).all()
