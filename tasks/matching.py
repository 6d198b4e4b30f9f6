"""How far a student's hidden states and attention are from a teacher's, on the same tokens.

What the attention projections give is watched while a model runs, whatever its implementation of
attention; padding counts nowhere. Every distance is of one text, and its mean over the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks import model_parts
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.training.batches import Encoded, Examples, unlabelled

_COMPARED = 64
"""Training texts on which two tokenizers are compared."""


@dataclass(frozen=True)
class Attention:
    """The attention of one layer."""

    projections: tuple[nn.Module, ...]
    """Query, key, value, or one that gives the three side by side."""
    num_heads: int
    head_size: int
    causal: bool
    """Whether a token sees those before it alone."""

    @property
    def width(self) -> int:
        """Width of the queries, the keys and the values: heads × head size."""
        return self.num_heads * self.head_size


@dataclass(frozen=True)
class Seen:
    """What one layer's projections gave: (batch, tokens, width) each."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def attentions(model: PreTrainedModel) -> list[Attention]:
    """Return the attention of every layer, first to last; a shared one stands in each place.

    Raises TechniqueError where the architecture is unknown, or its matrices are packed.
    """
    if model.config.model_type == "albert":
        return _of_albert(model)
    try:
        model_parts.layer_list(model)
    except TechniqueError as error:
        raise TechniqueError(
            f"the attention of a model of type `{model.config.model_type}` is not known, so that "
            "it cannot be matched: learn answers alone with `distillation.logits`"
        ) from error
    parts = model_parts.layers(model)
    return [
        Attention(
            part.projections,
            part.num_heads,
            part.head_size,
            bool(getattr(part.attention, "is_causal", False)),
        )
        for part in parts
    ]


