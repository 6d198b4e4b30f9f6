"""Where a night's wall time goes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

Kind = Literal["work", "overhead"]


class Clock:
    """Adds up wall seconds by phase; what no phase covers is overhead too."""

    def __init__(self, began: float | None = None) -> None:
        """Begin now, or count from the wall time `began`."""
        now = time.time()
        self.began = now if began is None else began
        self._start = time.monotonic() - (now - self.began)
        self._phases: dict[str, tuple[Kind, float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str, kind: Kind) -> Iterator[None]:
        """Count the body's seconds as `name`; `work` is pressing and measuring models."""
        begin = time.monotonic()
        try:
            yield
        finally:
            before = self._phases.get(name, (kind, 0.0))[1]
            self._phases[name] = (kind, before + time.monotonic() - begin)

    @property
    def seconds(self) -> float:
        """Return the wall seconds since the start."""
        return time.monotonic() - self._start

    def costs(self) -> list[tuple[str, float, Kind]]:
        """Return (phase, seconds, kind), with the remainder as `orchestration`."""
        rows = [(name, seconds, kind) for name, (kind, seconds) in self._phases.items()]
        rest = self.seconds - sum(seconds for _, seconds, _ in rows)
        return [*rows, ("orchestration", max(rest, 0.0), "overhead")]
