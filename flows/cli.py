"""The nightpress command.

Exit codes: 0 done; 1 unexpected; 2 settings or usage; 3 a source cannot be read; 4 the validation
gate stopped the night; 5 a technique failed; 6 a checkpoint or the store; 7 export; 8 a server;
9 the night ended, but a variant failed; 10 the champion stays: a gate, or another promotion, says
no; 130 interrupted.
"""

import gc
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tasks.errors import NightpressError
from tasks.workspace import Workspace, quiet_libraries

app = typer.Typer(
    name="nightpress",
    help="Press text classifiers smaller and faster, every night; prove which are worth having.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " "),
)

Config = Annotated[
    Path, typer.Option("-c", "--config", help="The settings file.", show_default=True)
]
Profile = Annotated[
    str | None, typer.Option("--profile", "-p", help="A profile of the settings file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-S", "--set", help="Override one setting: `-S training.epochs=3`."),
]
Recipes = Annotated[
    str | None,
    typer.Option("--recipes", help="Only these recipes, separated by commas; `all`: every one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
PARAMS = Path("params.yaml")
_INTERRUPTED = 130
"""What typer makes of a Ctrl-C."""


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Declare what holds for every command; `main` reads it before anything else."""


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="A CSV, TSV, JSONL or Parquet file, or hf://…")],
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: pypi://, hf:// or folder.")] = None,
    fine_tuned: Annotated[
        bool, typer.Option("--fine-tuned", help="The model is fine-tuned already: do not train it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the registered model.")] = None,
    config: Config = PARAMS,
) -> None:
    """Look at a data set and write the settings file for it.

    Example: nightpress init reviews.csv --text body --label stars
    """
    from flows.init import write_settings

    write_settings(
        data, text=text, label=label, model=model, fine_tuned=fine_tuned, name=name, path=config
    )


@app.command()
def run(
    config: Config = PARAMS,
    profile: Profile = None,
    overrides: Overrides = None,
    recipes: Recipes = None,
    as_json: AsJson = False,
) -> None:
    """Run one night: validate, train, press, measure, judge, register, promote, report.

    Example: nightpress run --profile quick -S training.epochs=2
    """
    settings = _settings(config, profile, overrides, recipes)
    from flows.night import run_night

    raise typer.Exit(run_night(Workspace.find(), settings, as_json=as_json))


@app.command()
def plan(
    config: Config = PARAMS,
    profile: Profile = None,
    overrides: Overrides = None,
    recipes: Recipes = None,
    as_json: AsJson = False,
) -> None:
    """Print tonight's derivation tree: what is cached, what is not, and what that would cost.

    Example: nightpress plan --recipes int8
    """
    settings = _settings(config, profile, overrides, recipes)
    from flows.planning import show_plan

    show_plan(Workspace.find(), settings, as_json=as_json)


@app.command()
def predict(
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
    config: Config = PARAMS,
    version: Annotated[str, typer.Option(help="An alias or a version number.")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Ask the champion about texts.

    Example: nightpress predict "a gripping, beautifully acted film"
    """
    settings = _settings(config, None, None, None)
    from flows.asking import ask

    ask(Workspace.find(), settings.name, texts, version=version, as_json=as_json)


Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the ledger.")]
Which = Annotated[
    str | None,
    typer.Argument(help="A version of NAME-candidates, or an alias; the challenger by default."),
]


@app.command()
def promote(
    version: Which = None,
    reason: Reason = "",
    override: Annotated[
        bool, typer.Option("--override", help="Promote against the gates; needs a reason.")
    ] = False,
    config: Config = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a candidate beside champion and baseline, and let it be champion if it passes.

    Example: nightpress promote 12 --reason "smaller, and as good"
    """
    if override and not reason:
        from tasks.errors import SettingsError

        raise SettingsError("--override goes against the gates: say why with `--reason`")
    _act("promote", version, reason, config, overrides, as_json, override=override)


@app.command()
def approve(
    version: Which = None,
    reason: Reason = "",
    config: Config = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Approve the evidence of a challenger, which then becomes champion.

    The evidence must still hold: the same champion stands, the data is the same.

    Example: nightpress approve --reason "the flips look fine"
    """
    _act("approve", version, reason, config, overrides, as_json)


@app.command()
def reject(
    version: Which = None,
    reason: Reason = "",
    config: Config = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say that a candidate is not to be champion; no later night proposes it again.

    Example: nightpress reject --reason "gets negations wrong"
    """
    _act("reject", version, reason, config, overrides, as_json)


@app.command()
def rollback(
    to: Annotated[
        str | None, typer.Option("--to", help="A version of NAME; the champion before by default.")
    ] = None,
    reason: Reason = "",
    config: Config = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Let an earlier champion be champion again, once it has answered.

    Example: nightpress rollback --reason "users complain"
    """
    _act("rollback", to, reason, config, overrides, as_json)


@app.command()
def history(config: Config = PARAMS, as_json: AsJson = False) -> None:
    """Show who moved the champion, when and why, and check that nobody changed the record.

    Example: nightpress history
    """
    settings = _settings(config, None, None, None)
    from flows.promoting import show_history

    show_history(Workspace.find(), settings.name, as_json=as_json)


def _act(
    what: Literal["promote", "approve", "reject", "rollback"],
    which: str | None,
    reason: str,
    config: Path,
    overrides: list[str] | None,
    as_json: bool,
    override: bool = False,
) -> None:
    settings = _settings(config, None, overrides, None)
    from flows.promoting import act

    act(
        Workspace.find(), settings, what, which,
        reason=reason, override=override, as_json=as_json,
    )  # fmt: skip


@app.command()
def report(
    config: Config = PARAMS,
    night: Annotated[
        str | None, typer.Option(help="A night's id; the last one by default.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Show a past night's table again and write its report.html.

    Example: nightpress report -o last-night.html
    """
    settings = _settings(config, None, None, None)
    from flows.reporting import show_report

    show_report(Workspace.find(), settings.name, night, output, as_json=as_json)


@app.command()
def ui(
    config: Config = PARAMS,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's page.")] = 5000,
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's page.")] = 4200,
) -> None:
    """Open MLflow and Prefect, on loopback, for what is stored; Ctrl-C ends both.

    Example: nightpress ui
    """
    settings = _settings(config, None, None, None)
    from flows.pages import serve_pages

    serve_pages(Workspace.find(), settings.name, mlflow_port, prefect_port)


@app.command()
def doctor(
    config: Config = PARAMS,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what ended processes left.")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Write a champion set by other means into the ledger.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Move the champion to where the ledger says.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Check versions, settings, servers, stores and claims; exit 1 where something is wrong.

    Example: nightpress doctor --fix
    """
    if adopt and restore:
        from tasks.errors import SettingsError

        raise SettingsError("--adopt and --restore are opposites: give one of them")
    from flows.examination import examine

    mend: Literal["adopt", "restore"] | None = "adopt" if adopt else "restore" if restore else None
    raise typer.Exit(examine(config, fix=fix, mend=mend, reason=reason, as_json=as_json))


def _settings(
    config: Path, profile: str | None, overrides: list[str] | None, recipes: str | None
) -> Any:
    from tasks import settings

    return settings.load(
        config,
        profile=profile,
        overrides=overrides or (),
        only=[name.strip() for name in recipes.split(",")] if recipes else None,
    )


def main() -> None:
    """Run the command; show what a user can cure as one line."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    quiet_libraries()
    try:
        app(arguments, prog_name="nightpress")
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _complain(
                "interrupted; what was published is kept, and the next run goes on from there"
            )
        raise
    except NightpressError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        from tasks import files

        if files.ran_out(error):
            full = files.full_disk(Path.cwd())
            _complain(str(full))
            sys.exit(full.exit_code)
        line = (str(error).splitlines() or [""])[0]
        _complain(f"unexpected {type(error).__name__}: {line} (`--debug` shows where)")
        sys.exit(1)
    finally:
        gc.freeze()  # else the interpreter spends seconds at its end on what dies with it


def _complain(message: str) -> None:
    print(f"nightpress: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
