"""Modules that stand in place of a model's own, and what a bundle must record to build them again.

Each has a `kind` and `arguments` that fit in JSON: a saved model that holds one is rebuilt from
those before its weights are read, with no guess and no pickle.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

KINDS: dict[str, type["Replacement"]] = {}
"""By their `kind`."""


class Replacement(nn.Module):
    """Base of the modules that a bundle can rebuild: `type(m)(**m.arguments())`, then weights."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Let bundles rebuild modules of a class that has a `kind`."""
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    def arguments(self) -> dict[str, Any]:
        """Return what the constructor needs, as it is now."""
        return {}

    @property
    def num_packed(self) -> int:
        """How many of its weights are no parameters, since they are packed."""
        return 0


class FactorizedEmbedding(Replacement):
    """A token table of rank r: rows of r numbers, and one matrix that widens them."""

    kind = "factorized_embedding"

    def __init__(
        self, num_embeddings: int, rank: int, width: int, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(num_embeddings, rank, padding_idx=padding_idx)
        self.projection = nn.Linear(rank, width, bias=False)

    def arguments(self) -> dict[str, Any]:
        """Return the widths."""
        return {
            "num_embeddings": self.table.num_embeddings,
            "rank": self.table.embedding_dim,
            "width": self.projection.out_features,
            "padding_idx": self.table.padding_idx,
        }

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (…, width) for ids (…)."""
        widened: torch.Tensor = self.projection(self.table(input_ids))
        return widened


class Relu(Replacement):
    """max(x, 0)."""

    kind = "relu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return values of the same shape."""
        return torch.relu(x)


class Quadratic(Replacement):
    """square·x² + slope·x + offset, the three learned.

    They begin as MPCFormer's (Li et al. 2023): 0.125·x² + 0.25·x + 0.5.
    """

    kind = "quadratic"

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.tensor(0.125))
        self.slope = nn.Parameter(torch.tensor(0.25))
        self.offset = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return values of the same shape."""
        return (self.square * x + self.slope) * x + self.offset


ACT2FN[Quadratic.kind] = Quadratic  # so that a configuration can name it as its activation


def found(model: nn.Module) -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, kind and arguments of every replacement in `model`."""
    return [
        (path, module.kind, module.arguments())
        for path, module in model.named_modules()
        if isinstance(module, Replacement)
    ]


def num_parameters(model: nn.Module) -> int:
    """Return how many parameters a model has, tied ones counted once and packed ones too."""
    packed = sum(m.num_packed for m in model.modules() if isinstance(m, Replacement))
    return packed + sum(p.numel() for p in model.parameters())


def put(model: nn.Module, path: str, part: nn.Module | nn.Parameter) -> None:
    """Set the module or parameter at `path`, in place."""
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, part)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return where `module` lies in `model`."""
    paths: dict[int, str] = {id(other): path for path, other in model.named_modules()}
    return paths[id(module)]


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """Return the table that has one row a token, whatever widens its rows afterwards."""
    embeddings = model.get_input_embeddings()
    table = embeddings.table if isinstance(embeddings, FactorizedEmbedding) else embeddings
    assert isinstance(table, nn.Embedding)
    return table