def _of_albert(model: PreTrainedModel) -> list[Attention]:
    config, groups = model.config, model.base_model.encoder.albert_layer_groups
    if config.inner_group_num != 1:
        raise TechniqueError(
            f"hidden states of an ALBERT of {config.inner_group_num} layers a group cannot be "
            "matched layer by layer: take one with `inner_group_num` 1"
        )
    found = []
    for place in range(config.num_hidden_layers):
        group = groups[place * len(groups) // config.num_hidden_layers]
        layer = group.albert_layers[0].attention
        model_parts.require_matrices((layer.query, layer.key, layer.value))
        found.append(
            Attention(
                (layer.query, layer.key, layer.value),
                layer.num_attention_heads,
                layer.attention_head_size,
                causal=False,
            )
        )
    return found


class Watch:
    """Keeps what the projections of a model's attention gave in its last run, while entered."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.base_model
        self.layers = attentions(model)
        self._given: dict[int, list[torch.Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Watch":
        """Begin."""
        watched = {id(m): m for layer in self.layers for m in layer.projections}
        self._hooks = [self.model.register_forward_pre_hook(lambda *_: self.forget())]
        self._hooks += [m.register_forward_hook(self._keep) for m in watched.values()]
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        for hook in self._hooks:
            hook.remove()
        self.forget()

    def forget(self) -> None:
        """Let go of what was kept."""
        self._given.clear()

    def _keep(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._given.setdefault(id(module), []).append(output)

    def seen(self, place: int) -> Seen:
        """Return what the layer at `place` gave."""
        layer = self.layers[place]
        run = sum(other.projections == layer.projections for other in self.layers[:place])
        given = [self._given[id(module)][run].float() for module in layer.projections]
        return Seen(*(given if len(given) == 3 else given[0].chunk(3, dim=-1)))


def hidden_distance(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared difference of hidden states (batch, tokens, width).

    TinyBERT (Jiao et al. 2020), eq. 8 and 9: of one text MSE(H_S·W, H_T); the student's are
    projected already. `mask` is (batch, tokens).
    """
    return _mean((student.float() - teacher.float()).square().mean(dim=-1), mask)


def attention_distance(
    student: Seen, teacher: Seen, num_heads: int, mask: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """Return the mean squared difference of attention scores before the softmax.

    TinyBERT (Jiao et al. 2020), eq. 7: (1/h)·Σ_i MSE(A_i of the student, A_i of the teacher) over
    the h heads, A = Q·Kᵀ/√d. A token's padding neighbours do not count, nor, where `causal`, those
    after it.
    """
    mine = _scores(student.query, student.key, num_heads)
    theirs = _scores(teacher.query, teacher.key, num_heads)
    pairs = mask[:, :, None] * mask[:, None, :]
    if causal:
        pairs = pairs.tril()
    return _mean((mine - theirs).square().mean(dim=1), pairs)


def relation_distance(
    student: torch.Tensor, teacher: torch.Tensor, num_heads: int, mask: torch.Tensor
) -> torch.Tensor:
    """Return how far the relations among a student's vectors are from those among a teacher's.

    MiniLMv2 (Wang et al. 2021), eq. 4 to 6: (1/(A·|x|))·Σ_a Σ_t KL(R_T,a,t ∥ R_S,a,t), with
    R = softmax(V·Vᵀ/√d) of the queries, keys or values V (batch, tokens, width), which are split
    anew into A = `num_heads` relation heads, so that widths and heads may differ.
    """
    away = (mask == 0)[:, None, None, :]
    log_q, log_p = (
        _scores(vectors, vectors, num_heads)
        .masked_fill(away, -torch.inf)
        .log_softmax(dim=-1)
        .masked_fill(away, 0.0)  # their difference is none, not ∞ − ∞
        for vectors in (student.float(), teacher.float())
    )
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return _mean(divergence.mean(dim=1), mask)


def _scores(one: torch.Tensor, other: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return scaled products (batch, heads, tokens, tokens) of vectors (batch, tokens, width)."""
    rows, columns = (
        vectors.view(*vectors.shape[:2], num_heads, -1).transpose(1, 2) for vectors in (one, other)
    )
    products: torch.Tensor = rows @ columns.transpose(2, 3) / rows.shape[-1] ** 0.5
    return products


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean, over the texts, of a text's own mean where its mask is 1."""
    mask = mask.to(values.dtype)
    rest = tuple(range(1, mask.dim()))
    return ((values * mask).sum(dim=rest) / mask.sum(dim=rest)).mean()


def spread(num_student: int, num_teacher: int) -> tuple[tuple[int, int], ...]:
    """Return for each layer of the student the teacher's that ends the same share of its depth.

    TinyBERT's uniform map g(m) = m·N/M, counted from 0 here and rounded up.
    """
    return tuple((m, -(-(m + 1) * num_teacher // num_student) - 1) for m in range(num_student))


def relation_heads(widths: Sequence[int], most: int) -> int:
    """Return the largest number of heads up to `most` that divides all `widths`."""
    return max(n for n in range(1, most + 1) if all(width % n == 0 for width in widths))


def check_tokens(taught: Bundle, teacher: Bundle, name: str, examples: Examples) -> None:
    """Raise TechniqueError unless the teacher can read the student's tokens as its own."""
    sample = list(examples.texts[:_COMPARED])
    ours, theirs = (
        Encoded(unlabelled(sample), b.tokenizer, taught.max_length).ids for b in (taught, teacher)
    )
    if ours != theirs or taught.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise TechniqueError(
            f"teacher `{name}` has another tokenizer than the student, and hidden states are "
            "matched token by token: name a teacher of the same base model, or learn its answers "
            "alone with `distillation.logits`"
        )
    if teacher.max_length < taught.max_length:
        raise TechniqueError(
            f"teacher `{name}` reads {teacher.max_length} tokens of a text, the student "
            f"{taught.max_length}: name a teacher that reads as many"
        )


def check_widths(taught: Bundle, teacher: Bundle, name: str) -> None:
    """Raise TechniqueError unless hidden states of both can be compared as they are."""
    mine, master = (
        model_parts.num_inputs(attentions(b.model)[0].projections[0]) for b in (taught, teacher)
    )
    if mine != master:
        raise TechniqueError(
            f"hidden states are {mine} wide, those of teacher `{name}` {master}: set `hidden: 0`, "
            "or let `distillation.hidden_states` project them"
        )
