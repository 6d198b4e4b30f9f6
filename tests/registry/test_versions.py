import dataclasses
import json
import shutil
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from tasks.errors import ServiceError
from tasks.registry import store, tracking, versions
from tests.registry import samples

CHANGING = (
    "create_run", "log_batch", "log_inputs", "log_artifacts", "create_logged_model", "log_outputs",
    "log_model_artifacts", "finalize_logged_model", "set_terminated", "create_registered_model",
    "create_model_version", "set_registered_model_alias", "set_model_version_tag", "delete_run",
    "delete_logged_model",
)  # fmt: skip


class Killed(BaseException):
    """What a SIGKILL is to the code: nothing after it runs."""


class DyingClient:
    """The client, until its call number `last` of those that change something has been done."""

    def __init__(self, client, last):
        self.client, self.last, self.calls = client, last, 0

    def __getattr__(self, name):
        real = getattr(self.client, name)
        if name not in CHANGING:
            return real

        def call(*args, **kwargs):
            self.calls += 1
            try:
                return real(*args, **kwargs)
            finally:
                if self.calls == self.last:
                    raise Killed

        return call


@pytest.fixture
def night(client, workspace, name):
    return tracking.start_night(
        client, name, "2026-01-02", params={"seed": 13}, artifacts=store.artifact_root(workspace)
    )


def held(client, model):
    return client.search_model_versions(f"name = '{model}'")


def test_night_begun_again_is_the_same_run(client, workspace, night, name):
    tracking.end_night(client, night, status="KILLED")
    again = tracking.start_night(client, name, "2026-01-02")
    assert again == night
    assert client.get_run(night).info.status == "RUNNING"
    other = tracking.start_night(client, name, "2026-01-03")
    assert other != night
    report = workspace.root / "report.html"
    report.write_text("<p>")
    tracking.end_night(client, night, metrics={"overhead": 0.05}, files=[report])
    run = client.get_run(night)
    assert (run.info.status, run.data.metrics["overhead"]) == ("FINISHED", 0.05)
    assert [f.path for f in client.list_artifacts(night)] == ["report.html"]


def test_variant_is_one_version_with_all_its_facts(client, night, name, export_folder):
    facts = samples.variant(export_folder)
    made = versions.register_variant(client, name, night, facts)
    assert (made.model, made.number, made.fresh) == (f"{name}-candidates", 1, True)
    assert made.node == facts.node_key
    assert made.tags[versions.VERDICT] == "rejected"
    assert json.loads(made.tags[versions.REASONS]) == list(facts.reasons)
    run = client.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == night
    assert run.data.params["1.pruning.magnitude.training.epochs"] == "2"
    assert run.data.metrics["test.recall.5_ _ up"] == 0.8
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == facts.data.md5
    files = {f.path for f in client.list_artifacts(made.run_id)}
    assert files == {"manifest.json", "confusion.svg", "predictions.parquet"}
    model = client.get_logged_model(made.model_id)
    assert str(model.status) == "READY"
    assert model.tags["nightpress.parent"] == facts.ancestors[0]
    assert {m.key: m.value for m in model.metrics}["latency.p50_ms"] == 1.25


def test_registering_again_only_brings_the_verdict_up_to_date(client, night, name, export_folder):
    facts = samples.variant(export_folder)
    first = versions.register_variant(client, name, night, facts)
    better = dataclasses.replace(facts, passed=True, reasons=())
    again = versions.register_variant(client, name, night, better)
    assert (again.number, again.run_id, again.fresh) == (first.number, first.run_id, False)
    (only,) = held(client, first.model)
    assert only.tags[versions.VERDICT] == "passed"
    assert json.loads(only.tags[versions.REASONS]) == []


def measured_anew(facts, night="2026-01-05"):
    """The same node, timed on another machine on a later night."""
    return dataclasses.replace(
        facts,
        measured_run=night,
        fingerprint="beef",
        metrics={**facts.metrics, "latency.p50_ms": 0.75},
        seconds=99.0,
    )


def runs_of(client, night, facts):
    experiment = client.get_run(night).info.experiment_id
    return client.search_runs([experiment], f"tags.`{tracking.NODE}` = '{facts.node_key}'")


