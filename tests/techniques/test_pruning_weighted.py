"""Weighted pruning: what is dearer stays, patterns that match nothing are refused."""

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
from transformers import AlbertConfig

from tasks import masks
from tasks.errors import TechniqueError
from tasks.pruning import weighted
from tasks.saliency import taylor
from tests import tiny
from tests.techniques.contract import SHORT, Contract, same_weights, zeros


def _prove(before, after, config):
    names = masks.prunable(before.model, embeddings=config.embeddings, head=config.head)
    assert set(names) == set(after.sparse)
    found, total = zeros(after, names)
    assert found == round(config.sparsity * total)
    factors = weighted.factors_of(before.model, names, config.weights)
    dear = [name for name in names if factors[name] > 1]
    others = [name for name in names if factors[name] < max(factors.values())]
    shares = [z / n for z, n in (zeros(after, dear), zeros(after, others))]
    assert shares[0] < shares[1]


CONTRACT = Contract(
    good=(
        {"sparsity": 0.5, "weights": {"*.0.*": 4}, "training": SHORT},
        {
            "sparsity": 0.6, "weights": {"*.0.*": 100, "*.2.*": 0.01}, "criterion": "gradient",
            "head": True, "embeddings": True, "rounds": 2, "importance_examples": 32,
            "importance_batch_size": 8, "training": SHORT,
        },
    ),
    bad=(
        ({"sparsity": 0.5}, "weights"),
        ({"weights": {"*": 2}}, "sparsity"),
        ({"sparsity": 0.5, "weights": {}}, "at least 1 item"),
        ({"sparsity": 0.5, "weights": {"": 2}}, "at least 1 character"),
        ({"sparsity": 0.5, "weights": {"*.0.*": 0}}, "greater than or equal to 0.000001"),
        ({"sparsity": 0.5, "weights": {"*.0.*": -2}}, "greater than or equal to 0.000001"),
        ({"sparsity": 0.5, "weights": {"*.0.*": float("nan")}}, "finite number"),
        ({"sparsity": 0.5, "weights": {"*.0.*": 1e7}}, "less than or equal to 1000000"),
        ({"sparsity": 0.5, "weights": {"*": 2}, "criterion": "fisher"}, "'magnitude' or 'gradient"),
        ({"sparsity": 0.5, "weights": {"*": 2}, "scope": "layer"}, "Extra inputs"),
        ({"sparsity": 0.5, "weights": {"*": 2}, "rounds": 0}, "greater than or equal to 1"),
    ),
    refuses={"albert": "matches no parameter", "lstm": "matches no parameter"},
    prove=_prove,
)  # fmt: skip


WEIGHTS = {"*.layer.0.*": 2, "*.query.weight": 3, "classifier.*": 0.5}


def test_factors_of_all_patterns_that_match_are_multiplied():
    names = masks.prunable(tiny.tiny_bert().model, embeddings=False, head=True)
    found = weighted.factors_of(tiny.tiny_bert().model, names, WEIGHTS)
    assert found.keys() == set(names)
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == 6
    assert found["bert.encoder.layer.0.output.dense.weight"] == 2
    assert found["bert.encoder.layer.1.attention.self.query.weight"] == 3
    assert found["bert.encoder.layer.2.output.dense.weight"] == 1
    assert found["classifier.weight"] == 0.5
    turned = dict(reversed(WEIGHTS.items()))  # keys of nodes do not tell the order either
    assert weighted.factors_of(tiny.tiny_bert().model, names, turned) == found


