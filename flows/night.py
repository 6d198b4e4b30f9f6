"""Starts a night from the command line: one per model at a time, under a Prefect API."""

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from flows import console
from flows.console import Narrator
from flows.server import prefect_api
from tasks import claims
from tasks.errors import EXIT_VARIANTS_FAILED, NightpressError
from tasks.settings import Settings
from tasks.workspace import Workspace


def run_night(workspace: Workspace, settings: Settings, *, as_json: bool) -> int:
    """Run one night and show its result; return the exit code.

    Raises NightpressError where the night cannot go on.
    """
    narrator, began = Narrator(Console(stderr=True)), time.time()
    with only_night(workspace, settings.name):
        claims.sweep(workspace)
        with embedded_prefect(workspace, settings.name, lambda: _get_ready(settings)) as own_server:
            from flows.nightly import nightly
            from flows.reaping import reap

            if own_server:
                reap("nightly")

            console.use(narrator)
            night = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime(began))
            facts = nightly(settings.model_dump(mode="json"), str(workspace.root), night, began)
    from tasks.registry import night_report

    if as_json:
        json.dump(night_report.to_json(facts), sys.stdout, indent=1)
    else:
        night_report.terminal_table(facts, console.for_results())
    return EXIT_VARIANTS_FAILED if facts.failed else 0


@contextlib.contextmanager
def embedded_prefect(
    workspace: Workspace, name: str, meanwhile: Callable[[], None]
) -> Iterator[bool]:
    """Have a Prefect API, and tell whether it is a server of this run's own.

    `meanwhile` is called while it comes up; it imports what needs it.
    """
    home = workspace.state / "prefect" / name
    log = workspace.state / "logs" / "prefect-server.log"
    own_server = not os.environ.get("PREFECT_API_URL")
    _quiet_prefect(workspace, own_server=own_server)
    with prefect_api(home, log, meanwhile=meanwhile):
        yield own_server


@contextlib.contextmanager
def only_night(workspace: Workspace, name: str) -> Iterator[None]:
    """Hold the claim on tonight's run of the model `name`.

    Raises NightpressError where another night of it is under way.
    """
    claim = claims.take(workspace, f"night:{name}")
    if claim is None:
        raise NightpressError(
            f"a night of `{name}` is under way already; wait for it, or end it, and start again"
        )
    with claims.held(workspace, claim):
        yield


def _get_ready(settings: Settings) -> None:
    """Check the recipes, and import what takes seconds, while the server comes up beside."""
    gc.disable()  # imports make objects that live on: nothing to collect, a fifth of their time
    try:
        from tasks import plan

        plan.check(settings)
        import flows.nightly
        import flows.reaping  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def _quiet_prefect(workspace: Workspace, *, own_server: bool) -> None:
    """Keep Prefect's log lines and tracebacks in its API, off the terminal."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if own_server:  # else the user's own profile holds what reaches his server
        os.environ.setdefault("PREFECT_HOME", str(workspace.state / "prefect" / "client"))
