"""Latency of layers by width: what a table is made of, and one that is really measured."""

import pytest

from tasks.runtime import layer_latency
from tasks.stream import stream
from tasks.training.progress import Silent
from tests import tiny


def test_a_table_leaves_out_what_is_no_layer():
    # 1 ms outside of layers; a layer takes 0.5 ms for itself, 0.25 a head, 0.125 a neuron
    def probe(layers: int, heads: int, neurons: int) -> float:
        return 1 + layers * (0.5 + 0.25 * heads + 0.125 * neurons)

    shapes = [(1, 4, 8), (3, 4, 8), (3, 2, 8), (3, 4, 4)]
    found = layer_latency.table({shape: probe(*shape) for shape in shapes}, (4, 8))
    assert found.whole == pytest.approx(2.5)
    assert found.heads == pytest.approx({4: 2.5, 2: 2.0})
    assert found.neurons == pytest.approx({8: 2.5, 4: 2.0})


def test_widths_are_spread_up_to_the_most():
    assert layer_latency.widths(12) == [1, 2, 4, 8, 12]
    assert layer_latency.widths(1536) == [128, 256, 512, 1024, 1536]
    assert layer_latency.widths(2) == [1, 2]
    assert layer_latency.widths(1) == [1]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_layer_is_measured_in_the_served_runtime(kind, monkeypatch):
    monkeypatch.setattr(layer_latency, "_SHARES", (0.5, 1.0))
    monkeypatch.setattr(layer_latency, "_ROUNDS", 3)
    bundle = tiny.tiny(kind)
    stream(bundle.model).keep(range(13))
    probe = layer_latency._probe(bundle, 9, 2, 3, 5)
    found = stream(probe.model)
    assert (found.width, len(found.parts)) == (13, 2)
    assert {(p.num_heads, p.num_neurons) for p in found.parts} == {(3, 5)}
    before = bundle.model.config.to_dict()
    measured = layer_latency.measure(bundle, 9, 1, Silent())
    assert sorted(measured.heads) == [2, 4]
    assert sorted(measured.neurons) == [16, 32]
    assert measured.heads[4] == measured.neurons[32] == pytest.approx(measured.whole)
    assert bundle.model.config.to_dict() == before
