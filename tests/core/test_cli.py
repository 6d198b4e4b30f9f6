"""The command answers at once where it need not compute."""

import subprocess
import sys

HELP = """
import sys
from flows.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
print(*sys.modules)
"""
SLOW = {
    "dvc", "great_expectations", "mlflow", "onnxruntime", "pandas", "prefect", "torch",
    "transformers",
}  # fmt: skip


def test_help_loads_nothing_that_takes_seconds() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "Exit codes" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert loaded & SLOW == set()
