"""An exported classifier of a few hundred bytes: it counts good words against bad ones."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

_WORDS = ("[PAD]", "[UNK]", "superb", "gripping", "dull", "awful", "film", "a")
_WEIGHTS = ((0, 0), (0, 0), (-2, 2), (-2, 2), (2, -2), (2, -2), (0, 0), (0, 0))
MAX_LENGTH = 8


def write(folder: Path, labels: tuple[str, str] = ("negative", "positive")) -> Path:
    """Write model.onnx, tokenizer.json and serving.json, as an export leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(_model(), str(folder / "model.onnx"))
    facts = {"labels": labels, "max_length": MAX_LENGTH, "pad_id": 0, "pad_token": "[PAD]"}
    (folder / "serving.json").write_text(json.dumps(facts))
    return folder


def _model() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.array(_WEIGHTS, dtype=np.float32), "weights")
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    last = numpy_helper.from_array(np.array([-1], dtype=np.int64), "last")
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["mask"]),
        helper.make_node("Mul", ["scores", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["logits"], keepdims=0),
    ]
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        initializer=[weights, axis, last],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
