"""The machine that figures belong to, and the memory that a served model takes."""

import json
import time
from pathlib import Path

import pytest
from transformers import BertConfig

from tasks.errors import ExportError
from tasks.runtime import memory
from tasks.runtime.export import export
from tasks.runtime.fingerprint import fingerprint, machine
from tasks.runtime.memory import peak_memory_mb
from tests import tiny


def test_the_fingerprint_tells_what_decides_speed() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["cores"] >= 1
    here = fingerprint(found)
    assert here == fingerprint(dict(reversed(found.items())))
    for change in (
        {"processor": "another"},
        {"cores": 64},
        {"flags": ["amx_int8"]},
        {"versions": {**found["versions"], "onnxruntime": "0.0.1"}},
    ):
        assert fingerprint({**found, **change}) != here


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    ballast = bytearray(b"x" * 400_000_000)  # this process is large; the measured one is not
    export(tiny.tiny_bert(), tmp_path / "small")
    config = BertConfig(
        vocab_size=40_000, max_position_embeddings=32, hidden_size=256, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=256,
    )  # fmt: skip
    large = export(tiny.bundle_of(config), tmp_path / "large")
    begin = time.monotonic()
    small_mb = peak_memory_mb(tmp_path / "small", 1, ["superb film"] * 4)
    assert time.monotonic() - begin < 30
    large_mb = peak_memory_mb(tmp_path / "large", 1, ["superb film"] * 4)
    assert 20 < small_mb < 300 < len(ballast) / 1e6
    assert large_mb - small_mb > 0.7 * large.size_bytes / 2**20


def test_a_model_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    export(tiny.tiny_bert(), tmp_path / "export")
    (tmp_path / "export" / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(ExportError, match="does not answer in a process of its own"):
        peak_memory_mb(tmp_path / "export", 1, ["superb"])


def test_a_model_that_takes_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tiny.tiny_bert(), tmp_path / "export")
    monkeypatch.setattr(memory, "_LIMIT_SECONDS", 0.01)  # less than starting a process takes
    with pytest.raises(ExportError, match="does not answer 1 texts in"):
        peak_memory_mb(tmp_path / "export", 1, ["superb"])
