"""Which part of a variant costs it its answers: one at a time is undone, and the texts asked again.

    regained(part) = loss(variant) − loss(variant with this part alone undone)

in mean cross-entropy, and likewise in accuracy. Parts are the Transformer layers and what lies
around them (embeddings, pooler, classifier). There are two ways to undo one:

* `baseline`: its place is given to the baseline's own part, where that fits: where both read and
  write a stream of the same width. It may have other heads and neurons, zeros, another activation.
* `float`: where the export computes in int8, which PyTorch imitates here (`tasks/imitation.py`),
  the part stays in float.

A part that was trained together with its neighbours may do worse when the baseline's own stands
there: then less than nothing is regained, and the loss lies in no one part. What cannot be undone
is said in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks import model_parts, replacements
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.evaluation.explained import Undoing, Undone, Way
from tasks.imitation import imitation
from tasks.training.batches import Encoded, Examples
from tasks.training.losses import measured
from tasks.training.predict import encoded_logits
from tasks.training.progress import Progress

LENGTH = "length of texts"
_BATCH = 32


def undo(baseline: Bundle, variant: Bundle, examples: Examples, progress: Progress) -> Undoing:
    """Return what is regained on labelled `examples` by undoing each part of `variant` alone.

    Both bundles are used where they are, and are afterwards as they were.
    """
    asked = _Asked(baseline, variant, examples)
    reasons = _misfits(baseline.model, variant.model)
    changes = list(_changes(asked, reasons))
    before = measured(encoded_logits(baseline.model, asked.encoded(baseline), _BATCH), asked.labels)
    after = asked.loss_and_accuracy()
    undone = []
    progress.start("undoing layers", len(changes))
    try:
        for change in changes:
            loss, accuracy = asked.loss_and_accuracy(change)
            points = (accuracy - after[1]) * 100
            undone.append(Undone(change.title, change.way, points, after[0] - loss))
            progress.advance(1)
    finally:
        progress.stop()
    return Undoing(
        num_texts=len(examples),
        lost_points=(before[1] - after[1]) * 100,
        lost=after[0] - before[0],
        parts=tuple(sorted(undone, key=lambda one: (-one.loss, -one.points))),
        notes=tuple(_notes(asked, reasons, changes)),
    )


@dataclass(frozen=True)
class _Change:
    """One part, and how it is undone; its path is empty where only the length of texts is."""

    path: str
    title: str
    way: Way


class _Asked:
    """The variant as it is exported, asked with one part undone at a time."""

    def __init__(self, baseline: Bundle, variant: Bundle, examples: Examples) -> None:
        self.baseline = baseline
        self.variant = variant
        self.examples = examples
        self.labels = examples.labels
        self.integers, self.note = imitation(variant)
        self.parts = parts(variant.model)
        self.table = _table(variant.model)
        self._tokenized: dict[tuple[int, int], Encoded] = {}

    def encoded(self, bundle: Bundle, max_length: int | None = None) -> Encoded:
        """Return the texts as `bundle` reads them, at another length by `max_length`."""
        length = max_length or bundle.max_length
        key = (id(bundle.tokenizer), length)
        if key not in self._tokenized:
            self._tokenized[key] = Encoded(self.examples, bundle.tokenizer, length)
        return self._tokenized[key]

    def loss_and_accuracy(self, change: _Change | None = None) -> tuple[float, float]:
        """Return cross-entropy and accuracy of the variant with `change` made, for this once."""
        model, texts = self.variant.model, self.encoded(self.variant)
        names = list(self.integers.names)
        if change is None:
            return self._measured(names, texts)
        if not change.path:
            return self._measured(names, self.encoded(self.variant, self.baseline.max_length))
        names = [n for n in names if not _within(n, change.path)]
        if change.way == "float":
            return self._measured(names, texts)
        own = model.get_submodule(change.path)
        theirs = self.baseline.model.get_submodule(change.path)
        if change.path == self.table:  # another vocabulary's numbers go with its own table
            texts = self.encoded(self.baseline, self.variant.max_length)
        replacements.put(model, change.path, theirs)
        try:
            return self._measured(names, texts)
        finally:
            replacements.put(model, change.path, own)

    def _measured(self, names: list[str], texts: Encoded) -> tuple[float, float]:
        with self.integers.on(names):
            return measured(encoded_logits(self.variant.model, texts, _BATCH), self.labels)


def parts(model: PreTrainedModel) -> dict[str, str]:
    """Return path → title of what can be undone: layers, and what lies around them."""
    try:
        layers, _ = model_parts.layer_list(model)
    except TechniqueError:  # of an unknown kind: its parts are as large as its first modules
        layers = ""
    return dict(_descend(model, model.base_model_prefix, layers, ""))


def _descend(model: PreTrainedModel, base: str, layers: str, path: str) -> list[tuple[str, str]]:
    """Return the parts below `path`, of which `layers` is the list of layers."""
    found = []
    for name, module in model.get_submodule(path).named_children():
        inner = f"{path}.{name}" if path else name
        if inner == base or (layers and _within(layers, inner)):
            found += _descend(model, base, layers, inner)
        elif any(True for _ in module.parameters()):
            found.append((inner, f"layer {name}" if layers and path == layers else name))
    return found


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _changes(asked: _Asked, reasons: Mapping[str, str]) -> list[_Change]:
    """Return all that can be undone, in the order of the model."""
    found = []
    baseline, variant = asked.baseline, asked.variant
    if variant.max_length < baseline.max_length:
        found.append(_Change("", LENGTH, "baseline"))
    for path, title in asked.parts.items():
        if path not in reasons and not _alike(
            baseline.model.get_submodule(path), variant.model.get_submodule(path)
        ):
            found.append(_Change(path, title, "baseline"))
        if any(_within(name, path) for name in asked.integers.names):
            found.append(_Change(path, title, "float"))
    return found


def _misfits(baseline: PreTrainedModel, variant: PreTrainedModel) -> dict[str, str]:
    """Return the variant's parts in whose place the baseline's cannot stand → why not."""
    kinds = [model.config.model_type for model in (variant, baseline)]
    if kinds[0] != kinds[1]:
        why = f"the variant is of the kind `{kinds[0]}`, the baseline `{kinds[1]}`"
        return dict.fromkeys(parts(variant), why)
    found = {}
    counts = [len(_layer_paths(model)) for model in (variant, baseline)]
    widths = [_stream_width(model) for model in (variant, baseline)]
    table = _table(variant)
    for path in parts(variant):
        is_layer = path in _layer_paths(variant)
        if is_layer and counts[0] != counts[1]:
            found[path] = (
                f"the variant has {counts[0]} layers, the baseline {counts[1]}: which stands for "
                "which is not known"
            )
        elif not (is_layer or path == table) and _shapes(variant, path) == _shapes(baseline, path):
            continue
        elif widths[0] != widths[1]:
            found[path] = f"the variant's stream is {widths[0]} wide, the baseline's {widths[1]}"
        elif not (is_layer or path == table):
            found[path] = "another shape than the baseline's"
    return found


def _layer_paths(model: PreTrainedModel) -> list[str]:
    try:
        path, layers = model_parts.layer_list(model)
    except TechniqueError:
        return []
    return [f"{path}.{number}" for number in range(len(layers))]


def _stream_width(model: PreTrainedModel) -> int:
    """Return the width of what the layers read; of unknown layers, of what the embeddings give."""
    if _layer_paths(model):
        return model_parts.num_inputs(model_parts.layers(model)[0].ffn_input)
    table = model.get_input_embeddings()
    if isinstance(table, replacements.FactorizedEmbedding):
        return table.projection.out_features
    return int(table.embedding_dim)


def _table(model: PreTrainedModel) -> str:
    """Return the path of the part that holds the token table."""
    name = replacements.path_of(model, model.get_input_embeddings())
    return next(path for path in parts(model) if _within(name, path))


def _shapes(model: PreTrainedModel, path: str) -> dict[str, torch.Size]:
    named = model.get_submodule(path).named_parameters()
    return {name: parameter.shape for name, parameter in named}


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two parts are built alike and hold equal weights."""
    first, second = one.state_dict(), other.state_dict()
    return (
        repr(one) == repr(other)
        and first.keys() == second.keys()
        and all(torch.equal(value, second[name]) for name, value in first.items())
    )


def _notes(asked: _Asked, reasons: Mapping[str, str], changes: list[_Change]) -> list[str]:
    """Return in words what was not undone, and why."""
    notes = []
    for why in dict.fromkeys(reasons.values()):
        titles = [title for path, title in asked.parts.items() if reasons.get(path) == why]
        notes.append(f"not put back: {', '.join(titles)} ({why})")
    changed = {change.path for change in changes}
    same = [title for path, title in asked.parts.items() if path not in changed | reasons.keys()]
    if same:
        notes.append(f"as in the baseline: {', '.join(same)}")
    return [*notes, asked.note] if asked.note else notes
