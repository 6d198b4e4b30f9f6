"""Joint compression: a budget held at every step, one teacher, int8 learned and served."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AlbertConfig, BertConfig

from tasks import bundle as bundles
from tasks import model_parts
from tasks.errors import TechniqueError
from tasks.joint import compression
from tasks.part_gates import PartGates
from tasks.quantization import dynamic
from tasks.runtime import layer_latency
from tasks.runtime.export import export
from tasks.runtime.layer_latency import LayerLatency
from tasks.runtime.session import Session
from tests import tiny
from tests.techniques.contract import LONG, SHORT, Contract, accuracy, same_weights
from tests.techniques.test_quantization_qat import imitated
from tests.techniques.test_quantization_static import TEXTS, centred_logits, linear, plan

ANY = {"constraint": "flops", "multiple": 4, "interval": 1, "training": SHORT}


def _size(bundle):
    """Parameters of what can be cut: matrices and biases of heads and neurons."""
    total = 0
    for part in model_parts.layers(bundle.model):
        total += sum(p.weight.numel() + p.bias.numel() for p in part.projections)
        total += part.ffn_input.weight.numel() + part.ffn_input.bias.numel()
        total += part.attention_output.weight.numel() + part.ffn_output.weight.numel()
    return total


def _prove(before, after, config):
    share = _size(after) / _size(before)
    assert config.keep - 0.15 < share < config.keep + 0.05  # arithmetic weighs a little otherwise
    if config.constraint == "size":
        assert share <= config.keep
    parts = model_parts.layers(after.model)
    assert all(p.num_heads >= 1 and p.num_neurons % config.multiple == 0 for p in parts)
    settings = plan(after)
    assert sorted(settings["ranges"]) == sorted(after.scales) == sorted(linear(after))
    assert settings["fallback"] == []
    assert f"{parts[0].num_heads}+{parts[0].num_neurons}" in after.notes[compression.NOTE]


CONTRACT = Contract(
    good=(
        {**ANY, "keep": 0.5},
        {**ANY, "keep": 0.35, "constraint": "size", "hidden": 1.0, "alpha": 0.9},
        {**ANY, "keep": 0.7, "pruning": 0.75, "delay": 0, "ramp": 1, "transfer": False},
    ),
    bad=(
        ({"keep": 1}, "less than 1"),
        ({"keep": 0}, "greater than 0"),
        ({"constraint": "energy"}, "'flops', 'latency' or 'size'"),
        ({"delay": 0.5, "ramp": 0.6}, "more than 1 together: the ramp must end"),
        ({"pruning": 1}, "less than 1"),
        ({"interval": 0}, "greater than or equal to 1"),
        ({"memory": 1}, "less than 1"),
        ({"hidden": -1}, "greater than or equal to 0"),
        ({"teacher": ""}, "at least 1 character"),
    ),
    refuses={"albert": "share one set of weights", "lstm": "cannot be cut, grown or tied"},
    prove=_prove,
)


def _context(tmp_path, model=None):
    tmp_path.mkdir(exist_ok=True)
    return tiny.context(tmp_path, tiny.WiseTeacher(model=model or tiny.tiny_bert(1)))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "mpnet"])
def test_what_was_learned_is_what_is_served(kind, tmp_path):
    config = compression.Config(**ANY, keep=0.75)
    after = compression.apply(tiny.tiny(kind), config, _context(tmp_path))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert same_weights(again, after)
    facts = export(again, tmp_path / "export")
    assert facts.quantized > 0
    distance = np.abs(centred_logits(tmp_path / "export", TEXTS) - imitated(again, TEXTS)).max(1)
    assert (distance < 1e-4).mean() >= 0.9
    heads = {p.num_heads for p in model_parts.layers(after.model)}
    assert heads == {4} if kind == "mpnet" else heads != {4}


def test_the_budget_falls_as_planned_and_is_held_at_every_choice(tmp_path, monkeypatch):
    seen = []
    real = PartGates.open

    def spy(gates, kept):
        heads, neurons = sum(map(len, kept.heads)), sum(map(len, kept.neurons))
        seen.append((heads * (4 * 16 + 3) * 4 + neurons * 33) / (12 * 268 + 96 * 33))
        real(gates, kept)

    monkeypatch.setattr(PartGates, "open", spy)
    config = compression.Config(
        **{**ANY, "constraint": "size", "multiple": 1}, keep=0.3, pruning=0.5, delay=0.25, ramp=0.5
    )
    compression.apply(tiny.tiny_bert(), config, _context(tmp_path))
    # 80 texts in batches of 16, 2 epochs, half of them: five steps; the ramp from 1.25 to 3.75
    ways = [0, 0.3, 0.7, 1, 1]
    assert len(seen) == 5
    for share, way in zip(seen, ways, strict=True):
        budget = 0.3 + 0.7 * (1 - way) ** 3
        assert budget - 0.06 < share <= budget + 1e-9


def test_the_budget_stays_before_and_after_the_ramp():
    config = compression.Config(keep=0.4, delay=0.2, ramp=0.5)
    assert [config.budget(t) for t in (0, 0.2, 0.7, 1)] == pytest.approx([1, 1, 0.4, 0.4])
    assert config.budget(0.45) == pytest.approx(0.4 + 0.6 / 8)


def test_a_latency_budget_is_measured_in_int8_and_once(tmp_path, monkeypatch):
    plans = []

    def measure(bundle, length, threads, progress, plan):
        plans.append(plan)
        # of each 0.3 without heads or neurons, 0.1 a head, 0.1 eight neurons
        return LayerLatency(
            whole=1.0,
            heads={1: 0.7, 2: 0.8, 3: 0.9, 4: 1.0},
            neurons={8: 0.7, 16: 0.8, 24: 0.9, 32: 1.0},
        )

    monkeypatch.setattr(layer_latency, "measure", measure)
    config = compression.Config(**{**ANY, "constraint": "latency", "multiple": 8}, keep=0.7)
    context = _context(tmp_path)
    after = compression.apply(tiny.tiny_bert(), config, context)
    parts = model_parts.layers(after.model)
    cost = sum(1 - 0.1 * (4 - p.num_heads) - 0.1 * (4 - p.num_neurons / 8) for p in parts)
    assert 0.6 * 3 < cost <= 0.7 * 3 + 1e-9
    again = compression.apply(tiny.tiny_bert(), config, context)  # as if it had been killed
    assert [plan.has("quantize_dynamic") for plan in plans] == [True]
    assert same_weights(after, again)


def test_it_learns_the_task_from_its_teacher_and_is_served_in_int8(tmp_path):
    assert accuracy(tiny.tiny_bert()) < 0.6
    config = compression.Config(**{**ANY, "training": LONG}, keep=0.6)
    after = compression.apply(tiny.tiny_bert(), config, _context(tmp_path))
    export(after, tmp_path / "export")
    held_out = tiny.examples(128, seed=11)
    found = Session(tmp_path / "export", 1).probabilities(held_out.texts).argmax(1)
    assert (found == held_out.labels).mean() > 0.8


def test_a_killed_run_goes_on_to_the_same_model(tmp_path):
    training = {**SHORT, "checkpoint_seconds": 1e-9}
    config = compression.Config(**{**ANY, "training": training}, keep=0.5)
    whole = compression.apply(tiny.tiny_bert(), config, _context(tmp_path / "whole"))
    folder = tmp_path / "killed"
    for step in (3, 7):  # five steps prune, five learn int8
        context = replace(_context(folder), progress=tiny.Killer(step))
        with pytest.raises(KeyboardInterrupt):
            compression.apply(tiny.tiny_bert(), config, context)
    again = compression.apply(tiny.tiny_bert(), config, _context(folder))
    assert same_weights(whole, again)
    assert all(torch.equal(whole.scales[n], again.scales[n]) for n in whole.scales)
    assert plan(whole) == plan(again)


def test_hidden_states_of_the_teacher_are_learned(tmp_path):
    near = {}
    for weight in (0.0, 10.0):
        teacher = tiny.tiny_bert(1)
        context = _context(tmp_path / str(weight), teacher)
        config = compression.Config(**{**ANY, "training": LONG}, keep=0.8, hidden=weight)
        after = compression.apply(tiny.tiny_bert(), config, context)
        batch = after.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        states = []
        for bundle in (after, teacher):
            with torch.no_grad():
                states.append(bundle.model.base_model(**batch).last_hidden_state)
        mask = batch["attention_mask"][..., None]
        near[weight] = float(((states[0] - states[1]) ** 2 * mask).mean())
    assert near[10.0] < near[0.0] * 0.8


def _albert():
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3,
        )
    )  # fmt: skip


def _quantized():
    return dynamic.apply(tiny.tiny_bert(), dynamic.Config(), None)


@pytest.mark.parametrize(
    ("make", "settings", "change", "reason"),
    [
        (_albert, {}, {}, "its layers share one set of weights"),
        (_quantized, {}, {}, "quantized already"),
        (tiny.tiny_bert, {"keep": 0.1}, {}, r"`keep: 0.1` cannot be met"),
        (tiny.tiny_bert, {}, {"train": tiny.examples(0)}, "no training texts to measure on"),
        (
            tiny.tiny_bert,
            {},
            {"teachers": {"baseline": tiny.WiseTeacher(("bad", "good"))}},
            "knows the labels bad, good",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    make, settings, change, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr(compression, "fit", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr(compression, "lesson", lambda *_, **__: pytest.fail("work was done"))
    context = replace(_context(tmp_path), **change)
    with pytest.raises(TechniqueError, match=reason):
        compression.apply(make(), compression.Config(**{**ANY, **settings}), context)


def test_a_teacher_of_another_width_cannot_show_its_hidden_states(tmp_path):
    wide = tiny.bundle_of(
        BertConfig(
            vocab_size=32, max_position_embeddings=32, hidden_size=32, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=32,
        )
    )  # fmt: skip
    config = compression.Config(**ANY, hidden=1.0)
    with pytest.raises(TechniqueError, match="are 16 wide, those of teacher `baseline` 32"):
        compression.apply(tiny.tiny_bert(), config, _context(tmp_path, wide))
