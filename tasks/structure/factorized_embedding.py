"""Write the token table as a product of two narrow matrices.

    E (V × H) ≈ T·P,    T = E·V_r (V × r),    P = V_rᵀ (r × H)

V_r holds the first r right singular vectors of E, so that T·P is the truncated singular value
decomposition, the nearest matrix of rank r there is: ‖E − T·P‖² = Σ_{i>r} σ_i² (Eckart and Young
1936). The form is ALBERT's (Lan et al. 2020, "ALBERT: A Lite BERT", section 3.1), got from a
trained table instead of trained from the start. V_r are the eigenvectors of EᵀE, which is H × H:
the large table is read once and copied never.

Applies to every model whose token table is a plain one: encoders, decoders, the LSTM. Nothing is
trained and no data is read; what the cut costs, a distillation after it wins back. The table is a
matter of size: looking up rows costs no time, and one small product comes on top.
"""

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks import replacements
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.frozen import Frozen
from tasks.replacements import FactorizedEmbedding
from tasks.technique import Context

READS_DATA = False
_BLOCK = 4096
"""Rows that are turned to float64 at a time."""

EFFECT = "parameters"
LEAVES = ("factorized embeddings",)
REFUSES = ("factorized embeddings", "pruned embeddings")
NOTE = "structure.factorized_embedding"


class Config(Frozen):
    """How much of the table stays: a rank, or a share of its energy."""

    rank: int | None = Field(default=None, ge=1)
    """Numbers a token's row keeps."""
    energy: float | None = Field(default=None, gt=0, lt=1)
    """Instead of a rank: the smallest whose squared singular values make this share of all."""

    @model_validator(mode="after")
    def _one_way(self) -> "Config":
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give `rank` or `energy`, one of them")
        return self


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with its token table factorized.

    Raises TechniqueError where the table is factorized or pruned already, or where the two factors
    would be no smaller than the table.
    """
    whole = bundle.model.get_input_embeddings()
    path = replacements.path_of(bundle.model, whole)
    if not isinstance(whole, nn.Embedding):
        raise TechniqueError(
            "the token table is factorized already: leave one `structure.factorized_embedding` in "
            "the recipe"
        )
    if f"{path}.weight" in bundle.sparse:
        raise TechniqueError(
            "the token table has pruned weights, which two factors cannot keep at zero: factorize "
            "before pruning, or prune with `embeddings: false`"
        )
    values, vectors = spectrum(whole.weight)
    rank = config.rank or rank_for(values, config.energy or 1.0)
    _require_smaller(whole, rank)
    factorized = factorize(whole, vectors[:, :rank])
    pressed = bundle.copy()
    replacements.put(pressed.model, path, factorized)
    kept = float(values[:rank].sum() / values.sum())
    pressed.notes = {
        **bundle.notes,
        NOTE: f"rank {rank} of {len(values)} keeps {kept:.1%} of the token table's energy",
    }
    return pressed


def _require_smaller(whole: nn.Embedding, rank: int) -> None:
    rows, width = whole.weight.shape
    if rank * (rows + width) >= rows * width:
        most = (rows * width - 1) // (rows + width)
        raise TechniqueError(
            f"the table of {rows} × {width} would be no smaller at rank {rank}: ask for a rank of "
            f"{most} at most, or for less energy"
        )


@torch.no_grad()
def spectrum(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared singular values (H,), largest first, and right vectors (H, H), float64."""
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for rows in torch.split(weight.detach().cpu(), _BLOCK):
        exact = rows.double()
        gram += exact.T @ exact
    values, vectors = torch.linalg.eigh(gram)  # ascending
    return values.flip(0).clamp(min=0), vectors.flip(1)


def rank_for(values: torch.Tensor, energy: float) -> int:
    """Return the smallest rank whose part of the squared singular values is at least `energy`."""
    share = values.cumsum(0) / values.sum()
    return min(int((share < energy).sum()) + 1, len(values))


@torch.no_grad()
def factorize(whole: nn.Embedding, vectors: torch.Tensor) -> FactorizedEmbedding:
    """Return `whole` projected onto the columns of `vectors` (H, r)."""
    rows, width = whole.weight.shape
    made = FactorizedEmbedding(rows, vectors.shape[1], width, whole.padding_idx)
    made.to(device=whole.weight.device, dtype=whole.weight.dtype)
    basis = vectors.to(whole.weight.device)
    for start in range(0, rows, _BLOCK):
        part = slice(start, start + _BLOCK)
        made.table.weight[part] = (whole.weight[part].double() @ basis).to(whole.weight.dtype)
    made.projection.weight.copy_(basis)
    return made.train(whole.training)
