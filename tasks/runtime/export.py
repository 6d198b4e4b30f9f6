"""A bundle as an ONNX model with fused operators, its tokenizer, and what serving must know.

Exported by the TorchScript exporter with eager attention, since that is the form whose attention
ONNX Runtime's optimizer recognizes; then the steps of the bundle's export plan. Every step is
counted: a conversion that did nothing is an error.
"""

import json
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from tasks import files, model_parts, packed
from tasks.bundle import Bundle, whole_texts
from tasks.errors import ExportError
from tasks.runtime import fusion, quantizing
from tasks.runtime.session import MODEL, SERVING, TOKENIZER

_OPSET = 17
_TOLERANCE = 1e-4
"""Largest difference of a logit between PyTorch and float ONNX, relative to the largest logit."""


@dataclass(frozen=True)
class ExportFacts:
    """What an export holds."""

    operators: dict[str, int]
    """Operator → how many of them."""
    fused: dict[str, int]
    """Fused operators, counted before quantization."""
    quantized: int
    """Operators that compute in int8, as the runtime loads the model."""
    packed: int
    """Matrices that are stored in 8 bits, whatever they are computed in."""
    size_bytes: int
    """All files that are served."""
    sha256: str
    """Over all files that are served."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ExportFacts":
        """Return what `to_dict` made."""
        return cls(**value)


def export(bundle: Bundle, folder: Path) -> ExportFacts:
    """Write the export of `bundle` as `folder`, whole or not at all.

    Raises ExportError where the model cannot be traced, its float form answers otherwise than
    PyTorch, its layers were not fused, or a step of the plan left part of the model as it was.
    """
    begin = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model = _traced(bundle, staged / "raw.onnx")
        form = quantizing.form(bundle.export.steps)
        fused = fusion.fuse(model, staged / "raw.onnx", staged / "fused.onnx", form)
        _compare(bundle, model, staged / "fused.onnx")
        finished = _apply_plan(bundle, model, staged / "fused.onnx", staged / MODEL)
        _try(bundle, staged / MODEL)
        running = quantizing.running(staged / MODEL) if bundle.export.steps else finished
        for part in ("raw.onnx", "fused.onnx"):
            (staged / part).unlink(missing_ok=True)
        _write_serving(bundle, staged)
        os.rename(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return ExportFacts(
        operators=dict(sorted(_operators(finished).items())),
        fused=fused,
        quantized=quantizing.count(_operators(running)),
        packed=quantizing.num_packed(finished),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        sha256=files.combined(files.content(folder)),
        seconds=time.monotonic() - begin,
    )


class _Served(nn.Module):
    """The model as it is served: ids and mask in, logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.segments = getattr(model.config, "type_vocab_size", 0) > 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        more = {"token_type_ids": torch.zeros_like(input_ids)} if self.segments else {}
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).logits
        return logits


def _traced(bundle: Bundle, path: Path) -> Any:
    """Write the model as plain ONNX; return the copy that was traced."""
    model = bundle.copy().model.float().cpu().eval()
    packed.unpacked(model)
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    ids, mask = _probe(bundle)
    axes = {0: "batch", 1: "sequence"}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # the tracer warns of every shape that it takes for constant; `_compare` tries others
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Served(model).eval(),
                (ids, mask),
                str(path),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(
            f"a model of type `{model.config.model_type}` cannot be exported: {line}"
        ) from error
    return model


def _probe(bundle: Bundle, rows: int = 3, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of rows of unequal length, padded as in serving."""
    random = np.random.default_rng(rows * 100 + length)
    longest = min(length, bundle.max_length)
    vocabulary = min(len(bundle.tokenizer), bundle.model.config.vocab_size)
    ids = torch.from_numpy(random.integers(0, vocabulary, size=(rows, longest)))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, max(1, longest - 2 * row) :] = 0
    ids[mask == 0] = bundle.tokenizer.pad_token_id
    # a pad inside the text would be taken for its end by models that look for it (GPT-2)
    inside = (ids == bundle.tokenizer.pad_token_id) & (mask == 1)
    ids[inside] = (bundle.tokenizer.pad_token_id + 1) % vocabulary
    return ids, mask


def _compare(bundle: Bundle, model: Any, path: Path) -> None:
    """Raise ExportError unless the export, in float, answers as PyTorch does, in other shapes too.

    In float: what is stored in integers is dequantized first, whatever faster form there is.
    """
    options = _silent()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    for rows, length in ((3, 9), (1, 4), (5, 17)):
        ids, mask = _probe(bundle, rows, length)
        with torch.no_grad():
            expected = _Served(model).eval()(ids, mask).numpy()
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        difference = float(np.abs(found - expected).max())
        if difference > _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"the exported model differs from PyTorch by {difference:.2g} in a logit; "
                "this is a defect of the export of this architecture"
            )


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _apply_plan(bundle: Bundle, model: Any, source: Path, target: Path) -> onnx.ModelProto:
    """Write the model with the plan's steps applied; return it."""
    shutil.copyfile(source, target)
    for name, settings in bundle.export.steps:
        calls = _calls(model, *_probe(bundle))
        if name == quantizing.DYNAMIC:
            quantizing.quantize_dynamic(target, num_products=calls.total(), **settings)
        elif name == quantizing.STATIC:
            quantizing.quantize_static(target, model, calls=calls, scales=bundle.scales, **settings)
        elif name == quantizing.WEIGHTS:
            quantizing.quantize_weights(target, model, calls=calls, **settings)
            _compare(bundle, model, target)  # the weights were rounded before: nothing may change
        elif name == quantizing.PACKED:
            quantizing.store_packed(target, model, packed.found(bundle.model), calls=calls)
            _compare(bundle, model, target)
        else:
            raise ExportError(f"the exporter knows no step `{name}`")
    return onnx.load(str(target))


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _calls(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Counter[str]:
    """Return how often the model multiplies by each weight: shared layers count each time."""
    calls: Counter[str] = Counter()
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, part in model.named_modules()
        if model_parts.is_linear(part)
    ]
    with torch.no_grad():
        _Served(model)(ids, mask)
    for hook in hooks:
        hook.remove()
    return calls


def _try(bundle: Bundle, path: Path) -> None:
    """Raise ExportError unless the runtime loads the finished model and it answers in numbers."""
    ids, mask = _probe(bundle)
    try:
        session = onnxruntime.InferenceSession(str(path), _silent(), ["CPUExecutionProvider"])
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    except Exception as error:  # onnxruntime's own errors have no base but this
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(f"ONNX Runtime cannot run the exported model: {line}") from error
    if found.shape != (len(ids), len(bundle.labels)) or not np.isfinite(found).all():
        raise ExportError(
            f"the exported model gives {found.shape} logits, some not finite, for {len(ids)} texts "
            f"and {len(bundle.labels)} labels; its weights may have overflown in training"
        )


def _write_serving(bundle: Bundle, folder: Path) -> None:
    tokenizer = whole_texts(bundle.tokenizer)
    tokenizer.enable_truncation(bundle.max_length, direction=bundle.tokenizer.truncation_side)
    tokenizer.save(str(folder / TOKENIZER))
    serving = {
        "labels": list(bundle.labels),
        "max_length": bundle.max_length,
        "pad_id": bundle.tokenizer.pad_token_id,
        "pad_token": bundle.tokenizer.pad_token,
    }
    (folder / SERVING).write_text(json.dumps(serving, indent=1, sort_keys=True), encoding="utf-8")
