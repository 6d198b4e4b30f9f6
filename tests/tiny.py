"""Tiny random models, a tokenizer and a learnable task, made in memory in milliseconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from tasks import lstm
from tasks.bundle import Bundle
from tasks.technique import Context
from tasks.training.batches import Examples, unlabelled
from tasks.training.progress import Silent

GOOD = ("superb", "gripping", "lovely", "fine")
BAD = ("dull", "awful", "tired", "flat")
NEUTRAL = ("the", "film", "a", "plot", "with", "scene", "and", "actor", "story", "of")
LABELS = ("negative", "positive")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 16


def tokenizer() -> BertTokenizer:
    """A word-piece tokenizer that knows the words of `examples` whole."""
    words = (*_SPECIAL, *GOOD, *BAD, *NEUTRAL)
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def bundle_of(config: PretrainedConfig, seed: int = 0, labels: tuple[str, ...] = LABELS) -> Bundle:
    """A random model of any configuration, with the tokenizer of this module."""
    config.num_labels = len(labels)
    config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        # weights large enough for every part to matter, biases that are not all zero
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
            elif not (parameter == 1).all():
                torch.nn.init.normal_(parameter, std=0.1)
    return Bundle(model.eval(), tokenizer(), labels, MAX_LENGTH)


def tiny_bert(seed: int = 0, labels: tuple[str, ...] = LABELS) -> Bundle:
    """BERT: 3 layers, width 16, 4 heads, 32 neurons."""
    return bundle_of(BertConfig(**_bert_like()), seed, labels)


def tiny_gpt2(seed: int = 0, labels: tuple[str, ...] = LABELS) -> Bundle:
    """GPT-2: 3 layers, width 16, 4 heads, 32 neurons."""
    config = GPT2Config(
        vocab_size=32, n_positions=32, n_embd=16, n_layer=3, n_head=4, n_inner=32,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return bundle_of(config, seed, labels)


def tiny_albert(seed: int = 0) -> Bundle:
    """ALBERT: 3 layers that share one set of weights, width 16, 4 heads."""
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3, max_position_embeddings=32,
    )  # fmt: skip
    return bundle_of(config, seed)


def tiny_lstm(seed: int = 0) -> Bundle:
    """A bidirectional LSTM of width 8."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = lstm.build(
            embedding=8, hidden=8, layers=1, dropout=0, vocab_size=32, pad_id=0, num_labels=2
        )
    return Bundle(model.eval(), tokenizer(), LABELS, MAX_LENGTH)


def tiny(kind: str, seed: int = 0) -> Bundle:
    """A model of the type `kind`, of the same widths."""
    if kind == "gpt2":
        return tiny_gpt2(seed)
    if kind == "albert":
        return tiny_albert(seed)
    if kind == "lstm":
        return tiny_lstm(seed)
    if kind == "distilbert":
        config: PretrainedConfig = DistilBertConfig(
            vocab_size=32, max_position_embeddings=32, dim=16, n_layers=3, n_heads=4, hidden_dim=32
        )
    else:
        classes = {
            "bert": BertConfig,
            "electra": ElectraConfig,
            "mpnet": MPNetConfig,
            "roberta": RobertaConfig,
        }
        config = classes[kind](**_bert_like())
    return bundle_of(config, seed, LABELS)


def _bert_like() -> dict[str, int]:
    return {
        "vocab_size": 32,
        "max_position_embeddings": 32,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }


def examples(count: int = 64, seed: int = 0) -> Examples:
    """Sentences of 3 to 10 words; positive where a good word stands in them, else a bad one."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    texts = []
    for label in labels:
        words = list(random.choice(NEUTRAL, size=random.integers(2, 10)))
        words.insert(int(random.integers(len(words) + 1)), random.choice(GOOD if label else BAD))
        texts.append(" ".join(words))
    return Examples(texts, labels)


class WiseTeacher:
    """Knows the rule of `examples`, without being sure: logits of ±1. Counts its lessons.

    `model` is what it shows of itself: a model that need not know the rule.
    """

    def __init__(self, labels: tuple[str, ...] = LABELS, model: Bundle | None = None) -> None:
        self.key = "wise"
        self.labels = labels
        self.model = model
        self.asked = 0

    def load(self) -> Bundle:
        assert self.model is not None
        return self.model

    def logits(self, examples: Examples) -> np.ndarray:
        self.asked += 1
        return self.answers(examples.texts)

    @staticmethod
    def answers(texts: Sequence[str]) -> np.ndarray:
        """Logits (texts, labels) in float32."""
        signs = [1 if set(text.split()) & set(GOOD) else -1 for text in texts]
        return np.array([[-sign, sign] for sign in signs], dtype=np.float32)


def answers(bundle: Bundle, texts: Sequence[str]) -> np.ndarray:
    """Logits (texts, labels) in float32, in evaluation mode."""
    batch = bundle.tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=bundle.max_length,
        return_tensors="pt",
    )
    model = bundle.model.eval()
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return output.logits.float().cpu().numpy()


def context(
    scratch: Path, teacher: WiseTeacher | None = None, seed: int = 7, **others: WiseTeacher
) -> Context:
    """A context over 64 training and 32 validation examples, and 16 unlabelled texts.

    `teacher` is called `baseline`, the others as they are given.
    """
    teachers = others if teacher is None else {"baseline": teacher, **others}
    return Context(
        train=examples(64),
        validation=examples(32, seed=1),
        transfer=unlabelled(examples(16, seed=2).texts),
        teachers=teachers,
        seed=seed,
        device=torch.device("cpu"),
        scratch=scratch,
        progress=Silent(),
    )


class Killer(Silent):
    """A progress that ends the training at its step `last`, as a kill would."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done: list[int] = []
        """What each call told: first the steps done before, where a training is gone on with."""

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        self.done.append(steps)
        if sum(self.done) >= self.last:
            raise KeyboardInterrupt
