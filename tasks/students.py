"""The student of a distillation: the node before, a fresh smaller model, or a cut of the teacher.

A fresh one is of the same architecture as the node before, or a bidirectional LSTM.

A cut keeps layers that are spread evenly over the depth, the first and the last among them (Sanh
et al. 2019, "DistilBERT"), and of each layer the first units, or those that matter most to the
loss, to first order (`tasks.importance`, `tasks.stream_importance`).
"""

import copy
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tasks import lstm, model_parts, replacements, stream_importance
from tasks.bundle import Bundle, ExportPlan
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.importance import first_order
from tasks.stream import stream
from tasks.technique import Context
from tasks.training.config import LstmConfig
from tasks.training.seeding import seed_everything

_MEASURED = 512
"""Training examples that importance is measured on."""
_WIDTHS = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
_FFN = ("intermediate_size", "hidden_dim", "n_inner")
"""What architectures call the width of the feed-forward network: BERT, DistilBERT, GPT-2."""


class StudentConfig(Frozen):
    """A smaller model; what is not given is as in the model that it comes from."""

    layers: int | None = Field(default=None, ge=1)
    """Transformer layers."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the residual stream."""
    ffn: int | None = Field(default=None, ge=1)
    """Width of the feed-forward networks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of a layer; in a fresh model they divide `hidden`, in a cut each keeps its
    size."""
    init: Literal["fresh", "first", "important"] = "fresh"
    """Fresh: random weights, shaped like the node before. Or a cut of the teacher (the first of
    several): its first units, or those that matter most to the loss on the training text."""
    lstm: LstmConfig | None = None
    """A fresh bidirectional LSTM of this shape instead, with the tokenizer of the node before."""

    @model_validator(mode="after")
    def _fits(self) -> "StudentConfig":
        fresh = self.init == "fresh"
        if self.lstm is not None and (self.widths() or not fresh):
            raise ValueError("`lstm` has its own widths and is always fresh: give it alone")
        if self.lstm is None and not self.widths():
            raise ValueError("a student needs `layers`, `hidden`, `ffn` or `heads`, or `lstm`")
        if fresh and self.hidden and self.heads and self.hidden % self.heads:
            raise ValueError(f"`hidden` {self.hidden} is not a multiple of `heads` {self.heads}")
        return self

    def widths(self) -> dict[str, int]:
        """Return the sizes that are given."""
        return self.model_dump(exclude_none=True, exclude={"init", "lstm"})


_OF_TEXTS = ("a cut vocabulary", "the tokens of training texts alone", "shortened texts")
_OF_KIND = ("no GELU", "recurrent layers")


class Taught(Protocol):
    """Settings of a technique that teaches a student."""

    @property
    def student(self) -> StudentConfig | None:
        """A smaller model; None: the node before."""
        ...


def leaves(config: Taught) -> tuple[str, ...]:
    """Return what a student has of its own (`LEAVES` in `tasks/technique.py`)."""
    return ("recurrent layers",) if config.student and config.student.lstm else ()


def refuses(config: Taught) -> tuple[str, ...]:
    """Return what a model may not have that a student is made after, or cut from (`REFUSES`)."""
    wanted = config.student
    if wanted is None or wanted.lstm is not None:
        return ()
    widths = wanted.widths()
    if wanted.init == "fresh":
        return ("recurrent layers",) if widths.keys() & {"ffn", "heads"} else ()
    narrower = ("shared matrices",) if widths.keys() != {"layers"} else ()
    stream_ = ("factorized embeddings",) if "hidden" in widths else ()
    return ("recurrent layers", "packed matrices", *narrower, *stream_)


def keeps(config: Taught) -> tuple[str, ...] | None:
    """Return what of the node before a student has too (`KEEPS`); None: all."""
    if config.student is None:
        return None
    return _OF_TEXTS if config.student.lstm else (*_OF_TEXTS, *_OF_KIND)


def cuts(config: Taught, teacher: str) -> str | None:
    """Return the teacher that a student is cut from (`CUTS`); None: it is not."""
    wanted = config.student
    return None if wanted is None or wanted.init == "fresh" else teacher


def student(bundle: Bundle, config: StudentConfig | None, context: Context, teacher: str) -> Bundle:
    """Return what is to be taught: a copy of `bundle` where `config` is None.

    Raises TechniqueError where the student would not be smaller than what it comes from, its
    widths do not fit together, or the teacher knows other labels or cannot be cut.
    """
    if config is None:
        return bundle.copy()
    if config.init == "fresh":
        return fresh(bundle, config, context)
    source = context.teachers[teacher].load()
    if source.labels != bundle.labels:
        raise TechniqueError(
            f"teacher `{teacher}` knows the labels {', '.join(source.labels)}, not "
            f"{', '.join(bundle.labels)}: cut a teacher trained on the same labels"
        )
    return cut(source, config, context)


def fresh(bundle: Bundle, config: StudentConfig, context: Context) -> Bundle:
    """Return a bundle with a new model of the given widths, random by the context's seed.

    Raises TechniqueError where it would not be smaller, or the widths do not fit together.
    """
    seed_everything(context.seed)
    model = _lstm(bundle, config.lstm) if config.lstm is not None else _alike(bundle, config)
    made = Bundle(model.eval(), bundle.tokenizer, bundle.labels, bundle.max_length, ExportPlan())
    if made.num_parameters() >= bundle.num_parameters():
        raise TechniqueError(
            f"the student has {made.num_parameters():,} parameters, not fewer than the node "
            f"before it ({bundle.num_parameters():,}): give it smaller widths"
        )
    return made


