"""A factorized token table: the nearest of its rank, in every model and export."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig

from tasks import bundle as bundles
from tasks.errors import TechniqueError
from tasks.pruning import one_shot, structured
from tasks.replacements import FactorizedEmbedding, token_table
from tasks.runtime.export import export
from tasks.structure import factorized_embedding, layer_drop
from tasks.structure.factorized_embedding import Config, factorize, rank_for, spectrum
from tests import tiny
from tests.runtime.test_export import centred, logits, quantized
from tests.techniques.contract import SHORT, Contract
from tests.training.test_lstm import tiny_lstm

TEXTS = tiny.examples(16, seed=3).texts


def _prove(before, after, config):
    embeddings = after.model.get_input_embeddings()
    rows, width = before.model.get_input_embeddings().weight.shape
    rank = embeddings.table.embedding_dim
    assert rank == config.rank or config.rank is None
    assert after.notes[factorized_embedding.NOTE].startswith(f"rank {rank} of 16 keeps ")
    saved = rows * width - rank * (rows + width)
    assert before.num_parameters() - after.num_parameters() == saved > 0


CONTRACT = Contract(
    good=({"rank": 4}, {"energy": 0.7}),
    bad=(
        ({}, "give `rank` or `energy`"),
        ({"rank": 2, "energy": 0.5}, "give `rank` or `energy`"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"energy": 1}, "less than 1"),
        ({"energy": 0}, "greater than 0"),
    ),
    prove=_prove,
)


def press(bundle, folder, **settings):
    return factorized_embedding.apply(bundle, Config(**settings), tiny.context(folder))


def _product(made: FactorizedEmbedding) -> np.ndarray:
    return made(torch.arange(made.table.num_embeddings)).detach().numpy()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 40),
    width=st.integers(2, 12),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_no_product_of_that_rank_is_nearer(rows, width, seed, data):
    rank = data.draw(st.integers(1, min(rows, width)))
    table = torch.nn.Embedding(rows, width)
    values = np.random.default_rng(seed).normal(size=(rows, width))
    table.weight.data = torch.from_numpy(values).float()
    squares, vectors = spectrum(table.weight)
    made = factorize(table, vectors[:, :rank])
    u, sigma, vt = scipy.linalg.svd(table.weight.detach().double().numpy(), full_matrices=False)
    best = (sigma[rank:] ** 2).sum()  # Eckart and Young
    error = ((_product(made) - table.weight.detach().numpy()) ** 2).sum()
    assert error == pytest.approx(best, rel=1e-4, abs=1e-8)
    np.testing.assert_allclose(squares[: len(sigma)], sigma**2, rtol=1e-8, atol=1e-8)
    if rank == len(sigma) or sigma[rank - 1] - sigma[rank] > 1e-2:  # else the best is not one
        nearest = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
        np.testing.assert_allclose(_product(made), nearest, atol=1e-4)


@given(values=st.lists(st.floats(0.01, 100), min_size=1, max_size=20), energy=st.floats(0.01, 0.99))
def test_the_rank_for_an_energy_is_the_smallest(values, energy):
    squares = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = rank_for(squares, energy)
    whole = float(squares.sum())
    assert float(squares[:rank].sum()) / whole >= energy - 1e-12
    assert float(squares[: rank - 1].sum()) / whole < energy


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "electra", "roberta", "albert"])
def test_it_reloads_and_its_export_answers_as_pytorch(kind, tmp_path):
    before = _albert() if kind == "albert" else tiny.tiny(kind)
    after = press(before, tmp_path, rank=3)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert again.num_parameters() == after.num_parameters() < before.num_parameters()
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    assert token_table(again.model).padding_idx == token_table(before.model).padding_idx
    facts = export(after, tmp_path / "export")
    expected = centred(tiny.answers(after, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)
    if kind in ("bert", "distilbert", "electra"):
        assert facts.fused["Attention"] == 3
        assert facts.fused["SkipLayerNormalization"] == 6


def _albert():
    return tiny.bundle_of(
        AlbertConfig(
            vocab_size=32, embedding_size=8, hidden_size=16, num_attention_heads=4,
            intermediate_size=32, num_hidden_layers=3, max_position_embeddings=32,
        )
    )  # fmt: skip


def test_an_lstm_is_factorized_too(tmp_path):
    after = press(tiny_lstm(), tmp_path, rank=2)
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))
    export(after, tmp_path / "export")
    expected = centred(tiny.answers(after, TEXTS))
    np.testing.assert_allclose(logits(tmp_path / "export", TEXTS), expected, atol=1e-4)


def test_quantization_reaches_the_projection(tmp_path):
    plain = export(quantized(tiny.tiny_bert()), tmp_path / "plain")
    factorized = export(quantized(press(tiny.tiny_bert(), tmp_path, rank=3)), tmp_path / "export")
    assert factorized.operators["MatMulInteger"] == plain.operators["MatMulInteger"] + 1


@pytest.mark.parametrize(
    ("bundle", "settings", "reason"),
    [
        (tiny.tiny_bert, {"rank": 11}, "32 × 16 would be no smaller at rank 11: .* 10 at most"),
        (tiny.tiny_bert, {"energy": 0.999}, "would be no smaller at rank"),
        (
            lambda: replace(
                tiny.tiny_bert(), sparse=("bert.embeddings.word_embeddings.weight",)
            ),
            {"rank": 4},
            "has pruned weights",
        ),
    ],
)  # fmt: skip
def test_what_gains_nothing_or_breaks_zeros_is_refused(bundle, settings, reason, tmp_path):
    with pytest.raises(TechniqueError, match=reason):
        press(bundle(), tmp_path, **settings)


def test_what_is_factorized_is_not_factorized_again(tmp_path):
    once = press(tiny.tiny_bert(), tmp_path, rank=4)
    with pytest.raises(TechniqueError, match="factorized already"):
        press(once, tmp_path, rank=2)
    assert factorized_embedding.READS_DATA is False


@pytest.mark.parametrize(
    ("cutting", "settings"),
    [
        (one_shot, {"keep": 0.6, "multiple": 4, "constraint": "flops"}),
        (layer_drop, {"keep": 2, "strategy": "importance"}),
        (
            structured,
            {"layers": 0.7, "neurons": 0.5, "multiple": 4, "criterion": "magnitude",
             "training": SHORT},
        ),
    ],
)  # fmt: skip
def test_what_leaves_the_width_alone_can_follow(cutting, settings, tmp_path):
    before = press(tiny.tiny_bert(), tmp_path, rank=4)
    after = cutting.apply(before, cutting.Config(**settings), tiny.context(tmp_path))
    assert after.num_parameters() < before.num_parameters()
    assert isinstance(token_table(after.model), type(token_table(before.model)))
    bundles.save(after, tmp_path / "saved")
    again = bundles.load(tmp_path / "saved")
    assert np.array_equal(tiny.answers(again, TEXTS), tiny.answers(after, TEXTS))


def test_a_width_of_factorized_embeddings_is_not_cut(tmp_path):
    config = structured.Config(hidden=0.5, hidden_multiple=4)
    with pytest.raises(TechniqueError, match="factorized, and cannot be made narrower"):
        structured.apply(press(tiny.tiny_bert(), tmp_path, rank=4), config, tiny.context(tmp_path))
