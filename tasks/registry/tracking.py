"""Runs: an experiment per model, a parent run per night, a child run per variant."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.registry import plots, serving
from tasks.registry.facts import DataFacts, VariantFacts
from tasks.registry.store import talking

if TYPE_CHECKING:
    from mlflow import MlflowClient

NODE = "nightpress.node"
FINGERPRINT = "nightpress.fingerprint"
MEASURED_RUN = "nightpress.measured_run"
_NIGHT = "nightpress.night"
_KIND = "nightpress.kind"
_PARENT_MODEL = "nightpress.parent_model"
_PARENT_RUN = "mlflow.parentRunId"
_SOURCE_NAME = "mlflow.source.name"

# limits of MLflow: a batch's metrics, a parameter's and a tag's characters, a digest's characters
_BATCH = 900
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000
_DIGEST_LENGTH = 36


def start_night(
    client: "MlflowClient",
    experiment: str,
    night: str,
    *,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    artifacts: Path | None = None,
) -> str:
    """Return the id of the parent run of `night`: begun now, or the one begun before a crash.

    `artifacts` is the embedded store's folder (`store.artifact_root`). Raises ServiceError.
    """
    assert re.fullmatch(r"[\w.:+-]{1,100}", night), f"{night!r} cannot be a night's id"
    with talking(client):
        experiment_id = _experiment(client, experiment, artifacts)
        found = client.search_runs(
            [experiment_id],
            f"tags.`{_NIGHT}` = '{night}' and tags.`{_KIND}` = 'night'",
            max_results=1,
        )
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            return run_id
        run = client.create_run(
            experiment_id,
            run_name=f"night {night}",
            tags={_NIGHT: night, _KIND: "night", _SOURCE_NAME: "nightpress", **(tags or {})},
        )
        _log_batch(client, run.info.run_id, {}, params or {})
        return str(run.info.run_id)


def end_dead_nights(client: "MlflowClient", run_id: str) -> int:
    """Mark nights that were killed and never went on as such; return how many there were.

    Only for who holds the model's claim on tonight: every other night of it has ended.
    """
    with talking(client):
        experiment = client.get_run(run_id).info.experiment_id
        running = client.search_runs(
            [experiment], f"tags.`{_KIND}` = 'night' and attributes.status = 'RUNNING'"
        )
        dead = [run.info.run_id for run in running if run.info.run_id != run_id]
        for one in dead:
            client.set_terminated(one, "KILLED")
    return len(dead)


def end_night(
    client: "MlflowClient",
    run_id: str,
    *,
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED",
    metrics: Mapping[str, float] | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Log the night's figures and files (the report, say), and end its run. Raises ServiceError."""
    with talking(client):
        _log_batch(client, run_id, metrics or {}, {})
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status)


def log_variant(
    client: "MlflowClient", night_run: str, facts: VariantFacts, parent_model: str | None
) -> Any:
    """Log the variant as a child run and a LoggedModel, and return the latter, ready.

    `parent_model` is the LoggedModel id of the nearest node above that has one. What an earlier,
    killed attempt left is completed where it was whole, else replaced.
    """
    experiment_id = client.get_run(night_run).info.experiment_id
    left = _models_of(client, experiment_id, facts.node_key)
    for model in left:
        if str(model.status) == "READY":
            return model
    for model in left:
        client.delete_logged_model(model.model_id)
    for run in _runs_of(client, experiment_id, facts.node_key):
        client.delete_run(run.info.run_id)
    tags, params = _tags(facts, parent_model), _params(facts)
    run_id = _create_run(client, experiment_id, night_run, facts, tags)
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        model = client.create_logged_model(
            experiment_id,
            name=facts.recipe,
            source_run_id=run_id,
            tags=tags,
            params={key: str(value)[:_PARAM_LENGTH] for key, value in params.items()},
            model_type="text-classifier",
        )
        _log_batch(client, run_id, facts.metrics, params, model.model_id, facts.data)
        _log_data(client, run_id, facts.data)
        _log_files(client, run_id, facts, Path(folder) / "run")
        packed = Path(folder) / "model"
        serving.save(
            facts.export_folder,
            packed,
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            model_id=model.model_id,
            run_id=run_id,
            metadata={NODE: facts.node_key, "recipe": facts.recipe},
        )
        client.log_model_artifacts(model.model_id, str(packed))
    _link(client, run_id, model.model_id)
    client.set_terminated(run_id)
    # the last act: a model that is READY is one whose run is whole
    return client.finalize_logged_model(model.model_id, "READY")


