"""The parts of a Transformer classifier that can be removed: layers, heads, FFN neurons.

Known: BERT and its kin, DistilBERT, MPNet, GPT-2. What is cut keeps its parameters' names; the
model's `config` keeps the widths that it was built with, and `tasks.bundle` records the real ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.errors import TechniqueError


@dataclass(frozen=True)
class _Family:
    """Where an architecture keeps its parts; paths are relative to the base model or the layer."""

    layers: str
    attention: str
    """The module that holds the head count."""
    projections: tuple[str, ...]
    """Query, key, value, or one that holds the three side by side; relative to `attention`."""
    attention_output: str
    ffn_input: str
    ffn_output: str
    heads: str = "num_attention_heads"
    head_size: str = "attention_head_size"
    width: str | None = "all_head_size"
    """The attribute that holds heads × head size, where one follows the heads."""
    cuts_heads: bool = True
    norms: tuple[str, ...] = ("attention.output.LayerNorm", "output.LayerNorm")
    """The norms that end the two halves of a layer; empty where they begin them instead."""


_BERT = _Family(
    "encoder.layer", "attention.self", ("query", "key", "value"),
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
_DISTILBERT = _Family(
    "transformer.layer", "attention", ("q_lin", "k_lin", "v_lin"),
    "attention.out_lin", "ffn.lin1", "ffn.lin2", heads="n_heads", width="dim",
    norms=("sa_layer_norm", "output_layer_norm"),
)  # fmt: skip
_MPNET = _Family(
    "encoder.layer", "attention.attn", ("q", "k", "v"),
    "attention.attn.o", "intermediate.dense", "output.dense",
    cuts_heads=False,  # its relative position bias is shared: one value a head for all layers
    norms=("attention.LayerNorm", "output.LayerNorm"),
)  # fmt: skip
_GPT2 = _Family(
    "h", "attn", ("c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    heads="num_heads", head_size="head_dim", width="split_size", norms=(),
)  # fmt: skip
_FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "gpt2": _GPT2,
}


@dataclass(frozen=True)
class Layer:
    """One Transformer layer and the modules in which its widths live."""

    name: str
    """Its path in the whole model."""
    attention: nn.Module
    projections: tuple[nn.Module, ...]
    attention_output: nn.Module
    ffn_input: nn.Module
    ffn_output: nn.Module
    norms: tuple[nn.Module, ...]
    """Those that end its two halves; empty where they begin them instead (GPT-2)."""
    family: _Family

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return int(getattr(self.attention, self.family.heads))

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return int(getattr(self.attention, self.family.head_size))

    @property
    def num_neurons(self) -> int:
        """Width of the feed-forward network."""
        return num_inputs(self.ffn_output)

    def head_weights(self) -> list[torch.Tensor]:
        """Return views (heads, …) of all parameters that `keep_heads` cuts, biases with them."""
        fused = num_outputs(self.projections[0]) // (self.num_heads * self.head_size)
        found = [_by_inputs(self.attention_output, self.num_heads)]
        for projection in self.projections:
            found += _by_outputs(projection, fused, self.num_heads)
        return found

    def neuron_weights(self) -> list[torch.Tensor]:
        """Return views (neurons, …) of all parameters that `keep_neurons` cuts."""
        outputs = _by_outputs(self.ffn_input, 1, self.num_neurons)
        return [_by_inputs(self.ffn_output, self.num_neurons), *outputs]

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Remove all heads but `heads`, in place; one named again is there again."""
        assert self.family.cuts_heads
        assert heads
        size = self.head_size
        columns = torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])
        fused = num_outputs(self.projections[0]) // (self.num_heads * size)
        width = self.num_heads * size
        for projection in self.projections:
            keep_outputs(projection, torch.cat([columns + i * width for i in range(fused)]))
        keep_inputs(self.attention_output, columns)
        setattr(self.attention, self.family.heads, len(heads))
        if self.family.width is not None:
            setattr(self.attention, self.family.width, len(columns))

    def keep_neurons(self, neurons: Sequence[int]) -> None:
        """Remove all neurons of the feed-forward network but `neurons`, in place.

        One named again is there again.
        """
        assert neurons
        index = torch.as_tensor(neurons)
        keep_outputs(self.ffn_input, index)
        keep_inputs(self.ffn_output, index)


def is_linear(module: nn.Module) -> bool:
    """Tell whether `module` is a matrix with a bias: torch's Linear or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def num_inputs(module: nn.Module) -> int:
    """Return how many values a linear module takes."""
    assert isinstance(module.weight, nn.Parameter)
    return module.weight.shape[0 if isinstance(module, Conv1D) else 1]


def num_outputs(module: nn.Module) -> int:
    """Return how many values a linear module gives."""
    assert isinstance(module.weight, nn.Parameter)
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of the model's layers.

    Raises TechniqueError where the architecture is unknown or shares one layer's weights.
    """
    kind = model.config.model_type
    if kind not in _FAMILIES:
        shared = " (its layers share one set of weights)" if kind == "albert" else ""
        raise TechniqueError(
            f"a model of type `{kind}` cannot be cut, grown or tied{shared}; known are "
            f"{', '.join(_FAMILIES)}"
        )
    path = f"{model.base_model_prefix}.{_FAMILIES[kind].layers}"
    found = model.get_submodule(path)
    assert isinstance(found, nn.ModuleList)
    return path, found


