"""Dynamic quantization: a step of the export plan, once; the weights that the export then holds."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tasks import affine
from tasks.errors import TechniqueError
from tasks.quantization import dynamic
from tasks.runtime.export import export
from tests import tiny
from tests.techniques.contract import Contract, same_weights


def _prove(before, after, config):
    assert not before.export.has("quantize_dynamic")
    ((name, settings),) = after.export.steps
    assert name == "quantize_dynamic"
    assert settings == {
        "per_channel": config.per_channel,
        "weight_type": config.weight_type,
        "reduce_range": config.reduce_range,
    }
    assert same_weights(before, after)


CONTRACT = Contract(
    good=({}, {"per_channel": False, "weight_type": "uint8", "reduce_range": True}),
    bad=(
        ({"weight_type": "int4"}, "'int8' or 'uint8'"),
        ({"per_channel": "sometimes"}, "valid boolean"),
    ),
    prove=_prove,
    changes_answers=False,
)


@pytest.mark.parametrize(
    ("per_channel", "weight_type", "reduce_range"),
    [
        (True, "int8", False),
        (False, "int8", True),
        (True, "uint8", True),
        (False, "uint8", False),
    ],
)
def test_the_exported_weights_are_the_textbooks(per_channel, weight_type, reduce_range, tmp_path):
    config = dynamic.Config(
        per_channel=per_channel, weight_type=weight_type, reduce_range=reduce_range
    )
    bundle = dynamic.apply(tiny.tiny_bert(), config, tiny.context(tmp_path))
    export(bundle, tmp_path / "export")
    graph = onnx.load(str(tmp_path / "export" / "model.onnx")).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    assert len(products) == 3 * 3 + 2
    grid = affine.grid(weight_type, symmetric=weight_type == "int8", reduce_range=reduce_range)
    for node in products:
        name = node.name.removeprefix("/model/").rpartition("/")[0].replace("/", ".")
        weight = bundle.model.get_parameter(f"{name}.weight").detach().T
        found = tensors[node.input[1]]
        expected = affine.of(weight, grid, 1 if per_channel else None)
        scale = tensors[node.input[1].replace("_quantized", "_scale")]
        assert found.dtype == weight_type
        assert found.min() >= grid.low
        assert found.max() <= grid.high
        assert scale.shape == ((weight.shape[1],) if per_channel else ())
        np.testing.assert_allclose(scale, expected.scale.numpy(), rtol=1e-6)
        # a half may tip where its step differs in the last bit
        distance = np.abs(found.astype(int) - expected.quantize(weight).numpy().astype(int))
        assert distance.max() <= 1
        assert (distance > 0).mean() < 0.02


def test_what_is_quantized_is_not_quantized_again(tmp_path):
    context = tiny.context(tmp_path)
    once = dynamic.apply(tiny.tiny_bert(), dynamic.Config(), context)
    with pytest.raises(TechniqueError, match="quantized already"):
        dynamic.apply(once, dynamic.Config(), context)


def test_it_reads_no_data_and_ends_a_recipe():
    assert dynamic.READS_DATA is False
    assert dynamic.LAST is True
