"""The nightpress command.

Exit codes: 0 done; 1 unexpected; 2 settings or usage; 3 a source cannot be read; 4 the validation
gate stopped the night; 5 a technique failed; 6 a checkpoint or the store; 7 export; 8 a server;
9 the night ended, but a variant failed; 130 interrupted.
"""

import gc
import sys
from pathlib import Path
from typing import Annotated, Any

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
    as_json: AsJson = False,
) -> None:
    """Check versions, settings, servers, stores and claims; exit 1 where something is wrong.

    Example: nightpress doctor --fix
    """
    from flows.examination import examine

    raise typer.Exit(examine(config, fix=fix, as_json=as_json))


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
