"""A ruined layer is found by undoing one at a time; what cannot be undone is said."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AlbertConfig

from tasks import lstm, model_parts
from tasks.bundle import Bundle
from tasks.evaluation.explained import Undoing
from tasks.pruning import structured
from tasks.quantization import affine, dynamic, static
from tasks.stream import stream
from tasks.structure import layer_drop, sequence_length, vocabulary
from tasks.training.config import TrainingConfig
from tasks.training.loop import fit
from tasks.training.progress import Silent
from tasks.undoing import LENGTH, parts, undo
from tests import tiny
from tests.techniques.contract import LONG, SHORT, same_weights

HELD_OUT = tiny.examples(64, seed=3)
TEXTS = HELD_OUT.texts
KINDS = ("bert", "distilbert", "electra", "gpt2", "mpnet", "roberta")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Return a function that gives a model of a kind that knows the task, a copy of its own."""

    @cache
    def train(kind: str) -> Bundle:
        bundle, context = tiny.tiny(kind), tiny.context(tmp_path_factory.mktemp(kind))
        fit(
            bundle, context.train, context.validation, TrainingConfig(**LONG), seed=7,
            device=context.device, scratch=context.scratch, progress=Silent(),
        )  # fmt: skip
        return bundle

    return lambda kind: train(kind).copy()


def undone(baseline: Bundle, variant: Bundle) -> Undoing:
    return undo(baseline, variant, HELD_OUT, Silent())


