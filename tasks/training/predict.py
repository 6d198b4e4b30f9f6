"""A model's logits for many texts, in PyTorch."""

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.bundle import Bundle
from tasks.training.batches import Encoded, Examples


def logits(
    bundle: Bundle,
    examples: Examples,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Return float32 logits (examples, labels), in the order given.

    `device` None: where the model is. How texts share batches changes float noise alone.
    """
    return encoded_logits(
        bundle.model, Encoded(examples, bundle.tokenizer, bundle.max_length), batch_size, device
    )


def encoded_logits(
    model: PreTrainedModel,
    encoded: Encoded,
    batch_size: int,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Return float32 logits (examples, labels) of texts that are tokenized already."""
    device = torch.device(device) if device is not None else next(model.parameters()).device
    was_training = model.training
    model.to(device).eval()
    result = np.zeros((len(encoded), model.config.num_labels), dtype=np.float32)
    with torch.inference_mode():
        for indices in encoded.ordered(batch_size):
            batch = encoded.batch(indices)
            output = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            )
            result[indices] = output.logits.float().cpu().numpy()
    model.train(was_training)
    return result
