"""Texts as length-bucketed batches, padded to the batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Batch = dict[str, torch.Tensor]
UNLABELLED = -100
"""The label of a text that has none; torch's cross-entropy ignores it."""
_BUCKET_BATCHES = 50


@dataclass(frozen=True)
class Examples:
    """Texts with integer labels, and further values for each (teacher logits, say)."""

    texts: Sequence[str]
    labels: np.ndarray
    """int64 (texts,); `UNLABELLED` where there is none."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name → float32 (texts, …)."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def take(self, indices: np.ndarray) -> "Examples":
        """Return the examples at `indices`, in that order."""
        return Examples(
            [self.texts[i] for i in indices],
            self.labels[indices],
            {name: values[indices] for name, values in self.columns.items()},
        )

    def sample(self, maximum: int | None, seed: int) -> "Examples":
        """Return `maximum` of the examples at most (None: all), chosen by the seed, in order."""
        if maximum is None or maximum >= len(self):
            return self
        chosen = np.random.default_rng(seed).permutation(len(self))[:maximum]
        return self.take(np.sort(chosen))

    def with_columns(self, **columns: np.ndarray) -> "Examples":
        """Return the same examples with `columns` added."""
        return Examples(self.texts, self.labels, {**self.columns, **columns})


def unlabelled(texts: Sequence[str]) -> Examples:
    """Return `texts` as examples without labels."""
    return Examples(texts, np.full(len(texts), UNLABELLED, dtype=np.int64))


def join(first: Examples, second: Examples) -> Examples:
    """Return both, one after the other; both must have the same columns."""
    assert first.columns.keys() == second.columns.keys()
    return Examples(
        [*first.texts, *second.texts],
        np.concatenate([first.labels, second.labels]),
        {k: np.concatenate([v, second.columns[k]]) for k, v in first.columns.items()},
    )


class Encoded:
    """Examples tokenized once, served as padded batches."""

    def __init__(self, examples: Examples, tokenizer: Any, max_length: int) -> None:
        self.examples = examples
        self.pad_id: int = tokenizer.pad_token_id
        texts = list(examples.texts)
        encoded = (
            tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
        )
        # a tokenizer without start and end tokens gives none at all for an empty text
        self.ids: list[list[int]] = [ids or [self.pad_id] for ids in encoded]
        self.lengths = np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return input_ids, attention_mask (batch, longest), labels (batch,) and the columns."""
        longest = int(self.lengths[indices].max())
        ids = np.full((len(indices), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(indices), longest), dtype=np.int64)
        for row, index in enumerate(indices):
            ids[row, : self.lengths[index]] = self.ids[index]
            mask[row, : self.lengths[index]] = 1
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.examples.labels[indices]),
        }
        for name, values in self.examples.columns.items():
            batch[name] = torch.from_numpy(values[indices])
        return batch

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the epoch's batches as index arrays: like lengths together, order random.

        Stable for equal arguments, so that a resumed training continues in the same order.
        """
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(self))
        bucket = batch_size * _BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), bucket):
            chunk = order[start : start + bucket]
            chunk = chunk[np.argsort(self.lengths[chunk], kind="stable")]
            batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        generator.shuffle(batches)
        return batches

    def ordered(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield index arrays that cover all examples, longest texts first."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
