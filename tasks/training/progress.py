"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a training; the terminal's bar and the tests' silence are such."""

    def say(self, line: str) -> None:
        """Tell what is done, or begins."""
        ...

    def start(self, description: str, total: int) -> None:
        """Begin a bar of `total` steps."""
        ...

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        """Move on; `loss` is the running loss, `rate` is in examples per second."""
        ...

    def stop(self) -> None:
        """End the bar."""
        ...


class Silent:
    """Says nothing."""

    def say(self, line: str) -> None:
        """Ignore."""

    def start(self, description: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        """Ignore."""

    def stop(self) -> None:
        """Ignore."""
