"""What is served: any texts, in any batch, with nothing of the project beside it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tasks.runtime.session as session_module
from tasks.runtime.eager import EagerModel
from tasks.runtime.export import export
from tasks.runtime.session import Session
from tests import tiny

LONG = " ".join(["superb", "dull", "film"] * 40)
TEXTS = [*tiny.examples(20).texts, "", LONG, "a", "wörds ünknown 🎬", "the\nfilm\t."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "export"
    export(tiny.tiny_bert(), path)
    return path


def test_answers_are_pytorchs_in_order_whatever_the_batch(folder: Path) -> None:
    session, eager = Session(folder, 1), EagerModel(tiny.tiny_bert(), 1)
    expected = eager.probabilities(TEXTS)
    for batch_size in (1, 4, 64):
        found = session.probabilities(TEXTS, batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(found[:, 0]) > 0.05  # not one answer for all


def test_texts_are_cut_off_where_the_bundle_says(folder: Path) -> None:
    session = Session(folder, 1)
    kept = " ".join(LONG.split()[: session.max_length - 2])  # [CLS] and [SEP] count
    longer, exact = session.probabilities([LONG, kept])
    np.testing.assert_array_equal(longer, exact)
    shorter = session.probabilities([kept.rsplit(" ", 1)[0]])[0]
    assert not np.array_equal(shorter, exact)


def test_an_empty_text_is_answered_by_a_model_without_special_tokens(tmp_path: Path) -> None:
    bundle = tiny.tiny_gpt2()
    bundle.tokenizer.backend_tokenizer.post_processor = None
    export(bundle, tmp_path / "export")
    found = Session(tmp_path / "export", 1).probabilities(["", "superb film"])
    assert np.isfinite(found).all()


def test_no_texts_give_no_rows(folder: Path) -> None:
    assert Session(folder).probabilities([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", None], "text 1 is NoneType"),
        (["a", 3.5], "text 1 is float"),
        ([b"a"], "text 0 is bytes"),
        ("a film", "put it in a list"),
    ],
)
def test_what_is_not_text_is_refused(folder: Path, given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Session(folder, 1).probabilities(given)  # type: ignore[arg-type]


def test_the_side_that_texts_are_cut_at_is_the_tokenizers(tmp_path: Path) -> None:
    bundle = tiny.tiny_bert()
    bundle.tokenizer.truncation_side = "left"
    export(bundle, tmp_path / "export")
    text = " ".join(["dull"] * 30 + ["superb"] * 14)
    found = Session(tmp_path / "export", 1).probabilities([text, " ".join(["superb"] * 14)])
    np.testing.assert_array_equal(found[0], found[1])


def test_it_runs_without_the_project(folder: Path, tmp_path: Path) -> None:
    shutil.copy(str(session_module.__file__), tmp_path / "served.py")
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import served; "
        "p = served.Session(sys.argv[2]).probabilities(['superb film']); "
        "strange = {m.split('.')[0] for m in sys.modules} & "
        "{'tasks', 'flows', 'torch', 'transformers', 'pandas', 'mlflow', 'onnx'}; "
        "print(json.dumps([p.tolist(), sorted(strange)]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path), str(folder)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    probabilities, strange = json.loads(done.stdout)
    assert strange == []
    assert done.stderr == ""
    expected = Session(folder, 1).probabilities(["superb film"])
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
