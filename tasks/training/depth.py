"""Where in the depth of a model its parameters lie, whatever its architecture.

Layers are the members of the model's lists of modules, the outermost ones: what comes before them
in the model are its embeddings, what comes after them its head. Of lists that run side by side
(an LSTM's two directions) members of one place are of one depth.
"""

from torch import nn


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of layers by their paths, those within another left out."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        # exactly a list: torch's parametrizations are lists of another kind
        if type(module) is nn.ModuleList and not any(path.startswith(f"{p}.") for p in found):
            found[path] = module
    return found


def layer_rates(model: nn.Module, decay: float) -> dict[str, float]:
    """Return name → factor of the learning rate: `decay` to the power of the layers above.

    1 for the head, `decay` for the last of L layers, `decay`^L for the first and `decay`^(L + 1)
    for the embeddings (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text
    Classification", section 3.2: from layer to layer η^(l−1) = η^l / 2.6; Clark et al. 2020,
    "ELECTRA", appendix B).
    """
    lists = stacks(model)
    num_layers = max(map(len, lists.values()), default=0)
    tables = {
        name
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for name in (f"{path}.{leaf}" for leaf, _ in module.named_parameters())
    }
    rates, below = {}, True
    for name, _ in model.named_parameters():
        place = _place(name, lists)
        below = below and place is None
        if place is None:
            above = num_layers + 1 if below or name in tables else 0
        else:
            above = num_layers - place
        rates[name] = decay**above
    return rates


def _place(name: str, lists: dict[str, nn.ModuleList]) -> int | None:
    """Return which layer a parameter belongs to; None where to none."""
    for path in lists:
        if name.startswith(f"{path}."):
            return int(name.removeprefix(f"{path}.").partition(".")[0])
    return None
