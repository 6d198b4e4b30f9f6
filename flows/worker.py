"""A process that presses nodes beside others: it ends with the night, and has a GPU to itself."""

import os
import socket

from tasks import claims, press
from tasks.processes import die_with_parent
from tasks.workspace import Workspace

_DAY_SECONDS = 86_400.0


def begin(workspace: Workspace, parent: int) -> None:
    """Get this process ready; `parent` is the night's process number."""
    die_with_parent(parent)
    import torch

    if torch.cuda.is_available():
        os.environ[press.GPU_VARIABLE] = str(take_gpu(workspace, torch.cuda.device_count()))


def take_gpu(workspace: Workspace, count: int) -> int:
    """Return the index of a GPU that no other process of this machine has taken, else 0.

    It is free again when this process has ended.
    """
    host = socket.gethostname()
    for index in range(count):
        if claims.take(workspace, f"gpu:{host}:{index}", lease=_DAY_SECONDS) is not None:
            return index
    return 0