def ruin(bundle: Bundle, part: nn.Module) -> None:
    """Give the part weights of no sense, and move all others a very little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 1e-4)
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 2])
def test_the_one_ruined_layer_is_ranked_first(
    kind: str, number: int, trained: Callable[[str], Bundle]
) -> None:
    baseline = trained(kind)
    variant = baseline.copy()
    _, layers = model_parts.layer_list(variant.model)
    ruin(variant, layers[number])
    found = undone(baseline, variant)
    first = found.parts[0]
    assert (first.part, first.way) == (f"layer {number}", "baseline")
    assert found.lost > 0
    assert first.loss == pytest.approx(found.lost, rel=0.05)
    assert first.loss > 3 * max(one.loss for one in found.parts[1:])
    assert {one.part for one in found.parts} == set(parts(variant.model).values())
    assert found.notes == ()


def test_a_ruined_embedding_or_classifier_is_found_too(trained: Callable[[str], Bundle]) -> None:
    for part in ("embeddings", "classifier"):
        baseline = trained("bert")
        variant = baseline.copy()
        path = next(path for path, title in parts(variant.model).items() if title == part)
        ruin(variant, variant.model.get_submodule(path))
        assert undone(baseline, variant).parts[0].part == part


def test_a_part_undone_gives_just_what_the_model_with_that_part_gives() -> None:
    baseline = tiny.tiny_bert()
    variant = baseline.copy()
    ruin(variant, variant.model.bert.encoder.layer[1])
    found = undone(baseline, variant)
    by_hand = variant.copy()
    by_hand.model.bert.pooler.load_state_dict(baseline.model.bert.pooler.state_dict())

    def loss(bundle: Bundle) -> float:
        logits = torch.from_numpy(tiny.answers(bundle, TEXTS))
        labels = torch.from_numpy(HELD_OUT.labels)
        return float(nn.functional.cross_entropy(logits, labels))

    (pooler,) = [one for one in found.parts if one.part == "pooler"]
    assert pooler.loss == pytest.approx(loss(variant) - loss(by_hand), abs=1e-5)
    assert found.lost == pytest.approx(loss(variant) - loss(baseline), abs=1e-5)
    right = [
        (tiny.answers(b, TEXTS).argmax(1) == HELD_OUT.labels).mean() for b in (baseline, variant)
    ]
    assert found.lost_points == pytest.approx(100 * (right[0] - right[1]))


def test_both_models_are_afterwards_as_they_were(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    variant = dynamic.apply(tiny.tiny_bert(seed=4), dynamic.Config(), tiny.context(tmp_path))
    before = [baseline.copy(), variant.copy()]
    undone(baseline, variant)
    assert same_weights(baseline, before[0])
    assert same_weights(variant, before[1])
    assert baseline.model.bert.encoder.layer[0] is not variant.model.bert.encoder.layer[0]
    assert not any(module._forward_pre_hooks for module in variant.model.modules())


def test_cut_heads_and_neurons_are_undone_layer_by_layer(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    config = structured.Config(heads=0.5, neurons=0.5, multiple=4, training=SHORT)
    variant = structured.apply(baseline, config, tiny.context(tmp_path))
    found = undone(baseline, variant)
    assert {one.part for one in found.parts} >= {"layer 0", "layer 1", "layer 2"}
    assert {one.way for one in found.parts} == {"baseline"}


def test_a_narrower_stream_takes_none_of_the_baselines_parts() -> None:
    baseline = tiny.tiny_bert()
    variant = baseline.copy()
    stream(variant.model).keep(range(8))
    found = undone(baseline, variant)
    assert found.parts == ()
    why = "the variant's stream is 8 wide, the baseline's 16"
    assert found.notes == (
        f"not put back: embeddings, layer 0, layer 1, layer 2, pooler ({why})",
        "as in the baseline: classifier",
    )


def test_dropped_layers_are_told_and_the_rest_is_undone(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    context = tiny.context(tmp_path)
    variant = layer_drop.apply(baseline, layer_drop.Config(keep=2), context)
    ruin(variant, variant.model.classifier)
    found = undone(baseline, variant)
    assert {one.part for one in found.parts} == {"embeddings", "pooler", "classifier"}
    assert found.notes == (
        "not put back: layer 0, layer 1 (the variant has 2 layers, the baseline 3: which stands "
        "for which is not known)",
    )


def test_a_student_of_another_kind_is_told() -> None:
    student = lstm.build(
        embedding=8, hidden=8, layers=1, dropout=0, vocab_size=32, pad_id=0, num_labels=2
    )
    variant = Bundle(student.eval(), tiny.tokenizer(), tiny.LABELS, tiny.MAX_LENGTH)
    found = undone(tiny.tiny_bert(), variant)
    assert found.parts == ()
    assert "of the kind `nightpress-lstm`, the baseline `bert`" in found.notes[0]


def test_layers_that_are_one_are_undone_together() -> None:
    config = AlbertConfig(
        vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
        intermediate_size=32, num_hidden_layers=3, max_position_embeddings=32,
    )  # fmt: skip
    baseline = tiny.bundle_of(config)
    variant = baseline.copy()
    ruin(variant, variant.model.albert.encoder)
    found = undone(baseline, variant)
    assert {one.part for one in found.parts} == {"embeddings", "encoder", "pooler", "classifier"}


def test_a_shrunken_vocabulary_is_undone_with_its_tokenizer(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    variant = vocabulary.apply(baseline, vocabulary.Config(), tiny.context(tmp_path))
    with torch.no_grad():
        variant.model.bert.embeddings.LayerNorm.weight.neg_()
    found = undone(baseline, variant)
    assert [one.part for one in found.parts] == ["embeddings"]
    assert found.parts[0].loss == pytest.approx(found.lost, abs=1e-5)
    assert found.notes == ("as in the baseline: layer 0, layer 1, layer 2, pooler, classifier",)


def test_a_length_of_texts_is_undone(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    config = sequence_length.Config(share=0.2)
    variant = sequence_length.apply(baseline, config, tiny.context(tmp_path))
    found = undone(baseline, variant)
    assert [one.part for one in found.parts] == [LENGTH]
    assert found.parts[0].loss == pytest.approx(found.lost, abs=1e-5)


def _static(bundle: Bundle, folder: Path) -> Bundle:
    return static.apply(bundle, static.Config(budget=0.9), tiny.context(folder))


def _dynamic(bundle: Bundle, folder: Path) -> Bundle:
    return dynamic.apply(bundle, dynamic.Config(per_channel=False), tiny.context(folder))


def silence(writer: nn.Module, output: int, reader: nn.Module) -> None:
    """Let one output always be zero, and what reads it have weights that make a large step."""
    axis = 0 if isinstance(writer, nn.Linear) else 1
    with torch.no_grad():
        writer.get_parameter("weight").select(axis, output).zero_()
        writer.get_parameter("bias")[output] = 0
        reader.get_parameter("weight").select(1 - axis, output % 16).fill_(300.0)


@pytest.mark.parametrize("quantize", [_static, _dynamic])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_layer_that_int8_costs_most_is_ranked_first(
    kind: str,
    quantize: Callable[[Bundle, Path], Bundle],
    tmp_path: Path,
    trained: Callable[[str], Bundle],
) -> None:
    baseline = trained(kind)
    layer = model_parts.layers(baseline.model)[0]
    fused = len(layer.projections) == 1
    silence(layer.projections[-1], 32 if fused else 0, layer.attention_output)
    silence(layer.ffn_input, 0, layer.ffn_output)
    found = undone(baseline, quantize(baseline, tmp_path))
    assert {one.way for one in found.parts} == {"float"}
    assert found.parts[0].part == "layer 0"
    assert found.lost > 0


def test_a_retrained_and_quantized_layer_is_undone_in_both_ways(
    tmp_path: Path, trained: Callable[[str], Bundle]
) -> None:
    baseline = trained("bert")
    variant = baseline.copy()
    ruin(variant, variant.model.bert.encoder.layer[1])
    found = undone(baseline, _dynamic(variant, tmp_path))
    ways = [(one.part, one.way) for one in found.parts]
    assert ways[0] == ("layer 1", "baseline")
    assert len(ways) == len(set(ways)) == 2 * len(parts(variant.model))


def test_rounded_weights_are_undone_as_they_stand(tmp_path: Path) -> None:
    baseline = tiny.tiny_bert()
    variant = affine.apply(baseline, affine.Config(), tiny.context(tmp_path))
    found = undone(baseline, variant)
    assert {one.way for one in found.parts} == {"baseline"}
    assert found.notes == (
        "of `quantize_weights` this shows what it did to the weights themselves",
    )


def test_a_recurrent_layer_in_int8_is_told(tmp_path: Path) -> None:
    model = lstm.build(
        embedding=8, hidden=8, layers=1, dropout=0, vocab_size=32, pad_id=0, num_labels=2
    )
    baseline = Bundle(model.eval(), tiny.tokenizer(), tiny.LABELS, tiny.MAX_LENGTH)
    found = undone(baseline, _dynamic(baseline, tmp_path))
    assert found.parts == ()
    assert found.lost == 0
    assert found.notes[-1].startswith("recurrent layers in int8 are not imitated")
