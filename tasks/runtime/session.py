"""Runs an exported classifier on texts. This file travels with the model it runs.

It imports nothing of the project: onnxruntime, tokenizers and numpy are all that serving needs.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
SERVING = "serving.json"


class Session:
    """A folder with `model.onnx`, `tokenizer.json` and `serving.json`, ready to answer.

    `threads`: None takes all processors that this process may use.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        folder = Path(folder)
        serving = json.loads((folder / SERVING).read_text(encoding="utf-8"))
        self.labels: tuple[str, ...] = tuple(serving["labels"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.max_length: int = serving["max_length"]
        self._pad_id: int = serving["pad_id"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _num_processors()
        options.inter_op_num_threads = 1
        # threads that spin between two texts take the processor from whoever else needs it:
        # 2 to 1 slower on a machine that is shared, and what is timed next in a trial suffers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return float32 probabilities (texts, labels), in the order given.

        Texts are cut off at `max_length` tokens. Raises ValueError where a text is not a string.
        """
        if isinstance(texts, str):
            raise ValueError("one text was given where a list of texts is needed: put it in a list")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {number} is {type(text).__name__}, not a string")
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        # like lengths together: a batch is padded to its longest text
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            result[chosen] = _softmax(self._logits([encoded[i] for i in chosen]))
        return result

    def _logits(self, rows: list[list[int]]) -> np.ndarray:
        longest = max(1, max(len(row) for row in rows))
        ids = np.full((len(rows), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        logits: np.ndarray = self._session.run(
            ["logits"], {"input_ids": ids, "attention_mask": mask}
        )[0]
        return logits


def _num_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return result
