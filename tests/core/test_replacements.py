"""What stands in a model's own modules' place is built again from the bundle's facts alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors

from tasks import bundle as bundles
from tasks import model_parts, replacements
from tasks.bundle import Bundle
from tasks.errors import StoreError
from tests import tiny

TEXTS = tiny.examples(8, seed=3).texts


def changed() -> Bundle:
    """A BERT with a factorized table, a quadratic in one layer and two layers' matrices tied."""
    bundle = tiny.tiny_bert()
    replacements.put(
        bundle.model,
        "bert.embeddings.word_embeddings",
        replacements.FactorizedEmbedding(32, 4, 16, padding_idx=0),
    )
    quadratic = replacements.Quadratic()
    quadratic.square.data.fill_(0.3)
    replacements.put(
        bundle.model, "bert.encoder.layer.1.intermediate.intermediate_act_fn", quadratic
    )
    first, _, last = model_parts.layers(bundle.model)
    last.ffn_input.weight = first.ffn_input.weight
    return bundle


def edit(folder: Path, **facts: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_modules_and_ties_come_back_from_json_and_safetensors(tmp_path: Path) -> None:
    bundle = changed()
    bundles.save(bundle, tmp_path)
    facts = json.loads((tmp_path / "bundle.json").read_text())
    assert facts["replaced"] == [
        [
            "bert.embeddings.word_embeddings",
            "factorized_embedding",
            {"num_embeddings": 32, "rank": 4, "width": 16, "padding_idx": 0},
        ],
        ["bert.encoder.layer.1.intermediate.intermediate_act_fn", "quadratic", {}],
    ]
    name = "bert.encoder.layer.{}.intermediate.dense.weight"
    assert facts["tied"] == [[name.format(0), name.format(2)]]
    again = bundles.load(tmp_path)
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(bundle, TEXTS))
    assert replacements.found(again.model) == replacements.found(bundle.model)
    assert model_parts.tied(again.model) == facts["tied"]
    assert again.num_parameters() == bundle.num_parameters()
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        held = sum(np.prod(file.get_slice(k).get_shape()) for k in file.keys())  # noqa: SIM118
    assert held == bundle.num_parameters()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_what_is_loaded_is_saved_alike(tmp_path: Path) -> None:
    bundles.save(changed(), tmp_path / "one")
    bundles.save(bundles.load(tmp_path / "one"), tmp_path / "two")
    for name in ("bundle.json", "model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_bundle_of_before_there_were_any_still_loads(tmp_path: Path) -> None:
    bundles.save(tiny.tiny_bert(), tmp_path)
    path = tmp_path / "bundle.json"
    facts = json.loads(path.read_text())
    assert (facts.pop("replaced"), facts.pop("tied")) == ([], [])
    path.write_text(json.dumps(facts))
    again = bundles.load(tmp_path)
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(tiny.tiny_bert(), TEXTS))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"replaced": [["bert", "butterfly", {}]]}, "knows no module `butterfly`"),
        ({"replaced": [["bert.nowhere.else", "quadratic", {}]]}, "does not hold a whole model"),
        (
            {"replaced": [["bert.embeddings.word_embeddings", "factorized_embedding", {}]]},
            "missing 3 required positional arguments",
        ),
        ({"tied": [["bert.no.weight", "classifier.weight"]]}, "does not hold a whole model"),
        ({"replaced": []}, "does not hold a whole model"),
    ],
)
def test_facts_that_do_not_fit_are_one_line(
    facts: dict[str, object], reason: str, tmp_path: Path
) -> None:
    bundles.save(changed(), tmp_path)
    edit(tmp_path, **facts)
    with pytest.raises(StoreError, match=reason) as caught:
        bundles.load(tmp_path)
    assert "\n" not in str(caught.value)