@pytest.mark.parametrize("criterion", ["magnitude", "gradient"])
def test_masks_equal_those_of_torch_on_weighted_scores(criterion, monkeypatch, tmp_path):
    monkeypatch.setattr(weighted, "fit", lambda *args, **more: None)
    before = tiny.tiny_bert()
    context = tiny.context(tmp_path)
    config = weighted.Config(sparsity=0.45, weights=WEIGHTS, criterion=criterion, head=True)
    after = weighted.apply(before, config, context)
    names = masks.prunable(before.model, embeddings=False, head=True)
    if criterion == "magnitude":
        scores = {n: before.model.get_parameter(n).detach().abs() for n in names}
    else:
        scores = taylor(before, names, context.train, torch.device("cpu"))
    for name in names:
        scores[name] *= 2 if ".layer.0." in name else 1
        scores[name] *= 3 if ".query." in name else 1
        scores[name] *= 0.5 if name.startswith("classifier") else 1
    theirs = before.copy().model
    modules = {name: theirs.get_submodule(name.removesuffix(".weight")) for name in names}
    prune.global_unstructured(
        [(module, "weight") for module in modules.values()],
        pruning_method=prune.L1Unstructured,
        importance_scores={(module, "weight"): scores[n] for n, module in modules.items()},
        amount=0.45,
    )
    for name, module in modules.items():
        assert torch.equal(after.model.get_parameter(name), module.weight)


def test_what_is_dear_enough_is_not_touched_while_there_is_anything_else(tmp_path):
    config = weighted.Config(
        sparsity=0.6, weights={"*.layer.1.*": 1e6}, criterion="magnitude", training=SHORT
    )
    after = weighted.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    for name in after.sparse:
        share = np.divide(*zeros(after, [name]))
        assert share == 0 if ".layer.1." in name else share > 0.8


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (
            {"*.layer.7.*": 2},
            r"`\*\.layer\.7\.\*` matches no parameter of the model; .* `bert\.enc",
        ),
        ({"*.layer.0.*": 2, "clasifier.*": 2}, "`clasifier.*` matches no parameter of the model"),
        ({"classifier.*": 2}, "`classifier.*` matches only parameters that are not pruned; set"),
        ({"*.LayerNorm.*": 2}, "matches only parameters that are not pruned"),
        ({"*.Query.*": 2}, "matches no parameter"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_before_work(weights, reason, tmp_path):
    config = weighted.Config(sparsity=0.5, weights=weights)
    with pytest.raises(TechniqueError, match=reason):
        weighted.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_as_sparse_already_is_refused(tmp_path):
    config = weighted.Config(sparsity=0.5, weights={"*.0.*": 2}, training=SHORT)
    first = weighted.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "first"))
    with pytest.raises(TechniqueError, match=r"50\.0% zeros already"):
        weighted.apply(first, config, tiny.context(tmp_path / "second"))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("kind", ["distilbert", "albert"])
def test_other_models_are_pruned_too(kind, tmp_path):
    if kind == "albert":
        config = AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )  # fmt: skip
        bundle = tiny.bundle_of(config)
    else:
        bundle = tiny.tiny(kind)
    settings = weighted.Config(
        sparsity=0.5, weights={"*ffn*": 4}, criterion="gradient", training=SHORT
    )
    after = weighted.apply(bundle, settings, tiny.context(tmp_path))
    _prove(bundle, after, settings)


class _Killed(Exception):
    pass


def test_a_killed_pruning_resumes_to_the_same_weights(monkeypatch, tmp_path):
    config = weighted.Config(
        sparsity=0.6, weights={"*.0.*": 4}, criterion="gradient", rounds=2, training=SHORT
    )
    whole = weighted.apply(tiny.tiny_bert(), config, tiny.context(tmp_path / "whole"))
    trained = []
    inner = weighted.fit

    def fit(*args, seed, **more):
        trained.append(seed)
        if len(trained) == 2:
            raise _Killed
        return inner(*args, seed=seed, **more)

    monkeypatch.setattr(weighted, "fit", fit)
    context = tiny.context(tmp_path / "killed")
    with pytest.raises(_Killed):
        weighted.apply(tiny.tiny_bert(), config, context)
    again = weighted.apply(tiny.tiny_bert(), config, context)
    assert trained == [7, 8, 7, 8]
    assert same_weights(whole, again)
