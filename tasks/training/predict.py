"""A model's logits for many texts, in PyTorch."""

import numpy as np
import torch

from tasks.bundle import Bundle
from tasks.training.batches import Encoded, Examples


def logits(
    bundle: Bundle,
    examples: Examples,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Return float32 logits (examples, labels), in the order given."""
    return encoded_logits(
        bundle.model, Encoded(examples, bundle.tokenizer, bundle.max_length), batch_size, device
    )


def encoded_logits(
    model: torch.nn.Module,
    encoded: Encoded,
    batch_size: int,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Return float32 logits (examples, labels) of texts that are tokenized already."""
    device = torch.device(device) if device is not None else next(model.parameters()).device
    was_training = model.training
    model.to(device).eval()
    found: list[np.ndarray] = []
    order: list[np.ndarray] = []
    with torch.inference_mode():
        for indices in encoded.ordered(batch_size):
            batch = encoded.batch(indices)
            output = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            )
            found.append(output.logits.float().cpu().numpy())
            order.append(indices)
    model.train(was_training)
    answers = np.concatenate(found)
    result = np.empty_like(answers)
    result[np.concatenate(order)] = answers
    return result
