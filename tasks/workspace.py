"""Where things lie: one checkout, its data, its state."""

import os
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import SettingsError


@dataclass(frozen=True)
class Workspace:
    """The folders of one checkout. All but `root` are git-ignored."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> "Workspace":
        """Return the workspace around `start` (None: the current folder).

        Raises SettingsError where no folder above holds `dvc.yaml`.
        """
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / "dvc.yaml").is_file():
                return cls(folder)
        raise SettingsError(f"{here} is not in a Nightpress checkout (no dvc.yaml there or above)")

    @property
    def data(self) -> Path:
        """Data sets, models and checkpoints."""
        return self.root / "data"

    @property
    def checkpoints(self) -> Path:
        """A folder per published node, named by its key."""
        return self.data / "checkpoints"

    @property
    def manifests(self) -> Path:
        """A JSON file per published node, named by its key."""
        return self.data / "manifests"

    @property
    def models(self) -> Path:
        """Fetched base models."""
        return self.data / "models"

    @property
    def cache(self) -> Path:
        """What can be computed again: teacher outputs, exports, evaluations."""
        return self.state / "cache"

    @property
    def state(self) -> Path:
        """The project's own database, logs, unfinished work."""
        return self.root / ".nightpress"

    @property
    def staging(self) -> Path:
        """Where things are written before they are renamed into place."""
        return self.state / "staging"

    @property
    def mlflow(self) -> Path:
        """The embedded MLflow store."""
        return self.root / "mlflow"


def quiet_libraries() -> None:
    """Switch off telemetry and hub look-ups of the libraries; must run before their import."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        os.environ.setdefault(name, value)
