import errno
import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import tasks.data
from tasks import files, versioning
from tasks.data import pipeline, prepared, stage
from tasks.data.config import PrepareConfig, SourceConfig
from tasks.errors import ServiceError, SourceError, StoreError
from tasks.workspace import Workspace
from tests.data import checkouts
from tests.data.checkouts import sentences, write_csv

HEADER = ("text", "label")
SOURCE = SourceConfig(address="reviews.csv", label="label")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = checkouts.make(tmp_path / "root")
    write_csv(made.root / "reviews.csv", sentences(200), HEADER)
    return made


def reproduce(workspace: Workspace, source: SourceConfig = SOURCE) -> pipeline.PreparedData:
    return pipeline.reproduce(workspace, "films", source, PrepareConfig())


def test_a_local_file_is_prepared_once_and_again_when_it_changes(workspace: Workspace) -> None:
    first = reproduce(workspace)
    assert first.labels == ("bad", "good")
    assert sum(first.rows.values()) == 200
    assert first.sources["main"]["sha256"] == files.sha256(workspace.root / "reviews.csv")
    assert first.pointer.md5 == f"{first.folder.name}.dir"
    assert versioning.verify(workspace.root, first.pointer, first.folder)

    began = time.monotonic()
    assert reproduce(workspace) == first
    assert time.monotonic() - began < 3

    write_csv(workspace.root / "reviews.csv", sentences(210), HEADER)
    second = reproduce(workspace)
    assert sum(second.rows.values()) == 210
    assert second.pointer != first.pointer
    # a night that still works on the first keeps it
    assert sum(prepared.facts(first.folder)["rows"].values()) == 200


def test_yesterdays_data_comes_back_from_its_pointer(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / ".dvc" / "config").write_text(
        f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n"
    )
    made = reproduce(workspace)
    before = files.content(made.folder)
    assert versioning.push(workspace.root, [made.raw_pointer, made.pointer])
    shutil.rmtree(made.folder)
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    assert files.content(pipeline.materialize(workspace, made.pointer)) == before
    (made.folder / "facts.json").write_text("{}")
    assert files.content(pipeline.materialize(workspace, made.pointer)) == before
    versioning.restore(workspace.root, made.raw_pointer, tmp_path / "raw")
    assert (tmp_path / "raw" / "main.csv").read_bytes() == (
        workspace.root / "reviews.csv"
    ).read_bytes()


def test_the_stage_s_own_error_arrives_in_one_line(workspace: Workspace) -> None:
    (workspace.root / "reviews.csv").write_bytes(b"text,label\na,\xff\n")
    with pytest.raises(SourceError, match=r"reviews\.csv:2: byte 0xff") as caught:
        reproduce(workspace)
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"does not exist; did you mean `reviews\.csv`\?"):
        reproduce(workspace, SourceConfig(address="review.csv", label="label"))
    with pytest.raises(SourceError, match="is a folder"):
        reproduce(workspace, SourceConfig(address=".", label="label"))
    write_csv(workspace.root / "reviews.csv", sentences(200), HEADER)
    assert sum(reproduce(workspace).rows.values()) == 200