def test_what_a_later_night_measures_is_a_run_of_that_night(client, night, name, export_folder):
    facts = samples.variant(export_folder)
    first = versions.register_variant(client, name, night, facts)
    later = tracking.start_night(client, name, "2026-01-05")
    again = versions.register_variant(client, name, later, measured_anew(facts))
    assert (again.number, again.run_id, again.model_id) == (1, first.run_id, first.model_id)
    assert len(held(client, first.model)) == 1
    (run,) = [run for run in runs_of(client, night, facts) if run.info.run_id != first.run_id]
    run = client.get_run(run.info.run_id)  # a search does not tell its models
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == later
    assert run.data.metrics == {**client.get_run(first.run_id).data.metrics, "latency.p50_ms": 0.75}
    assert run.data.params["seconds"] == "99.0"
    assert run.inputs.dataset_inputs[0].dataset.digest == facts.data.md5
    assert [model.model_id for model in run.inputs.model_inputs] == [first.model_id]
    times = {m.run_id: m.value for m in client.get_logged_model(first.model_id).metrics
             if m.key == "latency.p50_ms"}  # fmt: skip
    assert times == {first.run_id: 1.25, run.info.run_id: 0.75}
    tags = versions.find(client, first.model, facts.node_key).tags
    assert tags == again.tags
    assert (tags[tracking.FINGERPRINT], tags[tracking.MEASURED_RUN]) == ("beef", "2026-01-05")
    assert client.get_run(first.run_id).data.tags[tracking.MEASURED_RUN] == "2026-01-02"


def test_a_night_that_measures_nothing_anew_logs_no_run(client, night, name, export_folder):
    facts = samples.variant(export_folder)
    versions.register_variant(client, name, night, facts)
    later = tracking.start_night(client, name, "2026-01-05")
    counter = DyingClient(client, 0)
    versions.register_variant(counter, name, later, facts)
    assert counter.calls == 0
    versions.register_variant(client, name, later, measured_anew(facts))
    # the recipes of the first night again, so its measurement: the tags go back, it is known
    last = tracking.start_night(client, name, "2026-01-06")
    back = versions.register_variant(client, name, last, facts)
    assert back.tags[tracking.MEASURED_RUN] == "2026-01-02"
    assert versions.find(client, back.model, facts.node_key).tags == back.tags
    assert len(runs_of(client, night, facts)) == 2


def test_death_while_a_later_measurement_is_told_leaves_one_run(client, night, name, export_folder):
    facts = samples.variant(export_folder)
    made = versions.register_variant(client, name, night, facts)
    counter = DyingClient(client, 0)
    versions.register_variant(counter, name, night, measured_anew(facts))
    assert counter.calls >= 7
    for last in range(1, counter.calls + 1):
        measured = measured_anew(facts, f"dies-{last}")
        measured = dataclasses.replace(measured, fingerprint=f"machine-{last}")
        with pytest.raises(Killed):
            versions.register_variant(DyingClient(client, last), name, night, measured)
        again = versions.register_variant(client, name, night, measured)
        assert again.number == made.number
        assert versions.find(client, made.model, facts.node_key).tags == again.tags
        (run,) = [
            run for run in runs_of(client, night, facts)
            if run.data.tags[tracking.MEASURED_RUN] == measured.measured_run
        ]  # fmt: skip
        assert run.info.status == "FINISHED"
        assert run.data.metrics["latency.p50_ms"] == 0.75
        taken = client.get_run(run.info.run_id).inputs.model_inputs
        assert [model.model_id for model in taken] == [made.model_id]


def test_model_is_linked_to_the_nearest_registered_one_above(client, night, name, export_folder):
    above = versions.register_variant(client, name, night, samples.variant(export_folder, "above"))
    below = versions.register_variant(
        client,
        name,
        night,
        samples.variant(
            export_folder, "below", ancestors=(samples.key("x"), above.node, samples.BASELINE)
        ),
    )
    linked = client.get_logged_model(below.model_id)
    assert linked.tags["nightpress.parent_model"] == above.model_id
    assert linked.tags["nightpress.parent"] == samples.key("x")


