import json
import subprocess
import sys
import urllib.request

import pandas as pd
import pytest

from tasks.quantization import dynamic
from tasks.registry import serving, store, tracking, versions
from tasks.runtime.export import export
from tasks.workspace import Workspace
from tests import tiny
from tests.registry import samples, servers, tiny_export

# a Python in which nothing but what the registered model asks for can be imported
ALONE = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"tasks", "flows", "torch", "transformers", "prefect", "dvc",
                                  "great_expectations", "onnx", "accelerate", "datasets"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict([{"text": "superb film"}]).to_dict("records")))
"""


@pytest.fixture(scope="module")
def packed(export_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "model"
    serving.save(export_folder, folder)
    return folder


@pytest.fixture(scope="module")
def model(packed):
    return serving.pyfunc().load_model(str(packed))


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame({"text": ["superb film", "awful"]}),
        [{"text": "superb film"}, {"text": "awful"}],
        {"text": ["superb film", "awful"]},
    ],
)
def test_texts_in_any_form_get_label_and_probabilities(model, given):
    answers = model.predict(given).to_dict("records")
    assert [a["label"] for a in answers] == ["positive", "negative"]
    for answer in answers:
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["probability"] == pytest.approx(1 / (1 + 2.718281828**-4), abs=1e-6)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_long_text_is_cut_and_no_text_is_no_answer(model):
    long = " ".join(["superb"] * tiny_export.MAX_LENGTH + ["awful"] * 4000)
    assert model.predict([{"text": long}])["label"].tolist() == ["positive"]
    assert model.predict(pd.DataFrame({"text": pd.Series([], dtype=str)})).empty


def test_an_int8_model_answers_many_texts_as_it_answers_each(tmp_path):
    bundle = tiny.tiny_bert()
    bundle.export = bundle.export.then(dynamic.STEP, **dynamic.Config().model_dump())
    export(bundle, tmp_path / "export")
    serving.save(tmp_path / "export", tmp_path / "model")
    model = serving.pyfunc().load_model(str(tmp_path / "model"))
    texts = tiny.examples(20).texts
    together = model.predict(pd.DataFrame({"text": texts}))["probabilities"].tolist()
    alone = [model.predict([{"text": text}])["probabilities"][0] for text in texts]
    assert together == alone


def test_wrong_column_is_refused_by_the_signature(model):
    with pytest.raises(Exception, match=r"missing inputs \['text'\]"):
        model.predict(pd.DataFrame({"body": ["superb"]}))


def test_model_asks_for_its_runtime_alone_and_holds_no_pickle(packed):
    names = {line.split("==")[0] for line in (packed / "requirements.txt").read_text().split()}
    assert names == {"mlflow", "numpy", "onnxruntime", "pandas", "tokenizers"}
    files = {path.name for path in packed.rglob("*") if path.is_file()}
    assert files >= {"model.onnx", "tokenizer.json", "serving.json", "session.py", "MLmodel"}
    assert not {f for f in files if f.endswith((".pkl", ".pickle", ".bin", ".pt"))}


def test_two_models_with_other_session_code_serve_side_by_side(
    model, export_folder, tmp_path, monkeypatch
):
    other_code = tmp_path / "session.py"
    other_code.write_text(
        serving._SESSION.read_text() + "\n_real = Session.probabilities\n"
        "Session.probabilities = lambda *given, **more: _real(*given, **more)[:, ::-1]\n"
    )
    monkeypatch.setattr(serving, "_SESSION", other_code)
    serving.save(export_folder, tmp_path / "model")
    other = serving.pyfunc().load_model(str(tmp_path / "model"))
    for loaded, label in ((model, "positive"), (other, "negative"), (model, "positive")):
        assert loaded.predict([{"text": "superb"}])["label"].tolist() == [label]


@pytest.mark.slow
def test_model_answers_where_the_project_is_not_installed(packed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(packed)],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"] == "positive"


@pytest.mark.slow
def test_champion_answers_over_http(client, workspace, name, export_folder, tmp_path):
    night = tracking.start_night(
        client, name, "2026-01-02", artifacts=store.artifact_root(workspace)
    )
    candidate = versions.register_variant(client, name, night, samples.variant(export_folder))
    versions.point(client, name, versions.copy(client, name, candidate).number)
    command = ["models", "serve", "-m", f"models:/{name}@champion", "--env-manager", "local"]
    with servers.started(command, tmp_path, "/ping", client.tracking_uri) as address:
        for question in (
            {"inputs": ["superb film", "awful"]},
            {"inputs": {"text": ["superb film", "awful"]}},
            {"instances": ["superb film", "awful"]},
            {"dataframe_split": {"columns": ["text"], "data": [["superb film"], ["awful"]]}},
        ):
            answers = _ask(f"{address}/invocations", question)["predictions"]
            assert [a["label"] for a in answers] == ["positive", "negative"]
            assert set(answers[0]["probabilities"]) == {"negative", "positive"}


@pytest.mark.slow
def test_a_server_keeps_the_same_registry(name, export_folder, tmp_path, monkeypatch):
    command = [
        "server", "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    with servers.started(command, tmp_path, "/health") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        workspace = Workspace(tmp_path / "checkout")
        client = store.open_store(workspace)
        assert store.artifact_root(workspace) is None
        for _ in range(2):
            night = tracking.start_night(client, name, "2026-01-02")
            made = versions.register_variant(client, name, night, samples.variant(export_folder))
            versions.set_challenger(client, name, made)
            copied = versions.copy(client, name, made)
            versions.point(client, name, copied.number)
            assert copied.number == 1
        assert (made.number, made.fresh) == (1, False)
        measured = samples.variant(export_folder, measured_run="2026-01-03")
        assert versions.register_variant(client, name, night, measured).number == 1
        assert len(client.search_runs([client.get_run(night).info.experiment_id])) == 3
        done = subprocess.run(
            [sys.executable, "-c", ALONE, f"models:/{name}@champion"],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["label"] == "positive"
    assert not workspace.root.exists()


def _ask(url, question):
    request = urllib.request.Request(
        url, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)