def log_measurement(
    client: "MlflowClient", night_run: str, facts: VariantFacts, model_id: str
) -> None:
    """Log what a later night measured of a variant as a child run of its own, once.

    `model_id` is the variant's LoggedModel, which the run takes and does not make.
    """
    from mlflow.entities import LoggedModelInput

    experiment_id = client.get_run(night_run).info.experiment_id
    for run in _runs_of(client, experiment_id, facts.node_key, facts.measured_run):
        if run.info.status == "FINISHED":
            return
        client.delete_run(run.info.run_id)  # of one who was killed half-way
    parent_model = client.get_logged_model(model_id).tags.get(_PARENT_MODEL)
    tags = _tags(facts, parent_model)
    run_id = _create_run(client, experiment_id, night_run, facts, tags)
    _log_batch(client, run_id, facts.metrics, _params(facts), model_id, facts.data)
    _log_data(client, run_id, facts.data)
    client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    client.set_terminated(run_id)


def metric_name(name: str) -> str:
    """Return `name` with what MLflow refuses in a metric's name (a label may hold it) replaced."""
    return re.sub(r"[^\w.\- ]", "_", name)[:240]


def _experiment(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if artifacts is None else (artifacts / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # made by someone else just now
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _models_of(client: "MlflowClient", experiment_id: str, node: str) -> list[Any]:
    return list(
        client.search_logged_models([experiment_id], filter_string=f"tags.`{NODE}` = '{node}'")
    )


def _runs_of(
    client: "MlflowClient", experiment_id: str, node: str, measured_run: str | None = None
) -> list[Any]:
    """Return the node's runs; those alone that tell one night's measurement, where it is given."""
    query = f"tags.`{NODE}` = '{node}'"
    if measured_run is not None:
        query += f" and tags.`{MEASURED_RUN}` = '{measured_run}'"
    return list(client.search_runs([experiment_id], query))


def _create_run(
    client: "MlflowClient",
    experiment_id: str,
    night_run: str,
    facts: VariantFacts,
    tags: Mapping[str, str],
) -> str:
    run = client.create_run(
        experiment_id, run_name=facts.recipe, tags={**tags, _PARENT_RUN: night_run}
    )
    return str(run.info.run_id)


def _tags(facts: VariantFacts, parent_model: str | None) -> dict[str, str]:
    tags = {
        NODE: facts.node_key,
        _KIND: "variant",
        _SOURCE_NAME: "nightpress",
        "nightpress.recipe": facts.recipe,
        "nightpress.parent": facts.ancestors[0] if facts.ancestors else "",
        _PARENT_MODEL: parent_model or "",
        "nightpress.data": facts.data.md5,
        FINGERPRINT: facts.fingerprint,
        MEASURED_RUN: facts.measured_run,
    }
    return {key: value[:_TAG_LENGTH] for key, value in tags.items() if value}


def _params(facts: VariantFacts) -> dict[str, Any]:
    """Return the steps' settings, one parameter each: `1.pruning.structured.heads`."""
    params: dict[str, Any] = {"recipe": facts.recipe, "seconds": round(facts.seconds, 1)}
    for index, (technique, settings) in enumerate(facts.steps, start=1):
        params[f"step.{index}"] = technique
        for name, value in _flat(settings):
            params[f"{index}.{technique}.{name}"] = value
    return params


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", value))
    return flat


def _log_batch(
    client: "MlflowClient",
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    model_id: str | None = None,
    data: DataFacts | None = None,
) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    about = {} if data is None else {"dataset_name": data.name, "dataset_digest": _digest(data)}
    rows = [
        Metric(metric_name(name), float(value), now, 0, model_id=model_id, **about)
        for name, value in metrics.items()
    ]
    settings = [Param(metric_name(k), str(v)[:_PARAM_LENGTH]) for k, v in params.items()]
    for start in range(0, len(rows), _BATCH):
        client.log_batch(run_id, metrics=rows[start : start + _BATCH])
    for start in range(0, len(settings), 100):
        client.log_batch(run_id, params=settings[start : start + 100])


def _log_data(client: "MlflowClient", run_id: str, data: DataFacts) -> None:
    """Log the data set with its DVC hash: MLflow's own digest would read 10,000 rows at most."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=data.name,
        digest=_digest(data),
        source_type="dvc",
        source=json.dumps({"md5": data.md5}),
        profile=json.dumps({"rows": dict(data.rows)}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "test")])])


def _digest(data: DataFacts) -> str:
    return data.md5[:_DIGEST_LENGTH]


def _log_files(client: "MlflowClient", run_id: str, facts: VariantFacts, folder: Path) -> None:
    folder.mkdir()
    manifest = json.dumps(facts.manifest, indent=1, sort_keys=True, default=str)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    picture = plots.confusion(facts.labels, facts.confusion, title=f"{facts.recipe}: test answers")
    (folder / "confusion.svg").write_text(picture, encoding="utf-8")
    (folder / f"predictions{facts.predictions.suffix}").symlink_to(facts.predictions.resolve())
    client.log_artifacts(run_id, str(folder))


def _link(client: "MlflowClient", run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
