"""What a technique refuses when a night is planned, it refuses too when it is asked directly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import chains, technique
from tasks.bundle import Bundle
from tasks.chains import Link
from tasks.errors import TechniqueError
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


def _apply(name: str, number: int, before: Bundle, teacher: Bundle | None, scratch: Path) -> Bundle:
    config = technique.config_class(name).model_validate(contract_of(name).good[number])
    model = teacher or tiny.tiny_bert(seed=5)
    context = tiny.context(
        scratch, tiny.WiseTeacher(model=model), other=tiny.WiseTeacher(model=model)
    )
    after: Bundle = technique.load(name).apply(before, config, context)
    return after


@pytest.mark.parametrize(("what", "name", "number", "in_teacher"), REFUSED)
def test_what_the_plan_refuses_the_technique_refuses_before_any_training(
    models: dict[str, Bundle], tmp_path: Path, what: str, name: str, number: int, in_teacher: bool
) -> None:
    whole, spoilt = tiny.tiny_bert(), models[what]
    before, teacher = (whole, spoilt) if in_teacher else (spoilt, None)
    with pytest.raises(TechniqueError) as caught:
        _apply(name, number, before, teacher, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.rglob("*.safetensors"))


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
