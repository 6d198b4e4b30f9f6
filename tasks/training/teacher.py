"""A teacher's answers, computed once per teacher and texts, ever."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.training.batches import Examples
from tasks.training.predict import logits


class CachedTeacher:
    """A published node that teaches: its logits are kept under `cache`, by content."""

    def __init__(
        self,
        key: str,
        load: Callable[[], Bundle],
        labels: tuple[str, ...],
        cache: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.key = key
        self.labels = labels
        self._loader = load
        self._folder = cache / "logits"
        self._device = device

    def logits(self, examples: Examples) -> np.ndarray:
        """Return float32 logits (examples, labels), from the cache where they are there whole.

        Waits while another process of this machine computes them. Raises TechniqueError where the
        teacher's answers are not numbers.
        """
        texts = hashlib.sha256(json.dumps([self.key, *examples.texts]).encode()).hexdigest()
        path, shape = self._folder / f"{texts}.npy", (len(examples), len(self.labels))
        kept = _read(path, shape)
        if kept is not None:
            return kept
        with _alone(path.with_suffix(".lock")):
            kept = _read(path, shape)
            return kept if kept is not None else self._computed(examples, path)

    def load(self) -> Bundle:
        """Return the teacher itself, read anew: each caller has one of his own."""
        return self._loader()

    def _computed(self, examples: Examples, path: Path) -> np.ndarray:
        found = logits(self._loader(), examples, device=self._device)
        if not np.isfinite(found).all():
            raise TechniqueError(
                f"the teacher {self.key[:12]} answers with what are not numbers: train it again, "
                "with a lower `learning_rate` or `precision: fp32`"
            )
        _write(path, found)
        return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which goes at the end; a process that dies leaves it free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, values, allow_pickle=False)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
