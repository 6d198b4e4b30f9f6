"""A training that was killed ends with the bits of one that was not."""

import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tasks.errors import StoreError
from tasks.training import checkpoint
from tasks.training.checkpoint import digest
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.progress import Silent
from tests import tiny
from tests.training import killed

CPU = torch.device("cpu")
TRAIN, VALIDATION = tiny.examples(64), tiny.examples(32, seed=1)
ROOT = Path(__file__).resolve().parents[2]


def _kill_at(step: int, scratch: Path, out: Path) -> int:
    """Run the training in a process, kill it once it says `step`; return its first step."""
    command = [sys.executable, "-m", "tests.training.killed", str(scratch), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(line) for line in iter(lambda: process.stdout.readline(), "")
                if int(line) < step or process.send_signal(signal.SIGKILL)]  # fmt: skip
        process.wait()
    assert process.returncode == (-signal.SIGKILL if step <= killed.NUM_STEPS else 0)
    return said[0] if said else step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights that `killed` ends with."""
    return digest(killed.weights(tmp_path_factory.mktemp("undisturbed")))


def test_a_killed_process_is_gone_on_from(undisturbed: str, tmp_path: Path) -> None:
    step = random.randrange(3, killed.NUM_STEPS - 2)
    print(f"killed at step {step}")
    assert _kill_at(step, tmp_path / "scratch", tmp_path / "weights") == 0
    assert not (tmp_path / "weights").exists()
    assert list((tmp_path / "scratch").glob("training-*.safetensors"))
    assert digest(killed.weights(tmp_path / "scratch")) == undisturbed


@pytest.mark.slow
def test_many_kills_on_the_way(undisturbed: str, tmp_path: Path) -> None:
    starts = []
    for _ in range(5):
        reached = starts[-1] if starts else 0
        if reached >= killed.NUM_STEPS - 3:
            break
        step = random.randrange(reached + 2, killed.NUM_STEPS)
        starts.append(_kill_at(step, tmp_path / "scratch", tmp_path / "weights"))
    last = _kill_at(killed.NUM_STEPS + 1, tmp_path / "scratch", tmp_path / "weights")
    assert [*starts, last] == sorted([*starts, last])
    assert last > 0
    assert digest(safetensors.torch.load_file(tmp_path / "weights")) == undisturbed


class _Fall(Exception):
    pass


class _Faller(Silent):
    """Falls at a step; counts what was done before."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.done: list[int] = []

    def advance(self, steps: int, *, loss: float | None = None, rate: float | None = None) -> None:
        self.done.append(steps)
        if sum(self.done) >= self.at:
            raise _Fall


def _prune(model: torch.nn.Module, step: int, total: int) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    model.get_parameter(name).data[step % 8] = 0


def _shrink(model: torch.nn.Module, rates: Mapping[str, float]) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    model.get_parameter(name).data.mul_(1 - rates[name])


