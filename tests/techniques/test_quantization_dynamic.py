"""Dynamic quantization: a step of the export plan, once."""

import pytest

from tasks.errors import TechniqueError
from tasks.quantization import dynamic
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


def test_what_is_quantized_is_not_quantized_again(tmp_path):
    context = tiny.context(tmp_path)
    once = dynamic.apply(tiny.tiny_bert(), dynamic.Config(), context)
    with pytest.raises(TechniqueError, match="quantized already"):
        dynamic.apply(once, dynamic.Config(), context)


def test_it_reads_no_data_and_ends_a_recipe():
    assert dynamic.READS_DATA is False
    assert dynamic.LAST is True
