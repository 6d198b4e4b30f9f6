"""A bundle: a classifier with its tokenizer and what the exporter still has to do to it.

Saved as a folder of safetensors and JSON, with the shape of every parameter, so that a model that
was cut (unequal heads, narrower layers) loads again with no guess and without pickle. Modules that
stand in place of the model's own are recorded too, and parameters that are one under several names:
both are there again before the weights are read.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks import lstm, model_parts, packed, replacements
from tasks.errors import StoreError

_FORMAT = 1
_WEIGHTS = "model.safetensors"
_SCALES = "scales.safetensors"
_FACTS = "bundle.json"
_WIDTHS = (
    "num_attention_heads", "attention_head_size", "all_head_size",  # BERT, RoBERTa, ELECTRA, MPNet
    "n_heads", "dim",  # DistilBERT
    "num_heads", "head_dim", "embed_dim", "split_size",  # GPT-2
    "in_features", "out_features", "nx", "nf", "num_embeddings", "embedding_dim",
    "scaling",  # of attention; some models derive it from the layer's place
)  # fmt: skip
"""Attributes that hold a module's widths: recorded as they are, and set again at load."""


@dataclass(frozen=True)
class ExportPlan:
    """What the exporter does after fusion, in order; each step is a name and its settings."""

    steps: tuple[tuple[str, dict[str, Any]], ...] = ()

    def then(self, name: str, **settings: Any) -> "ExportPlan":
        """Return the plan with one more step."""
        return ExportPlan((*self.steps, (name, settings)))

    def has(self, name: str) -> bool:
        """Tell whether a step is called `name`."""
        return any(step == name for step, _ in self.steps)


@dataclass
class Bundle:
    """A classifier. `model` takes input_ids, attention_mask and gives `.logits` (batch, labels)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    max_length: int
    """Tokens that a text is cut to."""
    export: ExportPlan = field(default_factory=ExportPlan)
    sparse: tuple[str, ...] = ()
    """Parameters whose zeros are pruned weights: later training keeps them at zero."""
    scales: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Linear layer → the steps that its weights were trained to be rounded by, float32 (outputs,)
    or (); for the export plan."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Technique → what it has to tell of how it went; kept by the techniques after it."""

    def copy(self) -> "Bundle":
        """Return a bundle with a deep copy of the model; the tokenizer is shared."""
        return replace(self, model=copy.deepcopy(self.model))

    def num_parameters(self) -> int:
        """Return how many parameters the model holds, tied ones counted once."""
        return replacements.num_parameters(self.model)


def whole_texts(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return a copy of the fast tokenizer beneath that neither cuts nor pads.

    A copy, since calls leave their padding and truncation behind in a tokenizer.
    """
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.no_truncation()
    made.no_padding()
    return made


def _shapes(model: nn.Module) -> dict[str, Any]:
    widths = {
        name: {w: getattr(m, w) for w in _WIDTHS if isinstance(getattr(m, w, None), (int, float))}
        for name, m in model.named_modules()
    }
    return {
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
        "widths": {name: found for name, found in widths.items() if found},
    }


def _reshape(model: nn.Module, shapes: dict[str, Any]) -> None:
    """Give every parameter its recorded shape (values are undefined until loaded)."""
    modules = dict(model.named_modules())
    for name, shape in shapes["parameters"].items():
        owner, _, leaf = name.rpartition(".")
        parameter = getattr(modules[owner], leaf)
        if list(parameter.shape) != shape:
            setattr(modules[owner], leaf, nn.Parameter(torch.empty(shape, dtype=parameter.dtype)))
            if isinstance(modules[owner], nn.LayerNorm):
                modules[owner].normalized_shape = tuple(shape)
    for name, widths in shapes["widths"].items():
        for width, value in widths.items():
            setattr(modules[name], width, value)


def _restore(model: nn.Module, facts: dict[str, Any]) -> None:
    """Give a model built from its configuration the modules, shapes and ties recorded."""
    for path, kind, arguments in facts.get("replaced", []):
        if kind not in replacements.KINDS:
            raise ValueError(f"this version knows no module `{kind}` ({path})")
        replacements.put(model, path, replacements.KINDS[kind](**arguments))
    _reshape(model, facts["shapes"])
    for first, *others in facts.get("tied", []):
        for name in others:
            replacements.put(model, name, model.get_parameter(first))


def save(bundle: Bundle, folder: Path) -> None:
    """Write the bundle into `folder`, which is made.

    Raises OSError where the disk refuses; the folder may then be partial, so the caller writes
    beside and renames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle.model.config.save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)
    safetensors.torch.save_model(bundle.model, str(folder / _WEIGHTS))
    if bundle.scales:
        safetensors.torch.save_file(dict(bundle.scales), folder / _SCALES)
    facts = {
        "format": _FORMAT,
        "labels": list(bundle.labels),
        "max_length": bundle.max_length,
        "export": [[name, settings] for name, settings in bundle.export.steps],
        "sparse": list(bundle.sparse),
        "scales": bool(bundle.scales),
        "notes": dict(bundle.notes),
        "shapes": _shapes(bundle.model),
        "replaced": replacements.found(bundle.model),
        "tied": model_parts.tied(bundle.model),
    }
    (folder / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")


def load(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle that `save` wrote.

    Raises StoreError where a file is missing or does not fit its recorded shapes.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise StoreError(f"{folder} has format {facts['format']}; this version reads {_FORMAT}")
        lstm.register()
        assert packed.PackedLinear.kind in replacements.KINDS  # it is known once it is imported
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_config(config)
        _restore(model, facts)
        safetensors.torch.load_model(model, folder / _WEIGHTS, strict=True)
        scales = safetensors.torch.load_file(folder / _SCALES) if facts.get("scales") else {}
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{folder} does not hold a whole model: {line}") from error
    return Bundle(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        labels=tuple(facts["labels"]),
        max_length=facts["max_length"],
        export=ExportPlan(tuple((name, settings) for name, settings in facts["export"])),
        sparse=tuple(facts["sparse"]),
        scales=scales,
        notes=facts.get("notes", {}),
    )
