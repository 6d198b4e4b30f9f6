"""What holds for every technique: found by its path, tried on a tiny BERT and a tiny GPT-2."""

import ast
import copy
import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tasks import bundle as bundles
from tasks import technique
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tests import tiny
from tests.techniques.contract import Contract, same_weights

KINDS = ("bert", "gpt2")


def contract_of(name: str) -> Contract:
    """Return `CONTRACT` of the technique's own test module."""
    module = f"tests.techniques.test_{name.replace('.', '_')}"
    path = module.replace(".", "/") + ".py"
    if importlib.util.find_spec(module) is None:
        pytest.fail(f"`{name}` has no test: write {path} with CONTRACT = Contract(…)")
    found = getattr(importlib.import_module(module), "CONTRACT", None)
    if not isinstance(found, Contract):
        pytest.fail(f"{path} does not say what `{name}` does: define CONTRACT = Contract(…)")
    return found


def _cases() -> list[Any]:
    """Name and number of every example of settings; one for a technique that has no test yet."""
    cases = []
    for name in technique.names():
        known = importlib.util.find_spec(f"tests.techniques.test_{name.replace('.', '_')}")
        count = len(contract_of(name).good) if known else 1
        cases += [pytest.param(name, i, id=f"{name}-{i}") for i in range(count)]
    return cases


@dataclass(frozen=True)
class Pressed:
    """One application of a technique, done twice."""

    before: Bundle
    untouched: Bundle
    """A copy of `before`, made before the technique ran."""
    after: Bundle
    again: Bundle
    config: Any


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str], Pressed]:
    """Return a function that applies a technique's example twice, and remembers the result."""
    done: dict[tuple[str, int, str], Pressed] = {}

    def run(name: str, number: int, kind: str) -> Pressed:
        if (name, number, kind) not in done:
            done[name, number, kind] = _press(name, number, kind, tmp_path_factory.mktemp("press"))
        return done[name, number, kind]

    return run


def _press(name: str, number: int, kind: str, folder: Path) -> Pressed:
    module = technique.load(name)
    config = technique.config_class(name).model_validate(contract_of(name).good[number])
    before = tiny.tiny(kind)
    untouched = copy.deepcopy(before)
    results = []
    for scratch in (folder / "one", folder / "two"):
        scratch.mkdir()
        teachers = [tiny.WiseTeacher(model=tiny.tiny(kind, seed=5)) for _ in range(2)]
        context = tiny.context(scratch, teachers[0], other=teachers[1])
        results.append(module.apply(before, config, context))
    return Pressed(before, untouched, results[0], results[1], config)


every_case = pytest.mark.parametrize(("name", "number"), _cases())
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_case
@every_kind
def test_labels_and_output_shape_stay(press, name, number, kind):
    pressed = press(name, number, kind)
    texts = tiny.examples(5, seed=9).texts
    assert pressed.after.labels == pressed.before.labels
    answers = tiny.answers(pressed.after, texts)
    assert answers.shape == (5, len(pressed.before.labels))
    assert np.isfinite(answers).all()


@every_case
@every_kind
def test_a_seed_gives_the_same_weights_twice(press, name, number, kind):
    pressed = press(name, number, kind)
    assert same_weights(pressed.after, pressed.again)
    assert pressed.after.export == pressed.again.export
    assert pressed.after.sparse == pressed.again.sparse
    assert pressed.after.notes == pressed.again.notes


@every_case
@every_kind
def test_the_bundle_given_is_left_as_it_was(press, name, number, kind):
    pressed = press(name, number, kind)
    assert same_weights(pressed.before, pressed.untouched)
    assert pressed.before.model.config.to_dict() == pressed.untouched.model.config.to_dict()
    assert pressed.before.export == pressed.untouched.export
    assert pressed.before.sparse == pressed.untouched.sparse
    assert pressed.before.notes == pressed.untouched.notes
    assert pressed.after.model is not pressed.before.model
    ours = {p.data_ptr() for p in pressed.after.model.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in pressed.before.model.parameters())


@every_case
@every_kind
def test_what_is_saved_reloads_to_the_same_answers(press, name, number, kind, tmp_path):
    after = press(name, number, kind).after
    texts = tiny.examples(16, seed=9).texts
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, texts), tiny.answers(after, texts))
    assert same_weights(again, after)
    assert (again.labels, again.max_length) == (after.labels, after.max_length)
    assert (again.export, again.sparse, again.notes) == (after.export, after.sparse, after.notes)


@every_case
@every_kind
def test_the_effect_is_real(press, name, number, kind):
    pressed = press(name, number, kind)
    contract = contract_of(name)
    contract.prove(pressed.before, pressed.after, pressed.config)
    texts = tiny.examples(16, seed=9).texts
    changed = not np.allclose(
        tiny.answers(pressed.before, texts), tiny.answers(pressed.after, texts), atol=1e-4
    )
    assert changed == contract.changes_answers


@every_case
@pytest.mark.parametrize("kind", ["albert", "lstm"])
def test_other_kinds_are_treated_or_refused_before_any_work(name, number, kind, tmp_path):
    contract = contract_of(name)
    config = technique.config_class(name).model_validate(contract.good[number])
    before = tiny.tiny(kind)
    untouched = copy.deepcopy(before)
    teachers = [tiny.WiseTeacher(model=tiny.tiny(kind, seed=5)) for _ in range(2)]
    context = tiny.context(tmp_path, teachers[0], other=teachers[1])
    try:
        after = technique.load(name).apply(before, config, context)
    except TechniqueError as error:
        reason = str(error)
    else:
        texts = tiny.examples(8, seed=9).texts
        bundles.save(after, tmp_path / "saved")
        again = bundles.load(tmp_path / "saved")
        assert np.array_equal(tiny.answers(again, texts), tiny.answers(after, texts))
        assert np.isfinite(tiny.answers(after, texts)).all()
        reason = ""
    assert same_weights(before, untouched)
    if reason:
        assert re.search(contract.refuses.get(kind, "nothing was said of it"), reason)
        assert len(reason.splitlines()) == 1
        assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained


@pytest.mark.parametrize("name", technique.names())
def test_bad_settings_are_refused_with_the_reason(name):
    config = technique.config_class(name)
    contract = contract_of(name)
    assert contract.bad, f"{name} names no settings that it refuses"
    for settings, reason in contract.bad:
        with pytest.raises(ValidationError, match=reason):
            config.model_validate(settings)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config.model_validate({**contract.good[0], "no_such_setting": 1})


@every_case
def test_resolved_settings_are_understood_again(name, number):
    config = technique.config_class(name)
    once = config.model_validate(contract_of(name).good[number])
    # a node is pressed from its settings with every default written out
    assert config.model_validate(once.model_dump(mode="json")) == once


@pytest.mark.parametrize("name", technique.names())
def test_settings_written_out_in_full_are_the_same_settings(name):
    """A node holds them so, and they are checked again where it is pressed."""
    config = technique.config_class(name)
    for settings in contract_of(name).good:
        made = config.model_validate(settings)
        assert config.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize("name", technique.names())
def test_a_technique_tells_its_formula_and_its_models(name):
    text = technique.load(name).__doc__ or ""
    assert "Applies to" in text
    assert technique.config_class(name).__doc__


@pytest.mark.parametrize("name", technique.names())
def test_a_technique_imports_no_other(name):
    tree = ast.parse(Path(technique.load(name).__file__).read_text(encoding="utf-8"))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {
        f"{n.module}.{a.name}"
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    assert imported.isdisjoint(f"tasks.{other}" for other in technique.names())
