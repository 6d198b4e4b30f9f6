"""Packs an exported model into an MLflow model that answers text, wherever it is loaded."""

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

SERVED_WITH = ("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
"""All that an environment needs to serve a registered model."""

_EXAMPLE = {"text": "A gripping, beautifully acted film."}
_CODE = Path(__file__).with_name("served_model.py")
_SESSION = Path(__file__).parents[1] / "runtime" / "session.py"


def save(export_folder: Path, destination: Path, **identity: Any) -> None:
    """Write the MLflow model of `export_folder` into the new folder `destination`.

    `identity` is what MLflow's `Model` is told: `model_id`, `run_id`, `metadata`, …. Nothing is
    loaded or asked here: what is served was measured and judged before.
    """
    from mlflow.models import Model

    pyfunc().save_model(
        path=str(destination),
        python_model=str(_CODE),
        artifacts={"model": str(export_folder), "session": str(_SESSION)},
        mlflow_model=Model(**identity),
        signature=signature(),
        input_example=_EXAMPLE,
        pip_requirements=requirements(),
    )


def pyfunc() -> Any:
    """Return `mlflow.pyfunc`, imported without the warnings that it gives about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Any type hint is inferred", UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


def requirements() -> list[str]:
    """Return the pinned packages that the registered model asks for."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in SERVED_WITH]


def signature() -> Any:
    """Return text → label, probability, probabilities."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "text")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
    )
