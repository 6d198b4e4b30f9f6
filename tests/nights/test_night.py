"""One real night on a tiny model: servers, DVC, MLflow and ONNX Runtime are the real ones."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import files, versioning
from tests import tiny, workspaces

pytestmark = pytest.mark.slow


def facts(root: Path) -> dict[str, object]:
    done = workspaces.nightpress(root, "report", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def events(root: Path, event: str) -> list[str]:
    with sqlite3.connect(root / ".nightpress" / "nightpress.db") as connection:
        rows = connection.execute("select key from journal where event = ?", (event,))
        return [key for (key,) in rows]


def tracked(root: Path, query: str) -> list[str]:
    """The first column of what MLflow's database answers."""
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as connection:
        return [row[0] for row in connection.execute(query)]


def test_ends_with_a_champion_and_every_variant_registered(night: Path) -> None:
    told = facts(night)
    assert told["champion_after"] is not None
    variants = {row["recipe"]: row for row in told["variants"]}  # type: ignore[attr-defined]
    assert set(variants) == set(workspaces.QUICK["recipes"])  # type: ignore[call-overload]
    assert all(row["version"] for row in variants.values())
    for row in variants.values():
        assert 0 <= row["distance"] <= 1
        assert 0 < row["mcnemar_p"] <= 1
        assert row["figures"]["noise"] >= 0
    metrics = tracked(night, "select distinct key from latest_metrics")
    assert {"test.agreement_distance", "test.mcnemar_p", "latency.noise"} <= set(metrics)
    assert (night / "report.html").stat().st_size > 5_000


def test_the_champion_answers(night: Path) -> None:
    done = workspaces.nightpress(night, "predict", "--json", "a superb film", "a dull plot")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["text"] for answer in answers] == ["a superb film", "a dull plot"]
    assert all(answer["label"] in tiny.LABELS for answer in answers)
    assert all(0.5 <= answer["probability"] <= 1 for answer in answers)


def test_an_unchanged_night_presses_and_registers_nothing(night: Path) -> None:
    pressed = events(night, "published")
    before, runs = facts(night), tracked(night, "select run_uuid from runs")
    done = workspaces.nightpress(night, "run", "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert events(night, "published") == pressed
    assert {node["status"] for node in after["nodes"]} == {"cached"}
    assert [v["version"] for v in after["variants"]] == [v["version"] for v in before["variants"]]  # type: ignore[attr-defined]
    assert after["champion_after"] == before["champion_after"]
    assert len(tracked(night, "select run_uuid from runs")) == len(runs) + 1  # the night itself


def test_a_night_whose_checkpoints_lie_in_dvc_alone_presses_nothing(
    night: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(night, root)
    shutil.rmtree(root / "data" / "checkpoints")
    done = workspaces.nightpress(root, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert events(root, "published") == events(night, "published")
    told = json.loads(done.stdout)
    assert {node["status"] for node in told["nodes"]} == {"cached"}
    assert told["eager"]["size_bytes"] == facts(night)["eager"]["size_bytes"]  # type: ignore[index]


def test_two_workers_press_the_same_tree(night: Path, tmp_path: Path) -> None:
    root = workspaces.make(tmp_path / "checkout")
    done = workspaces.nightpress(root, "run", "--json", "-S", "workers=2")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {node["status"] for node in told["nodes"]} == {"pressed"}
    assert {n["key"] for n in told["nodes"]} == {n["key"] for n in facts(night)["nodes"]}  # type: ignore[attr-defined]
    assert sorted(events(root, "published")) == sorted(n["key"] for n in told["nodes"])


def test_what_loses_too_much_is_explained_layer_by_layer_once(night: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(night, root)
    for _ in range(2):
        done = workspaces.nightpress(root, "run", "--json", "-S", "gates.max_loss_points=-101")
        assert done.returncode == 0, done.stderr
        variants = {row["recipe"]: row for row in json.loads(done.stdout)["variants"]}
        assert {row["verdict"] for row in variants.values()} == {"rejected"}
        assert all(row["proof"] for row in variants.values())
        parts = {
            name: {(one["part"], one["way"]) for one in row["undoing"]["parts"]}
            for name, row in variants.items()
        }
        assert ("layer 1", "float") in parts["int8"]
        assert "not put back: layer 0, layer 1" in variants["short"]["undoing"]["notes"][0]
        assert len(list((root / ".nightpress/cache/undoings").iterdir())) == 3
    assert "one part undone at a time" in (root / "report.html").read_text()


def test_plan_shows_all_cached(night: Path) -> None:
    done = workspaces.nightpress(night, "plan", "--json")
    assert done.returncode == 0, done.stderr
    assert all(node["cached"] for node in json.loads(done.stdout))


def test_doctor_finds_all_well(night: Path) -> None:
    done = workspaces.nightpress(night, "doctor", "--json")
    wrong = [f for f in json.loads(done.stdout) if not f["well"] and f["check"] != "packages"]
    assert wrong == []


def test_a_tampered_checkpoint_is_named_and_nothing_else_touched(
    night: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(night, root)
    manifests = [json.loads(p.read_text()) for p in (root / "data/manifests").glob("*.json")]
    parent = next(m for m in manifests if m["technique"] == "baseline")
    weights = root / "data/checkpoints" / parent["key"] / "model.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    done = workspaces.nightpress(
        root, "run", "-S", "recipes.new=[{structure.layer_drop: {keep: 1}}]"
    )
    assert done.returncode == 9  # the new variant failed; the others stand
    told = facts(root)
    reason = next(v for v in told["variants"] if v["recipe"] == "new")["reasons"][0]  # type: ignore[attr-defined]
    assert "model.safetensors was changed since it was published" in reason
    assert "Traceback" not in done.stderr


def test_any_checkpoint_and_the_data_come_back_from_a_remote(night: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(night, root)
    remote = tmp_path / "remote"
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "add", "-d", "local", str(remote)],
        cwd=root, check=True, capture_output=True, env=workspaces.environment(),
    )  # fmt: skip
    manifests = [json.loads(p.read_text()) for p in (root / "data/manifests").glob("*.json")]
    wanted = {
        f"checkpoint {m['key']}": (m["pointer"], root / "data/checkpoints" / m["key"])
        for m in manifests
    }
    prepared = manifests[0]["data"]["prepared"]
    folder = root / "data/versions" / prepared["md5"].removesuffix(".dir")
    wanted["data"] = (prepared, folder)
    before = {name: files.content(path) for name, (_, path) in wanted.items()}
    pointers = [versioning.Pointer.from_dict(p) for p, _ in wanted.values()]
    assert versioning.push(root, pointers)
    shutil.rmtree(root / ".dvc" / "cache")
    for _, path in wanted.values():
        shutil.rmtree(path)
    for (_, path), pointer in zip(wanted.values(), pointers, strict=True):
        versioning.restore(root, pointer, path)
    assert {name: files.content(path) for name, (_, path) in wanted.items()} == before
