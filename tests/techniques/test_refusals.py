"""What every technique refuses before any training, in one line.

Whatever it refuses when a night is planned it refuses too when it is asked directly.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import chains, technique
from tasks.bundle import Bundle
from tasks.chains import Link
from tasks.errors import TechniqueError
from tasks.technique import Context
from tasks.training.batches import Examples, unlabelled
from tests import tiny
from tests.techniques.test_contract import contract_of


def _examples() -> Iterator[tuple[str, int, Link]]:
    for name in technique.names():
        module, config_class = technique.load(name), technique.config_class(name)
        for number, settings in enumerate(contract_of(name).good):
            config = config_class.model_validate(settings)
            yield name, number, chains.link(f"{name}-{number}", name, module, config)


EXAMPLES = list(_examples())
LEFT = {what: (name, number) for name, number, link in EXAMPLES for what in link.leaves}
"""What is left → an example of a technique and its settings that leaves it."""
REFUSED = [
    pytest.param(what, name, number, in_teacher, id=f"{link.place}-{what}")
    for name, number, link in EXAMPLES
    for refused, in_teacher in (
        (link.refuses, link.cuts is not None),
        (link.refuses_teacher if link.cuts is None else (), True),
    )
    for what in refused
    if what in LEFT
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A tiny model for each thing that a technique can leave in one."""
    made = {}
    for what, (name, number) in LEFT.items():
        made[what] = _apply(name, number, tiny.tiny_bert(), None, tmp_path_factory.mktemp("left"))
    return made


def _context(scratch: Path, teacher: Bundle | None = None) -> Context:
    model = teacher or tiny.tiny_bert(seed=5)
    wise = [tiny.WiseTeacher(labels=model.labels, model=model) for _ in range(2)]
    return tiny.context(scratch, wise[0], other=wise[1])


def _apply(name: str, number: int, before: Bundle, teacher: Bundle | None, scratch: Path) -> Bundle:
    config = technique.config_class(name).model_validate(contract_of(name).good[number])
    after: Bundle = technique.load(name).apply(before, config, _context(scratch, teacher))
    return after


def _refused(scratch: Path, error: TechniqueError) -> None:
    assert len(str(error).splitlines()) == 1
    assert not list(scratch.rglob("*.safetensors"))  # nothing was trained


@pytest.mark.parametrize(("what", "name", "number", "in_teacher"), REFUSED)
def test_what_the_plan_refuses_the_technique_refuses_before_any_training(
    models: dict[str, Bundle], tmp_path: Path, what: str, name: str, number: int, in_teacher: bool
) -> None:
    whole, spoilt = tiny.tiny_bert(), models[what]
    before, teacher = (whole, spoilt) if in_teacher else (spoilt, None)
    with pytest.raises(TechniqueError) as caught:
        _apply(name, number, before, teacher, tmp_path)
    _refused(tmp_path, caught.value)


every_example = pytest.mark.parametrize(
    ("name", "number"), [pytest.param(n, i, id=link.place) for n, i, link in EXAMPLES]
)


@every_example
@pytest.mark.parametrize("transfer", [True, False])
def test_without_training_texts_nothing_is_measured(
    name: str, number: int, transfer: bool, tmp_path: Path
) -> None:
    module = technique.load(name)
    config = module.Config.model_validate(contract_of(name).good[number])
    none = Examples([], np.zeros(0, dtype=np.int64))
    whole = _context(tmp_path)
    context = replace(whole, train=none, transfer=whole.transfer if transfer else unlabelled([]))
    reason = None
    try:
        module.apply(tiny.tiny_bert(), config, context)
    except TechniqueError as error:
        reason = error
    if reason is None:  # it reads no text, or learns from a teacher's answers about others
        assert not technique.reads_data(module, config) or (transfer and _taught(config))
    else:
        assert "training text" in str(reason)
        _refused(tmp_path, reason)


def _taught(config: Any) -> bool:
    return bool(getattr(config, "teacher", None) or getattr(config, "teachers", None))


@every_example
def test_a_teacher_of_other_labels_teaches_nothing(name: str, number: int, tmp_path: Path) -> None:
    config = technique.config_class(name).model_validate(contract_of(name).good[number])
    if not _taught(config):
        return
    stranger = tiny.tiny_bert(seed=5, labels=("bad", "good"))
    with pytest.raises(
        TechniqueError, match=r"^teacher `\w+` knows the labels bad, good, not"
    ) as e:
        _apply(name, number, tiny.tiny_bert(), stranger, tmp_path)
    _refused(tmp_path, e.value)


WIDER = {"layers": 9, "hidden": 99, "ffn": 99, "heads": 9}


@pytest.mark.parametrize(
    "name", [n for n in technique.names() if "student" in technique.config_class(n).model_fields]
)
@pytest.mark.parametrize("width", WIDER)
def test_a_student_wider_than_the_teacher_it_is_cut_from(
    name: str, width: str, tmp_path: Path
) -> None:
    student = {width: WIDER[width], "init": "first"}
    given = {**contract_of(name).good[0], "student": student}
    config = technique.config_class(name).model_validate(given)
    words = rf"student's `{width}` {WIDER[width]} is more than its teacher's \d+: a cut can only"
    with pytest.raises(TechniqueError, match=words) as caught:
        technique.load(name).apply(tiny.tiny_bert(), config, _context(tmp_path))
    _refused(tmp_path, caught.value)


def test_all_that_is_declared_is_understood() -> None:
    known = {"LAST", "LEAVES", "REFUSES", "REFUSES_TEACHER", "MATCHES", "KEEPS", "CUTS"}
    said = technique.__doc__ or ""
    assert all(f"`{name}`" in said or f"`{name} = True`" in said for name in known)
    for name in technique.names():
        public = {n for n in vars(technique.load(name)) if n.isupper() and not n.startswith("_")}
        likely = {n for n in public if n.startswith(("LEAVE", "REFUSE", "MATCH", "KEEP", "CUT"))}
        assert likely <= known, f"{name} misspells what it declares"


def test_every_link_is_of_words() -> None:
    for _, _, link in EXAMPLES:
        declared: list[Any] = [link.leaves, link.refuses, link.refuses_teacher, link.matches]
        assert all(isinstance(words, tuple) for words in declared)
        assert all(isinstance(word, str) for words in declared for word in words)
