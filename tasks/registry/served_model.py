"""The registered model itself: this file and `session.py` travel with the exported files.

MLflow runs it from a copy (models from code), in an environment without Nightpress: it imports
nothing of the project, and `session.py` needs onnxruntime, tokenizers and numpy alone.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class TextClassifier(PythonModel):  # type: ignore[misc]
    """Answers texts with a label, its probability, and the probability of every label."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the exported model that lies beside this file."""
        self.session = _session_module(Path(context.artifacts["session"])).Session(
            Path(context.artifacts["model"])
        )

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return one row per text; texts longer than the model's limit are cut off there.

        Columns: `label`, `probability` (of that label), `probabilities` (label → probability).
        """
        texts = _texts(model_input)
        names = list(self.session.labels)
        # one at a time, as the model was judged: an int8 model's answer to a text depends on what
        # shares its batch
        found = self.session.probabilities(texts, batch_size=1) if texts else []
        best = [int(row.argmax()) for row in found]
        return pd.DataFrame(
            {
                "label": [names[i] for i in best],
                "probability": [float(row[i]) for row, i in zip(found, best, strict=True)],
                "probabilities": [dict(zip(names, map(float, row), strict=True)) for row in found],
            }
        )


def _texts(model_input: pd.DataFrame) -> list[str]:
    """Return the texts; `{"text": [...]}` reaches the model as one row that holds a list."""
    texts: list[str] = []
    for cell in model_input["text"]:
        texts += [cell] if isinstance(cell, str) else list(cell)
    return texts


def _session_module(path: Path) -> Any:
    """Load `session.py` under a name of its content: two versions of it may serve side by side."""
    name = f"nightpress_session_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


set_model(TextClassifier())
