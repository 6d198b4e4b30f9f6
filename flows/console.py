"""What a person sees while a night runs: a bar for the work at hand, a line for what is done."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from tasks.training.progress import Progress as TrainingProgress
from tasks.training.progress import Silent

_LOG_WIDTH = 110
_in_use: list[TrainingProgress] = [Silent()]


def for_results() -> Console:
    """Return the console of standard output: as wide as a table needs where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=_LOG_WIDTH)


def use(progress: TrainingProgress) -> None:
    """Show the work of this process with `progress`; the processes of other workers say nothing.

    Kept here and not beside the flow, which is sent to worker processes with all that it holds.
    """
    _in_use[0] = progress


def in_use() -> TrainingProgress:
    """Return what shows the work of this process."""
    return _in_use[0]


class Narrator:
    """Tells on standard error, so that standard output holds results alone.

    On a terminal with a live bar; elsewhere, in a log say, with one line per finished thing.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Progress | None = None
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, highlight=False, markup=False)

    def start(self, description: str, total: int) -> None:
        """Begin a bar of `total` steps."""
        self.stop()
        if not self.console.is_terminal:
            return
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
            transient=True,
        )
        self._live.start()
        self._bar = self._live.add_task(description, total=total, figures="")

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        """Move the bar on; `loss` is the running loss, `rate` is in examples per second."""
        if self._live is None:
            return
        figures = "" if loss is None else f"loss {loss:.3f}"
        figures += "" if rate is None else f"  {rate:.0f} examples/s"
        self._live.advance(self._bar, steps)
        if figures:
            self._live.update(self._bar, figures=figures)

    def stop(self) -> None:
        """End the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None
