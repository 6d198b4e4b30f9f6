"""What a new user may do wrong: one clear line, a non-zero exit, and nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import workspaces

pytestmark = pytest.mark.slow

ONE_CLASS = b"text,label\n" + b"".join(b"good film %d,positive\n" % i for i in range(50))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspaces.make(tmp_path_factory.mktemp("bad") / "checkout")


def told(root: Path, *arguments: str) -> tuple[int, str]:
    done = workspaces.nightpress(root, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def recipe(*steps: Any) -> str:
    return f"recipes.bad={json.dumps(list(steps))}"


@pytest.mark.parametrize(
    ("override", "code", "expected"),
    [
        (recipe("pruning.magnitud"), 2, "did you mean `pruning.magnitude`?"),
        (recipe({"pruning.magnitude": {"sparsity": 1.0}}), 2, "`sparsity`: Input should be less"),
        (recipe({"distillation.logits": {"teacher": "bad"}}), 2, "in a circle: bad → bad"),
        (
            recipe("quantization.dynamic", {"structure.layer_drop": {"keep": 2}}),
            2,
            "recipes.bad[1] structure.layer_drop: nothing can follow `quantization.dynamic`",
        ),
        (recipe({"structure.layer_drop": {"keeps": 2}}), 2, "did you mean `keep`?"),
        ("recipes.../../x=[quantization.dynamic]", 2, "write it as `name.of.setting=value`"),
        ("training.epochs=none", 2, "`training.epochs`: Input should be a valid number"),
        ("baseline.model=./nowhere", 3, "nowhere is not a folder with a model"),
        ("source.address=nowhere.csv", 3, "does not exist; did you mean `reviews.csv`?"),
        ("source.text=words", 3, "no column `words`; valid: label, text"),
        ("device=cuda", 2, "no GPU is visible here; use `auto` or `cpu`"),
    ],
)
def test_plan_says_what_is_wrong(checkout: Path, override: str, code: int, expected: str) -> None:
    found, line = told(checkout, "plan", "-S", override)
    assert expected in line
    assert found == code


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "broken.csv is empty"),
        (b"text,label\n", "broken.csv holds no text"),
        (ONE_CLASS, "all rows have one label, `positive`; at least two are needed"),
        (b"text,label\nfine \xff film,positive\n", "broken.csv:2: byte 0xff at position 6"),
        (b"text,label\n" + b"x" * 10_000_000 + b",positive\n", "broken.csv:2: the line is longer"),
        (b"words,label\na film,positive\n", "no column `text`; valid: label, words"),
    ],
    ids=["empty", "header alone", "one class", "not UTF-8", "10 MB line", "missing column"],
)
def test_a_broken_table_is_named(checkout: Path, content: bytes, expected: str) -> None:
    (checkout / "broken.csv").write_bytes(content)
    code, line = told(checkout, "plan", "-S", "source.address=broken.csv")
    assert code == 3
    assert expected in line


def test_bom_and_crlf_are_read(checkout: Path) -> None:
    plain = (checkout / "reviews.csv").read_bytes()
    (checkout / "windows.csv").write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    done = workspaces.nightpress(checkout, "plan", "-S", "source.address=windows.csv")
    assert done.returncode == 0, done.stderr


def test_a_model_without_tokenizer_is_refused(checkout: Path) -> None:
    bare = checkout / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkout / "base" / name).read_bytes())
    code, line = told(checkout, "plan", "-S", "baseline.model=./bare")
    assert code == 3
    assert "./bare: the model has no tokenizer" in line


def test_outside_a_checkout_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(json.dumps(workspaces.QUICK))
    code, line = told(tmp_path, "plan")
    assert code == 2
    assert f"{tmp_path} is not in a Nightpress checkout" in line
