"""Put a cheaper function in the place of GELU, and train the model to live with it.

    relu:        max(x, 0)
    quadratic:   a·x² + b·x + c

GELU(x) = x·Φ(x) (Hendrycks and Gimpel 2016) takes an error function or a tanh for each value. ReLU
takes a comparison, and gives zeros (Mirzadeh et al. 2023, "ReLU Strikes Back"). The quadratic takes
two products and two sums and no comparison, as inference on encrypted values wants it (MPCFormer:
Li et al. 2023, with a = 0.125, b = 0.25, c = 0.5). Here a, b and c are fitted, for each layer by
itself, by least squares to what its GELU gives on training texts,

    min Σ (a·x² + b·x + c − GELU(x))²,

and learned on with all other weights. A quadratic grows without bound where few x were seen, so the
training afterwards is no luxury.

Applies to every Transformer with GELU, whatever its form: BERT and its kin, DistilBERT, MPNet,
ALBERT, GPT-2. This runtime fuses bias and GELU into one operator: replacing it need not be faster
here, and the measurement tells.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers.activations import ACT2FN

from tasks import replacements, retraining
from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.replacements import Quadratic, Relu, Replacement
from tasks.retraining import Retraining
from tasks.technique import Context
from tasks.training.batches import Encoded, Examples

EFFECT = "activation"
LEAVES = ("no GELU",)
REFUSES = ("recurrent layers", "no GELU")
_SETTINGS = ("hidden_act", "activation", "activation_function")
"""What configurations call it: BERT and most, DistilBERT, GPT-2."""
_BATCH = 32


class Config(Retraining):
    """Which function takes GELU's place."""

    function: Literal["relu", "quadratic"]
    """The new activation."""
    fit_examples: int = Field(default=256, ge=1)
    """Training texts that a quadratic is first fitted on."""


def apply(bundle: Bundle, config: Config, context: Context) -> Bundle:
    """Return the bundle with every GELU replaced, retrained.

    Raises TechniqueError where the model has no GELU, there are no texts to fit a polynomial to, or
    the teacher knows other labels.
    """
    places = gelus(bundle.model)
    if not places:
        raise TechniqueError(
            f"the model, of type `{bundle.model.config.model_type}`, has no GELU to replace: leave "
            "`structure.activation` out"
        )
    if config.function == "quadratic" and len(context.train) == 0:
        raise TechniqueError(
            "there are no training texts to fit the polynomials to: give more data, or set "
            "`function: relu`"
        )
    train = retraining.prepare(bundle.labels, config, context)
    pressed = bundle.copy()
    made: dict[str, Replacement] = {path: Relu() for path in places}
    if config.function == "quadratic":
        texts = context.train.sample(config.fit_examples, context.seed)
        made = {**fitted(pressed, places, texts, context.device)}
    for path, module in made.items():
        replacements.put(pressed.model, path, module)
    _tell(pressed.model, config.function)
    train(pressed)
    return pressed


def gelus(model: nn.Module) -> list[str]:
    """Return the paths of all modules that compute a form of GELU."""
    kinds = tuple({type(ACT2FN[name]) for name in ACT2FN if "gelu" in name} | {nn.GELU})
    return [path for path, module in model.named_modules() if isinstance(module, kinds)]


def fitted(
    bundle: Bundle, places: list[str], examples: Examples, device: torch.device
) -> dict[str, Quadratic]:
    """Return the quadratic nearest to each GELU at `places`, over the values that it is given.

    The model is moved to `device` and not changed; padding is left out.
    """
    model = bundle.model.to(device).eval()
    sums = {path: _Sums(device) for path in places}
    mask = torch.ones(0)

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given, got = inputs[0], output
            if given.dim() == 3:
                given, got = given[mask], got[mask]
            sums[path].add(given, got)

        return hook

    hooks = [model.get_submodule(p).register_forward_hook(watch(p)) for p in places]
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    with torch.inference_mode():
        for indices in encoded.ordered(_BATCH):
            batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
            mask = batch["attention_mask"].bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    return {path: sums[path].quadratic() for path in places}


class _Sums:
    """The normal equations of one least-squares fit by 1, x, x², in float64."""

    def __init__(self, device: torch.device) -> None:
        self.products = torch.zeros(3, 3, dtype=torch.float64, device=device)
        self.targets = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, given: torch.Tensor, got: torch.Tensor) -> None:
        """Take in values x and what GELU made of them."""
        x, y = given.flatten().double(), got.flatten().double()
        powers = torch.stack([torch.ones_like(x), x, x * x])
        self.products += powers @ powers.T
        self.targets += powers @ y

    def quadratic(self) -> Quadratic:
        """Return the solution; of shortest length where the values leave several."""
        solution = torch.linalg.pinv(self.products, hermitian=True) @ self.targets
        made = Quadratic()
        with torch.no_grad():
            for parameter, value in zip(
                (made.offset, made.slope, made.square), solution, strict=True
            ):
                parameter.copy_(value)
        return made


def _tell(model: Any, function: str) -> None:
    """Let the configuration name the function, so that a fresh model is built with it."""
    for name in _SETTINGS:
        if hasattr(model.config, name):
            setattr(model.config, name, function)
