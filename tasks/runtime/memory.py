"""Peak memory of a served model: of a process that does nothing but load it and answer."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import ExportError

_LIMIT_SECONDS = 300
_SESSION = Path(__file__).with_name("session.py")
_SERVE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("session", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
told = json.load(sys.stdin)
module.Session(sys.argv[2], told["threads"]).probabilities(told["texts"], len(told["texts"]))
# not getrusage: its peak survives exec, so it would be that of the process that started this one
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def peak_memory_mb(folder: Path, threads: int, texts: Sequence[str]) -> float:
    """Return the peak resident memory, in MB, of loading the export and answering `texts` at once.

    Raises ExportError where it does not answer, or not in five minutes.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _SERVE, str(_SESSION), str(folder)],
            input=json.dumps({"threads": threads, "texts": list(texts)}),
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"the export in {folder} does not answer {len(texts)} texts in {_LIMIT_SECONDS} "
            "seconds in a process of its own: free the machine, or lower `evaluation.batch_size`"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"the export in {folder} does not answer in a process of its own: {last}")
    return int(done.stdout) / 1024