def layers(model: PreTrainedModel) -> list[Layer]:
    """Return the model's layers with their parts, first to last.

    Raises TechniqueError where the architecture is unknown, or matrices are packed.
    """
    path, found = layer_list(model)
    family = _FAMILIES[model.config.model_type]
    parts = []
    for index, module in enumerate(found):
        attention = module.get_submodule(family.attention)
        parts.append(
            Layer(
                name=f"{path}.{index}",
                attention=attention,
                projections=tuple(attention.get_submodule(p) for p in family.projections),
                attention_output=module.get_submodule(family.attention_output),
                ffn_input=module.get_submodule(family.ffn_input),
                ffn_output=module.get_submodule(family.ffn_output),
                norms=tuple(module.get_submodule(norm) for norm in family.norms),
                family=family,
            )
        )
        part = parts[-1]
        require_matrices(
            (*part.projections, part.attention_output, part.ffn_input, part.ffn_output)
        )
    return parts


def cuts_heads(model: PreTrainedModel) -> bool:
    """Tell whether heads can be removed from a model whose layers are known."""
    return _FAMILIES[model.config.model_type].cuts_heads


def spread(count: int, num_layers: int) -> list[int]:
    """Return `count` of the layers, evenly over the depth: the first and, of several, the last."""
    if count == 1:
        return [0]
    return [round(i * (num_layers - 1) / (count - 1)) for i in range(count)]


def keep_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """Remove all layers but `keep` (ascending), in place.

    Each layer still computes what it did: an attention scale that depends on the layer's old
    place stays.
    """
    _, found = layer_list(model)
    kept = [found[i] for i in keep]
    del found[:]
    found.extend(kept)
    _number(model, found)


def insert_layer(model: PreTrainedModel, place: int, layer: nn.Module) -> None:
    """Make `layer` the one at `place`, in place; the later ones move up by one."""
    _, found = layer_list(model)
    found.insert(place, layer)
    _number(model, found)


def _number(model: PreTrainedModel, found: nn.ModuleList) -> None:
    for index, layer in enumerate(found):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    model.config.num_hidden_layers = len(found)


def tied(model: nn.Module) -> list[list[str]]:
    """Return the names of every parameter that has several, each group sorted."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)


def every_name(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` of parameters, and the others that those have where they are tied."""
    others = {name: group for group in tied(model) for name in group}
    return tuple(dict.fromkeys(each for name in names for each in others.get(name, [name])))


def require_matrices(modules: Iterable[nn.Module]) -> None:
    """Raise TechniqueError where one of a layer's linear modules is packed into few bits."""
    if not all(is_linear(module) for module in modules):
        raise TechniqueError(
            "the matrices of the layers are packed in few bits, and can neither be cut nor "
            "compared: take the model as it was before its quantization"
        )


def require_untied(model: nn.Module) -> None:
    """Raise TechniqueError where a matrix has several places: cutting at one would part them."""
    groups = tied(model)
    if groups:
        raise TechniqueError(
            f"{' and '.join(groups[0][:2])} are one matrix, which cannot change its widths in one "
            "place: put `structure.weight_sharing` behind this step"
        )


def renamed(names: Sequence[str], path: str, keep: Sequence[int]) -> tuple[str, ...]:
    """Return the parameters `names` as they are called once `keep_layers` has kept `keep`.

    `path` is the list's, as `layer_list` gives it; parameters of dropped layers are left out.
    """
    place = {old: new for new, old in enumerate(keep)}
    found = []
    for name in names:
        if not name.startswith(f"{path}."):
            found.append(name)
            continue
        old, _, rest = name.removeprefix(f"{path}.").partition(".")
        if int(old) in place:
            found.append(f"{path}.{place[int(old)]}.{rest}")
    return tuple(found)


def _by_outputs(module: nn.Module, fused: int, count: int) -> list[torch.Tensor]:
    """Return views (count, …) of a linear module's weights and bias by groups of its outputs.

    Of `fused` modules that lie side by side in this one, a group has the outputs of each.
    """
    axis = 1 if isinstance(module, Conv1D) else 0
    found = [_apart(module.weight, axis, fused, count).movedim(axis + 1, 0)]
    if module.bias is not None:
        found.append(_apart(module.bias, 0, fused, count).movedim(1, 0))
    return found


def _by_inputs(module: nn.Module, count: int) -> torch.Tensor:
    """Return a view (count, …) of a linear module's weights by groups of its inputs."""
    axis = 0 if isinstance(module, Conv1D) else 1
    return _apart(module.weight, axis, count).movedim(axis, 0)


def _apart(parameter: Any, axis: int, *sizes: int) -> torch.Tensor:
    """Return a view of `parameter` in which `axis` is divided into `sizes` and the rest."""
    shape = parameter.shape
    view: torch.Tensor = parameter.detach().view(*shape[:axis], *sizes, -1, *shape[axis + 1 :])
    return view


def keep_outputs(module: nn.Module, index: torch.Tensor) -> None:
    """Remove all outputs of a linear module but those at `index`, in place."""
    keep_entries(module, "weight", index, dim=1 if isinstance(module, Conv1D) else 0)
    if module.bias is not None:
        keep_entries(module, "bias", index, dim=0)
    setattr(module, "nf" if isinstance(module, Conv1D) else "out_features", len(index))


def keep_inputs(module: nn.Module, index: torch.Tensor) -> None:
    """Remove all inputs of a linear module but those at `index`, in place."""
    keep_entries(module, "weight", index, dim=0 if isinstance(module, Conv1D) else 1)
    setattr(module, "nx" if isinstance(module, Conv1D) else "in_features", len(index))


def keep_entries(module: nn.Module, leaf: str, index: torch.Tensor, dim: int) -> None:
    """Replace the parameter `leaf` of `module` by its entries at `index` along `dim`."""
    old = getattr(module, leaf)
    kept = old.detach().index_select(dim, index.to(old.device)).contiguous()
    setattr(module, leaf, nn.Parameter(kept, requires_grad=old.requires_grad))