def _alike(bundle: Bundle, config: StudentConfig) -> PreTrainedModel:
    """Return a random model of the bundle's architecture with other widths."""
    model_config = copy.deepcopy(bundle.model.config)
    for name, value in config.widths().items():
        setattr(model_config, _setting(model_config, name), value)
    heads = getattr(model_config, "num_attention_heads", 1)
    if model_config.hidden_size % heads:
        raise TechniqueError(
            f"the student's hidden width {model_config.hidden_size} is not a multiple of its "
            f"{heads} heads: set `hidden` or `heads`"
        )
    lstm.register()
    return AutoModelForSequenceClassification.from_config(model_config)


def _lstm(bundle: Bundle, shape: LstmConfig) -> PreTrainedModel:
    """Return a random LSTM that reads the bundle's tokens and knows its labels."""
    model = lstm.build(
        **shape.model_dump(),
        vocab_size=replacements.token_table(bundle.model).num_embeddings,
        pad_id=bundle.tokenizer.pad_token_id,
        num_labels=len(bundle.labels),
    )
    for name in ("id2label", "label2id", "problem_type"):
        setattr(model.config, name, getattr(bundle.model.config, name))
    return model


def _setting(model_config: Any, width: str) -> str:
    """Return what an architecture's configuration calls a width."""
    for name in _FFN if width == "ffn" else (_WIDTHS[width],):
        if hasattr(model_config, name):
            return name
    raise TechniqueError(
        f"a student of type `{model_config.model_type}` has no width `{width}` to set: leave it out"
    )


def cut(teacher: Bundle, config: StudentConfig, context: Context) -> Bundle:
    """Return a copy of the teacher, cut to the given widths.

    Raises TechniqueError where a width is wider than the teacher's or none is narrower, or where
    the teacher's layers are unknown, shared or packed.
    """
    _check_narrower(teacher, config)
    made = teacher.copy()
    made.export, made.scales = ExportPlan(), {}
    path, found = model_parts.layer_list(made.model)
    if config.layers is not None:
        kept = model_parts.spread(config.layers, len(found))
        sparse = model_parts.every_name(teacher.model, teacher.sparse)
        model_parts.keep_layers(made.model, kept)
        made.sparse = model_parts.renamed(sparse, path, kept)
    ranks = _ranks(made, config, context)
    for layer, part in enumerate(model_parts.layers(made.model)):
        if config.heads is not None and config.heads < part.num_heads:
            part.keep_heads(_best(ranks["heads"][layer], config.heads))
        if config.ffn is not None:
            part.keep_neurons(_best(ranks["ffn"][layer], config.ffn))
    if config.hidden is not None:
        stream(made.model).keep(_best(ranks["hidden"][0], config.hidden))
    made.model.to("cpu").eval()
    return made


def _check_narrower(teacher: Bundle, config: StudentConfig) -> None:
    parts = model_parts.layers(teacher.model)
    there = {
        "layers": [len(parts)],
        "hidden": [stream(teacher.model).width],
        "ffn": [part.num_neurons for part in parts],
        "heads": [part.num_heads for part in parts],
    }
    narrower = set()
    for name, wanted in config.widths().items():
        if wanted > min(there[name]):
            raise TechniqueError(
                f"the student's `{name}` {wanted} is more than its teacher's {min(there[name])}: "
                "a cut can only narrow; lower it, or set `init: fresh`"
            )
        if wanted < max(there[name]):
            narrower.add(name)
    if not narrower:
        raise TechniqueError("the student is as wide as its teacher: give it smaller widths")
    if "hidden" in narrower:
        stream(teacher.model).require_tables()
    if narrower != {"layers"}:
        model_parts.require_untied(teacher.model)
    if "heads" in narrower and not model_parts.cuts_heads(teacher.model):
        raise TechniqueError(
            f"heads cannot be cut from a teacher of type `{teacher.model.config.model_type}`: "
            "leave out `heads`"
        )


def _ranks(made: Bundle, config: StudentConfig, context: Context) -> dict[str, list[torch.Tensor]]:
    """Return scores of what can be cut, a tensor a layer; the first units have the highest."""
    if config.init == "important":
        measured = context.train.sample(_MEASURED, context.seed)
        found = first_order(made, measured, context.device)
        scores = stream_importance.score(made, measured, context.device, "first_order")
        hidden = scores.dimensions
        made.model.to("cpu")
        return {"heads": found.heads, "ffn": found.neurons, "hidden": [hidden]}
    parts = model_parts.layers(made.model)
    return {
        "heads": [-torch.arange(part.num_heads) for part in parts],
        "ffn": [-torch.arange(part.num_neurons) for part in parts],
        "hidden": [-torch.arange(stream(made.model).width)],
    }


def _best(scores: torch.Tensor, count: int) -> list[int]:
    order = torch.argsort(scores, descending=True, stable=True)
    best: list[int] = order[:count].sort().values.tolist()
    return best
