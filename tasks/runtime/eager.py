"""The baseline as a user of PyTorch runs it: what every variant is also compared with."""

from collections.abc import Sequence

import numpy as np
import torch

from tasks.bundle import Bundle


class EagerModel:
    """Answers texts in PyTorch, in float32, with the model's own tokenizer."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.labels = bundle.labels
        self._model = bundle.model.float().eval()
        self._tokenizer = bundle.tokenizer
        self._max_length = bundle.max_length
        self._threads = threads

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return float32 probabilities (texts, labels), in the order given."""
        torch.set_num_threads(self._threads)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                encoded = self._tokenizer(
                    [texts[i] for i in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self._max_length,
                    return_tensors="pt",
                )
                logits = self._model(
                    input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
                ).logits
                result[chosen] = torch.softmax(logits.float(), dim=-1).numpy()
        return result
