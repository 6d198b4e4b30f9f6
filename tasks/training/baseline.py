"""The baseline: a base model with a fresh head, fine-tuned; or one that is fine-tuned already."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tasks.bundle import Bundle
from tasks.errors import TechniqueError
from tasks.suggest import nearest
from tasks.technique import Context
from tasks.training.config import BaselineConfig
from tasks.training.loop import FitResult, fit

_PROBE_IDS = (5, 6, 7)


def load_base(folder: Path, labels: tuple[str, ...], config: BaselineConfig) -> Bundle:
    """Return the model in `folder` as a bundle that answers `labels` in their order.

    With `config.train` the head is fresh (seed the generators first); without, the model's own
    labels are mapped by `config.label_map` and must be exactly `labels`. Raises TechniqueError
    where the folder holds no such model, no tokenizer, or other labels.
    """
    with _quiet():
        tokenizer = _tokenizer(folder)
        model = _model(folder, labels, fresh_head=config.train)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise TechniqueError(f"the tokenizer in {folder} has neither padding nor end token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    _check_length(model, config.max_length)
    if not config.train:
        _order_labels(model, labels, config.label_map)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.config.problem_type = "single_label_classification"
    return Bundle(model.float().eval(), tokenizer, labels, config.max_length)


def train(bundle: Bundle, context: Context, config: BaselineConfig) -> tuple[Bundle, FitResult]:
    """Return the bundle fine-tuned on the training split, and what the training did."""
    trained = bundle.copy()
    result = fit(
        trained,
        context.train,
        context.validation,
        config.training,
        seed=context.seed,
        device=context.device,
        scratch=context.scratch,
        progress=context.progress,
    )
    return trained, result


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TechniqueError(
            f"{folder} has no tokenizer that can be loaded; put tokenizer.json beside the weights"
        ) from error
    if not tokenizer.is_fast:
        raise TechniqueError(f"the tokenizer in {folder} has no tokenizer.json (a fast tokenizer)")
    return tokenizer


def _model(folder: Path, labels: tuple[str, ...], *, fresh_head: bool) -> Any:
    head = {"num_labels": len(labels)} if fresh_head else {}
    try:
        model_config = AutoConfig.from_pretrained(folder, local_files_only=True, **head)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=model_config,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=fresh_head,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise TechniqueError(f"{folder} holds no classifier that can be loaded: {line}") from error
    if not fresh_head and loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise TechniqueError(
            f"{folder} is not fine-tuned: it has no weights for {missing}; set `baseline.train: "
            "true` to train a head"
        )
    return model


def _check_length(model: Any, max_length: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from the padding token's number on
    offset = 2 if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    if longest is not None and max_length > longest - offset:
        raise TechniqueError(
            f"`baseline.max_length` is {max_length}, but the model has positions for "
            f"{longest - offset} tokens; set it to {longest - offset} at most"
        )


def _order_labels(model: Any, labels: tuple[str, ...], label_map: dict[str, str]) -> None:
    """Reorder the head's last rows from the model's own labels to `labels`."""
    own = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    mapped = [label_map.get(label, label) for label in own]
    if sorted(mapped) != sorted(labels):
        strange = next((label for label in mapped if label not in labels), mapped[0])
        raise TechniqueError(
            f"the model's labels are {', '.join(own)}, the data's are {', '.join(labels)}; map "
            f"them in `baseline.label_map`{nearest(strange, labels)}"
        )
    order = [mapped.index(label) for label in labels]
    if order == list(range(len(order))):
        return
    probe = torch.tensor([_PROBE_IDS])
    with torch.no_grad():
        before = model.eval()(input_ids=probe).logits
        head = _last_linear(model)
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())
        after = model(input_ids=probe).logits
    if not torch.allclose(before[:, order], after, atol=1e-5):
        raise TechniqueError(
            "the labels of this architecture's head cannot be put into the data's order; list "
            f"`source.labels` in the model's: {', '.join(mapped)}"
        )


def _last_linear(model: Any) -> nn.Linear:
    """Return the layer that gives the logits: the last one of that width."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    if not found:
        raise TechniqueError("the model has no linear layer that gives its logits")
    return found[-1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep load reports off the terminal: that a head is fresh is meant here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()
