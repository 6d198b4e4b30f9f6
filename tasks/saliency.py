"""How much the loss depends on a single weight, to first order.

Setting a weight w to zero changes the loss of a batch by −w·∂L/∂w, to first order in w. Its score
is the size of that change, added up over batches b:

    I(w) = Σ_b |w · ∂L_b/∂w|,    L_b = Σ_{x in b} cross-entropy of x

(Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
eq. 7, there for activations; 2019, "Importance Estimation for Neural Network Pruning", section 3,
for weights, which squares where this takes absolute values.) Within a batch gradients of unlike
sign cancel: near a minimum those of all examples together are close to zero, so that small
batches tell more than large ones. With one example a batch nothing cancels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.training.batches import UNLABELLED, Encoded, Examples


def taylor(
    bundle: Bundle,
    names: Sequence[str],
    examples: Examples,
    device: torch.device,
    batch_size: int = 16,
) -> dict[str, torch.Tensor]:
    """Return the first-order score of every weight of the parameters `names`, float32.

    Without dropout. The model is moved to `device`, where the scores are too, and not changed.
    Raises TechniqueError where no example has a label or a score is no number.
    """
    if not (examples.labels != UNLABELLED).any():
        raise TechniqueError("no training text has a label, so no loss has a gradient: add some")
    model = bundle.model.to(device).eval()
    weights = [model.get_parameter(name) for name in names]
    scores = [torch.zeros_like(w, dtype=torch.float32, requires_grad=False) for w in weights]
    encoded = Encoded(examples, bundle.tokenizer, bundle.max_length)
    for indices in encoded.ordered(batch_size):
        batch = {k: v.to(device) for k, v in encoded.batch(indices).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        loss = F.cross_entropy(logits, batch["labels"], ignore_index=UNLABELLED, reduction="sum")
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for weight, total, gradient in zip(weights, scores, gradients, strict=True):
            if gradient is not None:
                total += (gradient * weight.detach()).abs_()
    if not all(torch.isfinite(score).all() for score in scores):
        raise TechniqueError(
            "the model's gradients are not numbers: the training before this step went wrong; "
            "lower its `learning_rate`"
        )
    return dict(zip(names, scores, strict=True))