def test_a_stage_that_breaks_unforeseen_is_a_service_error(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    made = reproduce(workspace)
    home = next((workspace.data / "sets").iterdir())
    (workspace.root / "reviews.csv").write_text("text,label\nx,y\n")
    text = (home / "dvc.yaml").read_text().replace("tasks.data.fetch ", "tasks.data.no_such ")
    broken = pipeline._Pipeline(home, home)
    (home / "dvc.yaml").write_text(text)
    with pytest.raises(ServiceError, match=r"dvc repro -v data/sets/films-"):
        pipeline._run(workspace, broken)
    assert "no_such" in capfd.readouterr().err
    assert made.folder.is_dir()


def test_two_settings_have_two_pipelines(workspace: Workspace) -> None:
    one = reproduce(workspace)
    other = reproduce(workspace, SOURCE.model_copy(update={"label_map": {"bad": "awful"}}))
    assert other.labels == ("awful", "good")
    assert len(list((workspace.data / "sets").iterdir())) == 2
    assert reproduce(workspace) == one


def test_names_with_dvc_s_own_signs_in_them(workspace: Workspace) -> None:
    odd = workspace.root / "my ${reviews}: é #1.csv"
    shutil.copy(workspace.root / "reviews.csv", odd)
    made = reproduce(workspace, SourceConfig(address=odd.name, label="label"))
    assert sum(made.rows.values()) == 200


def test_the_checkouts_own_pipeline_serves_its_own_settings(workspace: Workspace) -> None:
    package = Path(tasks.data.__file__).parent.parent
    shutil.copytree(package, workspace.root / "tasks")
    shutil.copy(package.parent / "dvc.yaml", workspace.root / "dvc.yaml")
    archive = workspace.root / "downloads.zip"
    import zipfile

    with zipfile.ZipFile(archive, "w") as file:
        file.write(workspace.root / "reviews.csv", "top/reviews.csv")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (workspace.data / "downloads" / digest).mkdir(parents=True)
    archive.rename(workspace.data / "downloads" / digest / "reviews-1.0.zip")
    source = SourceConfig(address=f"pypi://reviews==1.0/reviews.csv#sha256={digest}", label="label")
    sections = {"source": source.model_dump(mode="json"), "prepare": {"train": 0.6}}
    (workspace.root / "params.yaml").write_text(json.dumps(sections))
    made = reproduce(workspace, source)
    assert (workspace.root / "dvc.lock").is_file()
    assert not (workspace.data / "sets").exists()
    assert files.content(workspace.data / "prepared") == files.content(made.folder)
    assert not (workspace.data / ".gitignore").exists()


def test_the_written_pipeline_names_the_same_code_as_the_checkouts_own() -> None:
    from ruamel.yaml import YAML

    root = Path(tasks.data.__file__).parent.parent.parent
    own = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    for name, modules in pipeline._CODE.items():
        deps = {dep for dep in own[name]["deps"] if dep.endswith(".py")}
        assert deps == {f"tasks/data/{module}.py" for module in modules}


def test_locks_of_the_dead_are_cleared_and_those_of_the_living_kept(tmp_path: Path) -> None:
    rwlock = tmp_path / "rwlock"

    def stands(pid: int, age: float = 0) -> bool:
        rwlock.write_text(json.dumps({"write": {"/x": {"pid": pid, "cmd": "repro"}}, "read": {}}))
        os.utime(rwlock, (time.time() - age, time.time() - age))
        pipeline._clear_stale(rwlock)
        return rwlock.exists()

    assert not stands(2**22 + 1)  # no such process
    assert not stands(os.getpid())  # ours, of an earlier attempt
    assert stands(1)
    assert not stands(os.getppid(), age=10**9)  # the number is another's by now
    rwlock.write_text('{"write": {"/x"')
    pipeline._clear_stale(rwlock)
    assert not rwlock.exists()


def test_the_stages_start_without_what_takes_seconds(workspace: Workspace) -> None:
    code = (
        "import sys, tasks.data.fetch, tasks.data.prepare\n"
        "slow = {'torch', 'pandas', 'datasets', 'dvc', 'huggingface_hub', 'unearth', 'pyarrow'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    out, err = checkouts.python(workspace.root, code).communicate()
    assert out == "[]\n", err


def test_two_nights_at_once_wait_for_each_other(workspace: Workspace) -> None:
    other = _REPRODUCE.replace('label="label"', 'label="label", label_map={"bad": "awful"}')
    processes = [checkouts.python(workspace.root, code) for code in (_REPRODUCE, other)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(list((workspace.data / "versions").iterdir())) == 2


def test_a_full_disk_is_told_as_such(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dvc.output.Output.commit", full)
    with pytest.raises(StoreError, match="no space left at"):
        reproduce(workspace)
    monkeypatch.undo()
    assert sum(reproduce(workspace).rows.values()) == 200


_REPRODUCE = """
from pathlib import Path
from tasks.data import pipeline
from tasks.data.config import PrepareConfig, SourceConfig
from tasks.workspace import Workspace
source = SourceConfig(address="reviews.csv", label="label")
print("begun", flush=True)
pipeline.reproduce(Workspace(Path.cwd()), "films", source, PrepareConfig())
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_undisturbed(workspace: Workspace) -> None:
    write_csv(workspace.root / "reviews.csv", sentences(20_000), HEADER)
    undisturbed = checkouts.make(workspace.root.parent / "other")
    shutil.copy(workspace.root / "reviews.csv", undisturbed.root / "reviews.csv")
    wanted = reproduce(undisturbed)
    chance = random.Random(13)
    for _ in range(8):
        process = checkouts.python(workspace.root, _REPRODUCE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.2, 3.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    made = reproduce(workspace)
    assert made.pointer == wanted.pointer
    assert made.raw_pointer == wanted.raw_pointer
    assert files.content(made.folder) == files.content(wanted.folder)
    leftovers = [p.name for p in (workspace.data / "sets").glob("*/.*") if p.is_dir()]
    assert leftovers == []
    for path in (workspace.root / ".dvc" / "cache" / "files" / "md5").rglob("*"):
        if path.is_file():  # nothing half-written under a whole object's name
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            assert path.name.removesuffix(".dir") == digest[2:]


def test_a_stage_ends_with_the_process_that_waits_for_it(workspace: Workspace) -> None:
    code = (
        "import os, time\n"
        "from tasks.data import stage\n"
        "def work(*_):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "stage.main(work)\n"
    )
    starter = (
        "import os, subprocess, sys\n"
        "open('params.yaml', 'w').write('source: {address: a.csv, label: label}')\n"
        f"os.environ[{stage.PARENT!r}] = str(os.getpid())\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}]).wait()\n"
    )
    process = checkouts.python(workspace.root, starter)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