def test_death_at_any_point_leaves_one_version(client, night, name, export_folder):
    facts = samples.variant(export_folder, "counted")
    counter = DyingClient(client, 0)
    versions.register_variant(counter, name, night, facts)
    assert counter.calls >= 9
    for last in range(1, counter.calls + 1):
        facts = samples.variant(export_folder, f"dies-{last}")
        dying = DyingClient(client, last)
        with pytest.raises(Killed):
            versions.register_variant(dying, name, night, facts)
        made = versions.register_variant(client, name, night, facts)
        again = versions.register_variant(client, name, night, facts)
        assert (again.number, again.fresh) == (made.number, False)
        found = [v for v in held(client, made.model) if v.tags[tracking.NODE] == facts.node_key]
        assert len(found) == 1
        experiment = client.get_run(night).info.experiment_id
        query = f"tags.`{tracking.NODE}` = '{facts.node_key}'"
        (run,) = client.search_runs([experiment], query)
        (model,) = client.search_logged_models([experiment], filter_string=query)
        assert (run.info.run_id, run.info.status) == (made.run_id, "FINISHED")
        assert (model.model_id, str(model.status)) == (made.model_id, "READY")
        assert model.source_run_id == made.run_id


def test_of_two_who_register_one_node_the_first_stands(client, night, name, export_folder):
    first = versions.register_variant(client, name, night, samples.variant(export_folder))
    row = client.get_model_version(first.model, "1")
    second = versions._create(
        client, first.model, source=row.source, run_id=row.run_id, tags=dict(row.tags)
    )
    assert (second.number, second.fresh) == (1, False)
    assert len(held(client, first.model)) == 1


def test_a_candidate_is_copied_once(client, night, name, export_folder):
    one = versions.register_variant(client, name, night, samples.variant(export_folder, "one"))
    two = versions.register_variant(client, name, night, samples.variant(export_folder, "two"))
    for candidate, number in ((one, 1), (two, 2), (two, 2), (one, 1)):
        copied = versions.copy(client, name, candidate)
        assert (copied.model, copied.number, copied.node) == (name, number, candidate.node)
        assert copied.tags[versions.CANDIDATE] == str(candidate.number)
        assert copied.model_id == candidate.model_id
    assert len(held(client, name)) == 2
    assert versions.champion(client, name) is None


def test_the_alias_comes_and_goes(client, night, name, export_folder):
    candidate = versions.register_variant(client, name, night, samples.variant(export_folder))
    versions.point(client, name, versions.copy(client, name, candidate).number)
    assert versions.champion(client, name).node == candidate.node
    versions.point(client, name, None)
    assert versions.champion(client, name) is None


def test_a_copy_cut_short_is_completed(client, night, name, export_folder):
    candidate = versions.register_variant(client, name, night, samples.variant(export_folder))
    counter = DyingClient(client, 0)
    versions.copy(counter, f"{name}-counted", candidate)
    assert counter.calls == 2
    for last in range(1, counter.calls + 1):
        with pytest.raises(Killed):
            versions.copy(DyingClient(client, last), f"{name}-{last}", candidate)
        versions.copy(client, f"{name}-{last}", candidate)
        assert len(held(client, f"{name}-{last}")) == 1


def test_challenger_comes_and_goes(client, night, name, export_folder):
    candidate = versions.register_variant(client, name, night, samples.variant(export_folder))
    assert versions.challenger(client, name) is None
    for _ in range(2):
        versions.set_challenger(client, name, candidate)
        assert versions.challenger(client, name).number == candidate.number
    for _ in range(2):
        versions.set_challenger(client, name, None)
        assert versions.challenger(client, name) is None


def test_long_reasons_are_cut_and_say_so():
    tags = versions.verdict_tags(False, [f"gate {i}: " + "x" * 300 for i in range(40)])
    kept = json.loads(tags[versions.REASONS])
    assert len(tags[versions.REASONS]) <= 5000
    assert kept[0].startswith("gate 0: ")
    assert kept[-1] == f"… {40 - (len(kept) - 1)} more"


def test_promoted_model_loads_from_its_own_store_until_its_files_are_gone(
    client, night, name, export_folder
):
    candidate = versions.register_variant(client, name, night, samples.variant(export_folder))
    champion = versions.copy(client, name, candidate)
    answers = versions.load(client, champion).predict([{"text": "awful film"}])
    assert answers["label"].tolist() == ["negative"]
    address = client.get_model_version_download_uri(name, "1")
    shutil.rmtree(url2pathname(urlsplit(address).path))
    with pytest.raises(ServiceError, match=f"models:/{name}/1"):
        versions.load(client, champion)