Run = Callable[..., tuple[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train on the tiny examples in one scratch folder; return the weights' hash and the result."""

    def train(settings: dict[str, Any] | None = None, **others: Any) -> tuple[str, Any]:
        bundle = tiny.tiny_bert(others.pop("weights", 0))
        bundle.sparse = ("bert.encoder.layer.0.output.dense.weight",)
        given: dict[str, Any] = {
            "train": TRAIN,
            "validation": VALIDATION,
            "seed": 5,
            "device": CPU,
            "scratch": tmp_path / "scratch",
            "progress": Silent(),
        }
        config = {"batch_size": 16, "learning_rate": 1e-2, "epochs": 2, "checkpoint_seconds": 1e-6}
        result = fit(
            bundle,
            config=TrainingConfig.model_validate(config | (settings or {})),
            **(given | others),
        )
        return digest(bundle.model.state_dict()), result

    return train


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({}, {}),
        ({"accumulation": 3, "batch_size": 4}, {}),
        ({"precision": "bf16"}, {}),
        ({"freeze_embeddings": True}, {}),
        ({"schedule": "cosine", "layer_decay": 0.8}, {}),
        ({"schedule": "plateau", "evaluations_per_epoch": 4, "warmup": 0}, {}),
        ({"gradient_checkpointing": True}, {}),
        ({}, {"keep": "last", "after_step": _prune}),
        ({}, {"keep": "last", "after_update": _shrink}),
    ],
)
def test_every_kind_of_training_is_gone_on_from(
    settings: dict[str, Any], others: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    expected, whole = run(settings, scratch=tmp_path / "other", **others)
    with pytest.raises(_Fall):
        run(settings, progress=_Faller(6), **others)
    rest = _Faller(10**6)
    found, result = run(settings, progress=rest, **others)
    assert rest.done[0] == 5  # the checkpoint of the step before the fall
    assert found == expected
    assert result.history == whole.history
    assert result.steps == whole.steps


def test_a_finished_training_is_not_done_again(run: Run) -> None:
    expected, whole = run()
    again = _Faller(10**6)
    found, result = run(progress=again)
    assert again.done == [whole.steps]
    assert (found, result) == (expected, whole)


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"learning_rate": 2e-2}, {}),
        ({"schedule": "cosine"}, {}),
        ({"layer_decay": 0.9}, {}),
        ({}, {"seed": 6}),
        ({}, {"weights": 1}),
        ({}, {"keep": "last"}),
        ({}, {"train": TRAIN.take(np.arange(64)[::-1].copy())}),
        ({}, {"validation": replace(VALIDATION, labels=1 - VALIDATION.labels)}),
        ({}, {"train": TRAIN.with_columns(soft=np.zeros((64, 2), np.float32))}),
    ],
)
def test_a_checkpoint_of_another_training_is_left_alone(
    settings: dict[str, Any], others: dict[str, Any], run: Run
) -> None:
    with pytest.raises(_Fall):
        run(progress=_Faller(6))
    fresh = _Faller(2)
    with pytest.raises(_Fall):
        run(settings, progress=fresh, **others)
    assert fresh.done[0] == 0
    back = _Faller(6)
    with pytest.raises(_Fall):
        run(progress=back)
    assert back.done[0] == 5


def test_how_often_checkpoints_are_written_does_not_matter(run: Run) -> None:
    with pytest.raises(_Fall):
        run(progress=_Faller(6))
    rest = _Faller(10**6)
    run({"checkpoint_seconds": 500.0}, progress=rest)
    assert rest.done[0] == 5


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x80\x04garbage")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_truncate, _flip, _garbage, _empty])
def test_a_spoilt_checkpoint_is_left_alone(
    spoil: Callable[[Path], None], run: Run, tmp_path: Path
) -> None:
    expected, _ = run(scratch=tmp_path / "other")
    with pytest.raises(_Fall):
        run(progress=_Faller(6))
    (path,) = (tmp_path / "scratch").iterdir()
    spoil(path)
    rest = _Faller(10**6)
    assert run(progress=rest)[0] == expected
    assert rest.done[0] == 0


def test_what_a_kill_left_half_written_is_removed(run: Run, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "abc.part").write_bytes(b"half")
    run()
    assert [path.suffix for path in scratch.iterdir()] == [".safetensors"]


def test_a_disk_that_refuses_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(100)}
    checkpoint.write(tmp_path, "f" * 64, tensors, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            checkpoint.write(tmp_path, "f" * 64, {"a": torch.ones(10_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(tmp_path.iterdir())) == 1
    found = checkpoint.read(tmp_path, "f" * 64)
    assert found is not None
    assert found[1] == {"step": 1}
    assert torch.equal(found[0]["a"], tensors["a"])


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    tied = torch.ones(3)
    checkpoint.write(tmp_path, "0", {"a": tied, "b": tied, "c": torch.tensor(2.0)}, {})
    found = checkpoint.read(tmp_path, "0")
    assert found is not None
    assert set(found[0]) == {"a", "c"}
